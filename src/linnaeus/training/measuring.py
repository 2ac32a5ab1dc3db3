"""The figures of the saved model of a run, on pixels, by the task of its images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from linnaeus.inference.forward import answer, local_batches
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.models import Network
from linnaeus.training.evaluation import FinalEvaluation
from linnaeus.training.label_evaluation import LabelEvaluation
from linnaeus.training.prepare import Prepared
from linnaeus.training.streams import Streams
from linnaeus.training.unknown import Scored, recognition, references_of, training_features

BATCH = 64
"""Images at once in the final evaluation."""

AnyEvaluation = FinalEvaluation | LabelEvaluation


def evaluated(prepared: Prepared, network: Network, header: ModelFile, streams: Streams) -> AnyEvaluation:
    """The evaluation of the task. Several labels per image leave no one class that an unknown image could lack."""
    if prepared.table.several:
        outputs, _ = _outputs(prepared, network, None)
        return LabelEvaluation(outputs, prepared.table.names, prepared.recipe.label_precision)
    candidates = prepared.engine.broadcast(lambda: len(prepared.folder.rows))
    features = training_features(prepared, network, streams)
    references = references_of(features)
    outputs, distances = _outputs(prepared, network, references)
    evaluation = FinalEvaluation(outputs, candidates)
    evaluation.distances = distances
    evaluation.recognition = recognition(features, references, evaluation.calibrated, distances, header.classes)
    return evaluation


def _outputs(
    prepared: Prepared, network: Network, references: np.ndarray | None
) -> tuple[dict[str, Outputs], dict[str, np.ndarray | None]]:
    """Outputs of the network, and distances from `references` if there are any, by split, computed from pixels."""
    engine, preprocessing = prepared.engine, prepared.preprocessing
    outputs: dict[str, Outputs] = {}
    distances: dict[str, np.ndarray | None] = {}
    scored = network if references is None else Scored(network, references)
    for split in ("valid", "test"):
        if split in prepared.samples:
            samples = prepared.samples[split]
            batches = local_batches(samples.rows, samples.labels, BATCH, engine.device, engine)
            # In float32, as `evaluate` and `predict` compute, whatever the precision of the training was.
            out = answer(scored, batches, lambda b: preprocessing(b.pixels, b.shapes), engine)
            classes = out.logits.shape[1] - (references is not None)
            outputs[split] = replace(out, logits=out.logits[:, :classes], groups=samples.groups)
            distances[split] = out.logits[:, -1] if references is not None else None
    return outputs, distances
