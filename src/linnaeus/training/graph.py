"""CUDA graphs: the forward and backward pass of a batch is recorded once, and launched as one operation from then on.

Launching the kernels of a small network one by one takes the host several times as long as a GPU needs to run them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.errors import first_line

WARM_UP = 4
"""Batches of a shape that are computed without recording: libraries choose kernels and allocate workspaces in them."""
SHAPES = 2  # recordings of a phase: the full batch, and the shorter last one

Pass = Callable[[Tensor, Tensor, int, bool], Any]


@dataclass
class Recording:
    """A recorded pass and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    targets: Tensor
    gradients: list[Tensor | None]
    sums: Any

    def replay(self, x: Tensor, targets: Tensor, parameters: Sequence[nn.Parameter]) -> Any:
        """Compute the pass for another batch. The sums are overwritten by the next call."""
        self.x.copy_(x)
        self.targets.copy_(targets)
        self.graph.replay()
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.sums


class GraphedPass:
    """Calls `compute(x, targets, total, counted)`, and records it once a shape of batch has been seen a few times.

    What cannot be recorded, such as a network that reads a number from the device, is called as before. A replay runs
    the kernels of the recorded call, so it gives the same bits. Dropout draws new numbers in each replay, from the seed
    that the step has set.
    """

    def __init__(self, compute: Pass, parameters: Sequence[nn.Parameter], batches: int):
        """`batches`: batches that will be computed; for few, recording does not pay. `parameters`: those that train."""
        self.compute, self.parameters = compute, parameters
        self.recordings: dict[Any, Recording] = {}
        self.calls: Counter[Any] = Counter()
        self.enabled = batches > 2 * WARM_UP
        self.failure = ""  # why no pass could be recorded; empty if none was tried in vain

    def __call__(self, x: Tensor, targets: Tensor, total: int, counted: bool) -> Any:
        if not self.enabled:
            return self.compute(x, targets, total, counted)
        # A recording is bound to shapes and layouts, and to every number that is not a tensor.
        key = (x.shape, x.dtype, x.stride(), targets.shape, targets.dtype, total, counted)
        recording = self.recordings.get(key)
        if recording is None:
            self.calls[key] += 1
            # The first calls choose kernels and allocate buffers, which a graph cannot record.
            if self.calls[key] <= WARM_UP or len(self.recordings) == SHAPES:
                return self.compute(x, targets, total, counted)
            recording = self._record(x, targets, total, counted)
            if recording is None:
                return self.compute(x, targets, total, counted)
            self.recordings[key] = recording
        return recording.replay(x, targets, self.parameters)

    def _record(self, x: Tensor, targets: Tensor, total: int, counted: bool) -> Recording | None:
        """Record the pass, which computes nothing; None if that is impossible, from then on for all shapes."""
        own_x, own_targets = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device), targets.clone()
        for parameter in self.parameters:
            parameter.grad = None  # so that the gradients are allocated in the memory of the graph
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that read ahead allocate memory of their own meanwhile, which the default mode forbids.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                sums = self.compute(own_x, own_targets, total, counted)
        except RuntimeError as error:  # out of memory, or an operation that waits for the device
            self.enabled, self.failure = False, first_line(error)
            self.recordings.clear()
            torch.cuda.synchronize()
            _end_capture(x.device)
            torch.cuda.empty_cache()
            for parameter in self.parameters:
                parameter.grad = None
            return None
        return Recording(graph, own_x, own_targets, [p.grad for p in self.parameters], sums)


def _end_capture(device: torch.device) -> None:
    """After a failed recording, give the generator of the device a state that no graph uses.

    The old one still counts as recorded, and the next dropout fails: "Offset increment outside graph capture".
    """
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index or 0]
        fresh = torch.Generator(device).manual_seed(generator.initial_seed())
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
