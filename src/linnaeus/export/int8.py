"""int8 quantization schemes, calibrated in one pass over sample images; the gate chooses among the results.

A scheme sets the ranges of activations, the bits of weights, and the layers that stay in float. All ranges come from
one pass of the float network over the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.errors import UserError, first_line
from linnaeus.export.sample_images import SampleImages
from linnaeus.models.bias_correction import correct_biases
from linnaeus.models.onnx_graph import inference_session
from linnaeus.models.quantize import Ranges, quantize

CALIBRATION_IMAGES = 128
SAMPLED_VALUES = 4096  # per tensor and image; over all images enough for the 99.99th percentile
BATCH = 8
LEVELS = 255
FLOAT_SHARES = {"ends": 0.0, "start": 0.2, "half": 0.45}
"""`in_float` -> share of the convolutions that it leaves in float, of the first. These have few channels, so rounding
errors average out less: in ResNet-50 those of `start` are a fifth of the work and cause a third of the error."""


@dataclass(frozen=True)
class Scheme:
    """One way to make a network int8."""

    ranges: str  # method for the ranges of activations: `min-max`, `percentile` (99.99 %) or `least-squares`
    wide: bool = False  # use 8-bit weights instead of 7-bit weights
    # Layers that stay in float: none, `ends` (the first convolution and the last layer), `start` (the first fifth of
    # the convolutions and the last layer), or `half` (the first half and the last layer).
    in_float: str = ""

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
"""Attempt where none of the others passes: much of the speed is gone with it."""


@dataclass(frozen=True)
class TensorStatistics:
    """Range and sample of the values of one tensor over all images."""

    low: float
    high: float
    sample: np.ndarray  # random sample of the values
    # (C,): mean of each channel; None where the tensor enters no convolution and no linear layer.
    mean: np.ndarray | None

    def range(self, how: str) -> tuple[float, float]:
        """Smallest and largest representable value. The range contains 0, which padding and ReLU need exactly."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if how == "percentile":
            cut = np.quantile(self.sample, [1e-4, 1 - 1e-4])
            return max(low, min(float(cut[0]), 0.0)), min(high, max(float(cut[1]), 0.0))
        if how == "least-squares":
            return self._least_squares(low, high)
        return low, high

    def _least_squares(self, low: float, high: float) -> tuple[float, float]:
        """The share of the whole range that rounds the values with the smallest squared error (Banner et al. 2018).

        R. Banner, Y. Nahshan, E. Hoffer and D. Soudry, arXiv:1810.05723, section 2, by search instead of a formula.
        """
        if high == low:
            return low, high
        smallest_error, best_share = np.inf, 1.0
        for share in np.linspace(0.3, 1, 29):
            scale = (high - low) * share / LEVELS
            zero = round(-low * share / scale)
            rounded = (np.clip(np.rint(self.sample / scale) + zero, 0, LEVELS) - zero) * scale
            error = float(np.square(rounded - self.sample).mean())
            if error < smallest_error:
                smallest_error, best_share = error, float(share)
        return low * best_share, high * best_share


def quantized(network: bytes, samples: SampleImages, console: Console) -> Iterator[tuple[str, bytes]]:
    """Yield (name, graph) for each of SCHEMES and for LAST_RESORT, quantized from a network's graph one at a time.

    Raises UserError if the network cannot be made int8 at all.
    """
    statistics = observe(network, samples, console)
    float_nodes: dict[str, list[str]] = {"": []} | {
        part: in_float(network, share) for part, share in FLOAT_SHARES.items()
    }
    means = {name: tensor.mean for name, tensor in statistics.items() if tensor.mean is not None}
    # Shapes of an example are needed to find the nodes that can be quantized.
    example = [network_input(next(samples.squares(1)), samples)]
    schemes = (*SCHEMES, LAST_RESORT)
    for number, scheme in enumerate(schemes, 1):
        console.say(f"variant {number} of {len(schemes)}: {scheme}")
        ranges: Ranges = {name: tensor.range(scheme.ranges) for name, tensor in statistics.items()}
        try:
            graph = quantize(
                network,
                example,
                ranges=ranges,
                float_nodes=float_nodes[scheme.in_float],
                weight_bits=8 if scheme.wide else 7,
            )
            graph = correct_biases(graph, network, means)
        except Exception as error:  # ONNX Runtime has exceptions of its own
            reason = first_line(error)
            raise UserError(f"{samples.path}: its network cannot be made int8 ({reason}); use --to onnx") from None
        yield str(scheme), graph


def observe(network: bytes, samples: SampleImages, console: Console) -> dict[str, TensorStatistics]:
    """Measure the range, and sample the values, of every float tensor of the network. Returns them by tensor name."""
    import onnx

    model = onnx.load_model_from_string(network)
    layers = {node.input[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    inner = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    # Every inner tensor becomes an output, so that one pass measures them all.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    run = inference_session(model.SerializeToString())
    names = [output.name for output in run.get_outputs() if output.type == "tensor(float)"]
    generator = np.random.default_rng(0)
    sampled: dict[str, list[np.ndarray]] = {name: [] for name in ["x", *names]}
    lows, highs = dict.fromkeys(sampled, np.inf), dict.fromkeys(sampled, -np.inf)
    # Means per channel correct the bias that rounding introduces.
    means: dict[str, Any] = dict.fromkeys(layers & set(sampled), 0.0)
    with console.progress("measuring ranges") as advance:
        done = 0
        for squares in samples.squares(BATCH):
            x = network_input(squares, samples)
            for name, values in zip(sampled, [x, *run.run(names, {"x": x})], strict=True):
                flat, keep = values.reshape(-1), SAMPLED_VALUES * len(squares)
                lows[name] = min(lows[name], float(flat.min()))
                highs[name] = max(highs[name], float(flat.max()))
                if name in layers:  # there, axis 0 holds images or their tokens, and axis 1 the channels
                    channels = values.reshape(*values.shape[:2], -1).mean((0, 2))
                    means[name] = means[name] + channels * len(squares) / len(samples)
                # A random part of the values is enough for quantiles and bounds the memory.
                sampled[name].append(flat if flat.size <= keep else flat[generator.integers(0, flat.size, keep)])
            done += len(squares)
            advance(done, len(samples))
    return {
        name: TensorStatistics(lows[name], highs[name], np.concatenate(parts), means.get(name))
        for name, parts in sampled.items()
    }


def network_input(squares: torch.Tensor, samples: SampleImages) -> np.ndarray:
    """Input of the network's graph: (N, C, size, size) float32."""
    return np.ascontiguousarray(samples.about.preprocessing.normalize(squares).numpy())


def in_float(network: bytes, share: float) -> list[str]:
    """Names of the nodes up to the first `share` of the convolutions, at least one, and of the last layer."""
    import onnx

    nodes = list(onnx.load_model_from_string(network).graph.node)
    convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    last = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")][-1:]
    end = [*convolutions, len(nodes)][max(1, math.ceil(share * len(convolutions)))] if convolutions else 0
    return [*(node.name for node in nodes[:end]), *last]
