"""ONNX files: the graph of the network, the preprocessing and calibration around it, and the file itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from linnaeus.errors import JobError, UserError, first_line, install
from linnaeus.export.assemble import MOST_BYTES, assemble
from linnaeus.export.compose import composed
from linnaeus.files import atomic
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.runners import OnnxRunner
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.modelfile.onnx import checksum, metadata, seal
from linnaeus.models.backbones.onnx_backbone import OnnxBackbone
from linnaeus.models.executors import TOLERANCE
from linnaeus.models.onnx_graph import export_graph, fuse_batchnorms, inference_session


def require(kind: str) -> None:
    """Raise UserError if a package that writes ONNX is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to {kind}: needs {', '.join(missing)}, not installed here: {install('onnx')}")


def network_graph(classifier: Classifier, squares: torch.Tensor) -> bytes:
    """The network alone, fused, as an ONNX graph from `x` (N, C, size, size) float32 to logits `y`.

    `squares` (2 or more, size, size, C) uint8 are sample images. Raises UserError if the network is
    too large for an ONNX file, or cannot be exported.
    """
    network = classifier.network
    weight_bytes = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if weight_bytes > MOST_BYTES:
        raise UserError(
            f"{classifier.path}: {weight_bytes / 1e9:.1f} GB of weights, but an ONNX file holds 2 GB; use "
            "model.safetensors"
        )
    x = classifier.preprocessing.normalize(squares)
    if isinstance(network, OnnxBackbone):
        return composed(network, x.numpy())
    fused = fuse_batchnorms(network, x)
    with torch.inference_mode():
        expected = network(x)
        difference = (fused(x) - expected).abs().max()
    # Fusing changes rounding, so the fused network is used only if its logits match within TOLERANCE.
    chosen: nn.Module = fused if difference <= TOLERANCE * expected.abs().max() else network
    try:
        return export_graph(chosen, x)
    except Exception as error:  # the exporter has exceptions of its own, and custom networks may raise any
        raise UserError(f"{classifier.path}: its network cannot be written as ONNX ({first_line(error)})") from None


def open_runner(network: bytes, classifier: Classifier, kind: str) -> OnnxRunner:
    """Open a session on the network's graph with its preprocessing and calibration."""
    try:
        session = inference_session(with_preprocessing(network, classifier).SerializeToString())
        return OnnxRunner(session, classifier.preprocessing, kind)
    except Exception as error:  # ONNX Runtime has exceptions of its own
        raise JobError(f"{classifier.path}: ONNX Runtime does not run its graph ({first_line(error)})") from None


def with_preprocessing(network: bytes, classifier: Classifier) -> Any:
    """The graph of the network between preprocessing and calibration."""
    count = len(classifier.classes)
    if classifier.several:
        labels = classifier.label_calibration or LabelCalibration.none(count)
        return assemble(network, classifier.preprocessing, count, 1.0, labels)
    return assemble(network, classifier.preprocessing, count, classifier.temperature)


def write(path: Path, graph: Any, classifier: Classifier, record: dict[str, Any]) -> str:
    """Write the file with its description, atomically. Returns its checksum."""
    del graph.metadata_props[:]
    for key, value in metadata(classifier.about, classifier.threshold, record).items():
        graph.metadata_props.add(key=key, value=value)
    if graph.ByteSize() > MOST_BYTES:
        raise UserError(
            f"{path}: {graph.ByteSize() / 1e9:.1f} GB, and an ONNX file holds 2 GB; use the model.safetensors"
        )
    raw = seal(graph.SerializeToString())
    with atomic(path) as temporary:
        temporary.write_bytes(raw)
    return checksum(path, raw)


def two_images(squares: torch.Tensor) -> torch.Tensor:
    """Two images, repeating a single one: the exporter treats a batch size of 1 as a constant."""
    return squares[:2] if len(squares) > 1 else torch.from_numpy(np.repeat(squares.numpy(), 2, 0))
