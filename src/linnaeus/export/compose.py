"""The graph of an ONNX backbone with its pooling and its head, as one graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.errors import UserError, one_line
from linnaeus.models.backbones.onnx_backbone import OnnxBackbone
from linnaeus.models.backbones.onnx_features import HALF, require
from linnaeus.models.onnx_graph import OPSET, inference_session


def composed(network: OnnxBackbone, images: np.ndarray) -> bytes:
    """The graph from `x` (N, C, size, size) float32 to logits `y` (N, classes), for any N.

    `images` (2 or more, C, size, size) show whether the graph takes several at once. Raises UserError if it does not,
    or if it cannot be converted to the version of ONNX that the preprocessing needs.
    """
    onnx = require()
    info, name = network.info, network.arch["name"]
    model = onnx.load_model_from_string(network.content())
    version = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    try:
        # Published graphs have many versions; the preprocessing is written for one.
        if version != OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
        # Names of both graphs may be equal.
        model = onnx.compose.add_prefix(model, "backbone/")
        graph = _with_ends(onnx, model, network)
        session = inference_session(graph)
        for n in (1, len(images)):
            assert len(session.run(None, {"x": images[:n]})[0]) == n, f"{n} images at once"
    except Exception as error:  # the converter and ONNX Runtime have exceptions of their own
        reason = f"it takes {counted(info.batch, 'image')} at once" if info.batch else one_line(error)
        raise UserError(
            f"{name}: cannot be joined with its head in one graph ({reason}); use model.safetensors"
        ) from None
    return graph


def _with_ends(onnx: Any, model: Any, network: OnnxBackbone) -> bytes:
    """Input in the layout of the graph, then the graph, then pooling and the linear layer."""
    info, helper, arrays = network.info, onnx.helper, onnx.numpy_helper
    source, features = f"backbone/{info.input}", f"backbone/{info.output}"
    before: list[Any] = []
    x = "x"

    def add(nodes: list[Any], op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    # A gray image is repeated for a backbone of color images.
    if network.arch["channels"] != info.channels:
        x = add(before, "Concat", [x] * info.channels, "ends/channels", axis=1)
    if info.layout == "NHWC":
        x = add(before, "Transpose", [x], "ends/layout", perm=[0, 2, 3, 1])
    # Half precision is cast back after the backbone: the head computes in float32.
    if info.half:
        x = add(before, "Cast", [x], "ends/half", to=HALF)
    add(before, "Identity", [x], source)
    after: list[Any] = []
    y = add(after, "Cast", [features], "ends/features", to=onnx.TensorProto.FLOAT)
    constants = {"ends/weight": network.fc.weight, "ends/bias": network.fc.bias}
    tensors = [arrays.from_array(t.detach().cpu().numpy(), key) for key, t in constants.items()]
    y = _pooled(network, y, lambda *node, **attributes: add(after, *node, **attributes), tensors, arrays)
    add(after, "Gemm", [y, *constants], "y", transB=1)
    size = info.size or network.usual_size
    graph = helper.make_graph(
        [*before, *model.graph.node, *after],
        "network",
        [helper.make_tensor_value_info("x", 1, ["batch", network.arch["channels"], size, size])],
        [helper.make_tensor_value_info("y", 1, ["batch", network.arch["classes"]])],
        [*model.graph.initializer, *tensors],
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions, ir_version=10)
    return made.SerializeToString()


def _pooled(network: OnnxBackbone, y: str, add: Any, tensors: list[Any], arrays: Any) -> str:
    """Nodes that do what the network's `pool` does."""
    rank, pool = 1 + len(network.info.shape), network.arch["arguments"]["pool"]
    if rank == 2:
        return y
    if pool == "flatten":
        return add("Flatten", [y], "ends/flat", axis=1)
    # The axes over which features are averaged: tokens, or height and width.
    axes = [1] if rank == 3 else [1, 2] if network.info.layout == "NHWC" else [2, 3]
    tensors.append(arrays.from_array(np.array(axes, np.int64), "ends/axes"))
    tensors.append(arrays.from_array(np.array(0, np.int64), "ends/first"))
    parts = []
    for part in (pool or "mean").split("+"):
        if part == "cls":
            parts.append(add("Gather", [y, "ends/first"], "ends/cls", axis=1))
        else:
            parts.append(add("ReduceMean", [y, "ends/axes"], "ends/mean", keepdims=0))
    return add("Concat", parts, "ends/pooled", axis=1)
