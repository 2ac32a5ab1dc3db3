"""Features in a file are what enters the last layer, one row for each readable image, whatever the format."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference import torchvision
from safetensors import safe_open
from several import several
from tiny import GRAY, mini, write_images, write_label_sets, write_tiny_model

from linnaeus.console import Console
from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models.weights.pretrained import IMAGENET_MEAN, IMAGENET_STD
from linnaeus.preprocess import Preprocessing
from linnaeus.probe.embed import embed
from linnaeus.probe.feature_files import FeatureFile, writer_of
from linnaeus.probe.features import StoredFeatures
from linnaeus.stores.activations import ActivationStore

QUIET = Console(silent=True)


def expected(paths: list[str]) -> np.ndarray:
    network = mini(3).eval()
    rows = np.stack([load_row(path, GRAY.row_spec) for path in paths])
    with torch.no_grad():
        x = GRAY(torch.from_numpy(rows), np.full((len(rows), 2), 28))
        return network.pool(network.run(x, stop="head")).numpy()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    write_images(folder / "images", each=7)
    write_tiny_model(folder / "model.safetensors", mini(3))
    return folder


def test_a_row_is_what_enters_the_last_layer(place: Path, tmp_path: Path):
    done = embed(str(place), place / "images", tmp_path / "f.npz", console=QUIET)
    file = np.load(tmp_path / "f.npz")
    assert file["features"].dtype == np.float32
    assert file["features"].shape == (21, done.width)
    assert file["ids"][7] == "1/1 0.png"
    assert file["labels"].tolist() == ["0"] * 7 + ["1"] * 7 + ["2"] * 7
    np.testing.assert_allclose(file["features"], expected(file["paths"].tolist()), rtol=2e-3, atol=2e-3)
    embed(str(place / "model.safetensors"), place / "images", tmp_path / "f.safetensors", console=QUIET)
    with safe_open(tmp_path / "f.safetensors", "np") as other:
        assert np.array_equal(other.get_tensor("features"), file["features"])
        assert json.loads(other.metadata()["ids"]) == file["ids"].tolist()


def test_parquet_has_the_same_rows(place: Path, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    for name in ("f.npz", "f.parquet"):
        embed(str(place), place / "images", tmp_path / name, console=QUIET)
    table, file = parquet.read_table(tmp_path / "f.parquet").to_pydict(), np.load(tmp_path / "f.npz")
    assert table["id"] == file["ids"].tolist()
    assert np.array_equal(np.array(table["features"], np.float32), file["features"])


def test_without_pyarrow_parquet_is_refused_before_any_work(place: Path, say: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = say("embed", place, place / "images", "--out", place / "f.parquet")
    assert (said.status, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "pip install pyarrow; or write .npz" in said.err
    assert not (place / "f.parquet").exists()


def test_loose_images_and_unreadable_ones(place: Path, tmp_path: Path, say: Any):
    images = tmp_path / "loose"
    images.mkdir()
    for path in (place / "images" / "0").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "broken.png").write_bytes(b"\x89PNG")
    said = say("embed", place, images, "--out", tmp_path / "f.npz")
    assert said.status == 1, said.err
    assert "broken.png" in said.err
    file = np.load(tmp_path / "f.npz")
    assert len(file["ids"]) == 7
    assert "broken.png" not in file["ids"]
    assert set(file["labels"]) == {""}


def test_several_labels_are_joined_as_in_split_csv(place: Path, tmp_path: Path):
    source = write_label_sets(tmp_path / "sets", n=12)
    embed(str(place), source, tmp_path / "f.npz", console=QUIET)
    assert np.load(tmp_path / "f.npz")["labels"][:3].tolist() == ["", "p0|p1|p2|p3", "p0|p3"]


def test_a_backbone_gives_its_pooled_output(place: Path, tmp_path: Path):
    network = mini(3, channels=3)
    about = ModelFile(network.arch, ("0", "1", "2"), ("0", "1", "2"), Preprocessing(28, 28))
    write_model(tmp_path / "w.safetensors", network.state_dict(), about)
    done = embed(f"mini_resnet={tmp_path / 'w.safetensors'}", place / "images", tmp_path / "f.npz", console=QUIET)
    assert done.width == network.head_input


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_networks_of_the_hub_in_each_format(suffix: str, place: Path, tmp_path: Path, say: Any):
    """The rows are what the library itself computes, and the only message is the license."""
    torchvision()
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    copy = tmp_path / "copy"
    config = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "num_channels": 3,
    }
    torch.manual_seed(0)
    body = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config)).eval()
    body.save_pretrained(copy)
    (copy / "preprocessor_config.json").write_text(json.dumps({"size": 28, "do_center_crop": False}))
    (copy / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    out = tmp_path / f"f{suffix}"
    said = say("embed", f"hf/somebody/dino={copy}", place / "images", "--out", out)
    assert said.status == 0, said.err
    assert "license of the weights: cc-by-nc-4.0" in said.err
    assert "forbids commercial use" in said.err
    assert "new head" not in said.err
    if suffix == ".npz":
        rows = np.load(out)["features"]
    elif suffix == ".safetensors":
        with safe_open(out, "np") as file:
            rows = file.get_tensor("features")
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
        rows = np.array(parquet.read_table(out).to_pydict()["features"], np.float32)
    paths = sorted((place / "images").rglob("*.png"))
    pixels = np.stack([load_row(str(path), RowSpec(28, "crop", "bilinear", 3)) for path in paths])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        direct = body(x).pooler_output.numpy()
    np.testing.assert_allclose(rows, direct, rtol=3e-3, atol=3e-3)


def test_an_interrupted_command_continues(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The features are in the cache as soon as they are computed; the file appears whole or not at all."""
    with monkeypatch.context() as broken:
        broken.setattr(FeatureFile, "columns", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(str(place), place / "images", tmp_path / "f.npz", console=QUIET)
    assert not list(tmp_path.glob("*.npz"))
    monkeypatch.setattr("linnaeus.stores.frozen.choose_executor", lambda *a, **k: pytest.fail("computed again"))
    assert embed(str(place), place / "images", tmp_path / "f.npz", console=QUIET).images == 21


def test_two_processes_write_the_same_file(place: Path, tmp_path: Path):
    def work(rank: int) -> int:
        from linnaeus.distributed.engine import join_process_group

        group = join_process_group("cpu")
        model, images = str(place), place / "images"
        return embed(model, images, tmp_path / "two.npz", device="cpu", console=QUIET, group=group).images

    assert several(2, work) == [21, 21]
    os.environ["LINNAEUS_CACHE"] = str(tmp_path / "another")  # undone by the fixture that gives each test its own
    embed(str(place), place / "images", tmp_path / "one.npz", console=QUIET)
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert one["ids"].tolist() == two["ids"].tolist()
    np.testing.assert_allclose(one["features"], two["features"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_memory_does_not_grow_with_the_images(suffix: str, tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    n, width = 20_000, 512
    values = np.memmap(tmp_path / "rows.bin", np.float16, "w+", shape=(n, width))
    values[:] = np.random.default_rng(0).random((n, width), np.float32)
    values.flush()
    store = ActivationStore(values, tmp_path / "rows.bin")
    table = Table("s", "folder", ("",), ("",), np.zeros(n, int), np.full(n, ""), tuple(map(str, range(n))))
    features = StoredFeatures((store,), np.arange(n), width, [])
    path = tmp_path / f"f{suffix}"
    tracemalloc.start()
    writer_of(path)(path, FeatureFile(table, features, "m", lambda *a: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if suffix == ".parquet":
        peak += pyarrow.default_memory_pool().max_memory()
    # Half of each number is zero: the rows are stored in half precision, and Parquet compresses them.
    assert path.stat().st_size > (2 if suffix == ".parquet" else 4) * n * width
    assert peak < 4 * n * width


@pytest.mark.parametrize(
    ("model", "out", "problem"),
    [
        ("resnet5", "f.npz", "did you mean resnet50"),
        ("hf:facebook/dinov2-small", "f.npz", r"MODEL hf:.* \(did you mean hf/facebook/dinov2-small\?\)"),
        ("resnet50,resnet18", "f.npz", "several backbones"),
        ("resnet50+resnet18", "f.npz", "several backbones"),
        ("resnet50", "f.csv", r"features are written as \.npz, \.parquet, \.safetensors"),
        ("resnet50", "f", "features are written as"),
    ],
)
def test_bad_arguments_are_one_line(model: str, out: str, problem: str, place: Path, tmp_path: Path):
    with pytest.raises(UserError, match=problem):
        embed(model, place / "images", tmp_path / out, console=QUIET)


def test_an_onnx_file_and_settings_of_a_model_are_refused(place: Path, tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="an ONNX file gives logits"):
        embed(str(tmp_path / "m.onnx"), place / "images", tmp_path / "f.npz", console=QUIET)
    with pytest.raises(UserError, match="states its own preprocessing"):
        embed(str(place), place / "images", tmp_path / "f.npz", settings={"data.size": 32}, console=QUIET)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("model.weights=other.safetensors", "model.weights: has no effect on the features of a backbone: give the we"),
        ("lr=1", "lr: has no effect on the features of a backbone; the keys that have are size, data.size"),
        ("data.split.valid=0.3", "data.split.valid: has no effect"),
        ("data.normalize=data", "embed has no training images to measure"),
    ],
)
def test_settings_that_change_no_feature_are_refused(setting: str, problem: str, place: Path, tmp_path: Path, say: Any):
    said = say("embed", "resnet18", place / "images", "--out", tmp_path / "f.npz", "--set", setting)
    assert said.status == 2
    assert problem in said.err


def test_the_used_bits_of_deep_images_are_measured(tmp_path: Path):
    """As in a probe and in training; otherwise images of 12 bits would be nearly black."""
    network = mini(3, channels=3)
    about = ModelFile(network.arch, ("0", "1", "2"), ("0", "1", "2"), Preprocessing(28, 28))
    write_model(tmp_path / "w.safetensors", network.state_dict(), about)
    for name, factor in (("deep", 16), ("full", 256)):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (28, 28)).astype(np.uint16)
            pixels[0, 0] = 255
            Image.fromarray(pixels * factor + factor - 1).save(tmp_path / name / f"{i}.png")
        embed(f"mini_resnet={tmp_path / 'w.safetensors'}", tmp_path / name, tmp_path / f"{name}.npz", console=QUIET)
    deep, full = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("deep", "full"))
    np.testing.assert_allclose(deep, full, atol=2e-2)
