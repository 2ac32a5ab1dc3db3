"""Test-time augmentation: a picture is judged by several views of it. Shown beside the plain answers only.

The views are those of Krizhevsky et al. (2012, section 4.1): the central crop and four that are moved into the corners
of the central square, each as it is and mirrored; all cut by the one preprocessing. Probabilities are averaged, not
logits: in the mean of logarithms, one view that is certain of nonsense overrules nine others, in that of probabilities
it has a tenth of the vote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.data.batches import Batch, Batches, Rows
from linnaeus.evaluate import Outputs, answers
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
    network: nn.Module,
    preprocessing: Preprocessing,
    rows: Rows,
    labels: np.ndarray,
    *,
    temperature: float,
    batch: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Outputs]:
    """What the network answers by each set of views, calibrated. Every view is computed once."""
    batches = Batches(rows, labels, batch=batch, device=device)

    def of(view: View) -> np.ndarray:
        x, y, mirrored = view

        def prepare(batch: Batch) -> Tensor:
            seen = preprocessing(batch.pixels, batch.shapes, (x, y))
            return seen.flip(-1) if mirrored else seen

        return answers(network, batches, prepare, autocast).at(temperature).probabilities

    sets = view_sets(preprocessing)
    found = {view: of(view) for view in dict.fromkeys(view for views in sets.values() for view in views)}
    return {name: Outputs(labels, averaged(found[view] for view in views)) for name, views in sets.items()}


def averaged(probabilities: Iterable[np.ndarray]) -> np.ndarray:
    """(n, classes) probabilities of several views -> logits (n, classes) float64 of their mean."""
    return np.log(np.maximum(np.mean(list(probabilities), axis=0), np.finfo(np.float64).tiny))
