"""The output `distance` of an ONNX file: how far an image is from those that the model was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from linnaeus.export.assemble import Nodes
from linnaeus.export.reference_model import ReferenceModel
from linnaeus.inference.runners import OnnxRunner
from linnaeus.metrics.outputs import softmax
from linnaeus.metrics.thumbnails import Thumbnails, area_weights
from linnaeus.modelfile.onnx import DISTANCE, LOGITS
from linnaeus.models.onnx_graph import inference_session

LARGEST = 1e-3
"""Largest difference of a distance, 0 to 2, for a float export. int8 is compared by its verdicts alone."""
PASSED_ON = ("Add", "Identity", "QuantizeLinear", "DequantizeLinear")
"""Operators between the last linear layer and the logits."""


@dataclass(frozen=True)
class DistanceCheck:
    """The distances of an export compared with those of the original, on the same pixels."""

    n: int
    largest: float  # largest difference of a distance
    differing: int  # number of images of which only one of the two says that they are unknown

    def refused(self, kind: str, agree: float) -> str | None:
        """Reason to leave the output out; None if it passes."""
        # "not <=" instead of ">": a NaN must not pass.
        if kind == "onnx" and not self.largest <= LARGEST:
            return f"a distance differs by {self.largest:.2g}; {LARGEST:g} is allowed"
        if 1 - self.differing / self.n < agree:
            return f"{self.differing} of {self.n} images are unknown to only one of the two"
        return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_distance(
    model: Any, references: np.ndarray, thumbnails: Thumbnails | None = None, size: int = 0
) -> Any | None:
    """A copy of the assembled graph `model` with the output `distance`, (N,) float32.

    It is the cosine distance of the features that the last linear layer takes from the nearest of `references`
    (m, features), as `metrics.ood.distances` computes it, or the larger of that and the distance of `thumbnails` of the
    network's input, `size` pixels a side. None if the logits do not come from such a layer.
    """
    from onnx import ModelProto, TensorProto, helper

    copy = ModelProto()
    copy.CopyFrom(model)
    features = _head_input(copy.graph, references.shape[1])
    if features is None:
        return None
    g = Nodes("unknown")
    distance = _distance(g, features, references)
    if thumbnails is not None:
        weights = area_weights(size)
        small = g("MatMul", g("MatMul", weights, "x"), np.ascontiguousarray(weights.T))
        other = _distance(g, g("Flatten", small, axis=1), thumbnails.vectors)
        distance = g("Max", distance, g("Mul", other, np.array(thumbnails.scale, np.float32)))
    g("Identity", distance, name=DISTANCE)
    copy.graph.node.extend(g.nodes)
    copy.graph.initializer.extend(g.constants)
    copy.graph.output.append(helper.make_tensor_value_info(DISTANCE, TensorProto.FLOAT, ["batch"]))
    return copy


def _distance(g: Nodes, vectors: str, references: np.ndarray) -> str:
    """Name of the cosine distance (N,) of vectors (N, d) from the nearest of `references` (m, d)."""
    length = g("ReduceL2", vectors, np.array([1], np.int64), keepdims=1)
    # A zero vector has no direction; the bound avoids NaN.
    direction = g("Div", vectors, g("Max", length, np.array(1e-30, np.float32)))
    # The references stay in float16, as in the model file: at most 2 MB, which is more than some int8 networks have.
    # Rounding has changed their lengths.
    from onnx import TensorProto

    lengths = np.linalg.norm(references.astype(np.float32), axis=1)
    columns = g("Cast", np.ascontiguousarray(references.T), to=TensorProto.FLOAT)
    similarity = g("Mul", g("MatMul", direction, columns), (1 / np.where(lengths > 0, lengths, 1)).astype(np.float32))
    nearest = g("ReduceMax", similarity, np.array([1], np.int64), keepdims=0)
    return g("Max", g("Sub", np.array(1, np.float32), nearest), np.array(0, np.float32))


def _head_input(graph: Any, width: int) -> str | None:
    """Name of the tensor (N, width) that the last linear layer takes; None where the logits come from no such layer."""
    makers = {output: node for node in graph.node for output in node.output}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    # Backwards from the logits to the layer that makes them.
    name = LOGITS
    while name in makers:
        node = makers[name]
        if node.op_type in ("Gemm", "MatMul"):
            weight = makers.get(node.input[1])  # of int8 weights the node that makes them float
            shape = shapes.get(node.input[1] if weight is None else weight.input[0], ())
            # The width tells whether it is the head: references have one row per feature.
            return node.input[0] if width in shape else None
        if node.op_type not in PASSED_ON:
            return None
        name = next((operand for operand in node.input if operand not in shapes), "")
    return None


def check_distance(model: Any, reference: ReferenceModel, kind: str) -> DistanceCheck:
    """Compare the distances and the verdicts of an export with the original on the sample images."""
    classifier = reference.classifier
    assert classifier.detector is not None
    thresholds = classifier.detector.thresholds
    export = OnnxRunner(inference_session(model.SerializeToString()), classifier.preprocessing, kind)
    original, exported = reference.scores, reference.score(export, "export")
    ours, theirs = (
        thresholds.unknown(scores.distances, softmax(scores.logits / classifier.temperature).max(1))
        for scores in (original, exported)
    )
    distances = [scores.distances for scores in (original, exported) if scores.distances is not None]
    return DistanceCheck(len(ours), float(np.abs(np.diff(distances, axis=0)).max()), int((ours != theirs).sum()))
