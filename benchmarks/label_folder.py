"""`linnaeus label` on a folder of many images: seconds to the first image, milliseconds per answer, memory.

The images are made up: JPEG files of 32 x 32 pixels, each of other colors. The server is a process of its own, with
features from colors. It is started twice: at first it has no features, and the second time it finds those of all
images, which are random numbers here. Times are given twice: on the clock, which depends on what else the machine
does, and of its processor.

    OMP_NUM_THREADS=1 python benchmarks/label_folder.py [--images 50000] [--answers 60] [--out docs/results/label.json]

`--out` adds to a file that exists.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linnaeus.label.backbone import colors
from linnaeus.label.features import Features
from linnaeus.label.session import list_images

SIDE = 32
CLASSES = 8


def write_images(folder: Path, n: int) -> None:
    """n images of one of CLASSES colors, with noise, in folders of 1,000."""
    generator = np.random.default_rng(0)
    colors = generator.integers(0, 200, (CLASSES, 3))
    for i in range(n):
        place = folder / f"{i // 1000:03}"
        place.mkdir(exist_ok=True)
        pixels = colors[i % CLASSES] + generator.integers(0, 56, (SIDE, SIDE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:06}.jpg")


class Server:
    """`linnaeus label` of a folder in a process of its own."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-m", "linnaeus", "label", str(folder), "--backbone", "colors", "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("labelling"):
                self.address = line.split()[1]
                return
        raise RuntimeError("the server did not start")

    def call(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Origin": self.address}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers), timeout=600) as reply:
            return reply.read()

    @property
    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def peak_mebibytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def first_page(server: Server) -> int:
    """Load what a browser loads until the first image is seen. Returns its number."""
    server.call("/")
    server.call("/api/state")
    image = json.loads(server.call("/api/next?n=3"))["questions"][0]["image"]
    server.call(f"/image/{image}?side=640")
    return image


def write_features(folder: Path) -> None:
    """Features of all images, as a server stores them."""
    features = Features(folder, list_images(folder), colors())
    generator = np.random.default_rng(0)
    records = np.zeros(len(features.paths), features._layout())
    for i in range(len(records)):
        values = generator.standard_normal(features.backbone.width)
        records[i] = (features._signature(i), generator.integers(1, 2**63, 2, dtype=np.uint64), values)
    features._stored_file().write_bytes(records.tobytes())


def measure(folder: Path, answers: int) -> dict[str, float]:
    """Figures of one server, from its start until it has stored the answers."""
    started = time.perf_counter()
    server = Server(folder)
    try:
        result = {"start": time.perf_counter() - started, "start, processor": server.processor_seconds}
        before, clock = server.processor_seconds, time.perf_counter()
        first_page(server)
        result["first page"] = time.perf_counter() - clock
        result["first page, processor"] = server.processor_seconds - before  # the reading of images included
        waits = []
        for k in range(answers):
            image = json.loads(server.call("/api/next?n=1"))["questions"][0]["image"]
            clock = time.perf_counter()
            server.call("/api/answer", {"images": [image], "label": f"class {image % CLASSES}"})
            waits.append(time.perf_counter() - clock)
            if k % 10 == 0:
                server.call("/api/state")
        result["answer, median"] = float(np.median(waits))
        result["answer, largest"] = max(waits)
        done = json.loads(server.call("/api/state"))["features"]["done"]
        return result | {"images read": done, "peak MiB": server.peak_mebibytes}
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"images": options.images}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        write_images(folder, options.images)
        os.environ["LINNAEUS_CACHE"] = str(Path(place, "cache"))
        for start in ("first", "second"):
            results[start] = measure(folder, options.answers)
            print(start, json.dumps(results[start]), flush=True)
            write_features(folder)
    if options.out is not None:
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        options.out.write_text(json.dumps(known | {"folder": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
