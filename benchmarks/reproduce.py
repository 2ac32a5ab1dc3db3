"""Fingerprints of nine small training runs, to prove that a refactoring changes no result.

    python benchmarks/reproduce.py --out before.json          # on the code as it was
    python benchmarks/reproduce.py --against before.json      # on the code as it is

Each run covers another path: a network from scratch, several phases on stored activations, mixup and EMA, a solved
head with augmented views, two processes. For each run the SHA-256 of `history.csv` (without seconds), `metrics.json`
(without seconds, places and the machine), `predictions.csv` and every tensor of `model.safetensors` is recorded.
Equal fingerprints are expected on one machine only: another processor sums in another order.

Needs the real images in ../shared/data. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "resnet50-v1-imagenet.safetensors"
PLACES = ("seconds", "source", "hardware", "versions", "executors")
"""Keys of metrics.json that say where and how fast, not what."""


def class_folders(target: Path, source: Path, classes: int, images: int) -> Path:
    """A folder with the first `images` of the first `classes` of `source`, by split."""
    for split in ("train", "valid"):
        for folder in sorted((source / split).iterdir())[:classes]:
            (target / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:images]:
                shutil.copy(file, target / split / folder.name)
    return target


def tiny(recipe: str, **more: Any) -> list[str]:
    return ["--recipe", recipe, *(f"--set={key}={json.dumps(value)}" for key, value in more.items())]


def runs(place: Path) -> dict[str, list[str]]:
    """Name -> arguments of `linnaeus train`."""
    flowers = str(class_folders(place / "flowers", SHARED / "flowers16", 4, 24))
    small = {"data.resize": 72, "data.size": 64, "phase.1.batch": 16}
    mixed = place / "mixed.toml"
    mixed.write_text(
        'name = "mixed"\n[model]\nname = "mini_resnet"\n[data]\nresize = 28\nsize = 28\nnormalize = "none"\n'
        'split = { valid = 0.1, test = 0.2 }\n[[phase]]\nepochs = 3\nbatch = 64\noptimizer = "sgd"\nlr = 0.05\n'
        "mixup = 0.4\ncutmix = 0.5\nema = 0.98\nlabel_smoothing = 0.1\nclip = 1.0\nnesterov = true\n"
        'schedule = { name = "cosine", warmup = 1 }\naugment = { trivial_augment = true, erase = 0.3 }\n'
    )
    deep = place / "deep.toml"
    deep.write_text(
        'name = "deep"\n[model]\nname = "resnet50"\nweights = "imagenet"\n[data]\nresize = 72\nsize = 64\n'
        '[[phase]]\ntrain = ["head"]\nepochs = 3\nbatch = 16\nlr = 3e-3\nviews = 2\naugment = { hflip = 0.5 }\n'
        '[[phase]]\ntrain = ["layer4", "head"]\nepochs = 2\nbatch = 16\noptimizer = "adamw"\nlr = 1e-4\n'
        'lr_decay = 0.5\nnorms = "frozen"\naugment = { hflip = 0.5, crop_scale = [0.5, 1.0] }\n'
    )
    imagenet = ["--weights", str(WEIGHTS)]
    return {
        "digits": ["digits", "--recipe", "digits", "--epochs", "4"],
        "mnist": [str(SHARED / "mnist"), "--recipe", "mnist-plateau", "--epochs", "2"],
        "cifar": [str(SHARED / "cifar10-12k"), "--recipe", "small", "--epochs", "2"],
        "photos": [flowers, *tiny("photos", **{"data.resize": 128, "data.size": 112}), *imagenet],
        "scratch": [flowers, *tiny("scratch", **small), "--epochs", "2"],
        "mixed": ["digits", "--recipe", str(mixed)],
        "solved": [flowers, *tiny("photos", **{"data.resize": 72, "data.size": 64, "phase.1.views": 3}), *imagenet],
        "deep": [flowers, "--recipe", str(deep), *imagenet],
        "processes": ["digits", "--recipe", "digits", "--epochs", "3", "--devices", "2"],
    }


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint(run: Path) -> dict[str, Any]:
    """What must not change about a finished run."""
    from safetensors.numpy import load_file

    with (run / "history.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    metrics = json.loads((run / "metrics.json").read_text())
    kept = {key: value for key, value in metrics.items() if key not in PLACES}
    tensors = {name: sha(value.tobytes()) for name, value in sorted(load_file(run / "model.safetensors").items())}
    return {
        "history": sha(json.dumps(rows).encode()),
        "metrics": sha(json.dumps(kept, sort_keys=True).encode()),
        "predictions": sha((run / "predictions.csv").read_bytes()),
        "tensors": sha(json.dumps(tensors).encode()),
        "executors": metrics["executors"],
        "valid": metrics["valid"]["correct"],
    }


def measure(chosen: list[str]) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, arguments in runs(place).items():
            if chosen and name not in chosen:
                continue
            out, since = place / "runs" / name, time.perf_counter()
            # Of two precisions, `auto` takes the one that is faster here and now.
            command = [sys.executable, "-m", "linnaeus", "train", *arguments, "--set=precision=32", "--out", str(out)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "LINNAEUS_CACHE": str(place / "cache")}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {' '.join(command)}\n{done.stdout}{done.stderr}")
            found[name] = fingerprint(out)
            print(f"{name:10} {time.perf_counter() - since:6.1f} s  {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the fingerprints here")
    parser.add_argument("--against", type=Path, help="compare with fingerprints written before")
    parser.add_argument("--runs", default="", help="some of the runs, separated by commas")
    options = parser.parse_args()
    found = measure([name for name in options.runs.split(",") if name])
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    if options.against:
        before = json.loads(options.against.read_text())
        changed = {name: (before[name], found[name]) for name in found if before[name] != found[name]}
        for name, (was, now) in changed.items():
            print(f"{name} differs: was {was}\n{' ' * len(name)}           now {now}")
        print(f"{len(found) - len(changed)} of {len(found)} runs have the same fingerprints")
        raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
