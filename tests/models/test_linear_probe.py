"""The linear probe: equal to scikit-learn's solution, and evaluated on held-out samples only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linnaeus.errors import JobError
from linnaeus.metrics.stratification import FOLDS, stratified_folds
from linnaeus.models import linear_probe, logistic_regression
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.logistic_regression import Problems, objective
from linnaeus.models.penalty_search import STRONGEST


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
    probe = fit_linear_probe(x.clone(), labels, 4)
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
    plain, probe = fit_linear_probe(x.clone(), labels, 3), fit_linear_probe(x.clone(), labels, 3, weights=weights)
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
        probe = fit_linear_probe(x.clone(), labels, 3)
        assert probe.penalty == min(probe.losses, key=probe.losses.__getitem__)
        loss = -np.log(probe.probabilities[np.arange(150), labels]).mean()
        assert loss == pytest.approx(probe.losses[probe.penalty], rel=1e-5)
        chosen.append(probe.penalty)
    assert chosen[0] < chosen[1]


def test_the_search_for_the_penalty_goes_beyond_the_first_decades():
    """Separable features need next to no penalty, random labels as much as is allowed, which the probe reports."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(4), 50)
    separable = torch.eye(4)[labels] + 1e-3 * torch.from_numpy(generator.normal(size=(200, 4))).float()
    probe = fit_linear_probe(separable, labels, 4)
    assert probe.penalty < 1e-5
    noise = torch.from_numpy(generator.normal(size=(200, 60))).float()
    probe = fit_linear_probe(noise, generator.integers(0, 2, 200), 2)
    assert probe.penalty >= 1
    assert probe.at_bound == (probe.penalty == STRONGEST)


def test_one_refinement_between_the_decades():
    """The last penalty lies between the best decade and one of its neighbors, which are worse."""
    x, labels = blobs(400, 30, 4, 3.0)
    probe = fit_linear_probe(x, labels, 4)
    *decades, refined = probe.losses
    best = min(decades, key=probe.losses.__getitem__)
    assert best / 10 < refined < best * 10
    assert refined != best
    assert probe.losses[best] < min(probe.losses[best / 10], probe.losses[best * 10])


def test_the_features_are_overwritten_not_copied():
    x, labels = blobs(200, 12, 3, 1.0)
    fit_linear_probe(x, labels, 3)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(12))


def test_training_logits_are_those_of_the_head():
    x, labels = blobs(60, 90, 3, 1.0)
    probe = fit_linear_probe(x.clone(), labels, 3)
    torch.testing.assert_close(probe.training_logits, x @ probe.weight.T + probe.bias, atol=2e-3, rtol=1e-3)


def test_held_out_probabilities_do_not_depend_on_their_own_label():
    """With random labels, the probe fits the training samples, and its held-out accuracy is at chance."""
    generator = np.random.default_rng(1)
    x = torch.from_numpy(generator.normal(size=(200, 300))).float()
    labels = generator.integers(0, 2, 200)
    probe = fit_linear_probe(x.clone(), labels, 2)
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
    separate = (
        fit_linear_probe(twice.clone(), both, 2, fold=np.tile(stratified_folds(labels), 2)).probabilities.argmax(1)
        == both
    ).mean()
    mixed = (fit_linear_probe(twice.clone(), both, 2).probabilities.argmax(1) == both).mean()
    assert separate < 0.65 < mixed


def test_a_group_shares_a_fold():
    """Otherwise other images of a patient would reveal the label, and random labels would look learnable."""
    generator = np.random.default_rng(2)
    patients = np.repeat(np.arange(60), 4)
    labels = np.repeat(generator.integers(0, 2, 60), 4)
    x = torch.from_numpy(
        np.repeat(generator.normal(size=(60, 200)), 4, axis=0) + 0.01 * generator.normal(size=(240, 200))
    )
    separate = (
        fit_linear_probe(x.clone(), labels, 2, fold=stratified_folds(labels, groups=patients)).probabilities.argmax(1)
        == labels
    ).mean()
    mixed = (fit_linear_probe(x.clone(), labels, 2).probabilities.argmax(1) == labels).mean()
    assert separate < 0.7 < 0.95 < mixed


def test_features_that_are_not_finite_are_refused():
    for value in (float("nan"), float("inf"), -float("inf")):
        x, labels = blobs(40, 5, 2, 1.0)
        x[3, 2] = value
        with pytest.raises(JobError, match="not finite"):
            fit_linear_probe(x, labels, 2)


def test_the_search_evaluates_few_objectives(monkeypatch: pytest.MonkeyPatch):
    """Each fit starts on the line through its neighbors' solutions: without that, this takes 140 evaluations."""
    calls: list[int] = []
    objective = logistic_regression.objective

    def counted(problems: Problems, penalty: float, solution: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(problems))
        return objective(problems, penalty, solution)

    monkeypatch.setattr(logistic_regression, "objective", counted)
    x, labels = blobs(400, 30, 4, 1.5)
    fit_linear_probe(x, labels, 4)
    assert 20 < sum(count == FOLDS for count in calls) < 60


def test_progress_counts_passes_and_expects_some_more():
    """The time left is known from the first pass on: the expected number is never that of the passes so far."""
    seen: list[tuple[int, int, str]] = []
    x, labels = blobs(200, 10, 3, 1.5)
    fit_linear_probe(x, labels, 3, advance=lambda done, total, note: seen.append((done, total, note)))
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert all(total > done for done, total, _ in seen)
    assert seen[0][1] == pytest.approx(len(seen), rel=0.6)
    assert seen[0][2] == "penalty 0.1"
    assert seen[-1][2] == "all images"


def test_folds_solved_one_after_the_other_give_the_same_head(monkeypatch: pytest.MonkeyPatch):
    """As where there are many classes and few images: the vectors of all folds would take more than the features."""
    x, labels = blobs(200, 10, 3, 1.5)
    together = fit_linear_probe(x.clone(), labels, 3)
    monkeypatch.setattr(logistic_regression, "MOST_MEMORY", 12 * 3 * 11)
    problem = Problems(x, torch.from_numpy(labels), torch.full((200, 5), 1 / 200), 3)
    assert [len(part) for part in problem.parts()] == [1, 1, 1, 1, 1]
    apart = fit_linear_probe(x, labels, 3)
    assert apart.losses[apart.penalty] == pytest.approx(together.losses[together.penalty], rel=5e-3)
    torch.testing.assert_close(apart.training_logits.argmax(1), together.training_logits.argmax(1))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch):
    """Every problem counts as large: one fold chooses the penalty."""
    monkeypatch.setattr(linear_probe, "LARGE", 1)
    monkeypatch.setattr(linear_probe, "MIN_HELD_OUT", 1)


def correlated(n: int, features: int, classes: int, spread: float) -> tuple[torch.Tensor, np.ndarray]:
    """(n, features) features that are at least 0, most of whose variance is in few directions, and (n,) labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % classes
    x = generator.normal(size=(classes, features))[labels] + spread * generator.normal(size=(n, features))
    x = x / np.sqrt(np.arange(1, features + 1)) @ np.linalg.qr(generator.normal(size=(features, features)))[0]
    return torch.from_numpy(np.maximum(x + 0.1 * x.std(), 0)).float(), labels


@pytest.mark.parametrize(("n", "features", "classes", "spread"), [(600, 60, 20, 2.5), (600, 96, 60, 1.2)])
def test_a_large_problem_has_the_solution_of_scikit_learn(
    n: int, features: int, classes: int, spread: float, large: None
):
    """In the second, the probe of one fold separates its samples, so that it has no curvature to reuse."""
    from sklearn.linear_model import LogisticRegression

    x, labels = correlated(n, features, classes, spread)
    probe = fit_linear_probe(x.clone(), labels, classes, all_folds=False)
    mean, std = x.mean(0), x.std(0, correction=0)
    z = (x - mean) / std
    theirs = LogisticRegression(C=1 / (probe.penalty * n), tol=1e-6, max_iter=5000).fit(z.numpy(), labels)
    problem = Problems(z, torch.from_numpy(labels), torch.full((n, 1), 1 / n), classes)
    losses = [
        float(objective(problem, probe.penalty, torch.cat([weight, bias[:, None]], 1).float()[None])[0])
        for weight, bias in (
            (probe.weight * std, probe.bias + probe.weight @ mean),
            (torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)),
        )
    ]
    assert losses[0] < losses[1] + 1e-4


def test_a_large_problem_is_evaluated_on_one_fold_unless_all_are_wanted(large: None):
    x, labels = blobs(300, 30, 4, 3.0)
    fold = stratified_folds(labels)
    one = fit_linear_probe(x.clone(), labels, 4, fold=fold, all_folds=False)
    assert one.held_out.tolist() == np.flatnonzero(fold == 0).tolist()
    accuracy = (one.probabilities.argmax(1) == labels[one.held_out]).mean()
    assert one.accuracies[one.penalty] == pytest.approx(accuracy)
    every = fit_linear_probe(x.clone(), labels, 4, fold=fold)
    assert every.held_out.tolist() == list(range(300))
    np.testing.assert_array_equal(every.probabilities[one.held_out], one.probabilities)
    assert abs((every.probabilities.argmax(1) == labels).mean() - accuracy) < 0.15


def test_a_large_problem_does_not_reveal_held_out_labels(large: None):
    """With random labels, every fold scores at chance."""
    generator = np.random.default_rng(1)
    x = torch.from_numpy(generator.normal(size=(200, 300))).float()
    labels = generator.integers(0, 2, 200)
    held_out = fit_linear_probe(x, labels, 2).probabilities.argmax(1) == labels
    for k in range(FOLDS):
        assert held_out[stratified_folds(labels) == k].mean() < 0.75


@pytest.mark.parametrize("several", [False, True])
def test_a_large_problem_takes_few_passes(several: bool, large: None):
    """Of features with standard deviations from 1 to 300: without an estimate of the Hessian it takes 163 and 213."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.normal(size=(60, 60)))[0]
    x, labels = blobs(600, 60, 6, 1.5)
    x = torch.from_numpy((x.numpy() * np.geomspace(1, 300, 60)) @ rotation).float()
    passes: list[int] = []
    targets = np.stack([labels == k for k in range(6)], 1) if several else labels
    fit_linear_probe(x, targets, 6, all_folds=False, advance=lambda done, total, note: passes.append(done))
    assert passes[-1] < 110


def test_a_sample_that_no_fold_holds_out_has_no_held_out_probabilities():
    x, labels = blobs(60, 5, 3, 1.0)
    fold = np.where(np.arange(60) % 3 == 0, -1, np.arange(60) % FOLDS)
    head = fit_linear_probe(x, labels, 3, fold=fold)
    assert head.held_out.tolist() == np.flatnonzero(fold >= 0).tolist()
    assert head.probabilities.shape == (40, 3)
    assert head.accuracies[head.penalty] == pytest.approx(
        np.mean(head.probabilities.argmax(1) == labels[head.held_out])
    )
