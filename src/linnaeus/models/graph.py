"""A network as an ONNX graph: its BatchNorms fused, exported, run by ONNX Runtime."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

OPSET = 18  # the first whose Resize has antialiasing


def fuse(front: nn.Module, sample: Tensor) -> nn.Module:
    """A copy of `front` in which every BatchNorm that directly follows a convolution is part of it.

    Which one follows which is seen by running `sample`: the output of the one is the input of the other.
    """
    front = copy.deepcopy(front)
    made_by: dict[int, nn.Module] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    alive: list[Tensor] = []  # so that no tensor's id is used again

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        alive.append(output)
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
        elif isinstance(made_by.get(id(inputs[0])), nn.Conv2d):
            pairs.append((made_by[id(inputs[0])], module))  # type: ignore[arg-type]

    handles = [m.register_forward_hook(hook) for m in front.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.inference_mode():
        front(sample)
    for handle in handles:
        handle.remove()
    replaced: dict[nn.Module, nn.Module] = {}
    for convolution, norm in pairs:
        replaced |= {convolution: fuse_conv_bn_eval(convolution, norm), norm: nn.Identity()}
    for module in list(front.modules()):
        for name, child in list(module.named_children()):
            if child in replaced:
                setattr(module, name, replaced[child])
    return front.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def onnx_graph(module: nn.Module, sample: Tensor) -> bytes:
    """`module`, in evaluation mode, as an ONNX graph of opset 18 from `x` (any number of images) to `y`.

    `sample` (N, C, H, W) is like what it will see. The exporter raises its own kinds of errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of no use to the user
        quiet = logging.getLogger("torch.onnx")
        level, quiet.level = quiet.level, logging.ERROR
        batch = torch.export.Dim("batch", min=1, max=1 << 16)
        try:
            program = torch.onnx.export(
                module, (sample.contiguous(),), dynamo=True, dynamic_shapes=({0: batch},),
                input_names=["x"], output_names=["y"], opset_version=OPSET, verbose=False,
            )  # fmt: skip
        finally:
            quiet.level = level
        buffer = io.BytesIO()
        program.save(buffer)  # type: ignore[union-attr, arg-type]
    return buffer.getvalue()


def session(graph: bytes) -> Any:
    """An ONNX Runtime session of a graph, on CPU, with as many threads as torch has."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
