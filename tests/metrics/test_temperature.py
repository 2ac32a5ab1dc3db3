"""Temperatures where labels are wrong: log loss alone would make the model too unsure."""

from __future__ import annotations

import numpy as np
import pytest

from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.temperature import cross_fit, fit_temperature, least_loss_temperature

CLASSES = 10


def overconfident(n: int, seed: int, wrong_labels: float = 0.0) -> Outputs:
    """A model whose logits are too large, by a factor that differs between images; a share of the labels is wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    logits = rng.normal(size=(n, CLASSES)) + 4 * np.eye(CLASSES)[labels]
    logits *= 8 * np.exp(0.5 * rng.normal(size=(n, 1)))
    flipped = rng.random(n) < wrong_labels
    return Outputs(np.where(flipped, (labels + rng.integers(1, CLASSES, n)) % CLASSES, labels), logits)


def error_at(outputs: Outputs, temperature: float) -> float:
    scaled = outputs.at(temperature)
    return calibration_error(scaled.confidence, scaled.correct)


@pytest.mark.parametrize("seed", range(4))
def test_wrong_labels_do_not_decide_the_temperature(seed: int):
    """With a tenth of wrong labels, the calibration error on other images is clearly lower than at the least loss."""
    out, others = overconfident(400, seed, 0.1), overconfident(20_000, 100, 0.1)
    least, chosen = least_loss_temperature(out), fit_temperature(out)
    assert chosen < least
    assert error_at(others, chosen) < error_at(others, least) - 0.02
    # Only as far as needed: accuracy and mean confidence differ just as much as chance explains.
    at = out.at(chosen)
    spread = np.sqrt((at.confidence * (1 - at.confidence)).sum())
    assert (at.correct.sum() - at.confidence.sum()) / spread == pytest.approx(1.96, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_correct_labels_leave_the_temperature_of_least_loss(seed: int):
    out = overconfident(400, seed)
    assert fit_temperature(out) == least_loss_temperature(out) > 1


def test_a_model_that_is_less_sure_than_it_is_right_is_made_surer():
    """Its temperature of least loss is below 1, and wrong labels keep that one too high as well."""
    out, others = (
        Outputs(raw.labels, raw.logits / 60) for raw in (overconfident(400, 0, 0.1), overconfident(20_000, 100, 0.1))
    )
    least, chosen = least_loss_temperature(out), fit_temperature(out)
    assert chosen < least < 1
    assert error_at(others, chosen) < error_at(others, least) - 0.02


def test_images_of_a_group_are_no_independent_evidence():
    out = overconfident(400, 0, 0.1)
    one_group = Outputs(out.labels, out.logits, np.zeros(400, np.int64))
    few = Outputs(out.labels, out.logits, np.arange(400) // 20)
    least = least_loss_temperature(out)
    assert fit_temperature(one_group) == least  # tells nothing of other groups
    assert fit_temperature(out) < fit_temperature(few) <= least


def test_cross_fitting_measures_the_same_rule():
    out = overconfident(400, 1, 0.1)
    confidence = cross_fit(out).confidence.mean()
    assert confidence > out.at(least_loss_temperature(out)).confidence.mean() + 0.02


def test_without_a_mistake_the_prior_alone_decides():
    """All of 400 images right, at a confidence of 60 %: no wrong label has any part in the temperature."""
    labels = np.arange(400) % 5
    out = Outputs(labels, 1.8 * np.eye(5)[labels])
    assert out.correct.all()
    assert fit_temperature(out) == least_loss_temperature(out) < 1
