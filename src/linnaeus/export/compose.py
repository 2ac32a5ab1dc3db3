"""The graph of an ONNX backbone with its pooling and its head, as one graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.errors import UserError, one_line
from linnaeus.export.assemble import IR, Nodes
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
    info, helper = network.info, onnx.helper
    before, after = Nodes("before"), Nodes("after")
    x = "x"
    # A gray image is repeated for a backbone of color images.
    if network.arch["channels"] != info.channels:
        x = before("Concat", *[x] * info.channels, axis=1)
    if info.layout == "NHWC":
        x = before("Transpose", x, perm=[0, 2, 3, 1])
    # Half precision is cast back after the backbone: the head computes in float32.
    if info.half:
        x = before("Cast", x, to=HALF)
    before("Identity", x, name=f"backbone/{info.input}")
    y = _pooled(network, after("Cast", f"backbone/{info.output}", to=onnx.TensorProto.FLOAT), after)
    weight, bias = (tensor.detach().cpu().numpy() for tensor in (network.fc.weight, network.fc.bias))
    after("Gemm", y, weight, bias, name="y", transB=1)
    size = info.size or network.usual_size
    graph = helper.make_graph(
        [*before.nodes, *model.graph.node, *after.nodes],
        "network",
        [helper.make_tensor_value_info("x", 1, ["batch", network.arch["channels"], size, size])],
        [helper.make_tensor_value_info("y", 1, ["batch", network.arch["classes"]])],
        [*model.graph.initializer, *after.constants],
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions, ir_version=IR)
    return made.SerializeToString()


def _pooled(network: OnnxBackbone, y: str, g: Nodes) -> str:
    """Nodes that do what the network's `pool` does."""
    rank, pool = 1 + len(network.info.shape), network.arch["arguments"]["pool"]
    if rank == 2:
        return y
    if pool == "flatten":
        return g("Flatten", y, axis=1)
    # The axes over which features are averaged: tokens, or height and width.
    axes = np.array([1] if rank == 3 else [1, 2] if network.info.layout == "NHWC" else [2, 3], np.int64)
    parts = [
        g("Gather", y, np.array(0, np.int64), axis=1) if part == "cls" else g("ReduceMean", y, axes, keepdims=0)
        for part in (pool or "mean").split("+")
    ]
    return g("Concat", *parts, axis=1)
