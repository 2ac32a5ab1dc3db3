"""The report's section on unknown images: both scores, their thresholds, and the images nearest to them."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from fabricate import fabricate, write_source

from linnaeus.metrics.ood import Thresholds
from linnaeus.report.page import write_report
from linnaeus.report.unknown import bin_edges, nearest_images, score_histogram
from linnaeus.runs.predictions import PredictionRow


def section_of(run: Path) -> str:
    page = write_report(run)[0].read_text(encoding="utf-8")
    return unescape(page[page.index('<section id="unknown"') : page.index('<section id="mistakes"')])


def row(name: str, probability: float, distance: float | None) -> PredictionRow:
    return PredictionRow(name, "valid", "a", "a", probability, probability, "", distance)


def test_a_run_whose_model_cannot_tell_says_so(tmp_path: Path):
    fabricate(write_source(tmp_path / "source", ("a", "b", "c")), tmp_path / "run")
    assert "The model of this run does not recognize unknown images." in section_of(tmp_path / "run")


def test_the_images_on_both_sides_are_those_nearest_to_the_thresholds():
    rows = [row(f"{i}", 0.99 - 0.01 * i, 0.01 * i) for i in range(20)]  # the later, the less known by both scores
    limits = Thresholds(distance=0.155, probability=0.0, n=20, accepted=16)
    found = nearest_images(rows, limits)
    assert [image.sample for image, _ in found["rejected"]] == ["16", "17", "18", "19"]
    assert [image.sample for image, _ in found["accepted"]] == ["15", "14", "13", "12", "11", "10"]
    assert found["accepted"][0][1] == "distance 0.15"


def test_an_image_is_near_by_the_worse_of_its_scores():
    rows = [row(f"{i}", 0.9, 0.01 * i) for i in range(10)] + [row("odd", 0.3, 0.0)]
    found = nearest_images(rows, Thresholds(distance=1.0, probability=0.2, n=11, accepted=11))
    assert {image.sample for image, _ in found["accepted"][:2]} == {"9", "odd"}
    assert found["rejected"] == []


def test_without_recorded_distances_no_image_is_called_near():
    rows = [row("0", 0.9, None), row("1", 0.8, None)]
    assert nearest_images(rows, Thresholds(0.1, 0.5, 2, 2)) == {"accepted": [], "rejected": []}
    by_probability = nearest_images(rows, Thresholds(None, 0.85, 2, 1))
    assert [image.sample for image, _ in by_probability["rejected"]] == ["1"]


@pytest.mark.parametrize("threshold", [0.0, 0.013, 0.5, 0.9999, 1.0])
def test_bins_cover_the_range_and_none_lies_on_both_sides_of_the_threshold(threshold: float):
    edges = bin_edges(threshold, (0.0, 1.0))
    assert edges[0] == 0
    assert edges[-1] == 1
    assert (np.diff(edges) > 0).all()
    assert threshold in edges


@pytest.mark.parametrize(("name", "rejected"), [("distance", 3), ("probability", 7)])
def test_every_image_is_in_a_bar_of_the_color_of_its_side(name: str, rejected: int):
    values = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.65, 0.9, 1.0])
    drawing = score_histogram(values, 0.6, (0.0, 1.0), name)
    shown = re.findall(r"<title>[^<]*?: (\d+) images?</title>.*?fill: var\(--(\w+)\)", drawing, re.DOTALL)
    assert sum(int(n) for n, _ in shown) == 10
    assert sum(int(n) for n, color in shown if color == "alert") == rejected
    assert f"{rejected} {'above' if name == 'distance' else 'below'} the threshold" in unescape(drawing)


def test_a_histogram_of_equal_values_and_of_one_value_can_be_drawn():
    assert "threshold 1e-05" in score_histogram(np.zeros(3), 1e-5, (0.0, 1.05e-5), "distance")
    assert score_histogram(np.ones(1), 0.0, (0.0, 1.0), "probability").count("bar") == 1
