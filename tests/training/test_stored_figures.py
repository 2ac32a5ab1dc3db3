"""The figures of a run are computed once: what the head sees of the images is kept, with every bit."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_change_classes import HEAD, write_class
from test_forget import train_without
from tiny import mini, settings, write_images, write_recipe

from linnaeus.cache import default_cache
from linnaeus.inference.classifier import load
from linnaeus.inference.feature_batches import feature_batches
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.preprocess import Preprocessing
from linnaeus.stores import frozen
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.stores.samples import Samples
from linnaeus.training.run import train

SIDE = 80  # the thumbnails of smaller images count too
ABOUT = Preprocessing(SIDE, SIDE, channels=1, mean=(0.0,), std=(1.0,))
WHERE = ("seconds", "hardware")


def make_run(folder: Path, name: str = "run") -> Path:
    data = folder / "images"
    if not data.exists():
        about = ModelFile(mini().arch, ("0", "1", "2"), ("a", "b", "c"), ABOUT)
        write_model(folder / "w.safetensors", mini(seed=3).state_dict(), about)
        write_images(data, each=70)
        write_recipe(folder / "r.toml", HEAD, data=settings(size=SIDE, resize=SIDE)["data"])
    weights = str(folder / "w.safetensors")
    return train(data, str(folder / "r.toml"), weights=weights, out=folder / name, draw=False).path


def figures(run: Path) -> tuple[dict, bytes]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in WHERE}, (run / "predictions.csv").read_bytes()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that go through the network for figures from now on."""
    counts: list[int] = []
    make = frozen.exact_executor

    def observed(*arguments):
        executor = make(*arguments)
        run = executor.run

        def count(x: torch.Tensor) -> torch.Tensor:
            counts.append(len(x))
            return run(x)

        return replace(executor, run=count)

    monkeypatch.setattr(frozen, "exact_executor", observed)
    return counts


def test_a_second_run_computes_no_figures_again_and_has_the_same(tmp_path: Path, computed: list[int], monkeypatch):
    first = make_run(tmp_path)
    valid = json.loads((first / "metrics.json").read_text())["valid"]["n"]
    assert sum(computed) == valid
    # Validation during training uses the same rows, so the images go through the network once.
    stores = [entry.about for entry in default_cache().entries() if entry.name.startswith("activations-")]
    assert sorted((store["n"], store["dtype"]) for store in stores) == [(valid, "float32"), (210 - valid, "float16")]
    computed.clear()
    second = make_run(tmp_path, "second")
    assert computed == []
    assert figures(first) == figures(second)
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "empty"))
    assert figures(make_run(tmp_path, "third")) == figures(first)
    assert sum(computed) == valid


def test_evaluate_has_the_figures_of_the_run_without_the_network(tmp_path: Path, computed: list[int]):
    run = make_run(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())["valid"]
    computed.clear()
    with pytest.warns(UserWarning, match="slightly optimistic"):
        measured = load(run, device="cpu").evaluate(run / "split.csv", split="valid")
    assert computed == []
    assert measured.correct == metrics["correct"]
    assert measured.loss == pytest.approx(metrics["loss"], rel=1e-12)


@pytest.mark.parametrize("command", ["classes", "forget"])
def test_a_derived_run_computes_new_images_and_a_sample_and_has_the_figures_of_a_new_run(
    say, tmp_path: Path, command: str, computed: list[int], monkeypatch: pytest.MonkeyPatch
):
    run, new = make_run(tmp_path), tmp_path / "new"
    gone: set[str] = set()
    computed.clear()
    if command == "classes":
        assert say("classes", run, "--add", write_class(tmp_path / "star", 3, 20), "--out", new).status == 0
    else:
        with (run / "split.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        gone = {row["path"] for row in rows[::9]}
        (tmp_path / "list").write_text("\n".join(gone))
        assert say("forget", run, "--images", tmp_path / "list", "--out", new).status == 0
    with (new / "split.csv").open(newline="") as file:
        valid = [row["path"] for row in csv.DictReader(file) if row["split"] == "valid"]
    new_images = sum("new" in path for path in valid)
    assert sum(computed) == new_images + min(frozen.EXACT_BATCH, len(valid) - new_images)
    again = train_without(new if command == "classes" else run, gone, tmp_path, monkeypatch)
    numbers = [[row[-3:] for row in csv.reader((each / "predictions.csv").open())] for each in (new, again)]
    assert numbers[0] == numbers[1]
    read = [json.loads((each / "metrics.json").read_text()) for each in (new, again)]
    assert read[0]["valid"] == read[1]["valid"]
    assert read[0]["calibration"] == read[1]["calibration"]


def batches_of(images: np.ndarray):

    samples = Samples(PixelStore.from_arrays(images), np.zeros(len(images), np.int64))
    return feature_batches(mini(seed=1), ABOUT, samples, torch.device("cpu"))


@pytest.mark.parametrize("change", ["threads", "instructions", "pixels"])
def test_what_may_change_a_bit_makes_another_store(change: str, computed: list[int], monkeypatch: pytest.MonkeyPatch):
    images = np.random.default_rng(0).integers(0, 255, (20, SIDE, SIDE), dtype=np.uint8)
    batches_of(images)
    batches_of(images)
    assert sum(computed) == 20
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "instructions":
        now = os.environ.get("ONEDNN_MAX_CPU_ISA")  # set by `make test-rounding`
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2" if now == "SSE41" else "SSE41")
    else:
        images[3, 4, 5] ^= 1
    batches_of(images)
    assert sum(computed) == 40


@pytest.mark.parametrize("n", [20, 17, 3, 1])
def test_stored_features_are_those_of_the_network_in_batches_of_one_size(n: int):
    images = np.random.default_rng(0).integers(0, 255, (20, SIDE, SIDE), dtype=np.uint8)
    batches = batches_of(images[20 - n :])
    assert batches is not None
    rows, _ = batches.rows.gather(np.arange(n))
    assert rows.dtype == np.float32
    x = ABOUT(torch.from_numpy(images[4:, :, :, None]), np.full((16, 2), SIDE))
    with torch.inference_mode():
        expected = mini(seed=1).eval().pooled_features(x)
    known = min(n, 16)
    assert np.array_equal(rows[-known:], expected.numpy()[-known:])


def test_where_the_cache_has_no_room_images_go_through_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path)
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("LINNAEUS_CACHE_GB", "0.000001")
    model = load(run, device="cpu")
    images = model.images(run / "split.csv", "valid")
    loss = json.loads((run / "metrics.json").read_text())["valid"]["loss"]
    assert model.figures(model.outputs(images)).loss == pytest.approx(loss, rel=1e-5)
