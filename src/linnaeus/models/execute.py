"""The fastest way to run a frozen part of a network: fused, or through ONNX Runtime.

A frozen part is a constant function, so it may be rewritten: a BatchNorm with fixed statistics is a scale and a shift
that the convolution before it can do for nothing, and a compiled graph needs no Python between the layers.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.graph import fuse, onnx_graph, session
from linnaeus.models.network import Network, pooled

WORTH_TRYING = 120.0
"""Seconds of eager work above which exporting the part, which takes some ten, is worth a trial."""

FASTER = 0.9
"""ONNX Runtime is chosen where it takes less than this share of the time."""

TOGETHER = 8  # images at once where int8's ranges are measured

AGREES = 1e-3
"""Largest difference to the plain network, as a share of its largest output."""


@dataclass(frozen=True)
class Executor:
    """A way to run the stages below the cut: (N, C, H, W) on the device -> what crosses the cut, without gradients."""

    name: str
    """`plain`, `fused`, `onnxruntime` or `int8`."""
    run: Callable[[Tensor], Tensor]
    seconds: float
    """Measured, an image."""

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # not inference_mode: what is above the cut saves this for its backward pass
            return self.run(x)


class Front(nn.Module):
    """The stages from `start` to below `stop`; before a head of ours, which begins with an average, that average."""

    def __init__(self, network: Network, stop: str, start: str | None = None):
        super().__init__()
        self.network, self.stop, self.start = network, stop, start
        self.pool = stop == "head" and network.arch["name"] != "custom"

    def forward(self, x: Tensor) -> Tensor:
        x = self.network.run(x, start=self.start, stop=self.stop)
        return pooled(x) if self.pool else x


def choose_executor(
    network: Network,
    stop: str,
    sample: Tensor,
    images: int,
    record: Path | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    start: str | None = None,
    wanted: str | None = None,
) -> Executor:
    """The fastest executor for `images` images like `sample` (N, C, H, W) from `start` through all below `stop`.

    ONNX Runtime is tried where it is installed, on CPU, and the work is long enough to pay for the export. What was
    found is kept in the file `record` by machine and network: a later run does as the first. `wanted` is the name of
    the one to take, without a trial, where a run that is resumed has had one; the other where it is not to be had.
    """
    front = Front(copy.deepcopy(network), stop, start).eval().requires_grad_(False).to(sample.device)
    front = front.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        expected = front(sample)
    fused = _checked("fused", fuse(front, sample), sample, expected, autocast) or _timed(
        "plain", front, sample, autocast
    )
    if sample.device.type != "cpu" or importlib.util.find_spec("onnxruntime") is None:
        return fused
    key = _machine(network, stop, sample, start)
    known = wanted or _read(record).get(key)
    if known in ("plain", "fused") or (known is None and fused.seconds * images < WORTH_TRYING):
        return fused
    compiled = _onnx(front, sample, expected)
    chosen = compiled if compiled is not None and (known or compiled.seconds < FASTER * fused.seconds) else fused
    _write(record, key, chosen.name)
    return chosen


INT8_AGREES = 0.2
"""Largest root mean square of the difference that int8 may make, as a share of that of the outputs."""


def int8_executor(network: Network, stop: str, images: Tensor) -> Executor:
    """The stages below `stop` in int8 through ONNX Runtime, for those who ask for it.

    `images` (N, C, H, W), some dozens like those to come: seven eighths of them set the ranges, the others are the
    test. Raises UserError where that cannot be done or rounds too much.
    """
    asked = 'model.frozen = "int8"'
    if images.device.type != "cpu" or importlib.util.find_spec("onnxruntime") is None:
        raise UserError(f'{asked} runs on CPU through ONNX Runtime: pip install "linnaeus[onnx]", or leave it out')
    from linnaeus.models.quantize import quantize

    front = Front(copy.deepcopy(network), stop).eval().requires_grad_(False)
    shown, kept = images[len(images) // 8 :], images[: max(1, len(images) // 8)]
    try:
        run = _run(quantize(onnx_graph(fuse(front, kept), kept), (part.numpy() for part in shown.split(TOGETHER))))
    except Exception as error:  # the exporter raises its own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{asked}: this network cannot be made int8 ({reason}); leave it out") from None
    with torch.inference_mode():
        expected = front(kept)
        off = float((run(kept) - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    if not off <= INT8_AGREES:
        raise UserError(f"{asked}: it changes what the network gives by {off:.0%}; leave it out")
    return _timed("int8", run, kept, nullcontext)


def _onnx(front: nn.Module, sample: Tensor, expected: Tensor) -> Executor | None:
    """`front` through ONNX Runtime; None where it cannot be exported or gives something else."""
    try:
        run = _run(onnx_graph(fuse(front, sample), sample))
    except Exception:  # the exporter raises its own kinds; a network of one's own may hold anything
        return None
    return _checked("onnxruntime", run, sample, expected)


def _run(graph: bytes) -> Callable[[Tensor], Tensor]:
    """An ONNX graph as a function of a tensor on CPU."""
    made = session(graph)
    return lambda x: torch.from_numpy(made.run(None, {"x": np.ascontiguousarray(x.numpy())})[0])


def _checked(
    name: str,
    run: Callable[[Tensor], Tensor],
    sample: Tensor,
    expected: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Executor | None:
    """An executor, if it gives what the plain network gives."""
    with torch.inference_mode():
        difference = (run(sample) - expected).abs().max()
    return _timed(name, run, sample, autocast) if difference <= AGREES * expected.abs().max() else None


def _timed(
    name: str, run: Callable[[Tensor], Tensor], sample: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> Executor:
    """An executor with the median time of three runs."""

    def cast(x: Tensor) -> Tensor:
        with autocast():
            return run(x).float()

    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            cast(sample)
            if sample.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return Executor(name, cast, sorted(seconds)[1] / len(sample))


def _machine(network: Network, stop: str, sample: Tensor, start: str | None = None) -> str:
    """What the choice depends on, as a key."""
    what = [
        platform.machine(), platform.processor(), os.cpu_count(), torch.get_num_threads(), torch.__version__,
        network.arch, start, stop, list(sample.shape[1:]),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(record: Path | None) -> dict[str, str]:
    if record is not None:
        with suppress(OSError, ValueError):
            found = json.loads(record.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
    return {}


def _write(record: Path | None, key: str, name: str) -> None:
    """Remember the choice. Losing it costs a trial, so a folder that cannot be written is no error."""
    if record is not None:
        with suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            temporary = record.with_name(f"{record.name}.{os.getpid()}")
            temporary.write_text(json.dumps(_read(record) | {key: name}), encoding="utf-8")
            temporary.replace(record)
