"""Augmentation of a batch against torchvision v2, sample by sample: the same operations, in turns in one process.

    python benchmarks/augment.py [--data FOLDER] [--threads N] [--rounds N] [--count N]

Both start from decoded uint8 images in memory and end with a normalized float32 batch. torchvision gets bilinear
interpolation, as ours has, and each sample in the form it is faster with: a PIL image or a uint8 tensor, with N
threads inside each operation or N that share the samples. All four are timed; the ratio is to the fastest of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from linnaeus.augment.pipeline import Augmentation
from linnaeus.recipe import Augment

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recipes(v2: Any) -> dict[str, tuple[int, Augment, list[Any]]]:
    """name -> (size, ours, theirs)"""
    bilinear = v2.InterpolationMode.BILINEAR
    return {
        "flowers102: rotate, flips, jitter, gray": (
            224,
            Augment(rotate=45, hflip=0.5, vflip=0.5, brightness=0.2, contrast=0.1, saturation=0.1, hue=0.1, gray=0.025),
            [
                v2.CenterCrop(224),
                v2.RandomRotation(45, interpolation=bilinear),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.ColorJitter(0.2, 0.1, 0.1, 0.1),
                v2.RandomGrayscale(0.025),
            ],
        ),
        "random resized crop, flip, jitter": (
            224,
            Augment(crop_scale=(0.08, 1.0), hflip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
        ),
        "TrivialAugment, flip": (
            224,
            Augment(hflip=0.5, trivial_augment=True),
            [v2.CenterCrop(224), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(interpolation=bilinear)],
        ),
        "CIFAR: padded crop, flip": (
            32,
            Augment(pad_crop=4, hflip=0.5),
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()],
        ),
    }


def images(folder: Path | None, size: int, count: int) -> list[np.ndarray]:
    """`count` RGB images (h, w, 3) uint8: short side 256 for size 224, 32x32 for CIFAR."""
    paths = sorted(folder.rglob("*.jpg"))[:: max(1, len(list(folder.rglob("*.jpg"))) // count)] if folder else []
    found = []
    for path in paths[:count]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        side = 256 if size == 224 else 32
        scale = side / min(image.size)
        shape = (round(image.width * scale), round(image.height * scale)) if size == 224 else (32, 32)
        found.append(np.asarray(image.resize(shape, Image.Resampling.BILINEAR)))
    random = np.random.default_rng(0)
    shapes = [(256, 341), (341, 256), (256, 256)] if size == 224 else [(32, 32)]
    while len(found) < count:
        found.append(random.integers(0, 256, (*shapes[len(found) % len(shapes)], 3), dtype=np.uint8))
    return found


def together(rows: list[np.ndarray]) -> tuple[torch.Tensor, np.ndarray]:
    shapes = np.array([row.shape[:2] for row in rows])
    batch = torch.zeros(len(rows), *shapes.max(0).tolist(), 3, dtype=torch.uint8)
    for i, row in enumerate(rows):
        batch[i, : row.shape[0], : row.shape[1]] = torch.from_numpy(row.copy())
    return batch, shapes


def in_turns(ways: dict[str, tuple[int, Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; a way is (threads inside an operation, what to run)."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (threads, way) in ways.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            way()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(
    name: str, size: int, ours: Augment, theirs: list[Any], rows: list[np.ndarray], args: Any, v2: Any
) -> float:
    augmentation = Augmentation(ours, size=size, mean=MEAN, std=STD, seed=0)
    batch, shapes = together(rows)
    epochs = iter(range(10**9))
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    tensors = [torch.from_numpy(row.copy()).permute(2, 0, 1).contiguous() for row in rows]
    pils = [Image.fromarray(row) for row in rows]
    on_tensor, on_pil = v2.Compose([*theirs, *end]), v2.Compose([*theirs, v2.ToImage(), *end])
    pool = ThreadPoolExecutor(args.threads, initializer=torch.set_num_threads, initargs=(1,))
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "ours": (args.threads, lambda: augmentation(batch, shapes, np.arange(len(rows)), next(epochs))),
        "tensor": (args.threads, lambda: torch.stack([on_tensor(x) for x in tensors])),
        "PIL": (args.threads, lambda: torch.stack([on_pil(x) for x in pils])),
    }
    if args.threads > 1:
        ways["tensor, thread pool"] = (1, lambda: torch.stack(list(pool.map(on_tensor, tensors))))
        ways["PIL, thread pool"] = (1, lambda: torch.stack(list(pool.map(on_pil, pils))))
    seconds = in_turns(ways, args.rounds)
    pool.shutdown()
    typical = {way: median(values) for way, values in seconds.items()}
    best = min((way for way in ways if way != "ours"), key=lambda way: typical[way])
    ratio = typical[best] / typical["ours"]
    each = ", ".join(f"{way} {1e3 * value / len(rows):.3f}" for way, value in typical.items())
    print(f"{name} at {size}: {ratio:.1f}x (to torchvision v2, {best})\n    ms a sample: {each}", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="a folder of JPEGs; random pixels without it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=64, help="images of 224 in a batch; 4 times as many of 32")
    args = parser.parse_args()
    torchvision()
    import torchvision.transforms.v2 as v2

    print(
        f"torch {torch.__version__}, {args.threads} threads, batches of {args.count}, medians of {args.rounds} rounds"
    )
    for name, (size, ours, theirs) in recipes(v2).items():
        count = args.count if size == 224 else 4 * args.count
        compare(name, size, ours, theirs, images(args.data, size, count), args, v2)


if __name__ == "__main__":
    main()
