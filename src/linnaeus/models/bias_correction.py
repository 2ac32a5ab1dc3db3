"""Bias correction of int8 networks.

Rounding the weights of a layer by E = W_q - W shifts the mean of each of its output channels by E E[x], because E does
not average out over images. The shift is known and is subtracted from the bias, so that only the variance of the error
remains (Nagel et al. 2019, arXiv:1906.04721, section 4.2). Layers whose weights have few elements per output channel,
such as depthwise convolutions, gain most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def correct_biases(graph: bytes, network: bytes, means: Mapping[str, np.ndarray]) -> bytes:
    """Subtract the mean error of the rounded weights from the biases of `graph`, and return the graph.

    `graph`: the int8 graph in QDQ form that was made from the float graph `network`. `means`: for each tensor of
    `network`, the mean of each of its channels, (C,). Convolutions and linear layers without int8 weights or without a
    bias are left as they are.
    """
    import onnx
    from onnx import numpy_helper

    original, model = onnx.load_model_from_string(network), onnx.load_model_from_string(graph)
    exact = {tensor.name: tensor for tensor in original.graph.initializer}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    rounded_nodes = {node.name: node for node in model.graph.node}
    for node in original.graph.node:
        # Only layers with a bias have something to correct.
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[0] not in means:
            continue
        rounded = rounded_nodes[node.name]
        weight, bias = (sources.get(name) for name in rounded.input[1:3])
        if weight is None or bias is None:
            continue
        error = _dequantized(weight, stored) - numpy_helper.to_array(exact[node.input[1]])
        # The mean error of an output is the error of the weights times the mean input.
        shift = _mean_output(_out_first(node, error), means[node.input[0]])
        scale = numpy_helper.to_array(stored[bias.input[1]])
        tensor = stored[bias.input[0]]
        # Biases are stored as int32 multiples of their scale.
        values = numpy_helper.to_array(tensor) - np.rint(shift / scale).astype(np.int32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


def _dequantized(node: Any, stored: Mapping[str, Any]) -> np.ndarray:
    """The float weights that the integers of a DequantizeLinear node stand for."""
    from onnx import numpy_helper

    values, scale, zero = (numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input[:3])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return (values - zero.reshape(shape)) * scale.reshape(shape)


def _out_first(node: Any, weight: np.ndarray) -> np.ndarray:
    """Weights with the output channels on axis 0: a Gemm may hold them on axis 1."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return weight if node.op_type == "Conv" or transposed else weight.T


def _mean_output(weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(out,): mean output of a layer with `weight` (out, in / groups, ...) for inputs of channel means `mean` (in,)."""
    per_channel = weight.reshape(*weight.shape[:2], -1).sum(2)
    groups = len(mean) // per_channel.shape[1]
    inputs = np.repeat(mean.reshape(groups, -1), len(per_channel) // groups, axis=0)
    return (per_channel * inputs).sum(1)
