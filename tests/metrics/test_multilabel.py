"""Metrics of images with several labels: scikit-learn's values, intervals, calibration and thresholds of each label."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression

from linnaeus.errors import UserError
from linnaeus.metrics.classification import compute_metrics
from linnaeus.metrics.intervals import Estimate, wilson
from linnaeus.metrics.label_assessment import assess_labels
from linnaeus.metrics.label_calibration import NEVER, LabelCalibration, choose_threshold, cross_fit_labels, fit_label
from linnaeus.metrics.multilabel import LabelFigures, compute_label_metrics, headline, label_figures, map_by_chance
from linnaeus.metrics.outputs import Outputs, sigmoid
from linnaeus.metrics.stratification import iterative_stratification, stratified_label_folds


def outputs(n: int = 200, labels: int = 5, seed: int = 0, groups: int = 0, skill: float = 2.0) -> Outputs:
    generator = np.random.default_rng(seed)
    y = generator.random((n, labels)) < np.linspace(0.5, 0.08, labels)
    z = (skill * (y - 0.5) + generator.normal(size=(n, labels))).round(1)  # rounded, so that some are equal
    return Outputs(y, z.astype(np.float32), np.arange(n) % groups if groups else None)


def test_averages_over_pairs_that_are_all_right_or_all_wrong_have_an_interval():
    """The pairs of an image are no independent evidence: 40 images with 3 labels are as 40, not as 120."""
    labels = np.arange(120).reshape(40, 3) % 4 < 2
    out = Outputs(labels, np.where(labels, 9.0, -9.0))
    names = ("micro_precision", "micro_recall", "micro_f1", "micro_average_precision", "map")
    right = compute_label_metrics(out, labels)
    for name in names:
        low, high = right[name].ci95 or (0, 0)
        assert right[name].value == high == 1, name
        assert 0.5 < low < wilson(40, 40)[0] + 0.06, name
    assert right["micro_recall"].ci95[0] < wilson(40, 40)[0]  # type: ignore[index]
    wrong = compute_label_metrics(out, ~labels)
    for name in names[:3]:
        low, high = wrong[name].ci95 or (1, 1)
        assert wrong[name].value == low == 0, name
        assert 0.03 < high < 0.3, name


def test_a_ranking_without_another_kind_of_image_measures_nothing():
    """All orders of images of one class have an average precision of 1."""
    only = compute_metrics(Outputs(np.zeros(20, np.int64), np.random.default_rng(0).normal(size=(20, 3))))
    assert only["macro_average_precision"] == only.classes[0]["average_precision"] == Estimate(1.0)
    labels = np.stack([np.ones(20, bool), np.arange(20) < 10], 1)
    found = compute_label_metrics(Outputs(labels, np.where(labels, 9.0, -9.0)), labels)
    assert found.labels[0]["average_precision"] == Estimate(1.0)
    assert found.labels[1]["average_precision"].ci95 is not None
    assert found["map"].ci95 is not None


def test_values_are_those_of_scikit_learn():
    out = outputs()
    y, p = out.labels, out.probabilities
    decisions = p >= 0.4
    found = compute_label_metrics(out, decisions)
    expected = {
        "map": reference.average_precision_score(y, p, average="macro"),
        "micro_average_precision": reference.average_precision_score(y, p, average="micro"),
        "macro_roc_auc": reference.roc_auc_score(y, p, average="macro"),
        "subset_accuracy": reference.accuracy_score(y, decisions),
        "hamming_loss": reference.hamming_loss(y, decisions),
        "loss": sum(reference.log_loss(y[:, k], p[:, k]) for k in range(y.shape[1])),
    }
    scores = {
        "precision": reference.precision_score,
        "recall": reference.recall_score,
        "f1": reference.f1_score,
    }
    for average in ("macro", "micro"):
        for name, score in scores.items():
            expected[f"{average}_{name}"] = score(y, decisions, average=average)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-6), name
        low, high = found[name].ci95 or (0, 0)
        assert low < value < high, name
    for k, label in enumerate(found.labels):
        assert label.support == y[:, k].sum()
        by_label = {name: score(y[:, k], decisions[:, k]) for name, score in scores.items()}
        by_label["average_precision"] = reference.average_precision_score(y[:, k], p[:, k])
        by_label["roc_auc"] = reference.roc_auc_score(y[:, k], p[:, k])
        for name, value in by_label.items():
            assert label[name].value == pytest.approx(value, abs=1e-6), (k, name)
    assert found.together[0, 1] == (y[:, 0] & y[:, 1]).sum()
    short = label_figures(out, decisions)
    assert (short.map, short.macro_f1, short.n) == (found["map"].value, found["macro_f1"].value, 200)
    assert LabelFigures.from_dict(short.to_dict()) == short == headline(out) or short != headline(out)


def test_the_average_precision_by_chance_is_that_of_random_orders():
    labels = np.zeros((20, 3), bool)
    labels[:3, 0] = labels[:12, 1] = True
    generator = np.random.default_rng(0)
    found = [
        label_figures(Outputs(labels, generator.normal(size=labels.shape).astype(np.float32))).map for _ in range(2000)
    ]
    assert map_by_chance(labels) == pytest.approx(np.mean(found), abs=0.01)
    assert map_by_chance(labels) > labels[:, :2].mean() + 0.05, "more than the share of images with the label"
    assert map_by_chance(np.zeros((20, 3), bool)) == 0
    assert map_by_chance(np.ones((1, 1), bool)) == 1


def test_a_label_that_does_not_occur_has_no_figures_and_does_not_count():
    out = outputs()
    out.labels[:, 2] = False
    found = compute_label_metrics(out, out.probabilities >= 0.5)
    assert found.labels[2]["average_precision"].value is None
    assert found.labels[2]["recall"].value is None
    kept = [0, 1, 3, 4]
    expected = reference.average_precision_score(out.labels[:, kept], out.probabilities[:, kept], average="macro")
    assert found["map"].value == pytest.approx(expected, abs=1e-6)
    assert found.to_dict()["labels"] == 4


def test_intervals_are_wider_where_images_come_in_groups():
    base = outputs(60, seed=3)
    twice = Outputs(np.repeat(base.labels, 4, 0), np.repeat(base.logits, 4, 0), np.repeat(np.arange(60), 4))
    alone = Outputs(twice.labels, twice.logits)
    for name in ("map", "macro_f1", "loss"):
        grouped, single = (compute_label_metrics(o, o.probabilities >= 0.5)[name].ci95 for o in (twice, alone))
        assert np.ptp(np.array(grouped)) > 1.6 * np.ptp(np.array(single)), (
            name
        )  # four copies of an image say what one says


def test_outputs_with_several_labels_have_no_predicted_class():
    out = outputs(5)
    assert np.allclose(out.probabilities, 1 / (1 + np.exp(-out.logits.astype(float))))
    for name in ("predicted", "correct", "confidence", "brier_scores"):
        with pytest.raises(AssertionError, match="no predicted class"):
            getattr(out, name)


def test_calibration_is_platts_and_keeps_the_ranks():
    out = outputs(4000, 1, skill=1.0)
    z, y = out.logits[:, 0], out.labels[:, 0]
    scale, offset = fit_label(3 * z - 1, y, prior=0)
    platt = LogisticRegression(C=1e9, tol=1e-8).fit((3 * z - 1).reshape(-1, 1), y)
    assert scale == pytest.approx(float(platt.coef_[0, 0]), abs=1e-3)
    assert offset == pytest.approx(float(platt.intercept_[0]), abs=1e-3)
    never = fit_label(z, np.zeros(len(z), bool))
    assert np.isfinite(never).all()
    assert never[0] > 0


@pytest.mark.parametrize(("level", "spread", "direction"), [(-3, 0.5, -1), (-0.1, 1e-3, -1), (-4, 0.01, 1), (3, 2, -1)])
def test_a_scale_at_its_bound_keeps_the_share_of_the_label(level, spread, direction):
    # Labels that contradict the logits ask for a negative scale, logits that hardly vary for an enormous one.
    generator = np.random.default_rng(1)
    z = generator.normal(level, spread, 300)
    rank = np.argsort(np.argsort(direction * z + spread * generator.normal(size=300)))
    y = rank >= 300 * sigmoid(np.array(float(-level)))
    scale, offset = fit_label(z, y)
    assert scale == pytest.approx(0.01 if direction < 0 else 20)
    # The best offset makes the mean probability that of the targets: labels and ten pseudo-images.
    expected = (y.sum() + 10 * sigmoid(z).mean()) / 310
    assert sigmoid(scale * z + offset).mean() == pytest.approx(expected, abs=1e-6)
    found, identity = (reference.log_loss(y, sigmoid(a * z + b)) for a, b in ((scale, offset), (1, 0)))
    assert found < identity


def test_the_threshold_has_the_largest_f1_or_the_stated_precision():
    out = outputs(300, 1, skill=1.5, seed=2)
    p, y = out.probabilities[:, 0], out.labels[:, 0]

    def f1(t: float) -> float:
        return reference.f1_score(y, p >= t)

    chosen = choose_threshold(p, y)
    assert f1(chosen) == max(f1(t) for t in np.unique(np.r_[p, p - 1e-9]))
    strict = choose_threshold(p, y, 0.9)
    assert reference.precision_score(y, p >= strict) >= 0.9
    lower = [t for t in np.unique(p) if t < strict]
    assert all(reference.precision_score(y, p >= t) < 0.9 for t in lower)
    assert choose_threshold(np.array([0.9, 0.1]), np.array([False, True]), 0.99) == NEVER
    assert choose_threshold(p, np.zeros(len(y), bool)) == 0.5


def test_thresholds_on_the_images_that_chose_them_are_measured_across_folds():
    noise = Outputs(outputs(200, 3).labels, np.random.default_rng(5).normal(size=(200, 3)).astype(np.float32))
    calibration = LabelCalibration.fit(noise, "valid")
    honest = assess_labels(noise, calibration, cross_fitted=True)
    optimistic = assess_labels(noise, calibration)
    assert honest.figures.macro_f1 < optimistic.figures.macro_f1
    assert honest.metrics["map"].value == optimistic.metrics["map"].value  # the ranks do not depend on it
    _, decisions = cross_fit_labels(noise)
    assert decisions.shape == (200, 3)


def test_a_precision_that_few_images_show_is_called_an_estimate():
    generator = np.random.default_rng(4)
    y = generator.random((100, 6)) < 0.5
    z = generator.normal(size=y.shape)  # the model knows nothing, yet some of its most confident answers are right
    z[:, 0] = 8 * y[:, 0] - 4
    calibration = LabelCalibration.fit(Outputs(y, z.astype(np.float32)), "valid", 0.9)
    names = ("known", *"abcde")
    given = calibration.decide(calibration.apply(Outputs(y, z.astype(np.float32))).probabilities)
    (line,) = (line for line in calibration.lines(names) if "estimate" in line)
    assert "the 95 % interval on valid includes less than 90.0 %" in line
    lucky = [k for k in range(1, 6) if given[:, k].any()]
    assert 1 <= len(lucky) <= 3
    for k in lucky:
        assert f"{names[k]} ({(given & y)[:, k].sum()} of {given[:, k].sum()} right)" in line
    assert "known" not in line
    stored = calibration.to_dict()
    assert LabelCalibration.from_dict(stored, "x", 6).lines(names) == calibration.lines(names)
    for row in stored["labels"]:  # a file of an earlier version
        del row["given"], row["right"]
    assert LabelCalibration.from_dict(stored, "x", 6).lines(names) == calibration.lines(names)[:-1]
    assert not any("estimate" in line for line in LabelCalibration.fit(outputs(), "valid").lines(names[:5]))


def test_a_stored_calibration_is_read_back_and_checked():
    out = outputs()
    calibration = LabelCalibration.fit(out, "valid", 0.999)
    stored = calibration.to_dict()
    again = LabelCalibration.from_dict(stored, "x", 5)
    p = sigmoid(out.logits)
    assert np.array_equal(again.decide(p), calibration.decide(p))
    for damage in (
        {"labels": stored["labels"][:4]},
        {"n": 0},
        {"precision": 2.0},
        {"split": None, "labels": [None] * 5},
    ):
        with pytest.raises(UserError, match="x: its calibration"):
            LabelCalibration.from_dict(stored | damage, "x", 5)
    stored["labels"][1]["threshold"] = 1.5
    with pytest.raises(UserError, match="out of range"):
        LabelCalibration.from_dict(stored, "x", 5)


def test_iterative_stratification_gives_each_part_its_share_of_each_label():
    generator = np.random.default_rng(0)
    labels = generator.random((1000, 8)) < np.geomspace(0.5, 0.02, 8)
    counts, ones = labels.astype(np.int64), np.ones(1000, np.int64)
    part = iterative_stratification(counts, ones, np.array([0.8, 0.1, 0.1]), generator.permutation(1000))
    for p, share in enumerate((0.8, 0.1, 0.1)):
        assert abs((part == p).sum() - 1000 * share) <= 8
        assert np.abs(labels[part == p].sum(0) - share * labels.sum(0)).max() <= 1.5


def test_folds_keep_groups_together_and_never_hold_out_the_last_images_of_a_label():
    labels = np.random.default_rng(1).random((90, 4)) < 0.3
    labels[:, 3] = False
    labels[30:33, 3] = True  # all in one group
    groups = np.arange(90) // 3
    fold = stratified_label_folds(labels, 5, 0, groups)
    assert all(len(set(fold[groups == g])) == 1 for g in range(30))
    assert set(fold[groups == 10]) == {-1}
    assert set(fold) == {-1, 0, 1, 2, 3, 4}
