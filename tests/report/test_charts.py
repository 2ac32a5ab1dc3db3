"""The drawings of the page: values stand where they belong, and what is confused stands together."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from linnaeus.report.charts import curves, interval, reliability, risk_coverage
from linnaeus.report.matrix import DRAWN_UP_TO, cluster, draw_matrix
from linnaeus.report.svg import HEIGHT, WIDTH, Axes, short, spread, ticks, whole_ticks
from linnaeus.runs.history import Row


def parts(drawing: Markup, tag: str, style: str = "") -> list[ET.Element]:
    """The elements of a drawing, which must be well-formed, with a tag and a class."""
    return [e for e in ET.fromstring(str(drawing)).iter(tag) if style in (e.get("class") or "").split() or not style]


def epochs(*phases: int) -> list[Row]:
    numbered = [(phase, epoch) for phase, n in enumerate(phases, 1) for epoch in range(1, n + 1)]
    return [Row(p, e, 1e-3, 1 / (i + 1), 0.5 + i / 100, 2 / (i + 1), 0.6 + i / 100, 1.0)
            for i, (p, e) in enumerate(numbered)]  # fmt: skip


def test_values_lie_where_the_axes_say():
    axes = Axes((0, 10), (0, 1), left=100, top=0, right=200, bottom=50)
    assert axes.at(0, 0) == (100, 50)
    assert axes.at(10, 1) == (200, 0)
    assert axes.at(5, 0.5) == (150, 25)
    assert axes.at(-3, 7) == (100, 0), "what is outside stands at the edge"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_inside(low: float, span: float):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    slack = span * 1e-6 + 4 * np.spacing(abs(low) + span)  # of a large number the last digits are all that moves
    assert all(low - slack <= v <= low + span + slack for v in found)
    steps = np.diff(found)
    assert len(steps) == 0 or np.allclose(steps, steps[0], rtol=1e-3, atol=2 * slack)


def test_epochs_are_whole_numbers_the_first_and_the_last_among_them():
    assert whole_ticks(1, 3) == [1, 2, 3]
    assert whole_ticks(1, 1) == [1]
    assert whole_ticks(1, 50)[0] == 1
    assert whole_ticks(1, 50)[-1] == 50


@given(st.lists(st.floats(0, 100), min_size=1, max_size=4))
def test_words_at_the_ends_of_lines_do_not_meet(wanted: list[float]):
    found = sorted(spread(wanted, 14, 0, 100))
    assert all(b - a >= 14 - 1e-9 for a, b in itertools.pairwise(found))
    assert found[-1] <= 100 + 1e-9


def test_numbers_are_short():
    assert [short(v) for v in (1.0, 0.125, 100.0, float("nan"))] == ["1", "0.12", "100", "0"]


def test_curves_show_every_epoch_each_phase_and_ring_the_best():
    (_, accuracy), (_, loss) = curves(epochs(2, 3), best=3)
    assert len(parts(accuracy, "circle", "valid")) == len(parts(loss, "circle", "train")) == 5
    assert len(parts(accuracy, "rect", "band")) == 1
    ring, valid = parts(accuracy, "circle", "ring")[0], parts(accuracy, "circle", "valid")
    assert (ring.get("cx"), ring.get("cy")) == (valid[3].get("cx"), valid[3].get("cy"))
    heights = [float(c.get("cy") or 0) for c in valid]
    assert heights == sorted(heights, reverse=True), "accuracy rises, so its line does"
    assert "0.64" in (ET.fromstring(str(accuracy)).get("aria-label") or "")


def test_mixing_has_no_training_accuracy_and_a_loss_may_be_infinite():
    rows = [Row(1, 1, 1e-3, float("inf"), None, 1.0, 0.5, 1.0), Row(1, 2, 1e-3, 0.5, None, 0.8, 0.6, 1.0)]
    (_, accuracy), (_, loss) = curves(rows, best=1)
    assert parts(accuracy, "path", "train") == []
    assert len(parts(loss, "circle", "train")) == 1


def test_an_interval_is_a_dot_on_its_bar():
    drawing = interval(0.75, [0.5, 1.0], 0.5, 1.0, "accuracy")
    dot, bar = parts(drawing, "circle")[0], parts(drawing, "line", "whisker")[0]
    assert float(dot.get("cx") or 0) == pytest.approx(80)
    assert (bar.get("x1"), bar.get("x2")) == ("5", "155")
    assert ET.fromstring(str(drawing)).get("aria-label") == "accuracy"


def test_a_calibrated_bin_lies_on_the_diagonal():
    row = {"from": 0.6, "to": 2 / 3, "n": 30, "correct": 18, "confidence": 0.6, "accuracy": 0.6,
           "accuracy_ci95": [0.42, 0.75]}  # fmt: skip
    drawing = reliability({"before": [], "after": [row]})
    dot, ideal = parts(drawing, "circle", "after")[0], parts(drawing, "line", "ideal")[0]
    x1, y1, x2, y2 = (float(ideal.get(k) or 0) for k in ("x1", "y1", "x2", "y2"))
    x, y = float(dot.get("cx") or 0), float(dot.get("cy") or 0)
    assert (x - x1) / (x2 - x1) == pytest.approx(0.6, abs=1e-3)
    assert (y - y1) / (y2 - y1) == pytest.approx(0.6, abs=1e-3)


def test_the_risk_curve_marks_what_the_threshold_does():
    curve = [
        {"threshold": t, "answered": a, "wrong": w, "coverage": a / 100, "risk": w / a, "risk_ci95": [0.0, 0.3]}
        for t, a, w in ((0.9, 50, 0), (0.7, 80, 2), (0.0, 100, 10))
    ]
    about = ET.fromstring(str(risk_coverage(curve, 0.02, 0.7))).get("aria-label") or ""
    assert "everything, 10.0\u202f% are wrong" in about
    assert "80.0\u202f%, 2 of 80 wrong" in about
    assert "100.0\u202f%, 10 of 100 wrong" in (
        ET.fromstring(str(risk_coverage(curve, 0.2, 0.0))).get("aria-label") or ""
    )


@pytest.mark.parametrize("drawn", [reliability({"before": [], "after": []}), curves(epochs(1), 0)[0][1]])
def test_the_smallest_data_gives_a_drawing_of_the_usual_size(drawn: Markup):
    box = [float(v) for v in (ET.fromstring(str(drawn)).get("viewBox") or "").split()]
    assert box[2] == WIDTH
    assert box[3] >= HEIGHT


def test_planted_groups_are_put_together():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(6), 5))
    counts = 40 * np.eye(30, dtype=np.int64)
    counts += np.where(groups[:, None] == groups[None, :], 3, 0) * (1 - np.eye(30, dtype=np.int64))
    order = cluster(counts)
    assert sorted(order.tolist()) == list(range(30))
    changes = int((np.diff(groups[order]) != 0).sum())
    assert changes == 5, "each group stands in one piece"


def test_a_chain_of_confusions_is_laid_out_as_a_chain():
    order = [4, 1, 5, 0, 3, 2]
    counts = 20 * np.eye(6, dtype=np.int64)
    for a, b in itertools.pairwise(order):
        counts[a, b] += 4
    found = cluster(counts).tolist()
    assert found in (order, order[::-1])


def test_classes_that_are_never_confused_come_last_in_their_own_order():
    counts = 9 * np.eye(6, dtype=np.int64)
    counts[5, 3] = 1
    assert set(cluster(counts).tolist()[:2]) == {3, 5}
    assert cluster(counts).tolist()[2:] == [0, 1, 2, 4]


def test_few_classes_stand_in_their_own_order_with_their_counts():
    counts = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    found = draw_matrix(counts, ["a", "b", "c"])
    assert not found.clustered
    wrong = parts(found.drawing, "g", "wrong")
    assert [e.findtext("title") for e in wrong] == ["a taken for b: 2 of 10"]
    assert [e.findtext("text") for e in wrong] == ["2"]
    assert len(parts(found.drawing, "g", "right")) == 2, "a cell without images is empty"


def test_of_very_many_classes_the_confused_are_drawn():
    k = DRAWN_UP_TO + 60
    counts = 5 * np.eye(k, dtype=np.int64)
    counts[150, 170] = 3
    found = draw_matrix(counts, [f"class {i}" for i in range(k)])
    assert (found.classes, found.left_out, found.clustered) == (DRAWN_UP_TO, 60, True)
    assert "class 150 taken for class 170: 3 of 8" in str(found.drawing)
    assert not re.search(r'<text[^>]*class="count', str(found.drawing))


def test_a_name_in_a_drawing_is_text():
    drawing = draw_matrix(np.eye(2, dtype=np.int64), ['<b>"&', "玫瑰"]).drawing
    titles = [e.text for e in parts(drawing, "title")]
    assert '<b>"&: 1 of 1 right' in titles
    assert "玫瑰: 1 of 1 right" in titles
