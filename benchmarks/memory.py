"""Peak memory of a training run with 1,000, 10,000 and 100,000 images.

The images are JPEGs of 96 x 72 pixels, each another one. Each run is a process of its own with a cold cache: it
checks the images, decodes every one into a pixel store, runs the frozen part of a small ResNet over them, trains the
head on what it gives for two epochs and then the last stage with the head for one, evaluates, and draws. What is
compared is the peak of the resident set, as the system counts it, files that are mapped included.

    python benchmarks/memory.py [--images 1000,10000,100000]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = """
[model]
name = "resnet20"
[data]
resize = 32
size = 32
[[phase]]
train = ["head"]
epochs = 2
batch = 128
lr = 1e-3
[[phase]]
train = ["layer3", "head"]
epochs = 1
batch = 128
lr = 1e-3
"""
CLASSES = 10


def write_images(folder: Path, n: int) -> Path:
    """n images of colored patches in class folders."""
    generator = np.random.default_rng(0)
    source = folder / "pictures"
    for label in range(CLASSES):
        (source / str(label)).mkdir(parents=True)
    for i in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = coarse.resize((96, 72), Image.Resampling.BICUBIC)
        image.save(source / str(i % CLASSES) / f"{i}.jpg", quality=85)
    return source


def peak(n: int) -> tuple[float, float]:
    """(MB of the largest resident set, seconds) of a run with n images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, recipe = write_images(folder, n), folder / "recipe.toml"
        recipe.write_text(RECIPE, encoding="utf-8")
        command = [
            sys.executable, "-m", "linnaeus", "train", str(source), "--recipe", str(recipe), "--device", "cpu",
            "--out", str(folder / "run"), "--quiet",
        ]  # fmt: skip
        started = time.perf_counter()
        child = subprocess.Popen(command, env={**os.environ, "LINNAEUS_CACHE": str(folder / "cache")})
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"the run with {n} images failed: {os.waitstatus_to_exitcode(status)}")
        return usage.ru_maxrss / 1024, time.perf_counter() - started  # Linux counts in kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1000,10000,100000")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores", flush=True)
    found = []
    for n in map(int, arguments.images.split(",")):
        megabytes, seconds = peak(n)
        found.append(megabytes)
        print(f"  {n:>9,} images   {megabytes:6.0f} MB at most   {seconds:6.0f} s", flush=True)
    print(f"  largest less smallest: {max(found) - min(found):.0f} MB; ratio {max(found) / min(found):.2f}")


if __name__ == "__main__":
    main()
