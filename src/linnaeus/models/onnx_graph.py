"""A network as an ONNX graph: merge its BatchNorms, export it, and open it in ONNX Runtime."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OPSET = 18  # the first version whose Resize operator has antialiasing


class _Reads(TorchDispatchMode):
    """Counts how many operators read each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()  # by the id of the tensor

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler: two seconds, to keep it from compiling this class

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update({id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)})
        return func(*args, **(kwargs or {}))


def fuse_batchnorms(module: nn.Module, sample: Tensor) -> nn.Module:
    """A copy of `module` in which each BatchNorm directly after a convolution is merged into that convolution.

    In evaluation mode a BatchNorm is y = scale * x + shift with constants, which the convolution's weights and bias can
    absorb. Which BatchNorm follows which convolution is found by running `sample` (N, C, H, W): the input of the one is
    the output of the other, and nothing else reads it.
    """
    module = copy.deepcopy(module)
    source_of: dict[int, nn.Conv2d] = {}  # id of an output tensor -> the convolution that computed it
    pairs: list[tuple[nn.Conv2d, nn.Module, int]] = []
    reads = _Reads()
    outputs: list[Tensor] = []  # keeps all tensors alive, so that no id is reused

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)
        if isinstance(layer, nn.Conv2d):
            source_of[id(output)] = layer
            reads.count[id(output)] = 0  # what has been read by this id was another tensor, which is gone
        elif id(inputs[0]) in source_of:
            pairs.append((source_of[id(inputs[0])], layer, id(inputs[0])))

    handles = [m.register_forward_hook(hook) for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.inference_mode(), reads:
        module(sample)
    for handle in handles:
        handle.remove()
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, norm, output in pairs:
        # The shortcut around a block that begins with its norm reads the output of the convolution too, without norm.
        if reads.count[output] > 1:
            continue
        # timm's norms include their activation, which stays.
        activation = getattr(norm, "act", None)
        rest = activation if isinstance(activation, nn.Module) else nn.Identity()
        replacements |= {convolution: fuse_conv_bn_eval(convolution, norm), norm: rest}  # type: ignore[arg-type]
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def export_graph(module: nn.Module, sample: Tensor) -> bytes:
    """`module`, in evaluation mode, as a serialized ONNX graph from `x` (N, C, H, W) to `y`, for any N.

    `sample` is an example of `x` with at least two images, because the exporter treats a batch of one as a constant.
    The exporter raises exceptions of its own.
    """
    # The exporter logs warnings about its own internals.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # internal to the exporter, of no use to the user
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                (sample.contiguous(),),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["x"],
                output_names=["y"],
                opset_version=OPSET,
                verbose=False,
            )
        finally:
            logger.setLevel(level)
        buffer = io.BytesIO()
        program.save(buffer)  # type: ignore[union-attr, arg-type]
    return buffer.getvalue()


def trace_graph(module: nn.Module, sample: Tensor) -> bytes:
    """As `export_graph`, by torch's older exporter, which needs a tenth of the time for a ResNet-50.

    It executes the module and records what it does, so a number that Python reads from `sample` becomes a constant of
    the graph: compare the outputs for another number of images.
    """
    buffer, images = io.BytesIO(), {0: "batch"}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # it is deprecated, but does not import the compiler
        torch.onnx.export(
            module,
            (sample[:2].contiguous(),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            dynamic_axes={"x": images, "y": images},
            input_names=["x"],
            output_names=["y"],
            opset_version=OPSET,
        )
    return buffer.getvalue()


def inference_session(graph: bytes) -> Any:
    """An ONNX Runtime session of a graph, on CPU, with as many threads as torch uses."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
