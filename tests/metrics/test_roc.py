"""Areas under ROC curves and their intervals, which have to hold near 1 and for images in groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from linnaeus.metrics.roc import area_interval, auc_influences, roc_estimates


def test_an_area_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores, positive = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
        area, influences = auc_influences(scores, positive)
        assert area == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert influences.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("area", [0.9, 0.98, 0.995])
@pytest.mark.parametrize("n", [60, 200])
def test_an_interval_near_1_covers_the_area(area: float, n: int):
    """Bootstrap percentiles lay above the true area for up to 17 % of the samples, and covered 83 to 91 %."""
    rng = np.random.default_rng(0)
    positive, shift = np.arange(n) < n // 4, 2**0.5 * norm.ppf(area)
    covered = above = 0
    for _ in range(300):
        ((found,), mean) = roc_estimates([(rng.normal(size=n) + shift * positive, positive)], None)
        assert found.ci95 is not None
        assert mean == found, "of a single class"
        covered += found.ci95[0] <= area <= found.ci95[1]
        above += found.ci95[0] > area
    assert covered >= 0.9 * 300
    assert above <= 0.06 * 300


def test_an_interval_of_images_in_groups_covers_the_area():
    """Four images of a patient are all scored alike; taken for independent, they narrow the interval."""
    rng = np.random.default_rng(0)
    patients = np.arange(40)
    positive, groups = np.repeat(patients < 15, 4), np.repeat(patients, 4)
    covered = blind = 0
    for _ in range(300):
        scores = np.repeat(rng.normal(size=40), 4) + 0.2 * rng.normal(size=160) + 1.5 * positive
        area, influences = auc_influences(scores, positive)
        true = norm.cdf(1.5 / (2 * 1.04) ** 0.5)
        low, high = area_interval(area, influences, [positive], groups)
        covered += low <= true <= high
        low, high = area_interval(area, influences, [positive])
        blind += low <= true <= high
    assert covered >= 0.92 * 300
    assert blind < 0.8 * 300


def test_areas_of_classes_that_do_not_occur_are_undefined():
    positive = np.array([True, False, True])
    estimates, mean = roc_estimates([(np.arange(3.0), positive), (np.arange(3.0), positive & False)], None)
    assert (estimates[1].value, estimates[1].ci95) == (None, None)
    assert mean.value == estimates[0].value == 0.5
    assert roc_estimates([(np.arange(3.0), positive | True)], None)[1].value is None
    four = np.arange(9) < 4
    assert area_interval(1.0, np.zeros(9), [four]) == (pytest.approx(0.025**0.25), 1.0)
    assert area_interval(0.0, np.zeros(9), [four]) == (0.0, pytest.approx(1 - 0.025**0.25))
    assert area_interval(0.5, np.full(2, 0.5), [], np.zeros(2, np.int64)) == (0, 1), "one group shows no spread"


def test_two_classes_that_are_told_apart_have_one_area():
    """The scores of one are the complements of the other's, so that both areas say the same."""
    positive = np.arange(40) < 10
    estimates, mean = roc_estimates([(positive * 1.0, positive), (1.0 - positive, ~positive)], None)
    for estimate in (*estimates, mean):
        assert (estimate.value, estimate.ci95) == (1.0, (pytest.approx(0.025**0.1), 1.0))
