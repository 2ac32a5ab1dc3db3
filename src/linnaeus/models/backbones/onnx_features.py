"""An ONNX graph from images to features: reading it, checking it, choosing its output, and running it."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.errors import UserError, did_you_mean, install, one_line

MOST_BYTES = 1 << 30  # the largest graph: the model file holds it, and so do checkpoints
USUAL_SIZE = 224
FLOAT, HALF = 1, 10  # ONNX's numbers of the types that images may have


@dataclass(frozen=True)
class GraphInfo:
    """What has to be known about a graph to run it. JSON types only."""

    bytes: int
    input: str
    output: str
    shape: list[int]  # of the output for one image
    channels: int
    layout: str  # NCHW or NHWC
    size: int  # side in pixels that the graph takes; 0: any
    batch: int  # images at once that the graph takes; 0: any number
    half: bool  # whether images are float16

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def require() -> Any:
    """The module onnx, if ONNX Runtime is installed too. Raises UserError, with the command that installs both."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"model.name = onnx/…: needs the package {error.name}: {install('onnx')}") from None
    return onnx


def read_graph(file: Path, output: str) -> tuple[bytes, GraphInfo]:
    """The graph of a file, with the weights of files beside it, and what is known about it.

    `output` names the tensor to use, also one in the middle of the graph; empty for the only output.
    Raises UserError if the file is missing, damaged or too large, or does not turn images into features.
    """
    changed, size = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
    return _read(file, output, changed, size)


def image_size(file: Path) -> int:
    """Side in pixels of the images that the graph of a file takes; USUAL_SIZE where it takes any."""
    return _image_input(file, _load(file)).size or USUAL_SIZE


def _load(file: Path) -> Any:
    """The graph of a file, without values that other files hold."""
    onnx = require()
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; --model takes onnx/FILE")
    if file.stat().st_size > MOST_BYTES:
        raise _too_large(file, file.stat().st_size)
    try:
        model = onnx.load(file, load_external_data=False)
        if not model.graph.node:
            raise ValueError("it computes nothing")
    except Exception as error:  # protobuf has exceptions of its own; ONNX Runtime checks the rest when it runs
        raise UserError(f"{file}: not an ONNX file, or damaged ({one_line(error)}); get a fresh copy") from None
    return model


@functools.lru_cache(maxsize=2)  # a run creates its network several times, also to find shapes
def _read(file: Path, output: str, changed: int, size: int) -> tuple[bytes, GraphInfo]:
    onnx, model = require(), _load(file)
    _embed_external(onnx, model, file)
    info = replace(_image_input(file, model), output=_choose_output(file, onnx, model, output))
    graph = model.SerializeToString()
    if len(graph) > MOST_BYTES:
        raise _too_large(file, len(graph))
    side = info.size or USUAL_SIZE
    image = np.zeros((info.batch or 1, info.channels, side, side), np.float32)
    try:
        # Run once: only the result shows whether it is features, tokens or maps.
        features = run(session_of(graph), info, image)
    except Exception as error:  # ONNX Runtime has exceptions of its own
        raise UserError(f"{file}: ONNX Runtime does not run it ({one_line(error)})") from None
    if (
        features.dtype.kind != "f"
        or features.ndim not in (2, 3, 4)
        or len(features) != len(image)
        or not np.isfinite(features).all()
    ):
        raise UserError(
            f"{file}: output {info.output!r} has type {features.dtype} and shape {list(features.shape)} for "
            f"{counted(len(image), 'image')}, not features (N, F), tokens (N, T, F) or maps; "
            f"{_others(model, info.output)}"
        )
    return graph, replace(info, bytes=len(graph), shape=list(features.shape[1:]))


def _too_large(file: Path, size: int) -> UserError:
    return UserError(
        f"{file}: {size / 1e9:.1f} GB, which the model file would have to hold; the limit is "
        f"{MOST_BYTES / 1e9:.1f} GB; use a smaller network"
    )


def _external(onnx: Any, model: Any) -> list[Any]:
    """The tensors whose values are in files beside the graph."""
    return [
        t for t in onnx.external_data_helper._get_all_tensors(model) if onnx.external_data_helper.uses_external_data(t)
    ]


def _embed_external(onnx: Any, model: Any, file: Path) -> None:
    """Read tensors from files beside the graph into it."""
    external = _external(onnx, model)
    names = sorted({entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"})
    for name in names:
        beside = file.parent / name
        # A name in the graph must not reach files outside its folder.
        if not beside.resolve().is_relative_to(file.parent.resolve()):
            raise UserError(f"{file}: keeps weights in {name}, outside its folder; save it as one file")
        if not beside.is_file():
            raise UserError(
                f"{file}: keeps weights in {name}, which is not beside it; bring both files into one folder"
            )
        if beside.stat().st_size > MOST_BYTES:
            raise _too_large(beside, beside.stat().st_size)
    try:
        if external:
            onnx.load_external_data_for_model(model, str(file.parent))
    except Exception as error:
        raise UserError(f"{file}: its weights in {', '.join(names)} cannot be read ({one_line(error)})") from None


def _image_input(file: Path, model: Any) -> GraphInfo:
    """What is known from the only input, which takes images."""
    # Old exporters list weights among the inputs.
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise UserError(
            f"{file}: takes {len(inputs)} inputs ({', '.join(value.name for value in inputs)}), not images alone; "
            "export the image encoder on its own"
        )
    tensor = inputs[0].type.tensor_type
    sides = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    if tensor.elem_type not in (FLOAT, HALF) or len(sides) != 4:
        kinds = {2: "uint8", 3: "int8", 6: "int32", 7: "int64", 11: "float64"}
        kind = kinds.get(tensor.elem_type, "other values" if tensor.elem_type not in (FLOAT, HALF) else "float32")
        raise UserError(
            f"{file}: input {inputs[0].name!r} takes {kind} of {len(sides)} dimensions, not normalized float images "
            "(N, C, H, W); export the network without its preprocessing"
        )
    # Only the channel axis has 1 or 3 entries.
    layout = "NHWC" if sides[3] in (1, 3) and sides[1] not in (1, 3) else "NCHW"
    channels, height, width = sides[1:] if layout == "NCHW" else (sides[3], sides[1], sides[2])
    if channels not in (0, 1, 3) or height != width:
        raise UserError(
            f"{file}: input {inputs[0].name!r} has shape {sides}, not square images of 1 or 3 channels; export it again"
        )
    half = tensor.elem_type == HALF
    return GraphInfo(0, inputs[0].name, "", [], channels or 3, layout, height, sides[0], half)


def _choose_output(file: Path, onnx: Any, model: Any, output: str) -> str:
    """Make `output`, or the only one there is, the single output of the graph. Returns its name."""
    names = [value.name for value in model.graph.output]
    if not output and len(names) != 1:
        raise UserError(
            f"{file}: has {len(names)} outputs; choose one with arguments = {{ output = {names[0]!r} }}, from "
            f"{', '.join(names[:10])}"
        )
    output = output or names[0]
    inside = [name for node in model.graph.node for name in node.output]
    if output not in names and output not in inside:
        raise UserError(
            f"{file}: has no output {output!r}{did_you_mean(output, [*names, *inside])}; {_others(model, '')}"
        )
    inferred = [] if output in names else onnx.shape_inference.infer_shapes(model).graph.value_info
    kept = [value for value in (*model.graph.output, *inferred) if value.name == output]
    # The graph is cut at this output; nodes above it do not run.
    del model.graph.output[:]
    model.graph.output.extend(kept or [onnx.helper.make_empty_tensor_value_info(output)])
    return output


def _others(model: Any, chosen: str) -> str:
    """Where else features could be."""
    inside = [name for node in model.graph.node for name in node.output if name != chosen]
    return f"arguments.output may name any tensor of the graph, such as {', '.join(inside[-3:])}"


def session_of(graph: bytes) -> Any:
    """An ONNX Runtime session of a graph that may come from anybody: it must not read other files."""
    from linnaeus.models.onnx_graph import inference_session

    onnx = require()
    if _external(onnx, onnx.load_model_from_string(graph)):
        raise UserError("the graph of an ONNX network refers to other files, which a model file must not")
    return inference_session(graph)


def run(session: Any, info: GraphInfo, images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) float32 -> the output of the graph, (N, …) float32, in batches that the graph takes."""
    if images.shape[1] != info.channels:
        images = np.repeat(images, info.channels, 1)  # gray images in all channels
    if info.layout == "NHWC":
        images = images.transpose(0, 2, 3, 1)
    images = np.ascontiguousarray(images, np.float16 if info.half else np.float32)
    batch, parts = info.batch or max(1, len(images)), []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        missing = batch - len(part) if info.batch else 0
        padded = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        parts.append(session.run([info.output], {info.input: padded})[0][: len(part)])
    output = np.concatenate(parts)
    return output.astype(np.float32) if output.dtype == np.float16 else output
