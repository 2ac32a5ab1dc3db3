"""Every metric against scikit-learn, with ties and absent classes, and the coverage of the intervals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from linnaeus.metrics import bootstrap
from linnaeus.metrics.bootstrap import (
    WeightedSample,
    average_precision,
    percentile_interval,
    resample,
    resample_weights,
)
from linnaeus.metrics.classification import (
    CLASS_METRICS,
    Figures,
    class_dicts,
    compute_metrics,
    figures,
    most_confused,
)
from linnaeus.metrics.outputs import Outputs

TIGHT = 1e-9


def outputs(n: int, classes: int, seed: int = 0, *, ties: bool = False, absent: int = 0, skill: float = 1.5) -> Outputs:
    """Random outputs with some skill. `ties`: rounded logits; `absent`: number of final classes that do not occur."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes - absent, n, p=rng.dirichlet(np.full(classes - absent, 5.0)))
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill
    return Outputs(labels, (np.round(logits) if ties else logits).astype(np.float32))


CASES = [
    pytest.param({"n": 150, "classes": 2}, id="two"),
    pytest.param({"n": 150, "classes": 2, "ties": True}, id="two with ties"),
    pytest.param({"n": 300, "classes": 7}, id="seven"),
    pytest.param({"n": 300, "classes": 7, "ties": True}, id="seven with ties"),
    pytest.param({"n": 300, "classes": 9, "absent": 3}, id="absent"),
    pytest.param({"n": 300, "classes": 9, "absent": 3, "ties": True}, id="absent with ties"),
    pytest.param({"n": 20, "classes": 12, "ties": True}, id="more classes than most have images"),
]


@pytest.mark.parametrize("case", CASES)
def test_overall_metrics_equal_those_of_scikit_learn(case: dict[str, Any]):
    out = outputs(**case)
    found, k = compute_metrics(out), out.logits.shape[1]
    y, p, said, every = out.labels, out.probabilities, out.predicted, np.arange(k)
    there = np.unique(y)
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(y, said), abs=TIGHT)
    recalls = metrics.recall_score(y, said, labels=there, average="macro")
    assert found["balanced_accuracy"].value == pytest.approx(recalls, abs=TIGHT)
    macro = metrics.precision_recall_fscore_support(y, said, labels=there, average="macro", zero_division=0)
    for name, expected in zip(("macro_precision", "macro_recall", "macro_f1"), macro, strict=False):
        assert found[name].value == pytest.approx(expected, abs=TIGHT)
    assert found["loss"].value == pytest.approx(metrics.log_loss(y, p, labels=every), abs=TIGHT)
    binary = {"labels": every} if k > 2 else {}
    scores = p if k > 2 else p[:, 1]
    assert found["brier"].value == pytest.approx(metrics.brier_score_loss(y, scores, **binary), abs=TIGHT)
    if k > 10:  # scikit-learn breaks ties for the later class, predictions for the earlier: its mirror image
        expected = metrics.top_k_accuracy_score(k - 1 - y, out.logits[:, ::-1], k=5, labels=every)
        assert found["top5"].value == pytest.approx(expected, abs=TIGHT)
    else:
        assert found["top5"].value is None
    assert np.array_equal(found.confusion, metrics.confusion_matrix(y, said, labels=every))


@pytest.mark.parametrize("case", CASES)
def test_class_metrics_equal_those_of_scikit_learn(case: dict[str, Any]):
    out = outputs(**case)
    found, k = compute_metrics(out), out.logits.shape[1]
    y, p, said = out.labels, out.probabilities, out.predicted
    every = metrics.precision_recall_fscore_support(y, said, labels=np.arange(k), zero_division=np.nan)
    areas, averages = [], []
    for c, each in enumerate(found.classes):
        for name, values in zip(("precision", "recall", "f1"), every, strict=False):
            expected = None if np.isnan(values[c]) else pytest.approx(values[c], abs=TIGHT)
            assert each[name].value == expected, (name, c)
        assert (each.support, each.predicted) == ((y == c).sum(), (said == c).sum())
        if (y == c).any():
            areas.append(metrics.roc_auc_score(y == c, p[:, c]))
            averages.append(metrics.average_precision_score(y == c, p[:, c]))
            assert each["roc_auc"].value == pytest.approx(areas[-1], abs=TIGHT)
            assert each["average_precision"].value == pytest.approx(averages[-1], abs=TIGHT)
        else:
            assert each["roc_auc"].value is each["average_precision"].value is each["recall"].value is None
    assert found["macro_roc_auc"].value == pytest.approx(np.mean(areas), abs=TIGHT)
    assert found["macro_average_precision"].value == pytest.approx(np.mean(averages), abs=TIGHT)


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_metrics_equal_those_of_scikit_learn(ties: bool):
    """The bootstrap computes the metrics on weighted images; some weights are 0."""
    out = outputs(120, 6, ties=ties, absent=1)
    sample = WeightedSample(out)
    order = np.argsort(out.labels, kind="stable")  # the order in which a WeightedSample takes its weights
    y, p, said = out.labels[order], out.probabilities[order], out.predicted[order]
    weights = next(resample_weights(120, 3, np.random.default_rng(1)))
    found = sample.metrics(weights) | sample.ranking_metrics(weights)
    for m, w in enumerate(weights.T):
        there = np.unique(y[w > 0])
        macro = metrics.precision_recall_fscore_support(
            y, said, labels=there, average="macro", zero_division=0, sample_weight=w
        )
        averages = [metrics.average_precision_score(y == c, p[:, c], sample_weight=w) for c in there]
        expected = {
            "macro_precision": macro[0],
            "balanced_accuracy": macro[1],
            "macro_f1": macro[2],
            "loss": metrics.log_loss(y, p, labels=np.arange(6), sample_weight=w),
            "brier": metrics.brier_score_loss(y, p, labels=np.arange(6), sample_weight=w),
            "macro_average_precision": np.mean(averages),
        }
        for name, value in expected.items():
            assert found[name][m] == pytest.approx(value, abs=1e-6), name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_the_average_precision_with_ties_and_weights(rows: list[tuple[int, bool, int]]):
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    if not positive.any():
        return
    average = average_precision(scores.astype(float), positive, weights[:, None].astype(np.float32))
    if weights[positive].sum():
        expected = metrics.average_precision_score(positive, scores, sample_weight=weights)
        assert average[0] == pytest.approx(expected, abs=1e-6)


def test_resamples_have_as_many_images_as_the_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "CHUNK", 500)  # several chunks, the last one smaller
    weights = list(resample_weights(70, 24, np.random.default_rng(0)))
    assert [w.shape for w in weights] == [(70, 7)] * 3 + [(70, 3)]
    every = np.concatenate(weights, axis=1)
    assert (every.sum(0) == 70).all()
    assert every.var() == pytest.approx(1 - 1 / 70, abs=0.1)  # multinomial, not a permutation


def test_intervals_are_reproducible_and_contain_the_estimate():
    out = outputs(250, 5)
    found, again, other = (compute_metrics(out, seed) for seed in (0, 0, 1))
    assert (found.overall, found.classes) == (again.overall, again.classes)
    assert found["loss"].value == other["loss"].value
    assert found["loss"].ci95 != other["loss"].ci95
    for name, estimate in found.overall.items():
        if estimate.value is not None:
            assert estimate.ci95 is not None
            assert estimate.ci95[0] < estimate.value < estimate.ci95[1], name


def test_intervals_cover_the_truth():
    """About 95 % of the intervals from 150 samples of 150 images contain the value of the population."""
    population = outputs(40_000, 4, seed=7)
    truth = WeightedSample(population).metrics(np.ones((40_000, 1), np.float32))
    rng = np.random.default_rng(0)
    names = ("loss", "brier", "balanced_accuracy", "macro_f1", "ece")
    hits = dict.fromkeys(names, 0)
    for _ in range(150):
        some = rng.choice(40_000, 150, replace=False)
        found = resample(WeightedSample(population.take(some)), resamples=300)
        for name in names:
            interval = found.interval(name)
            assert interval is not None
            hits[name] += interval[0] <= truth[name][0] <= interval[1]
    assert all(hit >= 132 for hit in hits.values()), hits  # 142 expected, standard deviation 2.7


def test_average_precision_of_noise_is_not_above_chance():
    """Plain percentiles were above the truth for 30 % of such samples."""
    rng, above, outside = np.random.default_rng(0), 0, 0
    for _ in range(150):
        noise = Outputs(rng.integers(3, size=60), rng.normal(size=(60, 3)).astype(np.float32))
        found = resample(WeightedSample(noise), resamples=300)
        interval = found.interval("macro_average_precision")
        assert interval is not None
        above += interval[0] > 1 / 3
        outside += not interval[0] <= found.values["macro_average_precision"] <= interval[1]
    assert above <= 15
    assert outside == 0


def test_the_interval_of_the_average_precision_contains_it_where_all_answers_are_wrong():
    labels = np.arange(40) % 2
    rng = np.random.default_rng(0)
    logits = np.stack([1.0 * labels, 1.0 - labels], 1) * 5 + rng.normal(scale=0.1, size=(40, 2))
    found = compute_metrics(Outputs(labels, logits.astype(np.float32)))
    estimate = found["macro_average_precision"]
    assert estimate.ci95 is not None
    assert estimate.value is not None
    assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]


def test_an_accuracy_that_one_class_alone_has_is_told():
    labels = np.repeat([0, 1], [90, 10])
    always = figures(Outputs(labels, np.tile(np.array([1, 0], np.float32), (100, 1))))
    assert str(always).endswith("not significantly better than always answering the most frequent class: 90.00 %")
    assert Figures.from_dict(json.loads(json.dumps(always.to_dict()))) == always
    knows = figures(Outputs(labels, np.eye(2, dtype=np.float32)[labels]))
    assert str(knows) == "100.00 % (100 of 100, 95 % interval 96.3 % to 100.0 %)"
    one = figures(Outputs(labels[:90], np.tile(np.array([1, 0], np.float32), (90, 1))))
    assert "most frequent" not in str(one), "where there is only one class, nothing better exists"
    earlier = {name: value for name, value in always.to_dict().items() if name != "most_frequent"}
    assert "most frequent" not in str(Figures.from_dict(earlier))


def test_without_errors_the_bootstrap_gives_no_interval():
    """Resamples contain no error, so their interval would be 100 % to 100 %; proportions and means have other ones."""
    out = Outputs(np.arange(60) % 3, np.eye(3, dtype=np.float32)[np.arange(60) % 3] * 5)
    found = compute_metrics(out)
    assert found["balanced_accuracy"].value == 1
    assert found["balanced_accuracy"].ci95 == pytest.approx((0.025 ** (1 / 60), 1.0))
    assert found["accuracy"].ci95 == pytest.approx((0.9398, 1.0), abs=1e-4)
    blurred = Outputs(out.labels, out.logits * np.linspace(0.5, 1, 60, dtype=np.float32)[:, None])
    wrong = Outputs((blurred.labels + 1) % 3, blurred.logits)
    for some in (compute_metrics(blurred), compute_metrics(wrong)):
        assert [some[name].ci95 for name in ("loss", "brier", "ece", "ece_equal_mass")] == [None] * 4
        assert some["loss"].value is not None
    assert percentile_interval(np.array([np.nan] * 200)) is None
    assert percentile_interval(np.r_[np.full(995, 0.5), np.ones(5)]) is None, "a few resamples lack the rare class"


def test_the_cost_is_bounded(monkeypatch: pytest.MonkeyPatch):
    out = outputs(200, 5)
    monkeypatch.setattr(bootstrap, "RANKING_WORK", 200 * 5 * 150)
    some = compute_metrics(out)
    assert (some.resamples, some.ranking_resamples) == (1000, 150)
    assert some["macro_average_precision"].ci95 is not None
    monkeypatch.setattr(bootstrap, "RANKING_WORK", 200 * 5 * 99)
    found = compute_metrics(out)
    assert found.ranking_resamples == 0
    assert found["macro_average_precision"].value is not None
    assert found["macro_average_precision"].ci95 is None
    assert found["macro_roc_auc"].ci95 == some["macro_roc_auc"].ci95, "needs no resamples"
    assert found["loss"].ci95 is not None


def test_json_has_names_counts_and_no_nan():
    out = outputs(40, 9, absent=4)
    names = tuple(f"name {i}" for i in range(9))
    found = compute_metrics(out)
    text = json.dumps(
        {**found.to_dict(), "classes": class_dicts(found.classes, tuple("abcdefghi"), names)}, allow_nan=False
    )
    said = json.loads(text)
    assert said["n"] == 40
    assert said["accuracy"] == found.correct / 40
    assert [row["class"] for row in said["classes"]] == list("abcdefghi")
    assert said["classes"][8]["recall"] is None
    assert {f"{name}_ci95" for name in CLASS_METRICS} <= said["classes"][0].keys()


def test_most_confused_pairs():
    labels = np.array([0] * 5 + [1] * 4 + [2] * 3)
    predicted = np.array([0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0])
    found = compute_metrics(Outputs(labels, np.eye(3, dtype=np.float32)[predicted]))
    assert most_confused(found.confusion) == [
        (0, 1, 3),
        (2, 0, 1),
        (1, 2, 1),
    ]  # equal counts are sorted by their share of the class
    assert most_confused(found.confusion, 1) == [(0, 1, 3)]


def test_a_single_image():
    found = compute_metrics(outputs(1, 7))
    assert found["accuracy"].value in (0, 1)
    assert found["accuracy"].ci95 is not None
    assert found["loss"].value is not None
    assert found["loss"].ci95 is None  # all resamples are equal


@pytest.mark.long
def test_ten_thousand_images_of_a_hundred_classes_get_intervals_of_their_rankings():
    assert compute_metrics(outputs(10_000, 100)).ranking_resamples == 200


def test_a_perfect_ranking_has_an_average_precision_of_exactly_one():
    """Rounded to 0.9999999999999999, it had no interval: the exact bound is that of 1."""
    for n in range(1, 80):
        positive, weights = np.arange(100) < n, np.random.default_rng(n).integers(1, 4, (100, 5)).astype(np.float32)
        assert (average_precision(-np.arange(100.0), positive, weights) == 1).all()
    labels = np.arange(60) % 2
    found = compute_metrics(Outputs(labels, np.eye(2)[labels] * np.linspace(1, 2, 60)[:, None]))
    assert [each["average_precision"].ci95 is None for each in found.classes] == [False, False]
