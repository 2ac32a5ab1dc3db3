"""Run a network over a set of images, on any number of processes: every sample is answered exactly once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.data.batches import Batch, Batches, Partition, Rows
from linnaeus.device import steady_heap
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.inference.runners import Scores, to_numpy
from linnaeus.metrics.outputs import Outputs


@torch.inference_mode()
def answer(
    network: Callable[[Tensor], Tensor | np.ndarray | Scores],
    batches: Batches,
    prepare: Callable[[Batch], Tensor],
    group: ProcessGroup = SINGLE_PROCESS,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Outputs:
    """Logits of `network` for all samples of `batches`, in the order of the samples, and distances if it gives them.

    `prepare` turns a batch of rows into the network's input; `network` returns (N, classes) logits or `Scores`. A
    module is put into evaluation mode. It must not be wrapped for distributed training, where a process without
    samples would keep the others waiting. If `batches` are one process's share, every process of `group` gets the
    outputs of all. Raises AssertionError unless every sample is answered exactly once.
    """
    if isinstance(network, nn.Module):
        network.eval()
    local: list[tuple[np.ndarray, np.ndarray, Scores]] = []  # indices, labels and scores of each batch
    with steady_heap():
        for batch in batches.epoch():
            if len(batch) == batch.portion.lead:
                continue  # only a stand-in for a sample of another process
            with autocast():
                result = network(prepare(batch))
            scores = result if isinstance(result, Scores) else Scores(to_numpy(result), None)
            local.append((batch.indices, batch.labels.cpu().numpy(), scores))
    answered = [part for process in group.all_gather(local) for part in process]
    indices, labels = (np.concatenate([part[i] for part in answered]) for i in (0, 1))
    scores = Scores.joined([part[2] for part in answered])
    order = np.argsort(indices)
    assert np.array_equal(indices[order], np.arange(batches.samples)), "every sample must be counted exactly once"
    distances = None if scores.distances is None else scores.distances[order]
    return Outputs(labels[order], scores.logits[order], distances=distances)


def local_batches(
    rows: Rows, labels: np.ndarray, batch: int, device: torch.device, group: ProcessGroup = SINGLE_PROCESS
) -> Batches:
    """This process's share of the batches over `rows`, in order, `batch` samples for each process at a time."""
    partition = Partition(group.rank, group.world_size)
    return Batches(rows, labels, batch=batch * group.world_size, device=device, partition=partition)
