"""The charts of the page: values lie where they belong, and classes that are confused lie side by side."""

from __future__ import annotations

import itertools
import re
import threading
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from markupsafe import Markup

from linnaeus.report.calibration import reliability, risk_coverage
from linnaeus.report.canvas import new_figure
from linnaeus.report.confusion import NAMES_UP_TO, cluster, confusion_chart
from linnaeus.report.curves import curve_charts
from linnaeus.report.page_sections import IntervalBar
from linnaeus.report.palette import BLUE, INK
from linnaeus.report.svg import tag, to_svg
from linnaeus.runs.history import Row

PERCENT = "\u202f%"


def parts(drawing: Markup, css_class: str) -> list[ET.Element]:
    """The groups of a drawing, which must be well-formed, with a class."""
    return [e for e in ET.fromstring(str(drawing)).iter("g") if set(css_class.split()) <= set(classes_of(e))]


def classes_of(element: ET.Element) -> list[str]:
    return (element.get("class") or "").split()


def label(drawing: Markup) -> str:
    return ET.fromstring(str(drawing)).get("aria-label") or ""


def position(dot: ET.Element) -> tuple[float, float]:
    """Where a marker is, in units of the drawing."""
    (use,) = dot.iter("use")
    return float(use.get("x") or 0), float(use.get("y") or 0)


def corners(element: ET.Element) -> np.ndarray:
    """(n, 2): the points of a path of straight lines."""
    (path,) = element.iter("path")
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d") or ""), float)


def epochs(*phases: int) -> list[Row]:
    numbered = [(phase, epoch) for phase, n in enumerate(phases, 1) for epoch in range(1, n + 1)]
    return [
        Row(p, e, 1e-3, 1 / (i + 1), 0.5 + i / 100, 2 / (i + 1), 0.6 + i / 100, 1.0)
        for i, (p, e) in enumerate(numbered)
    ]


def test_curves_show_every_epoch_each_phase_and_ring_the_best():
    accuracy, loss = curve_charts(epochs(2, 3), best=3)
    assert (accuracy.title, loss.title) == ("Accuracy", "Loss")
    assert accuracy.note == f"best epoch 4: 63.00{PERCENT} on validation"
    for chart in (accuracy.drawing, loss.drawing):
        assert len(parts(chart, "dot train")) == len(parts(chart, "dot valid")) == 5
        assert len(parts(chart, "line train")) == len(parts(chart, "line valid")) == 1
        assert len(parts(chart, "phase")) == 1
    (ring,), valid = parts(accuracy.drawing, "best"), parts(accuracy.drawing, "dot valid")
    assert position(ring) == position(valid[3])
    assert ring.findtext("title") == "the best epoch, whose weights were kept"
    assert valid[0].findtext("title") == f"epoch 1: validation accuracy 60.00{PERCENT}"
    heights = [position(dot)[1] for dot in valid]
    assert heights == sorted(heights, reverse=True), "accuracy rises, so its line does"
    assert np.allclose(np.diff(heights), np.diff(heights)[0], atol=0.02), "equal steps are equally high"
    assert f"validation from 60.00{PERCENT} to 64.00{PERCENT}" in label(accuracy.drawing)
    assert "The best epoch is number 4." in label(loss.drawing)


def test_mixing_has_no_training_accuracy_and_a_loss_may_be_infinite():
    rows = [Row(1, 1, 1e-3, float("inf"), None, 1.0, 0.5, 1.0), Row(1, 2, 1e-3, 0.5, None, 0.8, 0.6, 1.0)]
    accuracy, loss = (chart.drawing for chart in curve_charts(rows, best=1))
    assert parts(accuracy, "line train") == []
    assert len(parts(loss, "dot train")) == 1
    assert "no training accuracy" in label(accuracy)


def test_a_bin_of_certain_answers_is_shown_as_almost_certain():
    """The mean of probabilities that are 1 by the rounding of their type."""
    row = {"from": 14 / 15, "to": 1.0, "n": 9, "correct": 9, "confidence": 1.0, "accuracy": 1.0}
    drawing = reliability({"before": [], "after": [row | {"accuracy_ci95": [0.7, 1.0]}]})
    (dot,) = parts(drawing, "dot after")
    assert dot.findtext("title") == f"after: confidence >99.9{PERCENT}, 9 of 9 correct"
    assert f"confidence >99{PERCENT}: 100{PERCENT} of 9" in label(drawing)


def test_an_interval_is_a_dot_on_its_bar():
    bar = IntervalBar.of("accuracy", 0.75, [0.5, 1.0], start=0.5)
    assert (bar.value, bar.low, bar.high) == (80.0, 5.0, 155.0)
    assert IntervalBar.of("recall", 0.4, None, start=0.5) == IntervalBar("recall", 5.0, None, None)


def test_a_calibrated_bin_lies_on_the_diagonal():
    row = {"from": 0.6, "to": 2 / 3, "n": 30, "correct": 18, "confidence": 0.6, "accuracy": 0.6}
    drawing = reliability({"before": [], "after": [row | {"accuracy_ci95": [0.42, 0.75]}]})
    (dot,), (ideal,) = parts(drawing, "dot after"), parts(drawing, "ideal")
    (x1, y1), (x2, y2) = corners(ideal)
    x, y = position(dot)
    assert (x - x1) / (x2 - x1) == pytest.approx(0.6, abs=1e-3)
    assert (y - y1) / (y2 - y1) == pytest.approx(0.6, abs=1e-3)
    assert dot.findtext("title") == f"after: confidence 60.0{PERCENT}, 18 of 30 correct"
    (bar,) = parts(drawing, "bar")
    assert bar.findtext("title") == "30 images"
    assert (corners(bar)[0, 0] - x1) / (x2 - x1) == pytest.approx(0.6, abs=5e-3), "below its bin"


def test_the_risk_curve_marks_what_the_threshold_does():
    curve = [
        {"threshold": t, "answered": a, "wrong": w, "coverage": a / 100, "risk": w / a, "risk_ci95": [0.0, 0.3]}
        for t, a, w in ((0.9, 50, 0), (0.7, 80, 2), (0.0, 100, 10))
    ]
    drawing = risk_coverage(curve, 0.02, 0.7)
    assert f"every image is answered, 10.0{PERCENT} of the answers are wrong" in label(drawing)
    assert f"80.0{PERCENT}, 2 of 80 wrong" in label(drawing)
    assert f"100.0{PERCENT}, 10 of 100 wrong" in label(risk_coverage(curve, 0.2, 0.0))
    (dot,), (line,) = parts(drawing, "dot"), parts(drawing, "line")
    assert np.abs(corners(line) - position(dot)).max(axis=1).min() < 0.02, "the dot lies on the curve"


@pytest.mark.parametrize("drawn", [reliability({"before": [], "after": []}), curve_charts(epochs(1), 0)[0].drawing])
def test_the_smallest_data_gives_a_drawing_of_the_usual_size(drawn: Markup):
    box = [float(v) for v in (ET.fromstring(str(drawn)).get("viewBox") or "").split()]
    assert box[2] == pytest.approx(4.6 * 72, abs=0.01)
    assert box[3] >= 200


# SVG


def test_a_drawing_is_the_same_every_time_and_its_ids_are_its_own():
    history = epochs(3)
    first, second = curve_charts(history, 1), curve_charts(history, 1)
    assert [chart.drawing for chart in first] == [chart.drawing for chart in second]
    ids = [re.findall(r' id="([^"]+)"', str(chart.drawing)) for chart in first]
    assert len(ids[0]) == len(set(ids[0]))
    assert not set(ids[0]) & set(ids[1]), "both are on one page"


def test_colors_and_fonts_are_those_of_the_page():
    drawing = str(curve_charts(epochs(2, 3), 3)[0].drawing)
    assert "var(--accent)" in drawing
    assert "var(--alert)" in drawing
    assert not re.findall(r"#[0-9a-f]{6}", re.sub(r'(href="|url\()#\w+', "", drawing)), "no color is fixed"
    assert "font-family" not in drawing
    assert "<style" not in drawing, "a style sheet would apply to the whole page"
    assert "<metadata" not in drawing


def test_names_with_markup_and_odd_characters_stay_text():
    figure = new_figure(2, 2)
    axes = figure.subplots()
    text = axes.text(0, 0, '<b>"&', color=INK, parse_math=False)
    tag(text, "name", 'a\tb\x07 <i>"& \udcff 玫瑰')
    tag(axes.axhline(0.5, color=BLUE), "line")
    drawing = to_svg(figure, "test", "A <title>", "and\x00 more", "chart")
    (name,) = parts(drawing, "name")
    assert name.findtext("title") == 'a b <i>"& \ufffd 玫瑰'
    assert name.findtext("text") == '<b>"&'
    assert label(drawing) == "A <title>. and more"


def test_no_setting_of_matplotlib_stays_changed():
    before = dict(matplotlib.rcParams)
    threads = [threading.Thread(target=curve_charts, args=(epochs(3), 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before


# Confusion matrix


def test_planted_groups_are_put_together():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(6), 5))
    counts = 40 * np.eye(30, dtype=np.int64)
    counts += np.where(groups[:, None] == groups[None, :], 3, 0) * (1 - np.eye(30, dtype=np.int64))
    order = cluster(counts)
    assert sorted(order.tolist()) == list(range(30))
    changes = int((np.diff(groups[order]) != 0).sum())
    assert changes == 5, "each group is in one piece"


def test_a_chain_of_confusions_is_laid_out_as_a_chain():
    order = [4, 1, 5, 0, 3, 2]
    counts = 20 * np.eye(6, dtype=np.int64)
    for a, b in itertools.pairwise(order):
        counts[a, b] += 4
    assert cluster(counts).tolist() in (order, order[::-1])


def test_classes_that_are_never_confused_come_last_in_their_own_order():
    counts = 9 * np.eye(6, dtype=np.int64)
    counts[5, 3] = 1
    assert set(cluster(counts).tolist()[:2]) == {3, 5}
    assert cluster(counts).tolist()[2:] == [0, 1, 2, 4]
    assert cluster(9 * np.eye(6, dtype=np.int64)).tolist() == [0, 1, 2, 3, 4, 5]


def test_few_classes_keep_their_order_and_show_their_counts():
    counts = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    matrix = confusion_chart(counts, ["a", "b", "c"])
    assert not matrix.clustered
    assert [e.findtext("title") for e in parts(matrix.drawing, "cell wrong")] == ["a taken for b: 2 of 10"]
    cells, numbers = parts(matrix.drawing, "cell"), parts(matrix.drawing, "count")
    assert [e.findtext("title") for e in cells] == ["a: 8 of 10 correct", "a taken for b: 2 of 10", "b: 5 of 5 correct"]
    assert [e.findtext("text") for e in numbers] == ["8", "2", "5"], "a cell without images is empty"
    for cell, number in zip(cells, numbers, strict=True):
        (text,) = number.iter("text")
        place = np.array([float(text.get("x") or 0), float(text.get("y") or 0)])
        assert (corners(cell).min(0) < place).all(), "the count is in its cell"
        assert (corners(cell).max(0) > place).all()


def test_of_very_many_classes_the_confused_are_drawn():
    k = NAMES_UP_TO + 60
    counts = 5 * np.eye(k, dtype=np.int64)
    counts[150, 170] = 3
    matrix = confusion_chart(counts, [f"class {i}" for i in range(k)])
    assert (matrix.classes, matrix.left_out, matrix.clustered) == (NAMES_UP_TO, 60, True)
    assert "class 150 taken for class 170: 3 of 8" in str(matrix.drawing)
    assert parts(matrix.drawing, "count") == []


@pytest.mark.filterwarnings("error")
def test_a_name_in_a_drawing_is_text():
    drawing = confusion_chart(np.eye(2, dtype=np.int64), ['<b>"&', "玫瑰\U000e0f00"]).drawing
    titles = [e.findtext("title") for e in parts(drawing, "cell")]
    assert titles == ['<b>"&: 1 of 1 correct', "玫瑰\U000e0f00: 1 of 1 correct"]
    assert "玫瑰" in "".join(ET.fromstring(str(drawing)).itertext()), "the browser has fonts that this machine lacks"
