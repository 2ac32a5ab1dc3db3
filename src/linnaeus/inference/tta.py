"""Test-time augmentation: an image is judged by several views of it. Shown beside the plain answers only.

The views are those of Krizhevsky et al. (2012, section 4.1): the central crop and four that are moved into the corners
of the central square, each as it is and mirrored; all cut by the one preprocessing. Probabilities are averaged, not
logits: in the mean of logarithms, one view that is certain of nonsense overrules nine others, in that of probabilities
it has a tenth of the vote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from linnaeus.data.batches import Batch, Batches, Rows
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.inference.forward import gather
from linnaeus.metrics.outputs import Outputs
from linnaeus.preprocess import Preprocessing

View = tuple[int, int, bool]
"""Pixels to the right, pixels down, mirrored."""
PLAIN: View = (0, 0, False)


def view_sets(preprocessing: Preprocessing) -> dict[str, list[View]]:
    """What is tried, by name. Crops only where rows are larger than what the network sees."""
    d = (preprocessing.resize - preprocessing.size) // 2
    sets = {"mirror": [PLAIN, (0, 0, True)]}
    if d > 0:
        corners = [(x, y, False) for x in (-d, d) for y in (-d, d)]
        sets["five crops"] = [PLAIN, *corners]
        sets["ten crops"] = [(x, y, mirrored) for x, y, _ in sets["five crops"] for mirrored in (False, True)]
    return sets


def answer_views(
    run: Callable[[Tensor], np.ndarray],
    preprocessing: Preprocessing,
    rows: Rows,
    labels: np.ndarray,
    *,
    temperature: float,
    batch: int,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Outputs]:
    """What a network answers by each set of views, calibrated. Every view is computed once, divided over `group`.

    `run`: what the network sees, (N, size, size, C) uint8 on `device` -> (N, classes) logits.
    """
    batches = Batches(
        rows, labels, batch=batch * group.world_size, device=device, rank=group.rank, world=group.world_size
    )

    def of(view: View) -> np.ndarray:
        x, y, mirrored = view

        def logits(batch: Batch) -> np.ndarray:
            seen = preprocessing.crop(batch.pixels, batch.shapes, (x, y))
            return run(seen.flip(2) if mirrored else seen)

        return gather(batches, logits, group.all_gather).at(temperature).probabilities

    sets = view_sets(preprocessing)
    found = {view: of(view) for view in dict.fromkeys(view for views in sets.values() for view in views)}
    return {name: Outputs(labels, averaged(found[view] for view in views)) for name, views in sets.items()}


def averaged(probabilities: Iterable[np.ndarray]) -> np.ndarray:
    """(n, classes) probabilities of several views -> logits (n, classes) float64 of their mean."""
    return np.log(np.maximum(np.mean(list(probabilities), axis=0), np.finfo(np.float64).tiny))
