"""The plots of a finished run: curves, a grid of images, the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from linnaeus.metrics.classification import confusion_matrix
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.penalties import read_penalties
from linnaeus.stores.samples import stored_row
from linnaeus.text import selection_title
from linnaeus.training.best import Best
from linnaeus.training.finish.evaluation import FinalEvaluation
from linnaeus.training.setup.prepare import Prepared

if TYPE_CHECKING:
    from linnaeus.report.plots import PredictedImage

SHOWN = 24
"""Images of the grid."""


def write_plots(prepared: Prepared, best: Best, evaluation: FinalEvaluation) -> str:
    """Write curves.png, predictions.png and confusion.png. Returns the characters that no installed font has."""
    from linnaeus.report.plots import confusion, image_grid  # matplotlib takes long to import

    folder, names, outputs = prepared.folder, prepared.table.names, evaluation.calibrated
    split = "test" if "test" in outputs else "valid"
    out, word = outputs[split], {"valid": "validation"}.get(split, split)
    missing = write_curves(prepared, best)
    matrix = confusion_matrix(out.labels, out.predicted, len(names))
    missing += confusion(matrix, names, folder.path / "confusion.png", title=f"{word.capitalize()} images")
    chosen = choose_shown(out)
    tiles = [_tile(i, prepared, split, evaluation) for i in chosen]
    is_wrong = out.predicted != out.labels
    wrong, all_wrong = int(is_wrong[chosen].sum()), int(is_wrong.sum())
    title = selection_title(len(chosen), len(out.labels), f"{word} images", wrong, all_wrong)
    missing += image_grid(tiles, folder.path / "predictions.png", title=title)
    # Each missing character once.
    return "".join(dict.fromkeys(missing))


def write_curves(prepared: Prepared, best: Best) -> str:
    """Write curves.png. Returns the characters that no installed font has."""
    from linnaeus.report.plots import curves, penalty_curves

    rows, path = prepared.folder.rows, prepared.folder.path / "curves.png"
    penalties = read_penalties(prepared.folder.path)
    if len(penalties) == len(rows) == 1:  # a solved head has no epochs
        penalty_curves(next(iter(penalties.values())), path)
        return ""
    best_row = next(i for i, row in enumerate(rows) if (row.phase, row.epoch) == (best.phase, best.epoch))
    return curves(rows, path, best=best_row)


def choose_shown(out: Outputs) -> np.ndarray:
    """Indices of the samples to show: the most confident errors, at most half, then correct ones of all classes."""
    wrong = np.flatnonzero(out.predicted != out.labels)
    confidence = out.probabilities.max(1)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: SHOWN // 2]
    right = np.flatnonzero(out.predicted == out.labels)
    # One of each class in turn, in a fixed random order, so that no class comes twice before each has come once.
    right = np.random.default_rng(0).permutation(right)
    turn = np.zeros(len(right), dtype=np.int64)
    for label in np.unique(out.labels[right]):
        of_class = out.labels[right] == label
        turn[of_class] = np.arange(of_class.sum())
    right = right[np.argsort(turn, kind="stable")][: SHOWN - len(wrong)]
    return np.concatenate([wrong, right]).astype(np.int64)


def stored_rows(prepared: Prepared) -> Callable[[int], np.ndarray | None]:
    """The decoded rows of images by their index, where they are those of evaluation."""
    larger = prepared.recipe.data.train_resize not in (None, prepared.preprocessing.resize)
    samples = {split: part for split, part in prepared.samples.items() if split != "train" or not larger}
    return partial(stored_row, prepared.table, samples)


def _tile(i: int, prepared: Prepared, split: str, evaluation: FinalEvaluation) -> PredictedImage:
    """Sample i as a tile of the image grid: the pixels that the network saw, the prediction and the true class."""
    from linnaeus.report.plots import PredictedImage

    out, names = evaluation.calibrated[split], prepared.table.names
    rows, shapes = prepared.samples[split].rows.gather(np.array([i]))
    predicted = int(out.predicted[i])
    probability = float(out.probabilities[i, predicted])
    return PredictedImage(
        image=prepared.preprocessing.crop(torch.from_numpy(rows), shapes)[0].numpy(),
        predicted=names[predicted],
        probability=probability,
        true=names[int(out.labels[i])],
        note=evaluation.verdict(out, i) or None,
    )
