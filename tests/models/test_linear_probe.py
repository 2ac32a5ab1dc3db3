"""The linear probe: equal to scikit-learn's solution, and judged on held-out samples only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linnaeus.errors import JobError
from linnaeus.models.linear_probe import PENALTIES, _solve, fit_linear_probe, stratified_folds


def blobs(n: int, features: int, classes: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """(n, features) features around one center per class, on different scales, and (n,) labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    centers = generator.normal(size=(classes, features))
    x = centers[labels] + spread * generator.normal(size=(n, features))
    return torch.from_numpy(x * generator.uniform(0.1, 10, features) + 3).float(), labels


@pytest.mark.parametrize(("n", "features"), [(200, 12), (60, 90)])
def test_it_matches_scikit_learn(n: int, features: int):
    """Both with more samples than features, and with fewer, when the features are rotated first."""
    from sklearn.linear_model import LogisticRegression

    x, labels = blobs(n, features, 4, 1.0)
    probe = fit_linear_probe(x, labels, 4)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    theirs = LogisticRegression(C=1 / (probe.penalty * n), tol=1e-8, max_iter=5000).fit(z, labels)
    ours = torch.softmax(x @ probe.weight.T + probe.bias, 1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(z), atol=2e-3)


def test_class_weights_match_scikit_learn():
    """The fit equals that with class_weight, and the penalty is chosen by the weighted loss."""
    from sklearn.linear_model import LogisticRegression

    x, labels = blobs(600, 12, 3, 3.0)
    kept = np.flatnonzero((labels != 1) | (np.arange(600) % 8 == 0))
    x, labels = x[kept], labels[kept]
    weights = torch.tensor([1.0, 6.0, 1.0])
    plain, probe = fit_linear_probe(x, labels, 3), fit_linear_probe(x, labels, 3, weights=weights)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    total = weights.numpy()[labels].sum()
    theirs = LogisticRegression(C=1 / (probe.penalty * total), class_weight={1: 6.0}, tol=1e-8, max_iter=5000)
    ours = torch.softmax(x @ probe.weight.T + probe.bias, 1).numpy()
    np.testing.assert_allclose(ours, theirs.fit(z, labels).predict_proba(z), atol=2e-3)
    losses = weights.double().numpy()[labels] * -np.log(probe.probabilities[np.arange(len(labels)), labels])
    assert probe.losses[probe.penalty] == pytest.approx(losses.sum() / total, rel=1e-5)
    recalls = [(h.probabilities.argmax(1) == labels)[labels == 1].mean() for h in (plain, probe)]
    assert recalls[1] > recalls[0]


def test_the_penalty_is_the_best_on_held_out_samples():
    """Noisy data needs a strong penalty, clean data a weak one; the reported loss is that of the probabilities."""
    chosen = []
    for spread in (0.3, 4.0):
        x, labels = blobs(150, 60, 3, spread)
        probe = fit_linear_probe(x, labels, 3)
        assert probe.penalty == min(probe.losses, key=probe.losses.__getitem__)
        loss = -np.log(probe.probabilities[np.arange(150), labels]).mean()
        assert loss == pytest.approx(probe.losses[probe.penalty], rel=1e-5)
        chosen.append(probe.penalty)
    assert chosen[0] < chosen[1] <= PENALTIES[0]


def test_held_out_probabilities_do_not_depend_on_their_own_label():
    """With random labels, the probe fits the training samples, and its held-out accuracy is at chance."""
    generator = np.random.default_rng(1)
    x = torch.from_numpy(generator.normal(size=(200, 300))).float()
    labels = generator.integers(0, 2, 200)
    probe = fit_linear_probe(x, labels, 2)
    training = ((x @ probe.weight.T + probe.bias).argmax(1).numpy() == labels).mean()
    held_out = (probe.probabilities.argmax(1) == labels).mean()
    assert training > 0.9
    assert 0.35 < held_out < 0.65


def test_views_of_a_sample_share_a_fold():
    """Otherwise another view of an image in training would reveal its label, and random labels would look learnable."""
    generator = np.random.default_rng(2)
    x = torch.from_numpy(generator.normal(size=(120, 200))).float()
    labels = generator.integers(0, 2, 120)
    twice, both = torch.cat([x, x + 1e-3]), np.tile(labels, 2)
    separate = (fit_linear_probe(twice, both, 2, views=2).probabilities.argmax(1) == both).mean()
    mixed = (fit_linear_probe(twice, both, 2).probabilities.argmax(1) == both).mean()
    assert separate < 0.65 < mixed


def test_folds_are_stratified_and_the_only_sample_of_a_class_is_never_held_out():
    labels = np.array([0] * 23 + [1] * 10 + [2])
    folds = stratified_folds(labels, 5, seed=3)
    assert np.ptp(np.bincount(folds[labels == 0])) <= 1
    assert np.bincount(folds[labels == 1]).tolist() == [2] * 5
    assert folds[labels == 2].tolist() == [-1]
    assert np.array_equal(folds, stratified_folds(labels, 5, seed=3))
    assert not np.array_equal(folds, stratified_folds(labels, 5, seed=4))


def test_a_group_shares_a_fold():
    """Otherwise other images of a patient would reveal the label, and random labels would look learnable."""
    generator = np.random.default_rng(2)
    patients = np.repeat(np.arange(60), 4)
    labels = np.repeat(generator.integers(0, 2, 60), 4)
    x = torch.from_numpy(
        np.repeat(generator.normal(size=(60, 200)), 4, axis=0) + 0.01 * generator.normal(size=(240, 200))
    )
    separate = (fit_linear_probe(x, labels, 2, groups=patients).probabilities.argmax(1) == labels).mean()
    mixed = (fit_linear_probe(x, labels, 2).probabilities.argmax(1) == labels).mean()
    assert separate < 0.7 < 0.95 < mixed


def test_folds_of_groups_are_stratified():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), generator.integers(1, 8, 40))
    labels = np.where(groups % 4 == 0, 1, 0)
    folds = stratified_folds(labels, 5, seed=3, groups=groups)
    assert all(len(np.unique(folds[groups == g])) == 1 for g in range(40))
    for label in (0, 1):
        sizes = np.bincount(folds[labels == label], minlength=5)
        assert sizes.min() > 0.6 * sizes.mean()
        assert sizes.max() < 1.5 * sizes.mean()
    assert not np.array_equal(folds, stratified_folds(labels, 5, seed=4, groups=groups))
    labels[groups == 7] = 2
    assert (stratified_folds(labels, 5, seed=3, groups=groups) == -1).sum() == (groups == 7).sum()


def test_solving_several_problems_together_equals_solving_each_alone():
    x, labels = blobs(80, 6, 3, 1.0)
    y = torch.from_numpy(labels)
    weights = torch.rand(80, 2, generator=torch.Generator().manual_seed(0))
    weights = weights / weights.sum(0)
    both = _solve(x, y, weights, 0.1, torch.zeros(6, 7), 300).view(2, 3, 7)
    for k in range(2):
        alone = _solve(x, y, weights[:, k : k + 1], 0.1, torch.zeros(3, 7), 300)
        torch.testing.assert_close(both[k], alone, atol=0.03, rtol=0.03)


def test_features_that_are_not_finite_are_refused():
    x, labels = blobs(40, 5, 2, 1.0)
    x[3, 2] = float("nan")
    with pytest.raises(JobError, match="not finite"):
        fit_linear_probe(x, labels, 2)
