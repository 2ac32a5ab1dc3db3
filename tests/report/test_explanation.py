"""Heat maps over images, and the figure of an explanation, checked by their pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from linnaeus.explain.neighbors import Neighbor
from linnaeus.explain.saliency import Explanation
from linnaeus.inference.classifier import Prediction
from linnaeus.metrics.ood import Thresholds
from linnaeus.report import explanation as explanation_module
from linnaeus.report.canvas import text_width
from linnaeus.report.explanation import _heading, draw_explanation, similar_images
from linnaeus.report.fonts import families_for
from linnaeus.report.heat_maps import overlay, ramp
from linnaeus.report.palette import BLUE, ORANGE, SMALL

LUMA = np.array([0.299, 0.587, 0.114])


def image(side: int = 64, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3)])
def test_without_heat_an_image_is_gray_and_otherwise_unchanged(shape: tuple[int, ...]):
    seen = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = overlay(seen, np.zeros((40, 50), np.float32))
    assert out.shape == (40, 50, 3)
    assert out.dtype == np.uint8
    assert np.ptp(out.astype(int), axis=2).max() == 0
    gray = seen @ LUMA if shape[2:] == (3,) else seen.reshape(40, 50)
    assert np.corrcoef(gray.ravel(), out[..., 0].ravel())[0, 1] > 0.99


def test_more_heat_is_lighter_and_more_colorful():
    """The scale gets lighter from end to end, so that it works for any color vision and in gray."""
    scale = ramp(200, 4)
    assert scale.shape == (4, 200, 3)
    light = scale[0] @ LUMA
    assert np.diff(light).min() > -1.0
    assert light[-1] - light[0] > 100
    assert np.ptp(scale[0, 0].astype(int)) < 3
    assert np.ptp(scale[0, 150].astype(int)) > 100


def test_the_image_shows_through_the_heat():
    seen = np.zeros((32, 32), np.uint8)
    seen[:, 16:] = 255
    for heat in (0.2, 0.6, 1.0):
        out = overlay(seen, np.full((32, 32), heat, np.float32)) @ LUMA
        assert out[0, 31] - out[0, 0] > 25, heat


def test_a_dark_image_can_be_seen():
    dark = overlay(image() // 8, np.zeros((64, 64), np.float32))
    assert dark.std() > 10


def test_heat_is_enlarged_with_its_image():
    heat = np.zeros((28, 28), np.float32)
    heat[:14, :14] = 1
    out = overlay(image(28, channels=1), heat, side=280)
    assert out.shape == (280, 280, 3)
    hot = np.ptp(out.astype(int), axis=2) > 40
    assert hot[:120, :120].all()
    assert not hot[160:, 160:].any()


def explanation(maps: dict[str, np.ndarray], path: str = "photos/petunia/1.jpg", target: int = 1) -> Explanation:
    names = ("Calla ß", "petunia", "a class whose name is so long that no figure can show all of it")
    probabilities = np.array([0.25, 0.7, 0.05])
    return Explanation(Prediction(path, ("0", "1", "2"), names, probabilities, image=image()), target, maps)


def heats(n: int) -> dict[str, np.ndarray]:
    return {f"layer{i}": np.random.default_rng(i).random((64, 64), np.float32) for i in range(n)}


def drawn(path: Path, e: Explanation, **more) -> np.ndarray:
    assert draw_explanation(e, path, **more) == ""
    return np.asarray(Image.open(path).convert("RGB"))


def count(figure: np.ndarray, color: str) -> int:
    """Number of pixels of a color."""
    return int((figure == np.array(ImageColor.getrgb(color))).all(2).sum())


def found_in(pixels: np.ndarray, figure: np.ndarray) -> bool:
    """Whether `pixels` are somewhere in the figure, unscaled."""
    rows, columns = np.nonzero((figure == pixels[0, 0]).all(2))
    height, width = pixels.shape[:2]
    places = zip(rows, columns, strict=True)
    return any(np.array_equal(figure[y : y + height, x : x + width], pixels) for y, x in places)


def test_the_image_and_its_heat_are_side_by_side(tmp_path: Path):
    e = explanation(heats(1))
    figure = drawn(tmp_path / "a.png", e)
    side = round(2.9 * 150)
    assert e.prediction.image is not None
    assert found_in(overlay(e.prediction.image, e.maps["layer0"], side), figure)
    assert found_in(explanation_module.fit_square(e.prediction.image, side), figure)


@pytest.mark.parametrize(("maps", "columns"), [(2, 3), (3, 4), (5, 3), (7, 4)])
def test_every_stage_has_a_panel(maps: int, columns: int, tmp_path: Path):
    e = explanation(heats(maps))
    figure = drawn(tmp_path / "a.png", e)
    side = round({2: 2.9, 3: 2.2, 4: 1.8}[columns] * 150)
    assert e.prediction.image is not None
    assert all(found_in(overlay(e.prediction.image, heat, side), figure) for heat in e.maps.values())
    assert figure.shape[1] <= 1300


def test_neighbors_are_marked_by_class(tmp_path: Path):
    """Blue bars under those of the predicted class, orange under the others; the figure grows by their rows."""
    e = explanation(heats(1))
    without = drawn(tmp_path / "a.png", e)
    close = [
        Neighbor(f"{k}.jpg", str(k % 2), "Calla ß" if k % 2 == 0 else "petunia", 0.9, image(seed=k)) for k in range(5)
    ]
    one_row = drawn(tmp_path / "b.png", e, examples=[similar_images(e, close, True)], true=0)
    two_rows = drawn(tmp_path / "c.png", e, examples=[similar_images(e, close * 2, True)], true=1)
    assert without.shape[0] + 150 < one_row.shape[0] < two_rows.shape[0] - 100
    blue, orange = (count(one_row, color) for color in (BLUE, ORANGE))
    assert orange == pytest.approx(1.5 * blue, rel=0.02)  # three and two of the same bars


def test_awkward_names_stay_inside_the_figure(tmp_path: Path):
    """An empty map, a target that is not the predicted class, a long name and path, bytes that are not UTF-8."""
    e = explanation({"layer4": np.zeros((64, 64), np.float32)}, "/a" * 70 + "/b\udcff $x$.jpg", target=2)
    figure = drawn(tmp_path / "a.png", e, true=2)
    assert abs(figure.shape[1] - (2 * 2.9 + 0.16 + 0.6) * 150) <= 1  # releases of matplotlib round differently
    assert (figure[:, -40:] == 255).all()  # nothing reaches into the margin
    assert (figure[-20:] == 255).all()


def test_an_unsure_prediction_is_marked(tmp_path: Path):
    e = explanation(heats(1))
    sure = drawn(tmp_path / "a.png", e)
    unsure = Explanation(dataclasses.replace(e.prediction, threshold=0.8), e.target, e.maps)
    figure = drawn(tmp_path / "b.png", unsure)
    assert figure.shape[0] > sure.shape[0]
    assert count(figure, ORANGE) > 50 > count(sure, ORANGE)


def test_an_unknown_image_is_not_titled_with_its_class_alone():
    e = explanation(heats(1))
    assert heading_of(e) == ["petunia", "photos/petunia/1.jpg"]
    prediction = dataclasses.replace(e.prediction, limits=Thresholds(None, 0.9, 100, 95), threshold=0.8)
    unknown = Explanation(prediction, e.target, e.maps)
    assert heading_of(unknown) == [
        "unknown (petunia)",
        "unknown: probably of none of the classes",
        "photos/petunia/1.jpg",
    ]


def heading_of(e: Explanation) -> list[str]:
    return [line.text for line in _heading(e, None, families_for(["petunia"]), 6.0)]


def test_missing_characters_are_returned(tmp_path: Path):
    e = explanation(heats(1))
    odd = Neighbor("1.jpg", "1", "petunia \U000e1234", 0.5, image())
    examples = [similar_images(e, [odd], True)]
    assert draw_explanation(e, tmp_path / "a.png", examples=examples) == "\U000e1234"


def test_the_end_of_a_long_path_is_kept():
    fonts = families_for(["…"])
    path = "/".join(["folder"] * 9) + "/rose 1.jpg"
    text = explanation_module._end_of(path, fonts, 3.0)
    assert text.startswith("…/folder")
    assert text.endswith("folder/rose 1.jpg")
    assert 2.0 < text_width(text, fonts, SMALL) <= 3.0
    assert explanation_module._end_of("a/rose.jpg", fonts, 3.0) == "a/rose.jpg"
