"""Test-time augmentation: several views of an image are classified and their probabilities averaged.

The views are those of Krizhevsky et al. (2012, section 4.1): the center crop and the four corners of the central
square, each plain and mirrored. They are evaluated beside the plain classification and never replace it. Probabilities
are averaged, not logits: in a mean of logarithms, one view that is certain of a wrong class overrules nine others,
while in a mean of probabilities it has a tenth of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor

from linnaeus.data.batches import Batch, Batches
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.inference.forward import answer
from linnaeus.inference.runners import Scores
from linnaeus.metrics.outputs import Outputs
from linnaeus.preprocess import Preprocessing

View = tuple[int, int, bool]  # (pixels to the right, pixels down, whether mirrored)
PLAIN: View = (0, 0, False)


def view_sets(preprocessing: Preprocessing) -> dict[str, list[View]]:
    """The sets of views to evaluate, by name. Crops need rows that are larger than the network's input."""
    d = (preprocessing.resize - preprocessing.size) // 2
    sets = {"mirror": [PLAIN, (0, 0, True)]}
    if d > 0:
        corners = [(x, y, False) for x in (-d, d) for y in (-d, d)]
        sets["five crops"] = [PLAIN, *corners]
        sets["ten crops"] = [(x, y, mirrored) for x, y, _ in sets["five crops"] for mirrored in (False, True)]
    return sets


def answer_views(
    run: Callable[[Tensor], np.ndarray | Scores],
    preprocessing: Preprocessing,
    batches: Batches,
    temperature: float,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Outputs]:
    """Calibrated outputs of a classifier averaged over each set of views. Every view is computed once.

    `run` turns cropped images (N, size, size, C) uint8 into (N, classes) logits or `Scores`; `batches` are this
    process's share.
    """

    def probabilities(view: View) -> np.ndarray:
        x, y, mirrored = view

        def crop(batch: Batch) -> Tensor:
            images = preprocessing.crop(batch.pixels, batch.shapes, (x, y))
            return images.flip(2) if mirrored else images

        return answer(run, batches, crop, group).at(temperature).probabilities

    sets = view_sets(preprocessing)
    by_view = {view: probabilities(view) for view in dict.fromkeys(view for views in sets.values() for view in views)}
    return {name: Outputs(batches.labels, averaged(by_view[view] for view in views)) for name, views in sets.items()}


def averaged(probabilities: Iterable[np.ndarray]) -> np.ndarray:
    """Probabilities (n, classes) of several views -> logarithms (n, classes) float64 of their mean."""
    return np.log(np.maximum(np.mean(list(probabilities), axis=0), np.finfo(np.float64).tiny))
