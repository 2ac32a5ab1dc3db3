"""Temperature scaling: the logits are divided by one number that is fitted on validation images.

Guo et al. 2017, On calibration of modern neural networks, arXiv:1706.04599, section 4.2. The predicted class stays the
same; only its probability changes.

The log loss of a confidently wrong image has no bound. Where labels are wrong, a few such images ask for a temperature
at which the model is far less sure than it is right. The temperature is therefore lowered until chance can explain the
difference between accuracy and mean confidence (`_not_too_unsure`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from linnaeus.metrics.intervals import design_effect
from linnaeus.metrics.outputs import Outputs

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 100.0
"""Range of the fit. Logits that need a temperature outside it are broken, and no single number repairs them."""
PRIOR_SAMPLES = 10.0  # pseudo-count of perfectly calibrated images: a prior that regularizes the fit on small sets
FOLDS = 5


def calibration_failure(temperature: float) -> str:
    """One line if the fitted temperature is at a bound of its range, with the likely cause; otherwise empty."""
    if MIN_TEMPERATURE * 1.001 < temperature < MAX_TEMPERATURE / 1.001:
        return ""
    cause = "the logits are too small"
    if temperature > 1:
        cause = "the predictions are no better than chance, or wrong where they are most confident"
    return f"calibration failed, temperature at its bound of {temperature:.3g}: {cause}; ignore the probabilities"


def fit_temperature(outputs: Outputs, prior: float = PRIOR_SAMPLES) -> float:
    """The temperature of a model, in MIN_TEMPERATURE..MAX_TEMPERATURE: least log loss, but confident enough."""
    return _not_too_unsure(outputs, least_loss_temperature(outputs, prior))


def least_loss_temperature(outputs: Outputs, prior: float = PRIOR_SAMPLES) -> float:
    """The temperature with the smallest log loss, regularized towards 1, in MIN_TEMPERATURE..MAX_TEMPERATURE.

    The loss is convex in 1/T, so its derivative has at most one zero, found by bisection on log T to 1e-6. To the n
    images `prior` pseudo-images are added whose labels follow the model's own probabilities at T = 1: their loss is
    the cross-entropy between the outputs at T = 1 and at T, also convex and smallest at T = 1. Without them a sample
    without errors would ask for T = 0, which is absolute certainty. With 10 of them and 20 images, all right, the doubt
    1 - p shrinks to about a third, close to the rule of succession; with 1,000 images they change log T by about 1 %.

    Bisection is written out because a library's root finder stops at a slightly different temperature, and the
    temperature is stored in model files and compared between runs.
    """
    logits = outputs.logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    n = len(logits)
    observed = logits[np.arange(n), outputs.labels].mean()

    def expected(temperature: float) -> float:
        """Mean logit of the label if labels followed the probabilities at `temperature`."""
        weights = np.exp(logits / temperature)
        return float(((weights * logits).sum(1) / weights.sum(1)).mean())

    uncalibrated = expected(1.0)

    def derivative(log_t: float) -> float:
        """Derivative of the regularized loss with respect to 1/T."""
        at_t = expected(math.exp(log_t))
        return float(n * (at_t - observed) + prior * (at_t - uncalibrated))

    # Already optimal, or so confident everywhere that the derivative vanishes and says nothing.
    if abs(derivative(0.0)) <= 1e-12 * n:
        return 1.0
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    while high - low > 1e-6:
        middle = (low + high) / 2
        if derivative(middle) > 0:  # a larger 1/T increases the loss, so the optimum has a larger T
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _not_too_unsure(outputs: Outputs, temperature: float) -> float:
    """The largest temperature up to `temperature` at which accuracy does not exceed mean confidence significantly.

    A calibrated model has about as many right answers as the sum of its confidences says. At the temperature of least
    log loss, wrong labels, whose loss has no bound, make it expect fewer.
    """
    correct = outputs.correct
    effect, quantile = design_effect(correct, outputs.groups)

    def too_unsure(log_t: float) -> bool:
        confidence = outputs.at(math.exp(log_t)).confidence
        spread = math.sqrt(effect * float((confidence * (1 - confidence)).sum()))
        return float(correct.sum() - confidence.sum()) > quantile * spread

    low, high = math.log(MIN_TEMPERATURE), math.log(temperature)
    # Without a wrong answer nothing but the prior has decided the temperature.
    if correct.all() or not too_unsure(high):
        return temperature
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if too_unsure(middle) else (middle, high)
    return math.exp(low)


def cross_fit(outputs: Outputs) -> Outputs:
    """Outputs of which each is calibrated by a temperature fitted on the other folds.

    Measures the effect of calibration on the images that also fit the temperature, without the optimism of fitting and
    evaluating on the same ones. The folds are random; a group is never divided.
    """
    n = len(outputs.labels)
    groups = np.arange(n) if outputs.groups is None else np.unique(outputs.groups, return_inverse=True)[1]
    units = int(groups.max()) + 1
    fold = (np.random.default_rng(0).permutation(units) % min(FOLDS, units))[groups]
    logits = outputs.logits.astype(np.float64)
    for number in range(min(FOLDS, units)):
        held_out = fold == number
        if not held_out.all():
            logits[held_out] /= fit_temperature(outputs.take(~held_out))
    return replace(outputs, logits=logits)
