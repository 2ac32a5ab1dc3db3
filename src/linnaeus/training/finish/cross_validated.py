"""Thresholds of unknown images where validation is small: most of the images that choose them are training images.

The lowest probability and the largest distance of 20 images are a matter of chance: as thresholds, they may reject a
third of the new images of the same kinds. Cross-validation scores each training image by a head and by references that
have not seen it, as in Barber et al. 2021, Predictive inference with the jackknife+ (CV+, section 3).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from linnaeus.metrics.ood import Thresholds, choose_thresholds, distances
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.reference_vectors import reference_vectors
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.models.linear_probe import fit_linear_probe

SMALLEST = 1e-30  # probabilities below are taken as this, so that they have a logarithm


def cross_validated_scores(
    features: np.ndarray, labels: np.ndarray, fold: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) distances and (m,) probabilities of the most likely class, each of a model that has not seen the image.

    `features` (n, d) of the frozen network, `labels` (n,), and `fold` (n,) that holds each training image out, -1 for
    none: these have no scores. The head is a linear probe, and the probabilities are calibrated by `temperature`.
    """
    distance = np.zeros(len(labels))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        distance[out] = distances(features[out], reference_vectors(features[~out], labels[~out]))
    probe = fit_linear_probe(torch.tensor(features), labels, int(labels.max()) + 1, fold=fold)
    outputs = Outputs(labels[probe.held_out], np.log(np.maximum(probe.probabilities, SMALLEST)))
    return distance[probe.held_out], outputs.at(temperature).confidence


def cross_validated_thresholds(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, temperature: float, valid: Outputs
) -> Thresholds:
    """Thresholds chosen on the calibrated outputs of validation and on training images, as `cross_validated_scores`.

    `groups` (n,) of training images are kept together. Without an image to hold out, validation alone chooses.
    """
    fold = stratified_folds(labels, groups=groups)
    if not (fold >= 0).any():
        return choose_thresholds(valid.distances, valid.confidence)
    distance, confidence = cross_validated_scores(features, labels, fold, temperature)
    assert valid.distances is not None, "a network with features has references"
    thresholds = choose_thresholds(
        np.concatenate([valid.distances, distance]), np.concatenate([valid.confidence, confidence])
    )
    return replace(thresholds, cross_validated=len(distance))
