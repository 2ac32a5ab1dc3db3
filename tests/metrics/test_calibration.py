"""Temperature scaling, calibration error, and their representation in a model file."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve

from linnaeus.errors import UserError
from linnaeus.metrics.assessment import assess
from linnaeus.metrics.bootstrap import ece_by_chance
from linnaeus.metrics.calibration import (
    BINS,
    FORMER_KEYS,
    Calibration,
    bin_indices,
    calibration_error,
    reliability_diagram,
)
from linnaeus.metrics.label_shift import label_shift
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.ood import choose_thresholds as choose_limits
from linnaeus.metrics.outputs import Outputs, softmax
from linnaeus.metrics.selective import choose_thresholds
from linnaeus.metrics.temperature import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibration_failure,
    cross_fit,
    fit_temperature,
    least_loss_temperature,
)


def simulated(n: int, temperature: float, seed: int = 0, classes: int = 5) -> Outputs:
    """Random logits, with labels drawn from the probabilities of the logits divided by `temperature`."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, classes))
    labels = (softmax(logits / temperature).cumsum(1) < rng.random((n, 1))).sum(1)
    return Outputs(labels, logits.astype(np.float32))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float):
    out = simulated(20_000, temperature)
    assert fit_temperature(out) == pytest.approx(temperature, rel=0.03)
    after = out.at(temperature)
    confidence = after.probabilities.max(1)
    error = calibration_error(confidence, after.predicted == after.labels)
    mean, most = ece_by_chance(confidence)
    assert 0.3 * mean < error < 1.5 * most


@pytest.mark.parametrize("n", [1, 7, 60, 500])
def test_the_temperature_minimizes_the_loss(n: int):
    """Against a general minimizer, also on few images, with and without the prior."""
    out = simulated(n, 2.0, seed=n)
    plain = out.probabilities

    def loss(log_t: float, pseudo: float) -> float:
        scaled = out.at(np.exp(log_t))
        crossed = -(plain * np.log(np.maximum(scaled.probabilities, 1e-300))).sum(1).mean()
        return float(scaled.losses.sum() + pseudo * crossed)

    for pseudo in (0.0, 10.0):
        limits = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
        best = minimize_scalar(loss, bounds=limits, args=(pseudo,), method="bounded", options={"xatol": 1e-7})
        assert loss(np.log(least_loss_temperature(out, pseudo)), pseudo) == pytest.approx(best.fun, rel=1e-7, abs=1e-7)


def test_the_prior_prevents_certainty_on_small_samples():
    """Twenty right answers with a confidence of 78 %: the doubt shrinks, but not to zero as without the prior."""
    labels = np.arange(20) % 3
    out = Outputs(labels, 2 * np.eye(3, dtype=np.float32)[labels])
    assert fit_temperature(out, prior=0) < 1.01 * MIN_TEMPERATURE
    temperature = fit_temperature(out)
    assert 0.4 < temperature < 0.8
    doubt = 1 - out.at(temperature).probabilities.max()
    assert 0.3 < doubt / (1 - out.probabilities.max()) < 0.4
    wrong = Outputs((labels + 1) % 3, out.logits)
    assert 1 < fit_temperature(wrong) < MAX_TEMPERATURE


def test_degenerate_logits():
    certain = Outputs(np.array([0, 1, 1]), np.array([[1e4, 0], [0, 1e4], [0, 3e38]], np.float32))
    assert fit_temperature(certain) == 1.0
    assert fit_temperature(Outputs(np.array([0, 1]), np.zeros((2, 2), np.float32))) == 1.0
    broken = Outputs(np.array([1, 1, 1]), np.array([[1e6, 0], [0, 1e6], [1e6, 0]], np.float32))
    assert fit_temperature(broken) == pytest.approx(MAX_TEMPERATURE, rel=1e-5)
    assert calibration_failure(fit_temperature(broken)).startswith(
        "calibration failed, temperature at its bound of 100: the predictions are no better"
    )
    assert calibration_failure(MIN_TEMPERATURE).startswith(
        "calibration failed, temperature at its bound of 0.05: the logits are too small"
    )
    assert [calibration_failure(temperature) for temperature in (0.06, 1.0, 99.0)] == [""] * 3


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.float32, (8, 4), elements=st.floats(-1e4, 1e4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)),
    st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE),
)
def test_no_temperature_changes_the_prediction(logits: np.ndarray, temperature: float):
    out = Outputs(np.zeros(8, np.int64), logits)
    scaled = out.at(temperature)
    assert np.array_equal(scaled.predicted, out.predicted)
    assert np.array_equal(scaled.probabilities.argmax(1), out.predicted)


def test_adjacent_float32_logits_stay_different():
    """Divided in float32 the two logits would become equal, and the first class would be predicted."""
    pairs = np.float32(1.75) + np.float32(2**-23) * np.arange(8, dtype=np.float32)
    out = Outputs(np.ones(7, np.int64), np.stack([pairs[:-1], pairs[1:]], axis=1))
    assert ((out.logits / np.float32(1.5)).argmax(1) == 0).any()
    assert (out.at(1.5).predicted == 1).all()
    assert (out.at(1.5).probabilities.argmax(1) == 1).all()


def test_cross_fitting_excludes_the_image_itself():
    out = simulated(60, 2.0)
    crossed = cross_fit(out)
    for i in range(0, 60, 11):
        labels = out.labels.copy()
        labels[i] = (labels[i] + 1) % 5
        again = cross_fit(Outputs(labels, out.logits))
        assert np.array_equal(again.logits[i], crossed.logits[i])
        assert not np.array_equal(again.logits, crossed.logits)  # the temperatures of the other folds change
    assert np.array_equal(crossed.predicted, out.predicted)
    assert cross_fit(Outputs(out.labels[:1], out.logits[:1])).logits.shape == (1, 5)


def test_cross_fitting_excludes_the_whole_group():
    out = simulated(60, 2.0)
    groups = np.arange(60) // 6
    crossed = cross_fit(Outputs(out.labels, out.logits, groups))
    for group in range(10):
        labels = np.where(groups == group, (out.labels + 1) % 5, out.labels)
        again = cross_fit(Outputs(labels, out.logits, groups))
        assert np.array_equal(again.logits[groups == group], crossed.logits[groups == group])
    assert crossed.groups is groups


def test_only_unseen_images_measure_calibration_and_abstention():
    """The model is surer of images of which training had a copy."""
    out, unseen = simulated(120, 2.0), np.arange(120) % 4 > 0
    sure = Outputs(out.labels, np.where(unseen[:, None], out.logits, 50 * np.eye(5)[out.labels]))
    kept = sure.take(unseen)
    for calibration in (None, Calibration.fit(kept, "valid", 1)):
        for crossed in (False, True):
            found = assess(sure, calibration, cross_fitted=crossed, unseen=unseen)
            assert found.metrics.n == 120
            alone = assess(kept, calibration, cross_fitted=crossed)
            assert (found.calibration, found.abstention) == (alone.calibration, alone.abstention)
            assert found.calibration != assess(sure, calibration, cross_fitted=crossed).calibration


def test_calibration_error_by_hand():
    confidence = np.array([0.30, 0.32, 0.97, 0.99, 1.0])
    right = np.array([True, False, True, True, False])
    # (4/15, 5/15]: mean 0.31, half right; (14/15, 1]: mean 0.98667, two thirds right.
    expected = 2 / 5 * abs(0.5 - 0.31) + 3 / 5 * abs(2 / 3 - 2.96 / 3)
    assert calibration_error(confidence, right) == pytest.approx(expected)


def test_bins_include_their_upper_edge():
    edges = np.arange(1, BINS + 1) / BINS
    assert bin_indices(edges).tolist() == list(range(BINS))
    assert bin_indices(edges[:-1] + 1e-9).tolist() == list(range(1, BINS))
    assert bin_indices(np.array([0.0])).tolist() == [0]


@pytest.mark.parametrize("n", [1, 14, 15, 100, 101])
def test_bins_of_equal_mass(n: int):
    confidence = np.random.default_rng(0).random(n)
    bins = bin_indices(confidence, equal_mass=True)
    counts = np.bincount(bins, minlength=BINS)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(bins[np.argsort(confidence)]) >= 0).all()


def test_the_reliability_diagram_equals_that_of_scikit_learn():
    out = simulated(2_000, 1.7)
    confidence, right = out.probabilities.max(1), out.predicted == out.labels
    rows = reliability_diagram(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracy.tolist())
    assert [row["confidence"] for row in rows] == pytest.approx(mean.tolist())
    assert sum(row["n"] for row in rows) == 2_000
    assert all(row["from"] < row["confidence"] <= row["to"] for row in rows)
    gaps = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 2_000
    assert calibration_error(confidence, right) == pytest.approx(gaps)


def test_a_calibration_survives_json():
    found = Calibration.fit(simulated(400, 1.8), "valid", 1)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Calibration.from_dict(json.loads(text), "m")
    assert (again.temperature, again.split, again.rule) == (found.temperature, "valid", found.rule)
    assert np.array_equal(again.curve.thresholds, found.curve.thresholds)
    assert np.array_equal(again.curve.wrong, found.curve.wrong)


@pytest.mark.parametrize("candidates", [1, 24])
def test_a_calibration_with_the_former_keys_is_read(candidates: int):
    right = np.arange(180)
    sure = Outputs(right % 2, np.eye(2)[right % 2] * np.linspace(4, 9, 180)[:, None])
    found = Calibration.fit(sure, "valid", candidates)
    assert (found.rule.tested is None, found.rule.uncorrected is None) == (candidates == 24, candidates == 1)
    former = found.to_dict()
    for key, name in FORMER_KEYS.items():
        former["abstention"][key] = former["abstention"].pop(name)
    assert Calibration.from_dict(former, "m").rule == found.rule


def test_a_calibration_stores_that_images_came_in_groups():
    """Thresholds for another target risk, chosen from the stored curve, must have no guarantee either."""
    out = simulated(400, 1.8)
    found = Calibration.fit(Outputs(out.labels, out.logits, np.arange(400) // 8), "valid", 1)
    again = Calibration.from_dict(json.loads(json.dumps(found.to_dict())), "m")
    assert again.rule.grouped
    assert choose_thresholds(again.curve, 0.9).tested is None
    older = found.to_dict()
    del older["abstention"]["grouped"]  # files written before groups existed
    assert choose_thresholds(Calibration.from_dict(older, "m").curve, 0.9).tested is not None


def test_a_calibration_of_an_earlier_version_is_an_estimate():
    """The file says that a test passed, but not for how many epochs; the threshold stays, and is not called tested."""
    right = np.arange(400)
    sure = Outputs(right % 2, np.eye(2)[right % 2] * np.linspace(4, 9, 400)[:, None])
    found = Calibration.fit(sure, "valid", 1)
    assert found.rule.tested is not None
    older = found.to_dict()
    del older["abstention"]["candidates"]
    again = Calibration.from_dict(older, "m")
    assert (again.rule.threshold, again.rule.candidates, again.rule.tested) == (found.rule.threshold, None, None)
    assert Calibration.from_dict(again.to_dict(), "m").rule == again.rule
    assert "only an estimate: the number of epochs from which these images selected the model is not recorded" in str(
        again.rule
    )
    assert choose_thresholds(again.curve, 0.05).tested is None


WRONG: list[tuple[list[str], Any]] = [
    (["temperature"], 0),
    (["temperature"], "hot"),
    (["temperature"], float("nan")),
    (["split"], None),
    (["abstention"], []),
    (["abstention", "n"], 0),
    (["abstention", "n"], 10**12),
    (["abstention", "candidates"], 0),
    (["abstention", "candidates"], -5),
    (["abstention", "candidates"], 1e300),
    (["abstention", "candidates"], "many"),
    (["abstention", "target_risk"], 1.0),
    (["abstention", "estimated", "threshold"], 1.5),
    (["abstention", "estimated", "wrong"], 9999),
    (["abstention", "estimated"], {}),
    (["curve"], [[1, 2]]),
    (["curve"], [[0.5, 1e9, 0]]),
    (["curve"], "x"),
]


@pytest.mark.parametrize(("at", "value"), WRONG, ids=lambda v: str(v))
def test_an_untrusted_calibration_is_checked(at: list[str], value: Any):
    """A model file may come from anywhere: any invalid value is one line that names the file."""
    whole = Calibration.fit(simulated(400, 1.8), "valid", 1).to_dict()
    changed = copy.deepcopy(whole)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    if at == ["split"]:
        del inner["split"]
    with pytest.raises(UserError, match=r"^m\.safetensors: its calibration ") as caught:
        Calibration.from_dict(changed, "m.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        Calibration.from_dict([1], "m.safetensors")


def test_an_unknown_image_chooses_no_threshold():
    """One wrong answer with the largest probability made a model unsure of everything, even if it was never given."""
    logits = np.zeros((40, 2), np.float32)
    logits[:, 0] = np.linspace(2, 4, 40)
    labels, distance = np.zeros(40, np.int64), np.full(40, 0.1)
    logits[7, 0], labels[7], distance[7] = 30.0, 1, 0.9
    out = Outputs(labels, logits, None, distance)
    limits = Thresholds(distance=0.5, probability=0.0, n=40, accepted=39)
    every = Calibration.fit(out, "valid", 1)
    assert every.rule.answers == "none"
    known = every.among_known(out, limits)
    assert known.temperature == every.temperature
    assert (known.rule.answers, known.rule.n, known.rule.unknown) == ("all", 39, 1)
    assert known.rule.brief.startswith("never: 0 of 39 answers are wrong")
    assert "1 of the 40 images get no answer because they are called unknown" in str(known.rule)
    assert Calibration.from_dict(known.to_dict(), "m").rule == known.rule
    assert choose_thresholds(Calibration.from_dict(known.to_dict(), "m").curve, 0.1).unknown == 1
    # What is measured is the whole procedure, with any images.
    found = assess(out, known, limits=limits).abstention
    assert found.estimated is not None
    assert (found.unknown, found.estimated.answered, found.estimated.wrong) == (1, 39, 0)
    assert found.curve[-1]["coverage"] == 39 / 40
    without = assess(out, known).abstention
    assert without.estimated is not None
    assert (without.unknown, without.estimated.answered, without.estimated.wrong) == (0, 40, 1)
    everything = replace(limits, distance=0.01)
    assert every.among_known(out, everything) is every, "no image is left to choose on"
    assert assess(out, known, limits=everything).to_dict()["abstention"]["measured"]["estimated"]["risk"] is None


def test_the_test_holds_among_images_that_are_not_unknown():
    """The limits are chosen on the same images, by their scores: of models with just too many errors among the answers,
    at most 5 % pass."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(400):
        logits = np.zeros((400, 2), np.float32)
        logits[:, 0] = rng.uniform(2, 6, 400)
        distance = rng.random(400)
        labels = (rng.random(400) < np.where(distance > 0.95, 0.5, 0.0505)).astype(np.int64)
        out = Outputs(labels, logits, None, distance)
        limits = choose_limits(distance, None)
        passed += Calibration.fit(out, "valid", 1, 0.05).among_known(out, limits).rule.tested is not None
    assert passed <= 0.05 * 400


def test_other_shares_of_the_classes_are_said():
    """A limit of 2 % that was fitted on 50 to 50 says nothing of the answers that name a class of 5 %."""
    even, names = np.array([50, 50]), ("benign", "malignant")
    said = label_shift(even, np.array([190, 10]), names)
    assert said.startswith("malignant is 5.0 % of these images, and was 50.0 % of those that calibrated the model")
    assert label_shift(even, np.array([110, 90]), names) == "", "a small difference"
    assert label_shift(even, np.array([5, 1]), names) == "", "so few images show nothing"
    assert label_shift(even, np.array([190, 10]), names, units=6) == "", "nor do so few patients"
    assert label_shift(np.zeros(2, np.int64), even, names) == "", "an unknown mix"
    many = np.r_[np.full(40, 2), 20]
    assert label_shift(many, many, [""] * 41) == ""
    assert label_shift(many, np.r_[np.full(40, 2), 0], [str(k) for k in range(41)]).startswith("40 is 0.0 %")
    out = simulated(400, 1.8)
    found = Calibration.fit(out, "valid", 1)
    assert found.class_counts == tuple(np.bincount(out.labels, minlength=5).tolist())
    assert Calibration.from_dict(found.to_dict(), "m").class_counts == found.class_counts
    older = {key: value for key, value in found.to_dict().items() if key != "class_counts"}
    assert Calibration.from_dict(older, "m").class_counts == ()
    with pytest.raises(UserError, match="out of range"):
        Calibration.from_dict(found.to_dict() | {"class_counts": [-1]}, "m")
