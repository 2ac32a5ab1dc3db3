"""What is said of a finished run: its figures from the saved file, and pictures to look at."""

from __future__ import annotations

import numpy as np

from linnaeus.data.table import Table
from linnaeus.evaluate import Outputs, confusion_matrix
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.frozen import Samples
from linnaeus.training.phases import Best
from linnaeus.training.runfolder import RunFolder

SHOWN = 24


def write_pictures(
    folder: RunFolder,
    table: Table,
    samples: dict[str, Samples],
    outputs: dict[str, Outputs],
    preprocessing: Preprocessing,
    best: Best,
) -> str:
    """curves.png, predictions.png and confusion.png. Returns the characters that no font on this machine has."""
    from linnaeus.report.plots import confusion, curves, picture_grid

    split = "test" if "test" in outputs else "valid"
    out, word = outputs[split], {"valid": "validation"}.get(split, split)
    at = next(i for i, row in enumerate(folder.rows) if (row.phase, row.epoch) == (best.phase, best.epoch))
    missing = curves([vars(row) for row in folder.rows], folder.path / "curves.png", best=at)
    matrix = confusion_matrix(out.labels, out.predicted, len(table.classes))
    missing += confusion(matrix, table.names, folder.path / "confusion.png", title=f"{word.capitalize()} pictures")
    chosen = choose_shown(out)
    shown = [_shown(i, table, samples[split], out, preprocessing) for i in chosen]
    wrong, all_wrong = int((out.predicted != out.labels)[chosen].sum()), int((out.predicted != out.labels).sum())
    title = f"{len(out.labels)} {word} pictures, {all_wrong} wrong"
    if wrong < all_wrong:
        title += f", the {wrong} most confident of them here"
    missing += picture_grid(shown, folder.path / "predictions.png", title=title)
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


def _shown(i: int, table: Table, samples: Samples, out: Outputs, preprocessing: Preprocessing):
    """Sample i as a tile of the picture grid: what the network saw, what it said, what is true."""
    import torch

    from linnaeus.report.plots import Shown

    rows, shapes = samples.rows.gather(np.array([i]))
    picture = preprocessing.crop(torch.from_numpy(rows), shapes)[0].numpy()
    predicted, label = int(out.predicted[i]), int(out.labels[i])
    return Shown(
        picture=picture,
        predicted=table.names[predicted],
        probability=float(out.probabilities[i, predicted]),
        true=table.names[label],
    )
