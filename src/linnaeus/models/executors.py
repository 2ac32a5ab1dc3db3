"""Executors: how the frozen part of a network is run. The fastest one is chosen by measurement.

A frozen part is a constant function, so it may be rewritten. A BatchNorm with fixed statistics is a scale and a shift,
which can be merged into the convolution before it; and a compiled graph needs no Python between the layers.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.device import require_int8
from linnaeus.errors import UserError, first_line
from linnaeus.models.network import Network
from linnaeus.models.onnx_graph import export_graph, fuse_batchnorms, inference_session, trace_graph
from linnaeus.models.record import ChoiceRecord, choice_key
from linnaeus.text import percent

WORTH_TRYING = 30.0
"""Seconds of eager computation above which ONNX Runtime is tried; export and trial of a ResNet-50 take about three."""

FEW = 256
"""Images below which a graph is exported only if eager computation takes WORTH_TRYING: export and session cost more."""

FASTER = 0.9  # ONNX Runtime is chosen if it takes less than this fraction of the time

TOLERANCE = 1e-3  # largest difference from the plain network, as a fraction of its largest output

INT8_TOLERANCE = 0.2
"""Largest root mean square of the error of int8, as a fraction of the root mean square of the outputs."""

BF16_TOLERANCE = 0.05  # the same for bfloat16, whose 8 bits of precision leave 1 to 2 % after fifty layers

RUNS = 3  # that are timed where executors compete; for a time estimate, one is enough
LONG = 0.2  # seconds of a run after which the second is the last: the first allocates, later ones hardly vary

COMPARED = 4  # images by which the outputs of two executors are compared

INT8_BATCH = 8  # images at once when the ranges for int8 are measured

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context that sets the precision, such as `torch.autocast`."""


@dataclass(frozen=True)
class Executor:
    """A way to run frozen stages: (N, …) on the device -> float32 output at the cut, without gradients."""

    name: str  # `network`, `plain`, `fused`, `onnxruntime`, `bf16` or `int8`
    run: Callable[[Tensor], Tensor]
    seconds: float  # measured time per image

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # not inference_mode: the stages above save this output for their backward pass
            return self.run(x)


class FrozenPart(nn.Module):
    """The stages from `start` (None: the first) to below `stop`.

    If `stop` is the head of one of our networks, the output is pooled as the head does it, to (N, C) or (N,
    windows, C): storing the map would take up to 49 times the space.
    """

    def __init__(self, network: Network, stop: str, start: str | None = None):
        super().__init__()
        self.network, self.stop, self.start = network, stop, start
        self.pool = stop == "head" and network.arch["name"] != "custom"
        self.stages = network.between(start, stop)

    @property
    def title(self) -> str:
        """`stem to layer3`: its stages in words."""
        return self.stages[0] if len(self.stages) == 1 else f"{self.stages[0]} to {self.stages[-1]}"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the tensors of its stages, as they are when it is first read."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            if self.network.stage_of(name) in self.stages:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def forward(self, x: Tensor) -> Tensor:
        x = self.network.run(x, start=self.start, stop=self.stop)
        return self.network.head_features(x) if self.pool else x


def choose_executor(
    part: FrozenPart,
    sample: Tensor,
    images: int,
    *,
    record: Path | None = None,
    autocast: Autocast = nullcontext,
    required: str | None = None,
    bf16: bool = False,
) -> Executor:
    """The fastest executor of `part` for `images` inputs like `sample` (N, C, H, W). The network is copied.

    ONNX Runtime is tried on CPU, if it is installed and the computation is long enough to pay for the export. The
    choice is stored in the JSON file `record`, by machine and network, so that later runs choose alike.
    `required` names the executor to use without a measurement, for a resumed run; the fused or plain one is used if
    the required one is not available. `bf16` also tries convolutions in bfloat16; UserError if its error is too large.
    """
    # A copy, because fusing changes the weights and training still needs the original.
    front = copy.deepcopy(part).eval().requires_grad_(False).to(sample.device)
    front = front.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        expected = front(sample[:COMPARED])
    fused = fuse_batchnorms(front, sample[:2])  # two images show as well which norm follows which convolution
    key = _record_key(part, sample)
    compiles = sample.device.type == "cpu" and importlib.util.find_spec("onnxruntime") is not None
    known = required or (ChoiceRecord(record).read(key) if compiles else None)
    few = images < FEW and required is None
    # A known choice is followed without comparing times, which differ from one measurement to the next.
    if compiles and known == "onnxruntime" and not bf16 and not few:
        compiled = _onnx_executor(fused, sample, expected, runs=1)
        if compiled is not None:
            return compiled
    runs = 1 if (few or known) and not bf16 else RUNS
    # A fused network whose outputs differ is dropped.
    eager = _checked("fused", fused, sample, expected, autocast, runs) or _timed("plain", front, sample, autocast, runs)
    if bf16:
        half = _bf16_executor(fused, sample, expected)
        if required == "bf16" or (required is None and half.seconds < FASTER * eager.seconds):
            return half
    # For few images the compilation does not pay.
    short = (known is None or few) and eager.seconds * images < WORTH_TRYING
    if not compiles or known in ("plain", "fused") or short:
        return eager
    compiled = _onnx_executor(fused, sample, expected)
    chosen = compiled if compiled is not None and (known or compiled.seconds < FASTER * eager.seconds) else eager
    ChoiceRecord(record).write(key, chosen.name)
    return chosen


def exact_executor(part: FrozenPart, batch: int) -> Executor:
    """The network as it is, on `batch` images (N, C, H, W) at a time: smaller batches are filled up.

    torch chooses its kernels by the number of images and their layout, so the last bits of an output depend on both.
    """

    def filled(x: Tensor) -> Tensor:
        if (n := len(x)) == batch:
            return x
        full = torch.empty((batch, *x.shape[1:]), device=x.device, memory_format=torch.channels_last)
        full[:n], full[n:] = x, x[0]
        return full

    def run(x: Tensor) -> Tensor:
        # A last batch of one image is appended to the one before, so there may be more images.
        return torch.cat([part(filled(piece))[: len(piece)].float() for piece in x.split(batch)])

    return Executor("network", run, 0.0)


def _bf16_executor(fused: nn.Module, sample: Tensor, expected: Tensor) -> Executor:
    """`fused` with convolutions in bfloat16. UserError if the error exceeds BF16_TOLERANCE."""

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(sample.device.type, torch.bfloat16)

    executor = _timed("bf16", fused, sample, autocast)
    with torch.inference_mode():
        error_rms = _relative_error(executor.run(sample[: len(expected)]), expected)
    if not error_rms <= BF16_TOLERANCE:  # also refuses NaN
        raise UserError(
            f'model.frozen_precision = "bf16": changes the outputs of the network by {percent(error_rms, 0)}; '
            "remove the setting"
        )
    return executor


def _relative_error(outputs: Tensor, expected: Tensor) -> float:
    """Root mean square of the error, as a fraction of that of the outputs."""
    return float((outputs - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def int8_executor(part: FrozenPart, images: Tensor) -> Executor:
    """`part` in int8 through ONNX Runtime. It rounds, so it is used only on request.

    `images` (N, C, H, W) are some dozens of training images: seven eighths calibrate the ranges, the others measure the
    error. Raises UserError if the part cannot be quantized, or if the error exceeds INT8_TOLERANCE.
    """
    setting = 'model.frozen_precision = "int8"'
    require_int8(images.device.type)
    from linnaeus.models.quantize import quantize

    front = copy.deepcopy(part).eval().requires_grad_(False)
    calibration, held_out = images[len(images) // 8 :], images[: max(1, len(images) // 8)]
    try:
        graph = export_graph(fuse_batchnorms(front, held_out), held_out)
        run = _graph_function(quantize(graph, (batch.numpy() for batch in calibration.split(INT8_BATCH))))
    except Exception as error:  # the exporter has exceptions of its own
        reason = first_line(error)
        raise UserError(f"{setting}: this network cannot be quantized ({reason}); remove the setting") from None
    with torch.inference_mode():
        expected = front(held_out)
        error_rms = _relative_error(run(held_out), expected)
    if not error_rms <= INT8_TOLERANCE:  # also refuses NaN
        raise UserError(
            f"{setting}: it changes the outputs of the network by {percent(error_rms, 0)}; remove the setting"
        )
    return _timed("int8", run, held_out, nullcontext)


def _onnx_executor(fused: nn.Module, sample: Tensor, expected: Tensor, runs: int = RUNS) -> Executor | None:
    """`fused` through ONNX Runtime; None if it cannot be exported or its outputs differ."""
    for export in (trace_graph, export_graph):
        try:
            run = _graph_function(export(fused, sample))
            if not _agrees(run(sample[:1]), expected[:1]):  # the number of images may be a constant of the graph
                continue
            executor = _checked("onnxruntime", run, sample, expected, nullcontext, runs)
        except Exception:  # the exporters have exceptions of their own, and a user's network may contain anything
            continue
        if executor is not None:
            return executor
    return None


def _graph_function(graph: bytes) -> Callable[[Tensor], Tensor]:
    """An ONNX graph as a function of a tensor on CPU."""
    session = inference_session(graph)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": np.ascontiguousarray(x.numpy())})[0])

    return run


def _checked(
    name: str,
    run: Callable[[Tensor], Tensor],
    sample: Tensor,
    expected: Tensor,
    autocast: Autocast,
    runs: int = RUNS,
) -> Executor | None:
    """The executor if its outputs match those of the plain network for the first images, otherwise None."""
    with torch.inference_mode():
        agrees = _agrees(run(sample[: len(expected)]), expected)
    return _timed(name, run, sample, autocast, runs) if agrees else None


def _agrees(outputs: Tensor, expected: Tensor) -> bool:
    difference = (outputs - expected).abs().max()
    return outputs.shape == expected.shape and bool(difference <= TOLERANCE * expected.abs().max())


def _timed(
    name: str, run: Callable[[Tensor], Tensor], sample: Tensor, autocast: Autocast, runs: int = RUNS
) -> Executor:
    """The executor with its time per image: the shortest of `runs`, or of two that take long."""

    def run_in_precision(x: Tensor) -> Tensor:
        with autocast():
            return run(x).float()

    seconds = []
    with torch.inference_mode():
        for _ in range(runs):
            started = time.perf_counter()
            run_in_precision(sample)
            if sample.device.type == "cuda":
                torch.cuda.synchronize()  # kernels run asynchronously
            seconds.append(time.perf_counter() - started)
            if len(seconds) == 2 and min(seconds) > LONG:
                break
    return Executor(name, run_in_precision, min(seconds) / len(sample))


def _record_key(part: FrozenPart, sample: Tensor) -> str:
    """The key of the fastest executor: machine, network and input shape."""
    return choice_key([part.network.arch, part.start, part.stop, list(sample.shape[1:])])
