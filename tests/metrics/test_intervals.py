"""Intervals of proportions and of metrics with images in groups, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from linnaeus.metrics.bootstrap import average_precision, percentile_interval, resample_weights
from linnaeus.metrics.classification import Metrics, compute_metrics, figures
from linnaeus.metrics.intervals import (
    Estimate,
    exact_interval,
    interval_of_mean,
    lowest_mean,
    most_successes,
    proportion_interval,
    rank_cost,
    student_quantile,
    wilson,
)
from linnaeus.metrics.multilabel import compute_label_metrics
from linnaeus.metrics.outputs import Outputs


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 11, 30, 99, 1_000, 10_000, 1_000_000])
def test_students_quantile(freedom: int):
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-8)


def test_independent_images_have_wilsons_interval():
    hits = np.arange(40) < 31
    assert proportion_interval(hits) == proportion_interval(hits, np.arange(40)[::-1]) == wilson(31, 40)
    assert proportion_interval(hits[:0], np.arange(0)) == (0.0, 1.0)


@pytest.mark.parametrize("hits", [0, 1, 13, 29, 30])
def test_independent_images_have_the_exact_interval(hits: int):
    sample = np.arange(30) < hits
    expected = stats.binomtest(hits, 30).proportion_ci(method="exact")
    assert exact_interval(sample) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert exact_interval(sample, np.zeros(30, np.int64)) == (0, 1)
    low, high = exact_interval(sample, np.arange(30) // 2)
    assert low <= expected.low
    assert high >= expected.high


@pytest.mark.parametrize(("seen", "unseen"), [(20, 57), (20, 5), (7, 40), (60, 30), (5, 0)])
def test_no_more_successes_are_unseen_than_stated_in_95_percent_of_random_samples(seen: int, unseen: int):
    bounds = np.array([most_successes(k, seen, unseen) for k in range(seen + 1)])
    drawn, coverage = np.arange(seen + 1), []
    for total in range(seen + unseen + 1):
        chance = stats.hypergeom.pmf(drawn, seen + unseen, total, seen)
        coverage.append(float(chance[total - drawn <= bounds].sum()))
    assert min(coverage) >= 0.95 - 1e-9
    lowered = [
        float(stats.hypergeom.pmf(drawn, seen + unseen, total, seen)[total - drawn <= bounds - 1].sum())
        for total in range(1, seen + unseen)
    ]
    assert not unseen or min(lowered) < 0.95, "a lower bound would hold less often"


def test_nothing_seen_bounds_nothing_and_many_unseen_have_the_bound_of_clopper_and_pearson():
    assert most_successes(0, 0, 9) == 9
    bound = stats.beta.ppf(0.95, 3 + 1, 60 - 3)
    assert most_successes(3, 60, 1_000_000) == pytest.approx(1_000_000 * bound, rel=1e-3)


def test_identical_images_of_a_group_count_once():
    """60 groups of identical images give the interval of 60 images with Student's quantile."""
    truth = np.arange(60) < 51
    hits, groups = np.repeat(truth, 7), np.repeat(np.arange(60), 7)
    low, high = proportion_interval(hits, groups)
    assert (low, high) == pytest.approx(wilson(51, 60, student_quantile(59)), abs=0.003)


def test_uncorrelated_groups_widen_the_interval_little():
    rng = np.random.default_rng(0)
    hits, groups = rng.random(1_000) < 0.8, np.repeat(np.arange(250), 4)
    low, high = proportion_interval(hits, groups)
    plain_low, plain_high = wilson(int(hits.sum()), 1_000)
    assert 1 <= (high - low) / (plain_high - plain_low) < 1.15


def test_without_errors_groups_count_as_identical():
    hits, groups = np.full(200, True), np.repeat(np.arange(20), 10)
    low, high = proportion_interval(hits, groups)
    assert high == 1
    assert low == pytest.approx(wilson(20, 20, student_quantile(19))[0])
    assert proportion_interval(np.full(9, True), np.zeros(9, np.int64)) == (
        0.0,
        1.0,
    )  # one patient is no sample of patients


def clustered(rng: np.random.Generator, groups: int, share: float, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """(hits, groups): groups of 1 to 12 images whose accuracy is drawn from a beta distribution for each group."""
    scale = (1 - alike) / alike
    chances = rng.beta(share * scale, (1 - share) * scale, groups)
    sizes = rng.integers(1, 13, groups)
    return rng.random(sizes.sum()) < np.repeat(chances, sizes), np.repeat(np.arange(groups), sizes)


@pytest.mark.parametrize(("share", "alike"), [(0.95, 0.2), (0.9, 0.6), (0.7, 0.9)])
def test_intervals_of_groups_cover_the_truth(share: float, alike: float):
    """Coverage on 400 samples of 40 groups, with the plain Wilson interval for comparison."""
    rng = np.random.default_rng(1)
    held = plain = 0
    for _ in range(400):
        hits, groups = clustered(rng, 40, share, alike)
        low, high = proportion_interval(hits, groups)
        held += low <= share <= high
        low, high = wilson(int(hits.sum()), len(hits))
        plain += low <= share <= high
    assert held >= 367  # 91.7 %: three standard deviations below 95 %
    assert plain < 0.85 * 400


def test_whole_groups_are_drawn():
    group = np.array([0, 1, 0, 2, 1, 0])
    weights = np.concatenate(list(resample_weights(6, 500, np.random.default_rng(0), group)), axis=1)
    assert weights.shape == (6, 500)
    assert (weights[0] == weights[2]).all()
    assert (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(0) == 3).all()  # three groups, with replacement
    assert weights.sum(0).std() > 0


def repeated_outputs(copies: int) -> Outputs:
    """Outputs for 80 images, each repeated `copies` times."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 80)
    logits = rng.normal(size=(80, 3))
    logits[np.arange(80), labels] += 1.5
    groups = np.repeat(np.arange(80), copies) if copies > 1 else None
    return Outputs(np.repeat(labels, copies), np.repeat(logits, copies, axis=0).astype(np.float32), groups)


def test_few_groups_have_wider_intervals():
    values = np.random.default_rng(0).normal(size=1_000)
    plain, many, few = percentile_interval(values), percentile_interval(values, 2_000), percentile_interval(values, 6)
    assert plain is not None
    assert many == pytest.approx(plain, abs=0.02)
    assert few is not None
    assert np.ptp(few) > 1.3 * np.ptp(plain)
    assert percentile_interval(values, 2) == (values.min(), values.max())


def widths(found: Metrics) -> dict[str, float]:
    """Widths of the intervals."""
    every = found.overall | {f"recall of {c.index}": c["recall"] for c in found.classes}
    return {name: float(np.ptp(each.ci95)) for name, each in every.items() if each.ci95 is not None}


def test_repeated_images_narrow_no_interval():
    once, often = repeated_outputs(1), repeated_outputs(5)
    one, five, blind = (
        compute_metrics(once),
        compute_metrics(often),
        compute_metrics(Outputs(often.labels, often.logits)),
    )
    assert (one.groups, five.groups, five.n) == (None, 80, 400)
    assert (figures(once).groups, figures(often).groups) == (None, 80)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "loss", "brier", "recall of 1"):
        if name in one.overall:
            assert five[name].value == pytest.approx(one[name].value, abs=1e-6), name
        assert widths(five)[name] == pytest.approx(widths(one)[name], rel=0.15), name
        assert widths(blind)[name] < 0.6 * widths(one)[name], name


def test_groups_are_printed_and_stored():
    said = str(figures(repeated_outputs(5)))
    assert " of 400 in 80 groups, 95 % interval " in said
    assert figures(repeated_outputs(5)).to_dict()["groups"] == 80
    assert "groups" not in figures(repeated_outputs(1)).to_dict()


def test_groups_survive_selection_and_scaling():
    often = repeated_outputs(5)
    first = often.take(often.labels == 0).at(2.0).groups
    assert first is not None
    assert often.groups is not None
    assert np.array_equal(first, often.groups[often.labels == 0])


def of(counts: list[int]) -> list[np.ndarray]:
    """Disjoint images, so many for each share."""
    number = np.repeat(np.arange(len(counts)), counts)
    return [number == k for k in range(len(counts))]


def test_the_bound_of_shares_of_which_all_images_are_right():
    assert lowest_mean(of([30]), None) == pytest.approx(0.025 ** (1 / 30))
    assert lowest_mean(of([30] * 5), None) == pytest.approx(0.025 ** (1 / 150)), "images of all shares count together"
    same = [np.ones(30, bool)] * 5
    assert lowest_mean(same, None) == pytest.approx(0.025 ** (1 / 30)), "the same images in each share"
    groups = np.arange(150) % 30
    assert lowest_mean(of([30] * 5), groups) == pytest.approx(0.025 ** (1 / 30)), "each group is in all shares"
    assert lowest_mean([np.ones(1, bool)], None) == pytest.approx(0.025)


@pytest.mark.parametrize("counts", [[3, 10, 20, 30, 40], [10] * 5, [1, 500]])
def test_no_shares_below_the_bound_are_all_right_in_more_samples(counts: list[int]):
    bound, n = lowest_mean(of(counts), None), np.array(counts)
    rng = np.random.default_rng(0)
    chances = []
    for _ in range(20_000):
        # Shares of that mean: most of the loss in a few of them, or in all alike.
        loss = rng.dirichlet(np.full(len(n), rng.choice([0.1, 1.0, 30.0]))) * len(n) * (1 - bound)
        if (loss < 1).all():
            chances.append(np.prod((1 - loss) ** n))
    assert 0.015 < max(chances) <= 0.025 + 1e-9


def test_every_mean_of_a_perfect_sample_has_an_interval():
    labels = np.repeat(np.arange(5), 30)
    found = compute_metrics(Outputs(labels, (9.0 * np.eye(5, dtype=np.float32))[labels]))
    named = ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_roc_auc")
    bound = pytest.approx(0.025 ** (1 / 150))
    assert {name: found[name].ci95 for name in named} == dict.fromkeys(named, (bound, 1.0))
    assert found["macro_average_precision"].ci95 == (
        pytest.approx(1 - 4.0272 * (1 - 0.025 ** (1 / 150)), abs=1e-4),
        1.0,
    )
    assert found.classes[0]["roc_auc"].ci95 == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    low = wilson(30, 30)[0]  # of the images that are of the class or predicted as it
    assert found.classes[0]["f1"].ci95 == (pytest.approx(2 * low / (1 + low)), 1.0)
    decisions = np.eye(5, dtype=bool)[labels]
    several = compute_label_metrics(Outputs(decisions, np.where(decisions, 9.0, -9.0)), decisions)
    assert several["macro_f1"].ci95 == (bound, 1.0)
    assert several["map"].ci95 == found["macro_average_precision"].ci95


def test_a_class_of_three_images_does_not_narrow_the_intervals_of_means():
    """Most samples have all three right, which resamples cannot doubt: percentiles alone covered 80 % or fewer."""
    supports, wrong = np.array([30, 30, 30, 30, 3]), 0.05
    rows = np.full((5, 5), wrong / 4) + (1 - 1.25 * wrong) * np.eye(5)
    cells = rows * supports[:, None] / supports.sum()
    hits, support, predicted = np.diag(cells), cells.sum(1), cells.sum(0)
    truth = {
        "macro_f1": (2 * hits / (support + predicted)).mean(),
        "macro_precision": (hits / predicted).mean(),
        "balanced_accuracy": (hits / support).mean(),
    }
    rng, covered = np.random.default_rng(0), dict.fromkeys(truth, 0)
    for _ in range(60):
        drawn = rng.choice(25, supports.sum(), p=cells.ravel())
        logits = np.eye(5)[drawn % 5] + rng.random((len(drawn), 5)) / 2
        found = compute_metrics(Outputs(drawn // 5, logits))
        for name, value in truth.items():
            low, high = found[name].ci95 or (1.0, 0.0)
            covered[name] += low <= value <= high
    assert min(covered.values()) >= 55, covered


def test_the_interval_of_a_mean_follows_from_those_of_its_parts():
    parts = [Estimate(0.9, (0.8, 0.95)), Estimate(0.5, (0.2, 0.7)), Estimate(None)]
    low, high = interval_of_mean(parts)
    mean = (0.9 + 0.5 + 0) / 3
    assert low == pytest.approx(mean - np.sqrt(0.1**2 + 0.3**2) / 3)
    assert high == pytest.approx(mean + np.sqrt(0.05**2 + 0.2**2 + 1) / 3)
    assert Estimate(mean, (0.1, mean)).at_least(parts).ci95 == (0.1, high), "the wider of both on each side"
    assert Estimate(1.0, (0.97, 1.0)).at_least(parts).ci95 == (0.97, 1.0), "an exact one is kept"
    assert Estimate(None).at_least(parts) == Estimate(None)


def test_an_average_precision_below_its_bound_is_seldom_perfect():
    """Ten classes of ten images; wrong ones are ranked above all images of another class, which costs most."""
    bound = 1 - rank_cost(10) * (1 - lowest_mean(of([10] * 10), None))
    large, rng, wrong = np.repeat(np.arange(10), 2000), np.random.default_rng(0), 0.026
    missed = rng.random(len(large)) < wrong
    answers = np.where(missed, (large + rng.integers(1, 10, len(large))) % 10, large)
    scores = np.eye(10)[answers] * (1 + missed)[:, None] + rng.random((len(large), 10)) / 2
    precision = [average_precision(scores[:, c], large == c, np.ones((len(large), 1)))[0] for c in range(10)]
    assert bound - 0.01 < np.mean(precision) < bound
    assert (1 - wrong) ** 100 < 0.08, "the share of samples that are all right"
