"""Figures that hold: every sample counted once, every proportion with its count and its interval."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.data.batches import Batch, Batches, Rows
from linnaeus.malloc import steady_heap
from linnaeus.metrics.outputs import Outputs
from linnaeus.preprocess import Preprocessing

Answered = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""For some batches: (N,) number, (N,) label and (N, classes) logits of each sample."""


@torch.inference_mode()
def answers(
    net: nn.Module,
    batches: Batches,
    prepare: Callable[[Batch], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    collect: Callable[[Answered], list[Answered]] = lambda mine: [mine],
) -> Outputs:
    """Run `net`, in evaluation mode, over `batches`. Every sample is counted once, or it is an AssertionError.

    Where `batches` are a process's part, `collect` gives what every process has answered to its own. `net` is not
    wrapped: nobody waits for a process that has nothing to answer.
    """
    net.eval()

    def logits(batch: Batch) -> np.ndarray:
        with autocast():
            out = net(prepare(batch))
        return out.float().cpu().numpy()

    return gather(batches, logits, collect)


def gather(
    batches: Batches,
    logits: Callable[[Batch], np.ndarray],
    collect: Callable[[Answered], list[Answered]] = lambda mine: [mine],
) -> Outputs:
    """What `logits` gives for `batches`; as `answers`, every sample is counted once."""
    own: Answered = []
    with steady_heap():
        for batch in batches.epoch():
            if len(batch) > batch.lead:  # else it is there in place of nothing
                own.append((batch.indices, batch.labels.cpu().numpy(), logits(batch)))
    seen, labels, found = zip(*[answer for part in collect(own) for answer in part], strict=True)
    order = np.concatenate(seen)
    assert np.array_equal(np.sort(order), np.arange(batches.samples)), "every sample must be counted exactly once"
    back = np.argsort(order)
    return Outputs(np.concatenate(labels)[back], np.concatenate(found)[back])


def answer_pixels(
    network: nn.Module,
    preprocessing: Preprocessing,
    rows: Rows,
    labels: np.ndarray,
    *,
    batch: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    rank: int = 0,
    world: int = 1,
    collect: Callable[[Answered], list[Answered]] = lambda mine: [mine],
) -> Outputs:
    """What the whole network answers to decoded images: the preprocessing of evaluation, then `network`.

    With `world` processes each answers its part, of which `collect` makes the whole on all of them.
    """
    batches = Batches(rows, labels, batch=batch * world, device=device, rank=rank, world=world)
    return answers(network, batches, lambda b: preprocessing(b.pixels, b.shapes), autocast, collect)
