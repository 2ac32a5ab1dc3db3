"""Thresholds of unknown images with few validation images: how many new images of the same kinds they accept.

Each draw takes some kinds of SOURCE and some images of each, holds out a tenth of these for validation and solves the
head. It counts how many of the other images of these kinds are accepted, as they should be, and how many of all other
kinds, as they should not. The thresholds are chosen on validation alone, or with cross-validated training images.

    OMP_NUM_THREADS=1 python benchmarks/few_validation.py SOURCE --model BACKBONE [--draws 20]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from unknown import Features, torchvision

from linnaeus.metrics.ood import choose_thresholds, distances
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.reference_vectors import reference_vectors
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.metrics.temperature import fit_temperature
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.training.finish.cross_validated import cross_validated_thresholds

KINDS, SHARE = 5, 10  # kinds of a draw; one in ten of its images validates


def draw(features: np.ndarray, kinds: np.ndarray, each: int, seed: int) -> list[float]:
    """Shares accepted: of new images of the known kinds by both thresholds, then of all other kinds by both."""
    generator = np.random.default_rng(seed)
    known = np.sort(generator.permutation(int(kinds.max()) + 1)[:KINDS])
    shuffled = [generator.permutation(np.flatnonzero(kinds == kind)) for kind in known]
    have, new = (np.concatenate(parts) for parts in zip(*((own[:each], own[each:]) for own in shuffled), strict=True))
    labels = np.searchsorted(known, kinds)
    held_out = stratified_folds(labels[have], SHARE, seed) == 0
    train, valid, other = have[~held_out], have[held_out], np.flatnonzero(~np.isin(kinds, known))
    probe = fit_linear_probe(torch.from_numpy(features[train]), labels[train], KINDS)
    references = reference_vectors(features[train], labels[train])

    def outputs(images: np.ndarray) -> Outputs:
        logits = (torch.from_numpy(features[images]) @ probe.weight.T + probe.bias).numpy()
        return Outputs(labels[images], logits, distances=distances(features[images], references))

    temperature = fit_temperature(outputs(valid))
    calibration, inside, outside = (outputs(images).at(temperature) for images in (valid, new, other))
    limits = (
        choose_thresholds(calibration.distances, calibration.confidence),
        cross_validated_thresholds(features[train], labels[train], None, temperature, calibration),
    )
    return [
        1 - float(each_limit.unknown(images.distances, images.confidence).mean())
        for images in (inside, outside)
        for each_limit in limits
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", required=True)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    torchvision()  # declares the operators that timm imports
    features = Features.of(arguments.model, arguments.source)
    kinds = np.unique(features.labels, return_inverse=True)[1]
    print("| images a kind | thresholds by | accepted of the known kinds | least in a draw | of other kinds |")
    print("|---|---|---|---|---|")
    for each in (20, 40):
        shares = np.array([draw(features.values, kinds, each, seed) for seed in range(arguments.draws)])
        for column, name in enumerate(("validation alone", "validation and cross-validated training images")):
            inside, outside = shares[:, column], shares[:, column + 2]
            print(f"| {each} | {name} | {inside.mean():.1%} | {inside.min():.1%} | {outside.mean():.1%} |")


if __name__ == "__main__":
    main()
