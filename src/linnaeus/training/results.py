"""What is said of a finished run: its figures from the saved file, and images to look at.

`metrics.json` is one object:

    valid, test     figures of a split: n, correct, accuracy, accuracy_ci95, loss, top5 and more, from the saved model;
                    groups, where the images come in some
    calibration     the temperature, and from which probability on the model answers
    source          path and kind of what was trained on
    selected_on     the split that chose the best epoch
    best            by which figure, and its phase and epoch
    epochs          rows of history.csv
    interrupted     whether the run was stopped before its end
    bad_images      images left out
    micro_batch     images that went through the network at once, by phase
    executors       what ran the frozen part
    seconds         by what they were spent on, and in total
    hardware, versions, fingerprint     of the machine, the programs, the data

`evaluation.json` has for each split what `linnaeus evaluate --json` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from linnaeus.data.table import Table
from linnaeus.metrics.assessment import assess
from linnaeus.metrics.calibration import Calibration, calibration_failure
from linnaeus.metrics.classification import Figures, confusion_matrix, figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.preprocess import Preprocessing
from linnaeus.runs import predictions
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.predictions import PredictionRow
from linnaeus.stores.samples import Samples
from linnaeus.training.best import Best

SHOWN = 24


class Judged:
    """The final figures of a run: a calibration fitted on validation, and every split judged with it."""

    def __init__(self, outputs: dict[str, Outputs]):
        """`outputs`: what the saved model's network answers, by split; `valid` is there."""
        self.calibration = Calibration.fit(outputs["valid"], "valid")
        self.calibrated = {split: out.at(self.calibration.temperature) for split, out in outputs.items()}
        self.figures = {split: figures(out) for split, out in self.calibrated.items()}
        self.found = {
            split: assess(out, self.calibration, cross_fitted=split == "valid") for split, out in outputs.items()
        }

        self.without_leaks: dict[str, Figures | None] = {}
        """By split, on the images of which no copy stands in an earlier split, where others have one."""

    @property
    def threshold(self) -> float:
        return self.calibration.rule.threshold

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json: the splits, and the calibration without its curve."""
        stored = {name: value for name, value in self.calibration.to_dict().items() if name != "curve"}
        splits = {split: found.to_dict() for split, found in self.found.items()}
        for split, clean in self.without_leaks.items():
            splits[split]["without_leaks"] = None if clean is None else clean.to_dict()
        return splits | {"calibration": stored}

    def long_dict(self, table: Table) -> dict[str, Any]:
        """For evaluation.json: everything by split, as `linnaeus evaluate --json` writes it."""
        return {split: found.long_dict(table.classes, table.names) for split, found in self.found.items()}

    def lines(self) -> list[str]:
        """A few lines for whoever started the run."""
        split = "test" if "test" in self.found else "valid"
        found = self.found[split].calibration
        where = {"valid": "validation, by cross-fitting"}.get(split, split)
        chance = self.found[split].metrics.ece_by_chance[0]
        moved = f"{found.before['ece']:.1%} before, {found.after['ece']:.1%} after, {chance:.1%} by chance alone"
        clean = [
            f"{split:9} {figures_ or 'none is left'}, without those of which a copy stands in an earlier split"
            for split, figures_ in self.without_leaks.items()
        ]
        return [
            *clean,
            f"certainty temperature {found.temperature:.3g}; calibration error {moved} ({where})",
            *([f"certainty {failed}"] if (failed := calibration_failure(found.temperature)) else []),
            f"unsure    {self.calibration.rule}",
        ]


def prediction_rows(
    table: Table, samples: dict[str, Samples], calibrated: dict[str, Outputs]
) -> Iterator[PredictionRow]:
    """The rows of predictions.csv."""
    for split, outputs in calibrated.items():
        names = [table.sample_id(i) for i in samples[split].kept(table.where(split)).tolist()]
        yield from predictions.prediction_rows(split, names, outputs, table.classes)


def write_images(
    folder: RunFolder,
    table: Table,
    samples: dict[str, Samples],
    outputs: dict[str, Outputs],
    preprocessing: Preprocessing,
    best: Best,
    threshold: float,
) -> str:
    """curves.png, predictions.png and confusion.png. Returns the characters that no font on this machine has."""
    from linnaeus.report.plots import confusion, curves, image_grid

    split = "test" if "test" in outputs else "valid"
    out, word = outputs[split], {"valid": "validation"}.get(split, split)
    at = next(i for i, row in enumerate(folder.rows) if (row.phase, row.epoch) == (best.phase, best.epoch))
    missing = curves([vars(row) for row in folder.rows], folder.path / "curves.png", best=at)
    matrix = confusion_matrix(out.labels, out.predicted, len(table.classes))
    missing += confusion(matrix, table.names, folder.path / "confusion.png", title=f"{word.capitalize()} images")
    chosen = choose_shown(out)
    shown = [_shown(i, table, samples[split], out, preprocessing, threshold) for i in chosen]
    wrong, all_wrong = int((out.predicted != out.labels)[chosen].sum()), int((out.predicted != out.labels).sum())
    title = f"{len(out.labels)} {word} images, {all_wrong} wrong"
    if len(chosen) < len(out.labels):
        title += f"; here {len(chosen)}" + (f", with the {wrong} most confident mistakes" if wrong < all_wrong else "")
    missing += image_grid(shown, folder.path / "predictions.png", title=title)
    return "".join(dict.fromkeys(missing))


def choose_shown(out: Outputs, most: int = SHOWN) -> np.ndarray:
    """Indices of samples worth a look: up to half the most confident mistakes, the rest right, spread by class."""
    wrong = np.flatnonzero(out.predicted != out.labels)
    confidence = out.probabilities.max(1)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: most // 2]
    right = np.flatnonzero(out.predicted == out.labels)
    # Round and round through the classes, in a fixed random order, so that every class is seen before any twice.
    right = np.random.default_rng(0).permutation(right)
    turn = np.zeros(len(right), dtype=np.int64)
    for label in np.unique(out.labels[right]):
        of_class = out.labels[right] == label
        turn[of_class] = np.arange(of_class.sum())
    right = right[np.argsort(turn, kind="stable")][: most - len(wrong)]
    return np.concatenate([wrong, right]).astype(np.int64)


def _shown(i: int, table: Table, samples: Samples, out: Outputs, preprocessing: Preprocessing, threshold: float):
    """Sample i as a tile of the image grid: what the network saw, what it said, what is true."""
    import torch

    from linnaeus.report.plots import Shown

    rows, shapes = samples.rows.gather(np.array([i]))
    image = preprocessing.crop(torch.from_numpy(rows), shapes)[0].numpy()
    predicted, label = int(out.predicted[i]), int(out.labels[i])
    probability = float(out.probabilities[i, predicted])
    return Shown(
        image=image,
        predicted=table.names[predicted],
        probability=probability,
        true=table.names[label],
        note="unsure" if probability < threshold else None,
    )
