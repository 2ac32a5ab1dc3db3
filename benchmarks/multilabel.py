"""Several labels per image, with a known truth: pairs of digits, pairs of flowers side by side, attributes of flowers.

    python benchmarks/multilabel.py digits MNIST OUT [--train 8000 --valid 1000]
    python benchmarks/multilabel.py flowers FLOWERS16 OUT --weights FILE [--train 1400 --valid 200]
    python benchmarks/multilabel.py attributes FLOWERS16 OUT --weights FILE --size 224 --windows 1

OUT gets the images, a CSV with a 0/1 column for each label, and the run. Pairs for training come from the training
images of the source, pairs for validation from its test or validation images. The digits train a small network from
scratch; the flowers solve a head on a frozen EfficientNet-Lite0. The figures are computed again with scikit-learn from
predictions.csv. Attributes are those of the species, so that a photo of an unusual specimen has some wrong ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, hamming_loss, roc_auc_score

import linnaeus
from linnaeus.data.readers.idx import read_idx
from linnaeus.data.sources import open_source
from linnaeus.recipe import Recipe

DIGITS: dict[str, Any] = {
    "model": {"name": "mini_resnet"},
    "data": {"resize": 32, "size": 32, "fit": "squash", "channels": 1, "normalize": "none"},
    "phase": [
        {
            "epochs": 15,
            "batch": 64,
            "optimizer": "adam",
            "lr": 2e-3,
            "schedule": {"name": "onecycle"},
            "augment": {"rotate": 10, "shift": 0.06, "scale": [0.9, 1.1]},
        }
    ],
}
FLOWERS: dict[str, Any] = {
    "model": {"name": "timm/tf_efficientnet_lite0"},
    "data": {"fit": "pad"},
    "phase": [{"train": ["head"], "head": "auto"}],
}


ATTRIBUTES = {
    "trumpet": ("51", "72", "76", "91", "98"),
    "five petals": ("51", "52", "72", "76", "84", "88", "97", "98"),
    "many flowers on a stalk": ("4", "11", "39", "72", "90"),
    "single flower": ("20", "51", "52", "76", "88", "96"),
    "violet or blue": ("76", "98"),
    "pink": ("39", "88", "96", "97"),
    "climbs": ("4", "76"),
    "bulb, tuber or rhizome": ("20", "39", "88", "90", "91"),
}
"""Attribute -> the classes of flowers16 that have it, by the names of their folders."""


def digit_pairs(source: Path, part: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n images (n, 28, 56) uint8 of two digits, and which digits they show, (n, 10) bool."""
    images, labels = (read_idx(next(source.glob(f"{part}-{kind}-*"))) for kind in ("images", "labels"))
    pairs = rng.integers(len(images), size=(n, 2))
    sets = np.zeros((n, 10), bool)
    np.put_along_axis(sets, labels[pairs].astype(np.int64), True, 1)
    return np.concatenate([images[pairs[:, 0]], images[pairs[:, 1]]], 2), sets


def write_digits(source: Path, out: Path, sizes: dict[str, int], rng: np.random.Generator) -> list[list[Any]]:
    """Write the images. Rows of the CSV: path, split, and 0 or 1 for each digit."""
    rows: list[list[Any]] = []
    for split, part in (("train", "train"), ("valid", "t10k")):
        for image, digits in zip(*digit_pairs(source, part, sizes[split], rng), strict=True):
            name = f"{split}-{len(rows)}.png"
            Image.fromarray(image).save(out / name)
            rows.append([name, split, *digits.astype(int)])
    return rows


def write_flowers(source: Path, out: Path, sizes: dict[str, int], rng: np.random.Generator) -> list[list[Any]]:
    """The same for two flowers of any kinds side by side, each cropped to a square of 224 pixels."""
    table = open_source(source)
    rows: list[list[Any]] = []
    assert table.paths is not None
    for split in ("train", "valid"):
        here = table.where(split)
        for pair in here[rng.integers(len(here), size=(sizes[split], 2))].tolist():
            canvas, kinds = Image.new("RGB", (448, 224)), np.zeros(len(table.classes), int)
            for side, i in enumerate(pair):
                with Image.open(table.paths[i]) as image:
                    short = min(image.size)
                    left, top = ((length - short) // 2 for length in image.size)
                    square = image.convert("RGB").crop((left, top, left + short, top + short)).resize((224, 224))
                canvas.paste(square, (224 * side, 0))
                kinds[table.labels[i]] = 1
            name = f"{split}-{len(rows)}.jpg"
            canvas.save(out / name, quality=90)
            rows.append([name, split, *kinds])
    return rows


def attribute_rows(source: Path) -> list[list[Any]]:
    """The same for the photos as they are, whose labels are the ATTRIBUTES of their class."""
    table = open_source(source)
    assert table.paths is not None
    return [
        [Path(path).absolute(), split, *(int(table.classes[label] in classes) for classes in ATTRIBUTES.values())]
        for path, split, label in zip(table.paths, table.split, table.labels, strict=True)
    ]


def with_scikit_learn(run: Path, classes: tuple[str, ...]) -> dict[str, float]:
    """Metrics of the validation images from predictions.csv."""
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "valid"]
    true, given = ([[name in row[key].split("|") for name in classes] for row in rows] for key in ("true", "predicted"))
    probabilities = np.array([[float(row[f"probability of {name}"]) for name in classes] for row in rows])
    return {
        "map": average_precision_score(true, probabilities, average="macro"),
        "micro_average_precision": average_precision_score(true, probabilities, average="micro"),
        "macro_roc_auc": roc_auc_score(true, probabilities, average="macro"),
        # Those of the run are cross-fitted too: predictions.csv has the decisions of the model.
        "macro_f1 of the model's thresholds": f1_score(true, given, average="macro"),
        "hamming_loss of the model's thresholds": hamming_loss(true, given),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "flowers", "attributes"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int)
    parser.add_argument("--valid", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int, default=448, help="of the input of the network, not for digits")
    parser.add_argument("--windows", type=int, default=3, help="of the head, a side; 1: the average")
    given = parser.parse_args()
    digits = given.task == "digits"
    sizes = {"train": given.train or (8000 if digits else 1400), "valid": given.valid or (1000 if digits else 200)}
    images = given.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    if given.task == "attributes":
        rows, labels = attribute_rows(given.source), list(ATTRIBUTES)
    elif digits:
        rows, labels = write_digits(given.source, images, sizes, generator), [str(k) for k in range(10)]
    else:
        rows = write_flowers(given.source, images, sizes, generator)
        labels = list(open_source(given.source).classes)
    with (images / "all.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "split", *labels], *rows])
    if not digits:
        FLOWERS["data"] |= {"resize": given.size, "size": given.size}
        FLOWERS["model"]["head"] = {"windows": given.windows}
    recipe = Recipe.model_validate(DIGITS if digits else FLOWERS)
    started = time.perf_counter(), time.process_time()
    run = linnaeus.train(images / "all.csv", recipe, weights=given.weights, out=given.out / "run", device="cpu")
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    found = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["valid"]
    again = with_scikit_learn(run.path, tuple(labels))
    print(f"{wall:.0f} s, {cpu:.0f} s of the processors")
    for name, value in found.items():
        if not name.endswith("_ci95") and isinstance(value, int | float):
            print(f"{name:26} {value:.6f} {found.get(f'{name}_ci95') or ''}")
    for name, value in again.items():
        print(f"scikit-learn {name:26} {value:.6f}")


if __name__ == "__main__":
    main()
