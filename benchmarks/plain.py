"""The other side of the benchmarks: the loop of the tutorials, which opens every image again in every epoch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from linnaeus.data.table import Table
from linnaeus.preprocess import IMAGENET_MEAN, IMAGENET_STD

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference import torchvision

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "resnet50-v1-imagenet.safetensors"


class Images(Dataset):
    """Open, resize, crop, normalize: torchvision v2 transforms on one PIL image at a time."""

    def __init__(self, table: Table, split: str, size: int):
        torchvision()
        import torchvision.transforms.v2 as v2

        assert table.paths is not None
        where = table.where(split)
        self.paths, self.labels = [table.paths[i] for i in where], table.labels[where]
        self.transform = v2.Compose(
            [
                v2.Resize(size * 256 // 224),
                v2.CenterCrop(size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB")), int(self.labels[i])


def epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: DataLoader,
    valid: DataLoader | None = None,
    device: str = "cpu",
    most: int | None = None,
    still: list[nn.Module] | None = None,
) -> float:
    """One epoch of the plain loop, `most` batches of it at most; the share right on `valid`, where that is given.

    As in most tutorials the whole network is put into training mode, frozen parts too; those in `still` are not.
    """
    network.train()
    for module in still or []:
        module.eval()
    for step, (x, y) in enumerate(train):
        if step == most:
            break
        optimizer.zero_grad()
        F.cross_entropy(network(x.to(device)), y.to(device)).backward()
        optimizer.step()
    if valid is None:
        return float("nan")
    network.eval()
    right = total = 0
    with torch.no_grad():
        for x, y in valid:
            right += int((network(x.to(device)).argmax(1).cpu() == y).sum())
            total += len(y)
    return right / total


def loaders(table: Table, size: int, batch: int, workers: int) -> tuple[DataLoader, DataLoader]:
    """A shuffled loader of the training images and one of the validation images."""
    pin = torch.cuda.is_available()
    train, valid = Images(table, "train", size), Images(table, "valid", size)
    return (
        DataLoader(train, batch_size=batch, shuffle=True, num_workers=workers, pin_memory=pin),
        DataLoader(valid, batch_size=batch, num_workers=workers, pin_memory=pin),
    )


def some(table: Table, share: int) -> Table:
    """Every `share`-th image of each split."""
    chosen = [table.where(split)[::share] for split in ("train", "valid", "test")]
    return table.select(np.concatenate(chosen))


def machine(device: str) -> str:
    """One line on what is measured where."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    load = f"load {os.getloadavg()[0]:.1f} before"
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}; {load}"
