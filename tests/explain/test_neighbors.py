"""Similar images: which images are compared, by which vectors, and what is cached."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import draw, write_idx, write_images, write_recipe, write_tiny_model
from torch import Tensor, nn

import linnaeus
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.explain.neighbors import Gallery, gallery, vectors
from linnaeus.inference.classifier import Classifier, load
from linnaeus.models import create, wrap
from linnaeus.stores import distributed

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images `pics` and the run `run` that was trained on them for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINNAEUS_CACHE", str(folder / "cache"))
        write_images(folder / "pics", each=10)
        recipe = write_recipe(folder / "r.toml", {"epochs": 1})
        linnaeus.train(folder / "pics", recipe=str(recipe), out=folder / "run")
    return folder


@pytest.fixture
def classifier(run: Path) -> Classifier:
    return load(run / "run", device="cpu")


def split_of(run: Path) -> dict[str, str]:
    """Path below pics -> split, as the run wrote it down."""
    with (run / "run" / "split.csv").open(encoding="utf-8", newline="") as file:
        return {"/".join(Path(row["path"]).parts[-2:]): row["split"] for row in csv.DictReader(file)}


def names_of(found: Gallery) -> list[str]:
    return [found.table.sample_id(int(i)) for i in found.indices]


def test_only_training_images_are_compared(run: Path, classifier: Classifier):
    found = gallery(classifier, run / "pics", QUIET)
    train = {path for path, split in split_of(run).items() if split == "train"}
    assert found.trained
    assert 20 < len(found) == len(train) < 30
    assert set(names_of(found)) == train


def test_the_nearest_are_those_by_cosine(run: Path, classifier: Classifier):
    """Compared with vectors computed here, image by image."""
    found = gallery(classifier, run / "pics", QUIET)

    def vector(path: str) -> np.ndarray:
        pixels = np.asarray(Image.open(path))
        with torch.no_grad():
            below = classifier.network.run(torch.from_numpy(pixels / 255).float()[None, None], stop="head")
        v = below.mean((2, 3))[0].numpy()
        return v / np.linalg.norm(v)

    valid = [path for path, split in split_of(run).items() if split == "valid"]
    for name in valid[:3]:
        query = str(run / "pics" / name)
        cosine = {other: float(vector(query) @ vector(str(run / "pics" / other))) for other in names_of(found)}
        expected = sorted(cosine, key=lambda other: -cosine[other])[:4]
        nearest = found.nearest(classifier.predict(query), 4)
        assert [n.similarity for n in nearest] == pytest.approx([cosine[name] for name in expected], abs=2e-3)
        assert [n.similarity for n in nearest] == sorted((n.similarity for n in nearest), reverse=True)
        for n in nearest:
            assert n.similarity == pytest.approx(cosine[n.path], abs=2e-3)
            assert (n.label, n.name) == (n.path.split("/")[0], n.path.split("/")[0])
            assert np.array_equal(n.image[..., 0], np.asarray(Image.open(run / "pics" / n.path)))
            assert n.to_dict() == {"path": n.path, "class": n.label, "name": n.name, "similarity": n.similarity}


def test_a_training_image_is_not_its_own_neighbor(
    run: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    found = gallery(classifier, run / "pics", QUIET)
    name = names_of(found)[0]
    monkeypatch.chdir(run)
    for path in (str(run / "pics" / name), f"pics/{name}"):
        assert name not in [n.path for n in found.nearest(classifier.predict(path), 5)]
    copy = tmp_path / "copy.png"
    shutil.copy(run / "pics" / name, copy)
    nearest = found.nearest(classifier.predict(str(copy)), 5)
    assert nearest[0].path == name  # a copy has the largest similarity
    assert nearest[0].similarity == pytest.approx(1, abs=1e-3)
    assert len(found.nearest(classifier.predict(str(copy)), 999)) == len(found)


def test_the_run_knows_its_images_where_the_source_has_changed(run: Path, tmp_path: Path):
    """One more image changes the fingerprint of the source; training images are recognized by content."""
    shutil.copytree(run / "run", tmp_path / "run")
    train = {path for path, split in split_of(run).items() if split == "train"}
    new = run / "pics" / "0" / "new.png"
    Image.fromarray(draw(np.array([0]), seed=9)[0]).save(new)
    try:
        found = gallery(load(tmp_path / "run", device="cpu"), run / "pics", QUIET)
        assert found.trained
        assert set(names_of(found)) == train
        (tmp_path / "run" / "split.csv").unlink()  # the model file alone recognizes them too
        found = gallery(load(tmp_path / "run", device="cpu"), run / "pics", QUIET)
        assert found.trained
        assert set(names_of(found)) == train
    finally:
        new.unlink()


def test_the_training_split_of_another_source_is_compared(classifier: Classifier, tmp_path: Path):
    write_images(tmp_path / "other" / "train", ("0", "x"), each=3, seed=5)
    write_images(tmp_path / "other" / "valid", ("0", "x"), each=3, seed=8)
    found = gallery(classifier, tmp_path / "other", QUIET)
    assert not found.trained
    assert [name.split("/")[0] for name in names_of(found)] == ["train"] * 6
    nearest = found.nearest(classifier.predict(str(tmp_path / "other" / "valid" / "x" / "x 0.png")), 6)
    assert {n.name for n in nearest} == {"0", "x"}  # a class that the model does not know keeps its name


def test_images_in_arrays(classifier: Classifier, tmp_path: Path):
    """The same by the sample's number, in a source without files."""
    source = write_idx(tmp_path / "idx", train=40, test=10)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    model = linnaeus.load(linnaeus.train(source, recipe=str(recipe), out=tmp_path / "run").path, device="cpu")
    found = gallery(model, source, QUIET)
    assert found.trained
    assert len(found) == 36
    assert all(name.startswith("train[") for name in names_of(found))
    write_idx(source, train=40, test=11)  # another test part, and it is not the source of the training any more
    again = gallery(model, source, QUIET)
    assert again.trained
    assert names_of(again) == names_of(found)


def test_vectors_are_computed_once(run: Path, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They come from the cache, unless the weights below the head have changed."""
    first = gallery(classifier, run / "pics", QUIET)
    built: list[str] = []
    build = distributed.build_activations

    def counted(*arguments, **more):
        built.append("once more")
        return build(*arguments, **more)

    monkeypatch.setattr(distributed, "build_activations", counted)
    assert torch.equal(gallery(classifier, run / "pics", QUIET).vectors, first.vectors)
    assert built == []
    with torch.no_grad():
        classifier.network.get_parameter("fc.weight").add_(1)  # the head's own weights change no vector
    gallery(classifier, run / "pics", QUIET)
    assert built == []
    with torch.no_grad():
        classifier.network.get_parameter("block1.conv.weight").mul_(-1)
    changed = gallery(classifier, run / "pics", QUIET)
    assert built == ["once more"]
    assert not torch.allclose(changed.vectors, first.vectors, atol=0.01)


def test_unreadable_images_are_left_out(classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_images(tmp_path / "pics", each=3, seed=40)
    (tmp_path / "pics" / "1" / "1 0.png").write_bytes(b"no image")
    found = gallery(classifier, tmp_path / "pics", QUIET)
    assert len(found) == 8
    assert "1/1 0.png" not in names_of(found)
    assert "1 of 9 images left out: 1/1 0.png: " in capsys.readouterr().err
    for path in (tmp_path / "pics").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 9 images can be read"):
        gallery(classifier, tmp_path / "pics", QUIET)


def test_a_cache_too_small_is_reported(run: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_CACHE_GB", "0")
    with pytest.raises(UserError, match="LINNAEUS_CACHE_GB"):
        gallery(classifier, run / "pics", QUIET)


def test_vectors_of_a_custom_network():
    """The pooled input of the last child of a Sequential."""
    torch.manual_seed(0)
    body, head = nn.Conv2d(1, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(3, 1, 8, 8)
    expected = body(x).mean((2, 3))
    found = vectors(wrap(nn.Sequential(body, head), 2, 1).eval(), x)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def test_vectors_are_what_the_head_sees():
    """If the head uses several stages, the vectors do too."""
    network = create("resnet20", 3, 3, head_stages=["layer2", "layer3"]).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        middle = network.run(x, stop="layer3")
        expected = torch.cat([middle.mean((2, 3)), network.get_submodule("layer3")(middle).mean((2, 3))], 1)
    torch.testing.assert_close(vectors(network, x), expected / expected.norm(dim=1, keepdim=True))


class OnePiece(nn.Module):
    """A module whose head cannot be recognized."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(28 * 28, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def test_a_network_of_one_piece_has_no_vectors(run: Path, tmp_path: Path):
    path = write_tiny_model(tmp_path / "m.safetensors", wrap(OnePiece(), 3, 1))
    with pytest.raises(UserError, match="a network with a single stage has no features"):
        gallery(load(path, device="cpu", model=OnePiece()), run / "pics", QUIET)
