"""Every recipe trains, whole, on images of its kind; and the main job runs on real data of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import linnaeus
from linnaeus.console import Console
from linnaeus.recipe import load_recipe, recipe_names

GRAY = {"digits", "mnist", "mnist-plateau"}


def made_up(folder: Path, recipe: str) -> Path:
    """Two classes of five training images and two for validation, gray digits or color photographs."""
    generator = np.random.default_rng(0)
    shape = (28, 28) if recipe in GRAY else (240, 260, 3)
    for split, each in (("train", 5), ("valid", 2)):
        for label, name in enumerate(("dark", "bright")):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = generator.integers(120 * label, 120 * label + 100, shape).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_there_are_recipes():
    assert set(recipe_names()) >= {"flowers102", "cifar10", "food20", "mnist", "monkeypox", "digits"}


@pytest.mark.long
@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains(name: str, tmp_path: Path):
    """All of its phases, an epoch each, with its own network, sizes and augmentation; without published weights."""
    source = made_up(tmp_path / "data", name)
    phases = load_recipe(name).phase
    # A solved head has no batches.
    settings = {f"phase.{i}.batch": 5 for i, phase in enumerate(phases, start=1) if phase.head != "auto"}
    settings |= {"data.channels": 1} if name in GRAY else {}
    run = linnaeus.train(
        source,
        recipe=name,
        weights="none",
        epochs=[1] * len(phases),
        settings=settings,
        out=tmp_path / "run",
        console=Console(quiet=True),
    )
    assert run.valid.n == 4
    assert len((run.path / "history.csv").read_text().splitlines()) == 1 + len(phases)
    model = linnaeus.load(run.path)
    assert model.evaluate(source, "valid").correct == run.valid.correct


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "recipe", "settings", "counts", "at_least"),
    [
        ("mnist", "mnist", {"model.arguments.widths": [6, 8, 12], "phase.1.batch": 256}, (6000, 10000), 0.85),
        ("cifar10-12k", "small", {"phase.1.batch": 256}, (1000, 2000), 0.13),
        ("flowers16", "small", {"phase.1.batch": 32, "phase.1.lr": 0.03}, (171, None), 0.1),
        ("food10", "small", {"phase.1.batch": 16, "phase.1.lr": 0.03}, (40, 120), 0.1),
    ],
)
def test_real_data(
    shared_data: Path, tmp_path: Path, source: str, recipe: str, settings: dict, counts: tuple, at_least: float
):
    """One epoch of a small network learns something of each, and the model file says the same afterwards."""
    run = linnaeus.train(
        shared_data / source,
        recipe=recipe,
        epochs=1,
        settings=settings,
        out=tmp_path / "run",
        console=Console(quiet=True),
    )
    assert run.valid.n == counts[0]
    assert (run.test.n if run.test else None) == counts[1]
    assert run.valid.accuracy >= at_least
    split = "test" if run.test else "valid"
    found = linnaeus.load(run.path).evaluate(shared_data / source, split)
    assert found.correct == run.figures[split].correct
    for name in ("curves.png", "predictions.png", "confusion.png", "metrics.json", "split.csv", "bad_images.csv"):
        assert (run.path / name).is_file()


@pytest.mark.long
def test_transfer_on_real_data(shared_data: Path, tmp_path: Path):
    """A head on the given ImageNet network for two kinds of flowers: nearly all correct; features are computed once."""
    for split, most in (("train", 20), ("valid", 8)):
        for name in ("97", "76"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for image in sorted((shared_data / "flowers16" / split / name).iterdir())[:most]:
                (tmp_path / "data" / split / name / image.name).symlink_to(image)
    weights = shared_data / "weights" / "resnet50-v1-imagenet.safetensors"
    run = linnaeus.train(
        tmp_path / "data", recipe="photos", weights=str(weights), out=tmp_path / "run", console=Console(quiet=True)
    )
    assert run.valid.accuracy >= 0.85
    about = linnaeus.load(run.path).about
    assert about.arch["arguments"]["stride_in"] == "1x1"
