"""The grid of `predict` shows mistakes and doubtful answers first, and its title says how many there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from linnaeus.data.images.content import content_hash
from linnaeus.inference.grid import GridSelection
from linnaeus.inference.membership import Membership
from linnaeus.inference.prediction import Prediction
from linnaeus.metrics.ood import Thresholds
from linnaeus.text import selection_title


def answer(path: str, confidence: float) -> Prediction:
    return Prediction(path, ("0", "1"), ("0", "1"), np.array([confidence, 1 - confidence]))


def test_mistakes_come_first_whatever_the_order_of_the_images():
    """100 images in class order, of which 7 of the second class are wrong: the first 64 would show none of them."""
    grid = GridSelection(64)
    rng = np.random.default_rng(0)
    for i in range(100):
        grid.add(answer(str(i), float(rng.uniform(0.5, 1))), 1 if i >= 93 else 0)
        assert len(grid._kept) < 128
    shown = grid.shown()
    assert len(shown) == 64
    assert {int(p.path) for p, _ in shown[:7]} == set(range(93, 100))
    confidences = [p.probability for p, _ in shown]
    assert confidences[:7] == sorted(confidences[:7], reverse=True)
    assert confidences[7:] == sorted(confidences[7:])
    assert grid.title() == "64 of 100 images shown, the 7 mistakes first"


@pytest.mark.parametrize(
    ("trained", "words"), [(0, ""), (1, "; 1 of the 4 was a training image"), (3, "; 3 of the 4 were training images")]
)
def test_the_title_counts_the_training_images(trained: int, words: str, tmp_path: Path):
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for path in paths:
        path.write_text(path.name)
    contents = np.array([content_hash(str(path)) for path in paths], np.uint64)
    splits = np.array(["train"] * trained + ["valid"] * (4 - trained))
    grid = GridSelection(64, Membership.of(contents, splits))
    for path in paths:
        grid.add(answer(str(path), 0.9), 1)
    assert grid.title() == f"4 images, the 4 mistakes first{words}"


def test_images_of_no_known_class_are_shown_by_rising_confidence():
    grid = GridSelection(2)
    for confidence in (0.9, 0.6, 0.8, 0.7, 0.99):
        grid.add(answer(f"{confidence}", confidence), None)
    assert [p.path for p, _ in grid.shown()] == ["0.6", "0.7"]
    assert grid.title() == "2 of 5 images shown, without known classes"


def test_the_title_says_on_how_many_images_there_could_be_mistakes():
    """Without it, images in folders that name no class would look like images without a mistake."""
    grid = GridSelection(64)
    for i in range(3):
        grid.add(answer(str(i), 0.9), 0)
    assert grid.title() == "3 images, no mistakes"
    grid.add(answer("3", 0.9), None)
    assert grid.title() == "4 images, no mistakes; 1 without a known class"
    grid.add(answer("4", 0.9), 1)
    assert grid.title() == "5 images, the mistake first; 1 without a known class"


def test_unknown_images_are_shown_before_doubtful_ones():
    """A photo of something else may get a class with 99 %: by confidence alone it would come last."""
    grid = GridSelection(3)
    limits = Thresholds(0.4, 0.2, 40, 38)
    for path, confidence, distance in (("a", 0.6, 0.1), ("far", 0.99, 0.9), ("b", 0.7, 0.1), ("wrong", 0.8, 0.1)):
        found = replace(answer(path, confidence), distance=distance, limits=limits)
        grid.add(found, 1 if path == "wrong" else None)
    assert [p.path for p, _ in grid.shown()] == ["wrong", "far", "a"]


@pytest.mark.parametrize(
    ("counts", "title"),
    [
        ((3, 3, 0, 0), "3 images"),
        ((3, 3, 1, 1), "3 images, the mistake first"),
        ((24, 359, 5, 5), "24 of 359 images shown, the 5 mistakes first"),
        ((64, 1000, 64, 80), "64 of 1,000 images shown, the 64 most confident of 80 mistakes first"),
    ],
)
def test_the_title(counts: tuple[int, int, int, int], title: str):
    shown, total, wrong_shown, wrong = counts
    assert selection_title(shown, total, "images", wrong_shown, wrong) == title
