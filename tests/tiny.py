"""Tiny data and recipes, with which a run takes a second.

An image of class k has a bright square at the k-th of five places, on noise. All random numbers come from the seed.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from PIL import Image
from torch import nn

from linnaeus.data.batches import IN_ORDER, UNDIVIDED, Batch, Batches, Partition, Sampling
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models import Network, create
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Phase
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.training.phase import PhaseRun, Stream, TrainablePart

SIDE = 28
PLACES = ((2, 2), (16, 16), (2, 16), (16, 2), (9, 9))
CPU = torch.device("cpu")
GRAY = Preprocessing(SIDE, SIDE, channels=1, mean=(0.0,), std=(1.0,))
WIDTHS = (6, 8, 12)


def draw(labels: np.ndarray, seed: int = 0, noise: int = 90) -> np.ndarray:
    """(n,) labels in 0..4 -> (n, 28, 28) uint8."""
    images = np.random.default_rng(seed).integers(0, noise, (len(labels), SIDE, SIDE), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = PLACES[label]
        image[top : top + 9, left : left + 9] += 120
    return images


def samples(n: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and labels (n,) int64 that cycle through the classes."""
    labels = np.arange(n) % classes
    return draw(labels, seed), labels


def write_idx(folder: Path, train: int = 120, test: int = 30, classes: int = 3) -> Path:
    """Write four IDX files, like those of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = samples(n, classes, seed)
        head = struct.pack(">IIII", 0x803, n, SIDE, SIDE)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, n) + labels.astype(np.uint8).tobytes()
        )
    return folder


def write_images(folder: Path, classes: tuple[str, ...] = ("0", "1", "2"), each: int = 8, seed: int = 0) -> Path:
    """Write class folders of `each` gray PNG images of 28 pixels: `folder/class/class 0.png` …"""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(draw(np.full(each, label), seed + label)):
            Image.fromarray(image).save(folder / name / f"{name} {i}.png")
    return folder


def write_label_sets(folder: Path, n: int = 60, labels: int = 4, seed: int = 0, patients: int = 0) -> Path:
    """Write n images that show each of `labels` squares or not, one of the first two most often, and a CSV of 0 and 1.

    With `patients`, a column of so many different values. The first image has no label, the second all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    sets = generator.random((n, labels)) < np.linspace(0.6, 0.25, labels)
    sets[0], sets[1] = False, True
    lines = [",".join(["path", *(f"p{k}" for k in range(labels)), *(["patient"] if patients else [])])]
    for i, row in enumerate(sets):
        image = generator.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
        for top, left in (PLACES[k] for k in np.flatnonzero(row)):
            image[top : top + 9, left : left + 9] += 120
        Image.fromarray(image).save(folder / f"{i}.png")
        group = [f"patient {i % patients}"] if patients else []
        lines.append(",".join([f"{i}.png", *map(str, row.astype(int)), *group]))
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    return folder / "all.csv"


def settings(**data: Any) -> dict[str, Any]:
    """The recipe tables model and data for these images: mini_resnet, gray, [0, 1]."""
    return {
        "model": {"name": "mini_resnet", "arguments": {"widths": list(WIDTHS)}},
        "data": {"resize": SIDE, "size": SIDE, "channels": 1, "normalize": "none", **data},
    }


def write_recipe(path: Path, *phases: dict[str, Any], **more: Any) -> Path:
    """Write a recipe: `settings()` updated by `more`, and the phases, by default one phase of two epochs."""
    tables = phases or ({},)
    defaults = {"epochs": 2, "batch": 16, "lr": 3e-3}
    path.write_text(
        tomli_w.dumps({**settings(), **more, "phase": [{**defaults, **table} for table in tables]}), encoding="utf-8"
    )
    return path


def mini(classes: int = 3, seed: int = 0, channels: int = 1) -> Network:
    """A mini_resnet with a few thousand parameters and no BatchNorm."""
    torch.manual_seed(seed)
    return create("mini_resnet", classes, channels, widths=list(WIDTHS))


def stream(
    images: np.ndarray,
    labels: np.ndarray,
    batch: int = 16,
    sampling: Sampling = IN_ORDER,
    partition: Partition = UNDIVIDED,
) -> Stream:
    """A stream of images, scaled to [0, 1] and not augmented."""
    store = PixelStore.from_arrays(images)
    batches = Batches(store, labels, batch=batch, device=CPU, sampling=sampling, partition=partition)

    def prepare(batch: Batch, epoch: int) -> torch.Tensor:
        return GRAY(batch.pixels, batch.shapes)

    return Stream(batches, prepare)


def phase_run(model: Network, spec: Phase, train: Stream, valid: Stream | None = None, **more: Any) -> PhaseRun:
    """A phase that trains `model`; it is validated on the training images unless `valid` is given."""
    return PhaseRun(spec, TrainablePart(model), train, valid or train, **{"classes": 3, **more})


def phase(**more: Any) -> Phase:
    return Phase.model_validate({"epochs": 1, "batch": 16, "lr": 3e-3, **more})


EVERYTHING = {
    "temperature": 1.0,
    "split": "valid",
    "abstention": {
        "target_risk": 0.02,
        "n": 40,
        "estimated": {"threshold": 0.0, "answered": 40, "wrong": 0},
        "tested": None,
    },
    "curve": [[0.0, 40, 0]],
}
"""A calibration that changes no answer."""


LABELS: dict[str, Any] = {
    "split": "valid",
    "n": 40,
    "precision": None,
    "labels": [{"scale": 1.0, "offset": 0.0, "threshold": threshold} for threshold in (0.5, 0.2, None)],
}
"""Calibration of a model that gives images several labels; the last one never."""


def write_label_model(path: Path, calibration: dict[str, Any] | None = LABELS) -> Path:
    """Write a model file of a random network that gives images none to three labels."""
    network = mini()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    classes = ("0", "1", "2")
    names = tuple(f"name of {name}" for name in classes)
    metrics = {"test": {"n": 30, "labels": 3, "map": 0.875, "macro_f1": 0.75, "subset_accuracy": 0.5}}
    about = ModelFile(network.arch, classes, names, GRAY, calibration, metrics=metrics, task="multi-label")
    write_model(path, network.state_dict(), about)
    return path


def write_tiny_model(path: Path, model: nn.Module | None = None, classes: tuple[str, ...] = ("0", "1", "2")) -> Path:
    """Write a model file of a mini_resnet for these images, untrained unless `model` is given; it answers all."""
    network = model if isinstance(model, Network) else mini(len(classes))
    names = tuple(f"name of {name}" for name in classes)
    write_model(path, network.state_dict(), ModelFile(network.arch, classes, names, GRAY, calibration=EVERYTHING))
    return path
