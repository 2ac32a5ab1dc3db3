"""The text output of an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linnaeus.metrics.assessment import Assessment, assess
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.label_assessment import assess_labels
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.metrics.outputs import Outputs, sigmoid
from linnaeus.report import label_text
from linnaeus.report.evaluation_text import NAME, render
from linnaeus.text import align, percent, shorten, width
from linnaeus.training.finish.evaluation import FinalEvaluation, certainty
from linnaeus.training.finish.label_evaluation import LabelEvaluation


def outputs(n: int, classes: int, occurring: int | None = None, seed: int = 0, skill: float = 3.0) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % (occurring or classes)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill
    return Outputs(labels, logits.astype(np.float32))


def text_of(found: Assessment, classes: int) -> str:
    return render(found, [f"class {i}" for i in range(classes)])


def test_every_metric_has_its_interval_and_its_count():
    out = outputs(300, 12)
    text = text_of(assess(out, Calibration.fit(outputs(400, 12, seed=1), "valid", 1)), 12)
    right = int((out.predicted == out.labels).sum())
    line = next(line for line in text.splitlines() if line.startswith("  accuracy"))
    assert percent(right / 300, 2) in line
    assert line.endswith(f"{right} of 300")
    for name in ("top-5", "macro F1", "macro ROC AUC", "log loss", "Brier score", "calibration error (ECE)"):
        line = next(line for line in text.splitlines() if line.startswith(f"  {name}"))
        assert " to " in line, name
    assert "(fitted on validation)" in text
    assert "the 400 valid images of the training run" in text
    assert "test-time augmentation" not in text


def test_a_failed_calibration_is_reported():
    """By `linnaeus evaluate`, and at the end of the training that fitted it."""
    wrong = outputs(400, 8, skill=-3.0)
    failed = "calibration failed, temperature at its bound of 100: the predictions are no better than chance"
    assert failed in text_of(assess(wrong, Calibration.fit(wrong, "valid", 1)), 8)
    assert [failed in line for line in FinalEvaluation({"valid": wrong}, 1).lines()] == [False, True, False]
    assert "failed" not in text_of(assess(outputs(300, 8), None), 8)
    assert not any("failed" in line for line in FinalEvaluation({"valid": outputs(300, 8)}, 1).lines())


def test_the_reference_of_the_calibration_error_reads_right_where_it_is_skewed():
    """Of almost certain answers, few samples have an error, which then is large: the mean exceeds the percentile."""
    found = assess(outputs(300, 8, skill=12.0), None)
    mean, p95 = found.calibration.ece_by_chance
    assert p95 < mean, (p95, mean)
    words = f"an ECE of at most {percent(p95, 2)} in 95 of 100 samples, and {percent(mean, 2)} on average, because"
    assert words in text_of(found, 8)
    usual = assess(outputs(300, 8), None)
    mean, p95 = usual.calibration.ece_by_chance
    assert f"{percent(mean, 2)} on average, and up to {percent(p95, 2)} in 95 of 100 samples" in text_of(usual, 8)


@pytest.mark.parametrize(
    ("before", "after", "by_chance", "words"),
    [
        (0.05, 0.02, (0.01, 0.01), ""),
        (
            0.02,
            0.05,
            (0.03, 0.06),
            "; no sign of miscalibration: on 60 images, chance alone explains up to 6.0 %",
        ),
        (
            0.02,
            0.05,
            (0.06, 0.03),
            "; no sign of miscalibration: on 60 images, chance alone explains up to 6.0 %",
        ),
        (
            0.02,
            0.05,
            (0.03, 0.04),
            "; calibration did not help: read probabilities as a ranking, not as chances of being right",
        ),
    ],
)
def test_a_calibration_error_that_does_not_improve_is_explained(
    before: float, after: float, by_chance: tuple[float, float], words: str
):
    found = assess(outputs(60, 3), None)
    effect = replace(found.calibration, before={"ece": before}, after={"ece": after}, ece_by_chance=by_chance)
    line = certainty(effect, "test")
    result = f"calibration error {percent(after)}, {percent(before)} before calibration (test)"
    assert line.startswith(result + words)
    assert words or line == result


def test_the_epochs_behind_a_threshold_are_stated():
    """A threshold that passed the test says so; without a record of the epochs it is called an estimate."""
    out = outputs(400, 8, skill=20.0)
    stored = Calibration.fit(out, "valid", 2)
    assert stored.rule.tested is not None
    text = text_of(assess(out, stored), 8)
    assert "chosen on the 400 valid images of the training run, which also chose the best of 2 epochs" in text
    older = stored.to_dict()
    del older["abstention"]["candidates"]
    text = text_of(assess(out, Calibration.from_dict(older, "m")), 8)
    assert (
        "none: the number of epochs from which these images selected the model is not recorded\n  uncorrected" in text
    )
    many = text_of(assess(out, Calibration.fit(out, "valid", 1000)), 8)
    assert (
        "none: at least 491 images are needed after choosing the best of 1000 epochs on them, and there were 400"
        in many
    )
    assert assess(out, None).abstention.tested is not None
    assert assess(out, None, cross_fitted=True).abstention.tested is None


def test_few_classes_are_all_shown_with_the_worst_first():
    text = text_of(assess(outputs(60, 4, occurring=3), None), 4)
    assert "classes, the worst first; 1 of the model's classes does not occur" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("  class") and "taken" not in line]
    assert len(rows) == 3
    f1 = [float(row[-4]) for row in rows]
    assert f1 == sorted(f1)


def test_only_the_worst_of_many_classes_are_shown():
    text = text_of(assess(outputs(300, 30), None), 30)
    assert "(10 of 30; all with --json)" in text
    assert len([line for line in text.splitlines() if line.startswith("  class") and "taken" not in line]) == 10


def test_without_mistakes_no_classes_are_confused():
    labels = np.arange(30) % 3
    text = text_of(assess(Outputs(labels, 4 * np.eye(3, dtype=np.float32)[labels]), None), 3)
    assert "no images were confused with another class" in text
    assert "calibration: none in the model" in text
    assert "none: at least 149 images are needed, and there were 30" in text
    assert "estimated   all images answered, 0 of 30 wrong" in text
    balanced = next(line for line in text.splitlines() if "balanced" in line)
    assert " ".join(balanced.split()) == "balanced accuracy 100.00 % 88.4 % to 100.0 %"


def test_no_threshold_helps_if_the_most_confident_answers_are_wrong():
    labels = np.arange(200) % 2
    text = text_of(assess(Outputs(labels, 4 * np.eye(2, dtype=np.float32)[1 - labels]), None), 2)
    assert "tested      none: no threshold passes the test" in text
    assert "estimated   none: no threshold is expected to keep wrong answers so few" in text


def test_views_are_compared_with_the_plain_predictions():
    out = outputs(200, 4, skill=1.0)
    better = outputs(200, 4, skill=6.0)
    found = assess(out, None, views={"mirror": better})
    text = text_of(found, 4)
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("  plain", "  mirror"))}
    assert percent((out.predicted == out.labels).mean(), 2) in rows["plain"]
    assert percent((better.predicted == better.labels).mean(), 2) in rows["mirror"]
    assert found.metrics.correct == (out.predicted == out.labels).sum()  # the views do not replace the metrics


def test_columns_with_wide_characters_are_aligned():
    rows = [["玫瑰", "1"], ["rose", "22"], ["ñ", "3"]]
    lines = align(rows, "<>")
    assert {width(line) for line in lines} == {2 + 4 + 2 + 2}
    assert shorten("玫瑰" * 20, NAME).endswith("…")
    assert width(shorten("玫瑰" * 20, NAME)) <= NAME
    assert shorten("rose", NAME) == "rose"


def labels_of(n: int, sharpness: float, seed: int) -> Outputs:
    """Logits of four labels, drawn with the probabilities that the logits times `sharpness` have."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 4))
    return Outputs(rng.random((n, 4)) < sigmoid(sharpness * logits), logits)


def test_a_calibration_of_labels_that_does_not_help_is_explained():
    """Fitted on validation images that are labelled otherwise than the test images."""
    harmful = {"valid": labels_of(400, 0.1, 0), "test": labels_of(2000, 1.0, 1)}
    evaluated = LabelEvaluation(harmful, list("abcd"), None)
    line = next(line for line in evaluated.lines() if line.startswith("certainty"))
    assert line.endswith("calibration did not help: read probabilities as a ranking, not as chances of being right")
    alike = LabelEvaluation({"valid": labels_of(60, 1.0, 4)}, list("abcd"), None)
    line = next(line for line in alike.lines() if line.startswith("certainty"))
    assert "; no sign of miscalibration: on 60 images, chance alone explains up to " in line
    text = label_text.render(alike.assessments["valid"], list("abcd"))
    mean, p95 = (percent(error, 2) for error in alike.assessments["valid"].ece_by_chance)
    assert f"would show an ECE of {mean} on average, and up to {p95} in 95 of 100 samples" in text


@pytest.mark.parametrize("several", [False, True])
def test_figures_of_images_that_fitted_the_calibration_are_called_optimistic(several: bool):
    said = "these images fitted the calibration: log loss and calibration error are optimistic here, and not below"
    if several:
        out = labels_of(100, 1.0, 0)
        fitted = LabelCalibration.fit(out, "valid")
        texts = [label_text.render(assess_labels(out, fitted, cross_fitted=own), list("abcd")) for own in (True, False)]
    else:
        out = outputs(100, 8)
        stored = Calibration.fit(out, "valid", 1)
        texts = [text_of(assess(out, stored, cross_fitted=own), 8) for own in (True, False)]
        assert said not in text_of(assess(out, None), 8)  # its figures are not calibrated
    assert [said in text for text in texts] == [True, False]


def test_a_calibration_error_that_counts_copies_says_so():
    evaluated = FinalEvaluation({"valid": outputs(300, 8)}, 1)
    stated = "(validation, cross-fitted; images that were seen before are counted)"
    assert not any(stated in line for line in evaluated.lines())
    evaluated.without_leaks = {"valid": None}
    assert [stated in line for line in evaluated.lines() if line.startswith("certainty")] == [True]
    unseen = np.arange(300) >= 100
    evaluated = FinalEvaluation({"valid": outputs(300, 8)}, 1, {"valid": unseen})
    evaluated.without_leaks = {"valid": None}
    stated = "(validation, cross-fitted; without images seen before)"
    assert [stated in line for line in evaluated.lines() if line.startswith("certainty")] == [True]
    assert evaluated.to_dict()["valid"]["calibration"]["n"] == 200
    text = text_of(evaluated.assessments["valid"], 8)
    assert (
        text.count("; measured on the 200 images without a copy in an earlier split\n") == 2
    )  # calibration and abstention
    assert "on 200 images, a perfectly calibrated model" in text
