"""Assembles one ONNX graph from image pixels to probabilities: preprocessing, network, calibration.

The preprocessing repeats `data.resize` and `Preprocessing.crop` node by node, with the same sizes and rounding. ONNX's
antialiased `Resize` is within one of Pillow's 255 levels for the bilinear filter and within a few for the bicubic one;
`exclude_outside` makes it treat the edges as Pillow does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from linnaeus.data.images.resize import MAX_ASPECT
from linnaeus.errors import UserError
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.modelfile.onnx import INPUT, LOGITS, PROBABILITIES
from linnaeus.models.onnx_graph import OPSET
from linnaeus.preprocess import Preprocessing

IR = 10  # readable by ONNX Runtime 1.18 and later
MOST_BYTES = (1 << 31) - (1 << 20)  # protobuf holds no more than 2 GB, and the file is one message

LUMA = (19595, 38470, 7471)  # of 65536: Rec. 601, as Pillow rounds it
FILTERS: dict[str, dict[str, Any] | None] = {
    "nearest": None,  # picked, not resized
    "bilinear": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
}


class Nodes:
    """Builds a list of nodes in execution order. Calling it adds a node and returns the name of its output."""

    def __init__(self, prefix: str):
        from onnx import helper, numpy_helper

        self.prefix, self._helper, self._array = prefix, helper, numpy_helper.from_array
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, op: str, *inputs: str | np.ndarray | int, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output. Integers become (1,) int64 constants; arrays keep their type."""
        name = name or f"{self.prefix}/{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(
            self._helper.make_node(op, names, [name], name=f"{self.prefix}/{op}{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: np.ndarray | int) -> str:
        array = np.array([value], np.int64) if isinstance(value, int) else value
        name = f"{self.prefix}/constant{len(self.constants)}"
        self.constants.append(self._array(array, name))
        return name


def assemble(
    network: bytes,
    preprocessing: Preprocessing,
    classes: int,
    temperature: float,
    labels: LabelCalibration | None = None,
) -> Any:
    """Wrap the graph of a network (`x` (N, C, size, size) float32 -> `y` (N, classes) logits) in an `onnx.ModelProto`.

    `labels`: the calibration of each label, where images may have several; without it, all labels share a softmax.
    Input of the result: images of one size, (N, H, W, 3 or 1) uint8. Outputs: calibrated probabilities and the
    network's logits, both (N, classes) float32.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(network)
    front, back = Nodes("preprocess"), Nodes("calibrate")
    prepare(front, preprocessing)
    if labels is not None:
        scaled = back("Mul", LOGITS, labels.scale.astype(np.float32))
        back("Sigmoid", back("Add", scaled, labels.offset.astype(np.float32)), name=PROBABILITIES)
    else:
        scaled = back("Div", LOGITS, np.array(temperature, np.float32)) if temperature != 1 else LOGITS
        back("Softmax", scaled, name=PROBABILITIES, axis=-1)
    # The network's own output name is free in the graph; logits are public and need a stable name.
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [LOGITS if name == "y" else name for name in names]
    graph = helper.make_graph(
        [*front.nodes, *model.graph.node, *back.nodes],
        "linnaeus",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", "height", "width", "channels"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
            for name in (PROBABILITIES, LOGITS)
        ],
        initializer=[*front.constants, *model.graph.initializer, *back.constants],
    )
    # The standard operators get our version; other domains keep theirs.
    opsets = [opset for opset in model.opset_import if opset.domain]
    assembled = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), *opsets],
        producer_name="linnaeus",
        ir_version=IR,
        functions=model.functions,
    )
    onnx.checker.check_model(assembled)
    return assembled


def prepare(g: Nodes, p: Preprocessing) -> None:
    """Add the preprocessing: INPUT (N, H, W, 3 or 1) uint8 to the network's `x` (N, C, size, size) float32."""
    if p.interpolation not in FILTERS:
        raise UserError(
            f"interpolation = {p.interpolation!r}: ONNX has no such resize, only {', '.join(FILTERS)}; "
            "train with one of these to export"
        )
    x = with_channels(g, p.channels)
    shape = g("Shape", x)
    height, width = (g("Gather", shape, np.array([axis], np.int64)) for axis in (1, 2))
    x = {"crop": crop, "squash": squash, "pad": pad}[p.fit](g, x, height, width, p)
    x = g("Cast", g("Transpose", x, perm=[0, 3, 1, 2]), to=1)
    std, mean = (np.array(values, np.float64).reshape(-1, 1, 1) for values in (p.std, p.mean))
    # One multiplication and one addition instead of a division by 255, a subtraction and a division.
    x = g("Mul", x, (1 / (255 * std)).astype(np.float32))
    g("Add", x, (-mean / std).astype(np.float32), name="x")


def with_channels(g: Nodes, channels: int) -> str:
    """Convert gray or RGB to RGB, or to luma, as uint8, like `data.resize.with_channels`."""
    x = g("Expand", INPUT, np.array([1, 1, 1, 3], np.int64))
    if channels == 3:
        return x
    weighted = g("Mul", g("Cast", x, to=6), np.array(LUMA, np.int32))
    total = g("Add", g("ReduceSum", weighted, -1, keepdims=1), np.array(1 << 15, np.int32))
    return g("Cast", g("Div", total, np.array(1 << 16, np.int32)), to=2)


def crop(g: Nodes, x: str, height: str, width: str, p: Preprocessing) -> str:
    """Cut to at most 4:1, resize the short side to `resize` (the long one rounded down), cut the center."""
    kept = [g("Min", side, g("Mul", other, MAX_ASPECT)) for side, other in ((height, width), (width, height))]
    start = [g("Div", g("Sub", side, k), 2) for side, k in zip((height, width), kept, strict=True)]
    x = cut(g, x, start, kept)
    short = g("Min", *kept)
    goal = [g("Div", g("Mul", k, p.resize), short) for k in kept]
    x = resize(g, x, goal, p)
    start = [half_to_even(g, g("Sub", side, p.size)) for side in goal]
    return cut(g, x, start, [g.constant(p.size)] * 2)


def squash(g: Nodes, x: str, height: str, width: str, p: Preprocessing) -> str:
    """Resize both sides to `resize`, then cut the central square."""
    return center(g, resize(g, x, [g.constant(p.resize)] * 2, p), p)


def pad(g: Nodes, x: str, height: str, width: str, p: Preprocessing) -> str:
    """Resize the long side to `resize` (the short one rounded half to even), pad with black, cut the center."""
    long = g("Cast", g("Max", height, width), to=11)
    goal = []
    for side in (height, width):
        exact = g("Div", g("Cast", g("Mul", side, p.resize), to=11), long)
        goal.append(g("Max", g("Cast", g("Round", exact), to=7), 1))
    x = resize(g, x, goal, p)
    spare = [g("Sub", p.resize, side) for side in goal]
    before = [g("Div", side, 2) for side in spare]
    after = [g("Sub", side, b) for side, b in zip(spare, before, strict=True)]
    x = g("Pad", x, g("Concat", 0, *before, 0, 0, *after, 0, axis=0), np.array(0, np.uint8))
    return center(g, x, p)


def resize(g: Nodes, x: str, goal: list[str], p: Preprocessing) -> str:
    """Resize to (height, width) `goal` with antialiasing."""
    how = FILTERS[p.interpolation]
    if how is None:
        return g("Gather", g("Gather", x, nearest(g, x, 1, goal[0]), axis=1), nearest(g, x, 2, goal[1]), axis=2)
    shape = g("Shape", x)
    sizes = g("Concat", g("Gather", shape, np.array([0], np.int64)), *goal, p.channels, axis=0)
    return g("Resize", x, "", "", sizes, coordinate_transformation_mode="half_pixel", **how)


def nearest(g: Nodes, x: str, axis: int, goal: str) -> str:
    """Index of the source pixel under the center of each new pixel, (goal,) int64.

    Pillow adds up float64 steps. Where a center falls exactly between two pixels, the accumulated rounding decides, so
    the graph accumulates in the same way.
    """
    side = g("Gather", g("Shape", x), np.array([axis], np.int64))
    step = g("Div", g("Cast", side, to=11), g("Cast", goal, to=11))
    steps = g("Concat", g("Mul", step, np.array(0.5)), g("Expand", step, g("Sub", goal, 1)), axis=0)
    return g("Cast", g("CumSum", steps, np.array(0, np.int64)), to=7)


def center(g: Nodes, x: str, p: Preprocessing) -> str:
    """Cut the central size x size from resize x resize."""
    start = round((p.resize - p.size) / 2)
    return cut(g, x, [g.constant(start)] * 2, [g.constant(p.size)] * 2)


def cut(g: Nodes, x: str, start: list[str], sides: list[str]) -> str:
    """Cut a box of (height, width) `sides` whose corner (top, left) is `start`."""
    begin = g("Concat", *start, axis=0)
    end = g("Add", begin, g("Concat", *sides, axis=0))
    return g("Slice", x, begin, end, np.array([1, 2], np.int64))


def half_to_even(g: Nodes, spare: str) -> str:
    """Half of a non-negative integer, rounded half to even as NumPy does."""
    down = g("Div", spare, 2)
    return g("Add", down, g("Mul", g("Mod", spare, 2), g("Mod", down, 2)))
