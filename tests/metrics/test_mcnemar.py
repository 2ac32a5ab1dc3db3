"""Two classifiers on the same images: against SciPy, published values and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from linnaeus.metrics.mcnemar import McNemar, holm

COUNTS = st.integers(0, 60)


@settings(max_examples=100, deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_p_value_equals_the_binomial_test(both: int, first: int, second: int, neither: int):
    n = both + first + second + neither
    pair = McNemar(max(n, 1), both, first, second)
    if first + second == 0:
        assert pair.p == 1
    else:
        assert pair.p == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)
    assert pair.p == McNemar(max(n, 1), both, second, first).p
    low, high = pair.difference_ci95
    assert -1 <= low <= pair.difference <= high <= 1
    turned = McNemar(max(n, 1), both, second, first).difference_ci95
    assert (-turned[1], -turned[0]) == pytest.approx((low, high), abs=1e-12)


def test_many_discordant_images_are_counted_exactly():
    assert McNemar(100_000, 0, 5_100, 4_900).p == pytest.approx(stats.binomtest(4_900, 10_000).pvalue, rel=1e-9)
    assert McNemar(10_000, 0, 700, 30).p == pytest.approx(stats.binomtest(30, 730).pvalue, rel=1e-9)


def test_a_few_images_are_not_significant():
    assert McNemar(171, 155, 4, 7).p > 0.5
    assert McNemar(171, 155, 0, 12).p < 0.001


def test_the_interval_equals_newcombes():
    """Published examples: 0.0569 to 0.3404, and for correlated answers 0.011 to 0.226 (Altman et al. 2000)."""
    assert McNemar(41, 14, 0, 5).difference_ci95 == pytest.approx((0.0115, 0.2265), abs=5e-5)
    assert McNemar(50, 36, 2, 12).difference_ci95 == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_the_interval_covers_the_truth():
    """About 95 % of the intervals for 200 images and correlated answers contain the true difference."""
    rng = np.random.default_rng(0)
    cells = rng.multinomial(200, [0.8, 0.04, 0.08, 0.08], 1_000)
    inside = [low <= 0.04 <= high for low, high in (McNemar(200, *c[:3].tolist()).difference_ci95 for c in cells)]
    assert 0.93 < np.mean(inside) < 0.985


def test_counts_from_answers():
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, True])
    assert McNemar.of(first, second) == McNemar(5, 2, 1, 1)
    assert McNemar.of(first, first | second).difference == pytest.approx(0.2)  # the second is better: above 0


def patients(rng: np.random.Generator, effect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two classifiers on 40 patients with 1 to 10 images; one of them is mostly wrong on a quarter of the patients."""
    sizes = rng.integers(1, 11, 40)
    groups = np.repeat(np.arange(40), sizes)
    loser = rng.choice(3, 40, p=[0.75, 0.125 + effect, 0.125 - effect])[groups]
    fails = rng.random(len(groups)) < 0.9
    return ~((loser == 1) & fails), ~((loser == 2) & fails), groups


def test_a_patient_counts_once():
    """Of two equally good classifiers, a test that ignores the patients is significant in a third of the samples."""
    rng = np.random.default_rng(0)
    alarms, blind, inside = 0, 0, 0
    for _ in range(400):
        first, second, groups = patients(rng, 0.0)
        pair = McNemar.of(first, second, groups)
        alarms += pair.p < 0.05
        blind += McNemar.of(first, second).p < 0.05
        inside += pair.difference_ci95[0] <= 0 <= pair.difference_ci95[1]
    assert alarms <= 0.07 * 400
    assert blind > 0.3 * 400
    assert inside >= 0.92 * 400


def test_a_difference_between_patients_is_significant():
    pair = McNemar.of(*patients(np.random.default_rng(1), 0.125))
    assert pair.group_wins is not None
    assert pair.group_wins[0] == 0
    assert pair.p == 2 / 2 ** pair.group_wins[1] < 0.05
    assert pair.difference_ci95[0] > 0
    assert pair.to_dict()["groups"] == {"first": 0, "second": pair.group_wins[1]}


def test_a_single_patient_is_not_significant():
    pair = McNemar.of(np.arange(30) < 10, np.arange(30) < 25, np.zeros(30, np.int64))
    assert (pair.p, pair.difference_ci95) == (1.0, (-1.0, 1.0))


def test_groups_of_one_image_are_independent_images():
    first, second = np.random.default_rng(2).random((2, 90)) < 0.8
    assert McNemar.of(first, second, np.arange(90)).p == McNemar.of(first, second).p
    alone = McNemar.of(first, second, np.arange(90)).difference_ci95
    assert alone == pytest.approx(McNemar.of(first, second).difference_ci95)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # the smallest times 3, then 2, then 1
    assert holm([0.04, 0.001]) == pytest.approx([0.04, 0.002])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
