"""Few validation images do not choose the thresholds of unknown images alone; `evaluate` tells what users get."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import mini, settings, write_images, write_recipe, write_tiny_model

from linnaeus.inference.classifier import load
from linnaeus.metrics.ood import choose_thresholds, distances
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.reference_vectors import reference_vectors
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.training.finish.cross_validated import cross_validated_scores, cross_validated_thresholds
from linnaeus.training.run import Run, train

CLASSES, DIMENSIONS = 4, 24
HEAD = {"train": ["head"], "head": "auto", "epochs": 1}
LARGE = {**settings()["data"], "resize": 72, "size": 72}
"""Larger than images with thumbnails, which choose thresholds of their own."""


def features(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, DIMENSIONS) float32 around a center for each class, and labels (n,)."""
    centers = np.random.default_rng(0).normal(size=(CLASSES, DIMENSIONS))
    labels = np.arange(n) % CLASSES
    values = centers[labels] + np.random.default_rng(seed).normal(size=(n, DIMENSIONS))
    return values.astype(np.float32), labels


def accepted(seed: int) -> tuple[float, float]:
    """Shares of 2,000 new images of the classes that are accepted: by thresholds of 20 validation images, and with 120
    cross-validated training images."""
    x, y = features(120, 3 * seed)
    probe = fit_linear_probe(torch.tensor(x), y, CLASSES)
    references = reference_vectors(x, y)

    def outputs(n: int, seed: int) -> Outputs:
        values, labels = features(n, seed)
        logits = (torch.from_numpy(values) @ probe.weight.T + probe.bias).numpy()
        return Outputs(labels, logits, distances=distances(values, references))

    valid, new = outputs(20, 3 * seed + 1), outputs(2000, 3 * seed + 2)
    alone = choose_thresholds(valid.distances, valid.confidence)
    pooled = cross_validated_thresholds(x, y, None, 1.0, valid)
    assert (alone.few, pooled.few, pooled.n, pooled.cross_validated) == (True, False, 140, 120)
    shares = [1 - limits.unknown(new.distances, new.confidence).mean() for limits in (alone, pooled)]
    return float(shares[0]), float(shares[1])


def test_new_images_of_the_classes_are_accepted_whatever_the_sample():
    alone, pooled = np.array([accepted(seed) for seed in range(12)]).T
    assert alone.min() < 0.9, "20 images are not enough"
    assert pooled.min() > 0.9
    assert pooled.std() < alone.std()


def test_each_image_is_scored_by_a_model_that_has_not_seen_it():
    """Two identical images in different folds are near each other; in one fold, which holds both out, they are not."""
    x, y = features(40, 1)
    x[4] = x[0]
    fold = np.arange(40) // 4 % 5
    apart, _ = cross_validated_scores(x, y, fold, 1.0)
    fold[4] = fold[0]
    together, _ = cross_validated_scores(x, y, fold, 1.0)
    assert apart[0] < together[0]
    single = np.where(np.arange(40) == 7, -1, fold)
    assert len(cross_validated_scores(x, y, single, 1.0)[0]) == 39


def test_without_an_image_to_hold_out_validation_alone_chooses():
    x, y = features(CLASSES, 1)
    valid = Outputs(y, np.eye(CLASSES, dtype=np.float32), distances=np.full(CLASSES, 0.5))
    assert cross_validated_thresholds(x, y, None, 1.0, valid).cross_validated == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A solved head on a frozen network, with few validation images."""
    folder = tmp_path_factory.mktemp("few")
    network = mini(seed=3)
    preprocessing = load(write_tiny_model(folder / "t.safetensors")).preprocessing
    about = ModelFile(network.arch, ("0", "1", "2"), ("a", "b", "c"), preprocessing)
    write_model(folder / "w.safetensors", network.state_dict(), about)
    write_images(folder / "images", each=30)
    recipe = write_recipe(folder / "r.toml", HEAD, data=LARGE)
    return train(folder / "images", str(recipe), weights=str(folder / "w.safetensors"), out=folder / "run", draw=False)


def test_a_run_says_which_images_chose_its_thresholds(run: Run):
    detector = load(run.path).detector
    assert detector is not None
    limits = detector.thresholds
    assert limits.cross_validated > 40
    valid = limits.n - limits.cross_validated
    chosen = f"{limits.n} images ({valid} of validation, {limits.cross_validated} cross-validated)"
    line = next(line for line in run.trust if line.startswith("unknown "))
    assert f"{limits.accepted} of {chosen} are accepted as known" in line


def test_evaluate_counts_what_predict_answers(run: Run, say, tmp_path: Path):
    images = write_images(tmp_path / "new", each=12, seed=9)
    answers = [load(run.path).predict(sorted((images / name).iterdir())) for name in ("0", "1", "2")]
    verdicts = [p.verdict or "class" for part in answers for p in part]
    right = [p.index == i for i, part in enumerate(answers) for p in part]
    said = say("evaluate", run.path, images, "--json", tmp_path / "e.json")
    entry = json.loads((tmp_path / "e.json").read_text())["all"]["verdicts"]
    assert "what the model answers, at its own thresholds" in said.out
    for name, counted in entry.items():
        assert counted["n"] == verdicts.count(name)
        assert counted["correct"] == sum(ok for ok, verdict in zip(right, verdicts, strict=True) if verdict == name)
        assert counted["share_ci95"][0] <= counted["share"] <= counted["share_ci95"][1]
    assert sum(counted["n"] for counted in entry.values()) == 36
