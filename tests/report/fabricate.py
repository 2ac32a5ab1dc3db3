"""Run folders made from arrays without training, with any class names and any number of classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from linnaeus.data.sources import open_source
from linnaeus.data.split import write_split
from linnaeus.data.table import Table
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.safetensors import ModelFile, versions, write_model
from linnaeus.models import create
from linnaeus.preprocess import Preprocessing
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.history import Row
from linnaeus.runs.predictions import PredictionRow, prediction_rows, write_predictions
from linnaeus.training.finish.evaluation import FinalEvaluation, long_dict

SIDE = 40
SEEN = Preprocessing(36, 32, channels=3)


def draw(label: int, number: int) -> Image.Image:
    """A gradient in a color of the class, 40 x 52 pixels."""
    rng = np.random.default_rng([label, number])
    color = np.array([(37 * label) % 256, (91 * label) % 256, (151 * label) % 256])
    ramp = np.linspace(0.3, 1, SIDE + 12)[None, :, None]
    return Image.fromarray((ramp * color + rng.integers(0, 30, (SIDE, SIDE + 12, 3))).clip(0, 255).astype(np.uint8))


def write_source(folder: Path, names: Sequence[str], each: Sequence[int] = (6, 3, 4)) -> Path:
    """A CSV with any labels, and its images: so many per class in train, valid and test. Returns the CSV."""
    (folder / "pictures").mkdir(parents=True)
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for label, name in enumerate(names):
            splits = [s for s, n in zip(("train", "valid", "test"), each, strict=True) for _ in range(n)]
            for number, split in enumerate(splits):
                path = f"pictures/{label:03d}-{number:03d}.png"
                draw(label, number).save(folder / path)
                writer.writerow([path, name, split])
    return folder / "images.csv"


def answers(labels: np.ndarray, classes: int, skill: float, seed: int) -> Outputs:
    """Logits that are mostly correct; mistakes are a class seven or fourteen positions further."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += skill
    logits[np.arange(len(labels)), (labels + 7 * (labels % 3)) % classes] += skill * 0.75
    return Outputs(labels, logits)


def fabricate(
    source: Path,
    run: Path,
    *,
    skill: float = 4.0,
    phases: Sequence[int] = (4, 3),
    seen: Preprocessing = SEEN,
    **more: Any,
) -> Table:
    """A finished run on a source; `skill` raises the accuracy, `more` goes into metrics.json. Returns the table."""
    table = open_source(source)
    k = len(table.classes)
    folder = RunFolder.create(run, "fabricated")
    outputs = {
        split: answers(table.labels[table.where(split)], k, skill, seed)
        for seed, split in enumerate(("valid", "test"))
        if len(table.where(split))
    }
    evaluated = FinalEvaluation(outputs, 1)
    rows: list[PredictionRow] = []
    torch.manual_seed(0)
    network = create("mini_resnet", k, 3, widths=[6, 8, 12])
    about = ModelFile(network.arch, table.classes, table.names, seen)
    about.calibration = evaluated.calibration.to_dict()
    about.recipe = {"name": "fabricated", "model": {"name": "mini_resnet", "weights": "none"}, "data": {}}
    about.recipe["phase"] = [
        {"train": ["head"], "epochs": n, "batch": 64, "optimizer": "adam", "lr": 1e-3} for n in phases
    ]
    about.data = {"kind": table.kind, "fingerprint": table.fingerprint()}
    write_model(folder.model, network.state_dict(), about)
    write_split(table, folder.file("split.csv"))
    folder.write_bad_images([])
    (run / "recipe.toml").write_text('name = "fabricated"\n\n[model]\nname = "mini_resnet"\n', encoding="utf-8")
    for phase, epochs in enumerate(phases, 1):
        for epoch in range(1, epochs + 1):
            loss = 2.0 / (len(folder.rows) + 1)
            folder.add(Row(phase, epoch, 1e-3, loss, 1 - loss / 4, loss * 1.2, 1 - loss / 3.5, 1.5))
    for split, out in evaluated.calibrated.items():
        samples = [table.sample_id(i) for i in table.where(split).tolist()]
        rows.extend(prediction_rows(split, samples, out, table.classes))
    write_predictions(folder.file("predictions.csv"), rows)
    folder.write_evaluation(long_dict(evaluated.assessments, table))
    seconds = {"prepare": 4.1, **{f"phase {i}": 20.0 * i for i in range(1, len(phases) + 1)}, "evaluate": 3.0}
    folder.write_metrics(
        {
            **evaluated.to_dict(),
            "source": {"path": str(source), "kind": table.kind},
            "selected_on": "valid",
            "best": {"by": "accuracy", "phase": len(phases), "epoch": phases[-1]},
            "seconds": {**seconds, "total": sum(seconds.values()) + 2.5},
            "versions": versions(),
            "fingerprint": table.fingerprint(),
        }
        | more
    )
    return table
