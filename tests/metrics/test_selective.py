"""Risk, coverage, and simulations of the guarantee."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from linnaeus.metrics.abstention import NO_ANSWER, OperatingPoint
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.risk_test import (
    _binomial_limits,
    _binomial_pmf,
    allowed_errors,
    false_pass_probability,
    required_samples,
)
from linnaeus.metrics.selective import (
    aurc,
    candidate_counts,
    choose_thresholds,
    is_unsure,
    risk_coverage_curve,
)


def test_the_curve_by_hand():
    confidence = np.array([0.5, 0.9, 0.7, 0.8])
    right = np.array([False, True, False, True])
    curve = risk_coverage_curve(confidence, right)
    assert curve.answered.tolist() == [1, 2, 3, 4]
    assert curve.wrong.tolist() == [0, 0, 1, 2]
    assert curve.thresholds == pytest.approx([0.85, 0.75, 0.6, 0.0])
    for threshold, answered, wrong in zip(curve.thresholds, curve.answered, curve.wrong, strict=True):
        assert ((confidence >= threshold).sum(), (confidence >= threshold)[~right].sum()) == (answered, wrong)


def test_equal_probabilities_are_answered_together():
    curve = risk_coverage_curve(np.array([0.9, 0.9, 0.9, 0.4]), np.array([True, True, False, True]))
    assert curve.answered.tolist() == [3, 4]
    assert curve.wrong.tolist() == [1, 1]


def test_the_curve_has_at_most_a_hundred_rows():
    assert len(candidate_counts(10_000)) == 100
    assert candidate_counts(10_000)[-1] == 10_000
    assert candidate_counts(7).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_the_area_is_the_mean_risk():
    right = np.array([True, True, False, True])
    assert aurc(np.array([0.9, 0.8, 0.7, 0.6]), right)[0] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    area, excess = aurc(np.array([0.9, 0.8, 0.1, 0.6]), right)  # the error ranks last, which is the best order
    assert (area, excess) == pytest.approx((1 / 16, 0))


def test_equal_confidences_count_as_in_random_order():
    confidence, right = np.array([0.9, 0.5, 0.5, 0.5, 0.2]), np.array([True, False, True, True, False])
    areas = []
    for order in permutations([1, 2, 3]):
        ordered = right[[0, *order, 4]]
        areas.append((np.cumsum(~ordered) / np.arange(1, 6)).mean())
    assert aurc(confidence, right)[0] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (40, 0.02), (1000, 0.3), (100_000, 0.02)])
def test_binomial_probabilities(n: int, p: float):
    found = _binomial_pmf(n, p, 2_501)
    assert found == pytest.approx(stats.binom.pmf(np.arange(len(found)), n, p), rel=1e-6, abs=1e-14)
    assert len(found) == min(n + 1, 2_501) or found[-1] < 1e-14


@pytest.mark.parametrize("alpha", [0.05, 5e-4, 1e-9])
@pytest.mark.parametrize("risk", [0.01, 0.1, 0.5])
def test_binomial_limits(alpha: float, risk: float):
    """The largest number of errors whose binomial tail is at most alpha, and -1 where even 0 errors are too likely."""
    counts = (1, 2, 20, 149, 300, 10_000)
    limits = _binomial_limits(counts, risk, alpha)
    assert (stats.binom.cdf(limits, counts, risk) <= alpha).all()
    assert (stats.binom.cdf(limits + 1, counts, risk) > alpha).all()
    assert limits.min() == -1


@pytest.mark.parametrize(("n", "error"), [(30_000, 0.4), (10**7, 0.5)])
def test_very_many_images_use_the_conservative_level(n: int, error: float):
    tried = tuple(candidate_counts(n).tolist())
    allowed = allowed_errors(tried, error, 0.05)
    safe = stats.binom.ppf(0.05 / 100, np.array(tried), error)
    assert np.abs(allowed - safe).max() <= 1
    assert (stats.binom.cdf(allowed, np.array(tried), error) <= 0.05 / 100).all()


def test_required_samples():
    assert required_samples(0.02) == 149  # 0.98 ** 149 is the first below 0.05
    assert required_samples(0.5) == 5
    assert 0.98**149 <= 0.05 < 0.98**148


@pytest.mark.parametrize(("n", "error"), [(180, 0.02), (1000, 0.02), (400, 0.1), (60, 0.3)])
def test_the_false_pass_probability_by_simulation(n: int, error: float):
    """Errors occur with exactly the target risk, and every count is tested: about 5 % of the samples pass."""
    tried = tuple(k for k in candidate_counts(n).tolist() if k >= required_samples(error))
    allowed = allowed_errors(tried, error, 0.05)
    mistakes = np.cumsum(np.random.default_rng(0).random((8_000, n)) < error, axis=1)[:, np.array(tried) - 1]
    passed = (mistakes <= allowed).any(1).mean()
    assert passed == pytest.approx(false_pass_probability(tried, allowed, error), abs=0.01)
    assert 0.02 < passed < 0.06
    assert allowed[-1] >= 0
    assert (np.diff(allowed) >= 0).all()


@pytest.mark.parametrize("n", [300, 2_000])
def test_the_level_of_the_test_holds(n: int):
    """At most 5 % of 1,000 samples from a known population give a tested threshold that exceeds the target risk."""
    rng = np.random.default_rng(0)
    exceeded = passed = optimistic = 0
    for _ in range(1_000):
        confidence = rng.beta(6, 1, n)
        rule = choose_thresholds(risk_coverage_curve(confidence, rng.random(n) < confidence), 0.05)
        points = [rule.tested, rule.estimated]
        risks = [0.0 if p is None else 1 - 6 / 7 * (1 - p.threshold**7) / (1 - p.threshold**6) for p in points]
        passed += rule.tested is not None  # the risks above are the mean doubt of a Beta(6, 1) above it
        exceeded += risks[0] > 0.05
        optimistic += risks[1] > 0.05
    assert passed > 100 * n / 300  # it must not hold because nothing ever passes
    assert exceeded <= 50 + 2 * 7
    assert optimistic > 300  # the estimated threshold is not tested


def test_the_estimate_has_the_larger_coverage():
    rng = np.random.default_rng(0)
    confidence = rng.random(2_000)
    right = rng.random(2_000) < confidence ** (1 / 8)
    rule = choose_thresholds(risk_coverage_curve(confidence, right), 0.05)
    assert rule.estimated is not None
    assert rule.tested is not None
    assert rule.estimated.answered >= rule.tested.answered
    assert rule.estimated.wrong <= 0.05 * rule.estimated.answered
    assert rule.applied == rule.tested
    assert rule.threshold == rule.tested.threshold


def test_twenty_images_are_not_enough_for_the_test():
    rule = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 20), np.full(20, True)), 0.02)
    assert rule.tested is None
    assert rule.estimated is not None
    assert (rule.estimated.answered, rule.threshold) == (20, 0.0)
    assert rule.to_dict()["smallest_n"] == 149
    enough = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 149), np.full(149, True)), 0.02)
    assert enough.tested is not None
    assert (enough.tested.answered, enough.tested.threshold) == (149, 0.0)
    assert choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 148), np.full(148, True)), 0.02).tested is None


def test_where_no_threshold_helps():
    rule = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 300), np.full(300, False)), 0.02)
    assert rule.estimated is rule.tested is rule.applied is None
    assert rule.threshold == NO_ANSWER > 1
    assert (rule.answers, rule.to_dict()["threshold"]) == ("none", None)
    assert str(rule) == "always: by 300 answers, no threshold is expected to keep wrong ones to 2 % or fewer"
    assert 'so this model answers "unsure" to every image' in rule.notice


def test_a_threshold_that_few_right_answers_support_is_not_called_wrong():
    """The ten most confident of 20 answers are right, which is too few for a model that is wrong half the time."""
    curve = risk_coverage_curve(np.linspace(0.5, 1, 20), np.arange(20) >= 10)
    rule = choose_thresholds(curve, 0.02)
    assert curve.wrong[curve.answered == 10] == 0
    assert rule.applied is None
    assert str(rule) == "always: by 20 answers, no threshold is expected to keep wrong ones to 2 % or fewer"


def test_one_lucky_answer_is_no_threshold():
    """The most confident of 40 answers is right by chance; a model that is right 30 % of the time stays unsure."""
    right = np.arange(40) % 10 >= 7
    right[-1] = True
    rule = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 40), right), 0.02)
    assert rule.applied is None
    assert rule.threshold == NO_ANSWER
    mostly = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 40), np.arange(40) > 0), 0.02)
    assert (mostly.answers, mostly.notice) == ("some", "")


def test_noise_is_seldom_answered():
    """Random confidences and 30 % accuracy on 40 images: before, most such models answered some images as sure."""
    rng = np.random.default_rng(0)
    rules = [choose_thresholds(risk_coverage_curve(rng.random(40), rng.random(40) < 0.3)) for _ in range(200)]
    assert sum(rule.applied is not None for rule in rules) == 0


def test_equal_confidences_are_tested_together():
    """A count inside a tie is not tested, but all images of the tie are."""
    right = np.full(400, True)
    right[:40] = False
    confidence = np.where(np.arange(400) < 60, 0.5, 1.0)
    rule = choose_thresholds(risk_coverage_curve(confidence, right), 0.02)
    assert rule.tested is not None
    assert (rule.tested.answered, rule.tested.wrong) == (340, 0)
    assert rule.tested.threshold == 0.75


def test_a_tie_that_ends_between_counts_is_not_tested():
    """855 of 1,000 images tie and are right, but 855 is not a candidate count, and at 1,000 the risk is too high."""
    first = np.arange(1_000) < 855
    rule = choose_thresholds(risk_coverage_curve(np.where(first, 0.9, 0.5), first), 0.02)
    assert rule.tested is None
    assert rule.estimated is not None
    assert rule.estimated.answered == 855


def test_images_in_groups_are_not_tested():
    """Errors of a patient are correlated, and 300 images may show only three patients."""
    sure, right = np.linspace(0.5, 1, 300), np.full(300, True)
    assert choose_thresholds(risk_coverage_curve(sure, right), 0.02).tested is not None
    rule = choose_thresholds(risk_coverage_curve(sure, right, grouped=True), 0.02)
    assert (rule.grouped, rule.tested) == (True, None)
    assert rule.estimated == OperatingPoint(0.0, 300, 0)
    assert "only an estimate: the images come in groups" in str(rule)


def test_the_text_of_a_rule():
    few = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 20), np.arange(20) > 0), 0.02)
    assert "19 of 20 answered (95.0 %), 0 wrong; only an estimate: at least 149 images" in str(few)
    many = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 400), np.arange(400) > 40), 0.02)
    assert "tested: a model with more errors would pass this test in at most 5 % of samples" in str(many)
    every = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 400), np.arange(400) > 0), 0.02)
    assert str(every).startswith(
        "never: 1 of 400 answers are wrong, and 2 % are allowed; tested: a model with more errors"
    )
    perfect = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 15), np.ones(15, dtype=bool)), 0.02)
    assert str(perfect).startswith(
        "never: 0 of 15 answers are wrong, and 2 % are allowed; only an estimate: at least 149"
    )
    three = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 3), np.ones(3, dtype=bool)), 0.02)
    assert str(three).endswith("; the 95 % interval of the share of wrong answers is 0.0 % to 56.1 %")


def test_no_certainty_is_unsure():
    assert [is_unsure(p, 0.5) for p in (0.5, 0.4999, float("nan"))] == [False, True, True]
    assert is_unsure(float("nan"), 0.0)


def best_of(rng: np.random.Generator, epochs: int, n: int, risk: float, overlap: float) -> np.ndarray:
    """Errors, (n,) bool, of the best of some epochs of the same risk; two epochs share a part of their errors."""
    common, kept = rng.random(n) < risk, overlap**0.5
    own = rng.random((epochs, n))
    wrong = np.where(common, own < kept, own < risk * (1 - kept) / (1 - risk))
    return wrong[wrong.sum(1).argmin()]


@pytest.mark.parametrize(("epochs", "overlap", "unadjusted"), [(20, 0.86, 0.1), (20, 0.7, 0.13), (60, 0.7, 0.18)])
def test_the_level_holds_for_the_best_of_many_epochs(epochs: int, overlap: float, unadjusted: float):
    """Every epoch has just more than the target risk. At most 5 % of 600 samples pass, though they chose the epoch."""
    rng = np.random.default_rng(0)
    n, passed, ignored = 400, 0, 0
    for _ in range(600):
        right = ~best_of(rng, epochs, n, 0.0201, overlap)
        for candidates in (epochs, 1):
            curve = risk_coverage_curve(rng.random(n), right, candidates=candidates)
            found = choose_thresholds(curve).tested is not None
            passed, ignored = passed + (found and candidates > 1), ignored + (found and candidates == 1)
    assert passed <= 0.05 * 600
    assert ignored > unadjusted * 600  # the selection matters here
    good = risk_coverage_curve(rng.random(n), ~best_of(rng, epochs, n, 0.0002, overlap), candidates=epochs)
    assert choose_thresholds(good).tested is not None  # it must not hold because nothing ever passes


def test_the_number_of_epochs_is_stated_and_stored():
    sure, right = np.linspace(0.5, 1, 200), np.full(200, True)
    rule = choose_thresholds(risk_coverage_curve(sure, right, candidates=10))
    assert (rule.tested, rule.to_dict()["candidates"], rule.to_dict()["smallest_n"]) == (None, 10, 263)
    assert (
        "only an estimate: at least 263 images are needed after choosing the best of 10 epochs on them; the 95"
        in str(rule)
    )
    one = choose_thresholds(risk_coverage_curve(sure, right))
    assert str(one).endswith("tested: a model with more errors would pass this test in at most 5 % of samples")
    more = choose_thresholds(risk_coverage_curve(np.linspace(0.5, 1, 300), np.full(300, True), candidates=10))
    assert str(more).endswith("in at most 5 % of samples, although they also chose the best of 10 epochs")
    unknown = choose_thresholds(risk_coverage_curve(sure, right, candidates=None))
    assert (unknown.tested, unknown.to_dict()["candidates"]) == (None, None)
    assert "only an estimate: the number of epochs from which these images selected the model is not recorded" in str(
        unknown
    )


def test_a_threshold_that_the_choice_of_the_epoch_rules_out_is_still_used():
    """With 24 epochs 180 images prove nothing; the caution of the test stays, and only its claim is dropped."""
    sure, right = np.linspace(0.5, 1, 180), np.arange(180) > 0
    alone = choose_thresholds(risk_coverage_curve(sure, right))
    assert alone.tested is not None
    assert alone.uncorrected is None
    rule = choose_thresholds(risk_coverage_curve(sure, right, candidates=24))
    assert (rule.tested, rule.uncorrected, rule.threshold) == (None, alone.tested, alone.threshold)
    assert rule.threshold > 0.5
    assert "only an estimate: at least 306 images are needed after choosing the best of 24 epochs" in str(rule)


@pytest.mark.parametrize("risk", [0.02, 0.3, 0.9])
def test_a_model_that_is_never_sure_is_advised_to_allow_more_errors(risk: float):
    logits = np.tile(np.array([3, 1], np.float32), (40, 1))
    notice = Calibration.fit(Outputs(np.ones(40, np.int64), logits), "valid", 1, risk).rule.notice
    assert risk < float(notice.partition("error=")[2].rstrip(")")) < 1


@pytest.mark.parametrize("n", [3, 20, 400])
@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_the_brief_rule_is_short_and_has_the_same_facts(n: int, wrong: int):
    logits = np.zeros((n, 3), np.float32)
    logits[:, 0] = np.linspace(5, 1, n)
    labels = np.zeros(n, np.int64)
    labels[n - wrong :] = 1
    rule = Calibration.fit(Outputs(labels, logits), "valid", 1).rule
    assert len(rule.brief) <= 120 or rule.notice, "what helps is worth a second line"
    if rule.applied is None:
        assert rule.brief == rule.notice
    else:
        assert str(rule).split(":")[0].split(",")[0] == rule.brief.split(":")[0]
        assert ("not tested, because" in rule.brief) == ("only an estimate" in str(rule))
        assert f"{rule.applied.wrong} " in rule.brief
