"""Images a second to 256-pixel uint8 rows: the pixel store against the plain loop of the tutorials.

The plain loop is a torch DataLoader whose dataset opens a file with Pillow, converts it to RGB and resizes it as
torchvision's Resize(256) does on a PIL image. It only hands the tensors on; the store also writes them to the disk,
waits until they are there, and reads them from files that the system has in memory, as the loop does.

    python benchmarks/decode.py [--data DIR] [--quick]

`--data` is a folder of JPEGs, at any depth. The 1024 x 768 photographs are mosaics of four of them, each at its own
resolution, encoded with quality 90 and 4:2:0: real detail at the size of a small photograph, but no real photographs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from linnaeus.cache import Cache
from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.stores.pixels import build_pixels
from linnaeus.stores.pixelstore import PixelStore

SIZE = 256
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "flowers16"


@dataclass
class Files:
    """As much of a table as a store needs."""

    paths: tuple[str, ...]
    images: np.ndarray | None = None
    members: None = None

    def image(self, i: int) -> str:
        return self.paths[i]


class Plain(Dataset):
    """What a tutorial's dataset does before its augmentation."""

    def __init__(self, paths: tuple[str, ...]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = Image.open(self.paths[i]).convert("RGB")
        short = min(image.size)
        goal = (int(SIZE * image.width / short), int(SIZE * image.height / short))
        return torch.from_numpy(np.array(image.resize(goal, Image.Resampling.BILINEAR)))


def plain_loop(paths: tuple[str, ...], workers: int) -> None:
    for _ in DataLoader(Plain(paths), batch_size=64, num_workers=workers, collate_fn=list):
        pass


def fill_store(paths: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = build_pixels(Files(paths), np.arange(len(paths)), RowSpec(SIZE), cache=Cache(Path(folder), 1 << 40))
        assert isinstance(store, PixelStore)
        assert not store.failed


def mosaics(paths: tuple[str, ...], folder: Path, n: int) -> tuple[str, ...]:
    """n images of 1024 x 768, each of four quarters cut from images at their own resolution."""
    large = []
    for path in paths:
        with Image.open(path) as image:
            if image.width >= 512 and image.height >= 384:
                large.append(path)
    rng = np.random.default_rng(0)
    made = []
    for k in range(n):
        mosaic = Image.new("RGB", (1024, 768))
        for x, y in ((0, 0), (512, 0), (0, 384), (512, 384)):
            with Image.open(large[rng.integers(len(large))]) as image:
                left, top = int(rng.integers(image.width - 511)), int(rng.integers(image.height - 383))
                mosaic.paste(image.convert("RGB").crop((left, top, left + 512, top + 384)), (x, y))
        made.append(str(folder / f"{k}.jpg"))
        mosaic.save(made[-1], quality=90)
    return tuple(made)


def cpu_seconds() -> float:
    """Of this process and the workers that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def in_turns(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, seconds of CPU) of each side, in turns so that a busy machine slows all alike; after one round more."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            started, spent = time.perf_counter(), cpu_seconds()
            run()
            if turn:
                taken[name].append((time.perf_counter() - started, cpu_seconds() - spent))
    return taken


def compare(title: str, paths: tuple[str, ...], repeats: int) -> None:
    kilobytes = statistics.mean(Path(path).stat().st_size for path in paths) / 1e3
    print(f"\n{title}: {len(paths)} images, {kilobytes:.0f} kB on average, {repeats} turns")
    sides = {
        "pixel store": lambda: fill_store(paths),
        "plain loop, num_workers 0": lambda: plain_loop(paths, 0),
        "plain loop, num_workers 2": lambda: plain_loop(paths, 2),
    }
    taken = in_turns(sides, repeats)
    rates = {name: [len(paths) / seconds for seconds, _ in each] for name, each in taken.items()}
    ours = statistics.median(rates["pixel store"])
    for name, values in rates.items():
        rate = statistics.median(values)
        cpu = statistics.median(spent for _, spent in taken[name]) / len(paths) * 1e3
        ratio = "" if name == "pixel store" else f"   ratio {ours / rate:.2f}"
        print(f"  {name:26} {rate:5.0f} pictures/s ({min(values):.0f}-{max(values):.0f}), {cpu:4.1f} ms of CPU{ratio}")
    some = paths[:: max(1, len(paths) // 40)]
    plain, spec = Plain(some), RowSpec(SIZE)
    apart = [np.abs(load_row(some[i], spec).astype(float) - plain[i].numpy()).mean() for i in range(len(some))]
    print(f"  the rows differ by {statistics.mean(apart):.2f} of 255 on average ({len(some)} images)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    arguments = parser.parse_args()
    paths = tuple(str(path) for path in sorted(arguments.data.rglob("*.jpg")))
    if not paths:
        parser.error(f"{arguments.data}: no .jpg in it; name a folder of JPEGs with --data")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Pillow {PIL.__version__}", end=", ")
    print(f"torch {torch.__version__}; load {os.getloadavg()[0]:.1f} before")
    repeats = 3 if arguments.quick else 7
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.data.name, paths[::10] if arguments.quick else paths[::3], repeats)
        compare("1024 x 768 mosaics", mosaics(paths, Path(folder), 60 if arguments.quick else 200), repeats)


if __name__ == "__main__":
    main()
