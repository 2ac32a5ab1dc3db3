"""An image in color that a model of gray images gets is a warning, once a command, with a count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_idx, write_recipe

from linnaeus.data.images.decode import load_row
from linnaeus.data.images.discarded_color import DiscardedColor, is_colored
from linnaeus.data.images.resize import RowSpec
from linnaeus.inference.classifier import load
from linnaeus.training.run import Run, train

LINE = "2 of 4 images are in color, but the model sees only gray"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("gray")
    write_idx(folder / "idx", train=120, test=20)
    return train(folder / "idx", str(write_recipe(folder / "r.toml", {"epochs": 1})), out=folder / "run", draw=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images in color, a gray one in three channels, and a gray one, below the classes 0 and 1."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (40, 40), np.uint8)
    color = np.stack([gray, gray // 2, gray // 4], 2)
    images = {"0/a.png": color, "0/b.jpg": color, "1/c.jpg": np.stack([gray] * 3, 2), "1/d.png": gray}
    for name, pixels in images.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_the_commands_warn_once_with_a_count(run: Run, photos: Path, say, tmp_path: Path):
    said = say("predict", run.path, photos)
    assert said.err.count(LINE) == 1
    assert said.err.count("in color") == 1
    for _ in range(2):  # the second time the images come from the store, in gray
        assert say("evaluate", run.path, photos).err.count(LINE) == 1
    again = say("predict", run.path, photos / "1")
    assert "in color" not in again.err


def test_python_warns_once_a_call(run: Run, photos: Path):
    model = load(run.path)
    with pytest.warns(UserWarning, match=LINE):
        model.predict(photos)
    with pytest.warns(UserWarning, match="1 of 1 image is in color"):
        model.predict(photos / "0" / "a.png")
    with pytest.warns(UserWarning, match="1 of 2 images are in color"):
        model.predict([np.zeros((9, 9), np.uint8), np.full((9, 9, 3), (200, 30, 30), np.uint8)])
    with pytest.warns(UserWarning, match=LINE):
        model.evaluate(photos)


def test_a_color_model_loses_no_color(photos: Path):
    spec = RowSpec(32, channels=3)
    loss: DiscardedColor = DiscardedColor(lambda path: load_row(path, spec))
    loss.load(str(photos / "0" / "a.png"))
    assert loss.take_line() == ""


@pytest.mark.parametrize(
    ("tint", "colored"),
    [((1.0, 1.0, 1.0), False), ((1.0, 0.99, 0.97), False), ((1.0, 0.6, 0.3), True), ((0.2, 0.2, 1.0), True)],
)
def test_noise_of_single_pixels_is_no_color(tint: tuple[float, ...], colored: bool):
    rng = np.random.default_rng(0)
    base = rng.integers(60, 200, (256, 256, 1)) * np.array(tint) + rng.normal(0, 12, (256, 256, 3))
    assert is_colored(Image.fromarray(base.clip(0, 255).astype(np.uint8))) is colored
