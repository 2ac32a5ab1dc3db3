"""Backbones on two small datasets, measured by `linnaeus probe`: each alone, and their concatenated features.

The weights must have been imported (`linnaeus weights import`). Features computed earlier are taken from the cache.

    python experiments/backbones.py [--data DIR] [--work DIR] [--backbones A,B,A+B]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import RESULTS, ROOT, SHARED, write

from linnaeus.probe.run import probe

sys.path.insert(0, str(ROOT / "tests"))

from reference import torchvision

SOURCES = ("flowers16", "food10")
BACKBONES = "timm/tf_efficientnet_lite0,resnet50,timm/tf_efficientnet_lite0+resnet50"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder that holds flowers16 and food10")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "backbones", help="folder for the results")
    parser.add_argument("--backbones", default=BACKBONES)
    options = parser.parse_args()
    torchvision()  # timm imports it
    figures: dict[str, object] = {}
    for source in SOURCES:
        found = probe(options.data / source, options.backbones, out=options.work / source)
        rows = json.loads((found.path / "probe.json").read_text())["backbones"]
        figures[source] = [{key: value for key, value in row.items() if key != "weights"} for row in rows]
        (RESULTS / f"backbones-{source}.png").write_bytes((found.path / "probe.png").read_bytes())
    write("backbones", figures)


if __name__ == "__main__":
    main()
