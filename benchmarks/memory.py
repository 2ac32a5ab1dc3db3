"""Peak memory of a training run with 1,000, 10,000 and 100,000 images.

The images are JPEGs of 96 x 72 pixels, each another one. Each run is a process of its own with a cold cache: it
checks the images, decodes every one into a pixel store, runs the frozen part of a small network over them, trains the
head on what it gives for one epoch, evaluates, and draws. What is compared is the peak of the memory that belongs to
the process: pages of mapped files, such as stores and libraries, are taken away when others need memory. The peak of
the resident set, which includes them, is shown beside it.

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
name = "plain20"
[data]
resize = 16
size = 16
[[phase]]
train = ["head"]
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


def own_memory(pid: int) -> float:
    """MB of the process that belong to no file; 0 once it has ended. Linux only."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def peak(n: int) -> tuple[float, float, float]:
    """(MB of own memory at most, MB of the largest resident set, seconds) of a run with n images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, recipe = write_images(folder, n), folder / "recipe.toml"
        recipe.write_text(RECIPE, encoding="utf-8")
        command = [
            sys.executable, "-m", "linnaeus", "train", str(source), "--recipe", str(recipe), "--device", "cpu",
            "--out", str(folder / "run"), "--quiet",
        ]  # fmt: skip
        started, own = time.perf_counter(), 0.0
        child = subprocess.Popen(command, env={**os.environ, "LINNAEUS_CACHE": str(folder / "cache")})
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            own = max(own, own_memory(child.pid))
            time.sleep(0.2)
        _, status, usage = ended
        if status:
            raise SystemExit(f"the run with {n} images failed: {os.waitstatus_to_exitcode(status)}")
        return own, usage.ru_maxrss / 1024, time.perf_counter() - started  # Linux counts in kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1000,10000,100000")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores", flush=True)
    found = []
    for n in map(int, arguments.images.split(",")):
        own, resident, seconds = peak(n)
        found.append(own)
        print(f"  {n:>9,} images   {own:6.0f} MB   {resident:6.0f} MB with files   {seconds:6.0f} s", flush=True)
    print(f"  largest less smallest: {max(found) - min(found):.0f} MB; ratio {max(found) / min(found):.2f}")


if __name__ == "__main__":
    main()
