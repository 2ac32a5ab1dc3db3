"""The plots of a finished run: curves, a grid of images, the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from linnaeus.errors import UserError, described
from linnaeus.metrics.classification import confusion_matrix
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.penalties import read_penalties
from linnaeus.stores.samples import stored_row
from linnaeus.text import selection_title
from linnaeus.training.best import Best
from linnaeus.training.finish.evaluation import FinalEvaluation
from linnaeus.training.finish.measuring import AnyEvaluation
from linnaeus.training.setup.prepare import Prepared

if TYPE_CHECKING:
    from linnaeus.report.image_grid import PredictedImage

SHOWN = 24  # images of the grid


def write_plots(prepared: Prepared, best: Best, evaluation: AnyEvaluation) -> str:
    """Write curves.png and, with one label per image, predictions.png and confusion.png.

    One that fails is a warning, because the model is complete without it; a full disk is an error. Returns the
    characters that no installed font has.
    """
    drawings = {"curves.png": partial(_draw_curves, prepared, best)}
    if isinstance(evaluation, FinalEvaluation):
        drawings["confusion.png"] = partial(_draw_confusion, prepared, evaluation)
        drawings["predictions.png"] = partial(_draw_predictions, prepared, evaluation)
    missing, folder = "", prepared.folder.path
    for name, draw in drawings.items():
        try:
            missing += draw(folder / name)
        except (UserError, OSError):
            raise
        except Exception as error:
            prepared.console.warn(
                f"{name} was not drawn ({described(error)}); the model and its figures are complete, and "
                f"linnaeus report {folder} draws them as a page"
            )
    # Each missing character once.
    return "".join(dict.fromkeys(missing))


def _draw_confusion(prepared: Prepared, evaluation: FinalEvaluation, path: Path) -> str:
    from linnaeus.report.confusion import confusion  # matplotlib takes long to import

    out, word = _shown_split(evaluation)[1:]
    names = prepared.table.names
    matrix = confusion_matrix(out.labels, out.predicted, len(names))
    return confusion(matrix, names, path, title=f"{word.capitalize()} images")


def _draw_predictions(prepared: Prepared, evaluation: FinalEvaluation, path: Path) -> str:
    from linnaeus.report.image_grid import image_grid

    split, out, word = _shown_split(evaluation)
    chosen = choose_shown(out)
    tiles = [_tile(i, prepared, split, evaluation) for i in chosen]
    is_wrong = out.predicted != out.labels
    wrong, all_wrong = int(is_wrong[chosen].sum()), int(is_wrong.sum())
    title = selection_title(len(chosen), len(out.labels), f"{word} images", wrong, all_wrong)
    return image_grid(tiles, path, title=title)


def _shown_split(evaluation: FinalEvaluation) -> tuple[str, Outputs, str]:
    """The split that the plots show, its calibrated outputs, and its name in a title."""
    split = "test" if "test" in evaluation.calibrated else "valid"
    return split, evaluation.calibrated[split], {"valid": "validation"}.get(split, split)


def _draw_curves(prepared: Prepared, best: Best, path: Path) -> str:
    from linnaeus.report.curves import curves
    from linnaeus.report.penalty_curve import penalty_curves

    rows = prepared.folder.rows
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
    from linnaeus.report.image_grid import PredictedImage

    # Of this image alone: those of all would be computed anew for each tile.
    out, names = evaluation.calibrated[split].take(np.array([i])), prepared.table.names
    rows, shapes = prepared.samples[split].rows.gather(np.array([i]))
    return PredictedImage(
        image=prepared.preprocessing.crop(torch.from_numpy(rows), shapes)[0].numpy(),
        predicted=names[int(out.predicted[0])],
        probability=float(out.confidence[0]),
        true=names[int(out.labels[0])],
        note=evaluation.verdict(out) or None,
    )
