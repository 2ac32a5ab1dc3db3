"""Metrics of the saved model of a run, in float32, for one or several labels per image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from linnaeus.inference.feature_batches import feature_batches
from linnaeus.inference.forward import answer, local_batches
from linnaeus.inference.runners import network_scores
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import TARGET_RISK
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.models import Network
from linnaeus.runs.penalties import read_penalties
from linnaeus.stores.frozen import stored
from linnaeus.training.finish.evaluation import FinalEvaluation, held_out_figures
from linnaeus.training.finish.label_evaluation import LabelEvaluation
from linnaeus.training.finish.unknown import (
    FittedDetector,
    fit_detector,
    references_of,
    training_features,
    with_thumbnails,
)
from linnaeus.training.setup.prepare import Prepared
from linnaeus.training.streams import Streams

BATCH = 64  # images at once in the final evaluation, where their features are not stored
AnyEvaluation = FinalEvaluation | LabelEvaluation


def evaluated(prepared: Prepared, network: Network, header: ModelFile, streams: Streams) -> AnyEvaluation:
    """The evaluation of the task. Several labels per image leave no one class that an unknown image could lack."""
    unseen = prepared.unseen
    if prepared.table.several:
        outputs = _outputs(prepared, network, None)
        return LabelEvaluation(outputs, prepared.table.names, prepared.recipe.label_precision, unseen)
    candidates = prepared.engine.broadcast(lambda: len(prepared.folder.rows))
    features = training_features(prepared, network, streams)
    references = references_of(features)
    thumbnails, outputs = with_thumbnails(prepared, features, _outputs(prepared, network, references))

    def fit(calibrated: dict[str, Outputs], temperature: float) -> FittedDetector:
        return fit_detector(features, references, thumbnails, calibrated, temperature, header.classes, unseen)

    evaluation = FinalEvaluation(outputs, candidates, unseen, prepared.recipe.error or TARGET_RISK, fit)
    evaluation.names = prepared.table.names
    if [phase.head for phase in prepared.recipe.phase] == ["auto"] and not streams.body_has_seen(0):
        trials = prepared.engine.broadcast(lambda: read_penalties(prepared.folder.path).get(1, []))
        evaluation.held_out = held_out_figures(trials, evaluation.figures)
    return evaluation


def _outputs(prepared: Prepared, network: Network, references: np.ndarray | None) -> dict[str, Outputs]:
    """Outputs of the network by split, from features or pixels; with distances from `references`, if any."""
    engine, preprocessing = prepared.engine, prepared.preprocessing
    outputs: dict[str, Outputs] = {}
    network.eval()
    for split in ("valid", "test"):
        if split in prepared.samples:
            samples = prepared.samples[split]
            # In float32, as `evaluate` and `predict` compute, whatever the precision of the training was.
            scores = partial(network_scores, network, references)
            features = feature_batches(network, preprocessing, samples, engine.device, engine, prepared.console)
            if features is None:
                batches = local_batches(samples.rows, samples.labels, BATCH, engine.device, engine)
                out = answer(scores, batches, preprocessing.of_batch, engine)
            else:
                out = answer(partial(scores, start=network.stages[-1]), features, stored, engine)
            outputs[split] = replace(out, groups=samples.groups)
    return outputs
