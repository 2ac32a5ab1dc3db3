"""int8 quantization schemes, calibrated in one pass over sample images; the gate chooses among the results.

What can be chosen are the ranges that activations are rounded in, how many bits weights keep, and what stays in float.
All ranges come from one pass of the float network over the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.export.material import Material
from linnaeus.models.onnx_graph import inference_session
from linnaeus.models.quantize import Ranges, quantize

SHOWN = 128  # images that show the ranges
KEPT = 4096  # values of a tensor that are kept of each image; over all, enough for the 99.99th percentile
TOGETHER = 8
LEVELS = 255
FIRST = 0.2
"""Share of the convolutions that the start is. They are few in channels, so rounding has few values to average over:
in ResNet-50 they are a fifth of the work and make a third of the error."""


@dataclass(frozen=True)
class Scheme:
    """One way to make a network int8."""

    ranges: str
    """Of activations: `min-max`, `percentile` (99.99 %) or `least-squares`."""
    wide: bool = False
    """Use 8-bit weights instead of 7-bit weights."""
    in_float: str = ""
    """What stays as it is: nothing, `ends` (the first convolution, which sees the pixels, and the last layer, which
    gives the logits), `start` (the first fifth of the convolutions, and the last layer), or `half` of them."""

    def __str__(self) -> str:
        first = {"ends": "first", "start": "first fifth", "half": "first half"}.get(self.in_float)
        kept = f", {first} and last layer in float" if first else ""
        return f"{self.ranges}, {8 if self.wide else 7}-bit weights{kept}"


SCHEMES = (  # the fastest arithmetic first
    Scheme("min-max"),
    Scheme("percentile"),
    Scheme("least-squares"),
    Scheme("least-squares", in_float="ends"),
    Scheme("least-squares", in_float="start"),
    Scheme("least-squares", wide=True, in_float="ends"),
    Scheme("least-squares", wide=True, in_float="start"),
)
LAST_RESORT = Scheme("least-squares", in_float="half")
"""Tried where none of the others passes: much of the speed is gone with it."""


@dataclass(frozen=True)
class Seen:
    """Range and sample of the values of one tensor over all images."""

    low: float
    high: float
    some: np.ndarray
    """Random sample of the values."""

    def range(self, how: str) -> tuple[float, float]:
        """Least and largest value to round to. It holds 0, which padding and ReLU need exact."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if how == "percentile":
            cut = np.quantile(self.some, [1e-4, 1 - 1e-4])
            return max(low, min(float(cut[0]), 0.0)), min(high, max(float(cut[1]), 0.0))
        if how == "least-squares":
            return self._least_squares(low, high)
        return low, high

    def _least_squares(self, low: float, high: float) -> tuple[float, float]:
        """The share of the whole range that rounds the values with the least squared error (Banner et al. 2018).

        R. Banner, Y. Nahshan, E. Hoffer and D. Soudry, arXiv:1810.05723, section 2, by search instead of a formula.
        """
        if high == low:
            return low, high
        best, found = np.inf, 1.0
        for share in np.linspace(0.3, 1, 29):
            scale = (high - low) * share / LEVELS
            zero = round(-low * share / scale)
            rounded = (np.clip(np.rint(self.some / scale) + zero, 0, LEVELS) - zero) * scale
            error = float(np.square(rounded - self.some).mean())
            if error < best:
                best, found = error, float(share)
        return low * found, high * found


def quantized(network: bytes, shown: Material, console: Console) -> Iterator[tuple[str, bytes]]:
    """(name, graph) of each of SCHEMES and of LAST_RESORT, made of a network's graph when it is asked for.

    Raises UserError where the network cannot be made int8 at all.
    """
    seen = observe(network, shown, console)
    kept = {"": [], "ends": in_float(network, 0), "start": in_float(network, FIRST), "half": in_float(network, 0.45)}
    example = [batch(next(shown.squares(1)), shown)]
    for scheme in (*SCHEMES, LAST_RESORT):
        ranges: Ranges = {name: each.range(scheme.ranges) for name, each in seen.items()}
        try:
            graph = quantize(
                network, example, ranges=ranges, float_nodes=kept[scheme.in_float], weight_bits=8 if scheme.wide else 7
            )
        except Exception as error:  # ONNX Runtime raises kinds of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{shown.path}: its network cannot be made int8 ({reason}); use --to onnx") from None
        yield str(scheme), graph


def observe(network: bytes, shown: Material, console: Console) -> dict[str, Seen]:
    """Measure the range, and sample the values, of every float tensor of the network. Returns them by tensor name."""
    import onnx

    model = onnx.load_model_from_string(network)
    inner = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    run = inference_session(model.SerializeToString())
    names = [each.name for each in run.get_outputs() if each.type == "tensor(float)"]
    generator = np.random.default_rng(0)
    some: dict[str, list[np.ndarray]] = {name: [] for name in ["x", *names]}
    lows, highs = dict.fromkeys(some, np.inf), dict.fromkeys(some, -np.inf)
    with console.progress("measuring ranges") as advance:
        done = 0
        for squares in shown.squares(TOGETHER):
            x = batch(squares, shown)
            for name, values in zip(some, [x, *run.run(names, {"x": x})], strict=True):
                flat, keep = values.reshape(-1), KEPT * len(squares)
                lows[name] = min(lows[name], float(flat.min()))
                highs[name] = max(highs[name], float(flat.max()))
                some[name].append(flat if flat.size <= keep else flat[generator.integers(0, flat.size, keep)])
            done += len(squares)
            advance(done, len(shown))
    return {name: Seen(lows[name], highs[name], np.concatenate(parts)) for name, parts in some.items()}


def batch(squares: torch.Tensor, shown: Material) -> np.ndarray:
    """What the network's graph takes: (N, C, size, size) float32."""
    return np.ascontiguousarray(shown.about.preprocessing.normalise(squares).numpy())


def in_float(network: bytes, share: float) -> list[str]:
    """The nodes through the first `share` of the convolutions, at least one, and what follows; the last layer."""
    import onnx

    nodes = list(onnx.load_model_from_string(network).graph.node)
    convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    last = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")][-1:]
    end = [*convolutions, len(nodes)][max(1, math.ceil(share * len(convolutions)))] if convolutions else 0
    return [*(node.name for node in nodes[:end]), *last]
