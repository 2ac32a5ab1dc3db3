"""Published weights: the table, import, download, verification, and the rules by which weights are fitted."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import torchvision
from safetensors.torch import save_file
from torch import Tensor

from linnaeus.errors import JobError, UserError
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models import create, weights
from linnaeus.models.published import PUBLISHED, Published
from linnaeus.models.weights import load_weights
from linnaeus.preprocess import Preprocessing

NAME = "resnet20-test"


def trained(name: str = "resnet20", classes: int = 1000, **arguments: Any) -> dict[str, Tensor]:
    """Tensors that no fresh network has."""
    torch.manual_seed(7)
    state = create(name, classes, **arguments).state_dict()
    return {key: t + 0.1 * torch.rand_like(t) if t.is_floating_point() else t + 5 for key, t in state.items()}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Published, Path]:
    """A small set of weights in the table, and its file, not yet at hand."""
    path = tmp_path / "there" / "new.pth"
    path.parent.mkdir()
    torch.save(trained(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(path.with_name(f"resnet20-{digest}.pth"))
    entry = Published(NAME, "resnet20", f"http://localhost:1/{path.name}", digest, 50.0, "none", {"shortcut": "A"})
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    return entry, path


def copying(path: Path):
    """A fetch that copies the file, whatever the address."""

    def fetch(urls: str, destination: Path, *, sha256: str | None, progress: object) -> Path:
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(path.read_bytes())
        return destination

    return fetch


def test_table_agrees_with_torchvision() -> None:
    """Addresses, accuracy, sizes and normalisation, from the release that published them."""
    models = torchvision().models
    theirs = {}
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "googlenet"):
        for version, entry in enumerate(models.get_model_weights(name), start=1):
            theirs[f"{name.replace('googlenet', 'inception_v1')}-torchvision-v{version}"] = entry
    assert theirs.keys() == {name for name in PUBLISHED if "-torchvision-" in name}
    for name, entry in theirs.items():
        ours, transform = PUBLISHED[name], entry.transforms()
        assert ours.url == entry.url
        assert ours.sha256 in entry.url
        assert ours.top1 == entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert [ours.resize] == transform.resize_size
        assert [ours.size] == transform.crop_size
        assert ours.interpolation == transform.interpolation.value
        if ours.model != "inception_v1":
            assert [list(ours.mean), list(ours.std)] == [transform.mean, transform.std]


def test_table_is_whole() -> None:
    for name, entry in PUBLISHED.items():
        assert name == entry.name
        assert name.startswith(f"{entry.model}-")
        assert 60 < entry.top1 < 90
        assert len(entry.sha256) in (8, 64)
        assert entry.file.endswith((".pth", ".safetensors"))
        assert ("stride_in" in entry.arguments) == (entry.model in ("resnet50", "resnet101", "resnet152"))
        with torch.device("meta"):
            create(entry.model, 1000, **entry.arguments)
    assert len({entry.sha256 for entry in PUBLISHED.values()}) == len(PUBLISHED)


def test_transform_input_is_the_normalisation() -> None:
    """What torchvision's GoogLeNet does to an image before its first layer is what our normalisation does at once."""
    models = torchvision().models
    network = models.googlenet(transform_input=True, init_weights=False, aux_logits=False)
    image = torch.rand(1, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    entry = PUBLISHED["inception_v1-torchvision-v1"]
    ours = (image - torch.tensor(entry.mean).view(3, 1, 1)) / torch.tensor(entry.std).view(3, 1, 1)
    torch.testing.assert_close(network._transform_input((image - mean) / std), ours)


def test_googlenet_loads_as_torchvision_has_it(tmp_path: Path) -> None:
    """Auxiliary heads that were never trained come along and are dropped; the 3x3 branch is seen in the tensors."""
    torch.manual_seed(0)
    theirs = torchvision().models.googlenet(aux_logits=True, transform_input=True, init_weights=False)
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "g.pth")
    loaded = load_weights("inception_v1", str(tmp_path / "g.pth"), classes=1000, arguments={"dropout": 0.0})
    assert loaded.model.arch["arguments"]["branch5x5"] == "3x3"
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        inside = theirs.eval()(image)
        outside = loaded.model.eval()(theirs._transform_input(image))
    torch.testing.assert_close(inside, outside)
    again = load_weights("inception_v1", str(tmp_path / "g.pth"), classes=5, arguments={"aux": True})
    assert "auxiliary heads start anew" in again.notes
    assert not torch.equal(again.model.state_dict()["aux1.fc1.weight"], state["aux1.fc1.weight"])
    with pytest.raises(UserError, match="trained with branch5x5 = '3x3', not '5x5'"):
        load_weights("inception_v1", str(tmp_path / "g.pth"), classes=5, arguments={"branch5x5": "5x5"})


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module.", "half", "safetensors"])
def test_forms_of_files(tmp_path: Path, form: str) -> None:
    state = trained()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "module.":
        torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}, "epoch": 3}, path)
    elif form == "half":
        torch.save({key: t.half() if t.is_floating_point() else t for key, t in state.items()}, path)
    else:
        torch.save({form: state, "epoch": 3, "args": {"lr": 0.1}}, path)
    loaded = load_weights("resnet20", str(path), classes=1000)
    for key, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == state[key].dtype
        torch.testing.assert_close(tensor, state[key], atol=1e-3, rtol=1e-3)
    assert any("does not say how its images were normalised" in note for note in loaded.notes)
    assert loaded.normalisation["mean"] == (0.485, 0.456, 0.406)


def test_adapting(tmp_path: Path) -> None:
    state = trained()
    path = tmp_path / "w.pth"
    torch.save({key: t for key, t in state.items() if not key.endswith("num_batches_tracked")}, path)
    loaded = load_weights("resnet20", str(path), classes=7, channels=1)
    assert any(note == "new head for 7 classes (the weights have 1000)" for note in loaded.notes)
    ours = loaded.model.state_dict()
    assert ours["fc.weight"].shape == (7, 64)
    torch.testing.assert_close(ours["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(ours["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
    assert ours["bn1.num_batches_tracked"] == 0
    assert loaded.normalisation["mean"] == (0.449,)
    assert loaded.normalisation["std"] == (0.226,)
    # Gray in one channel gives what gray in three gives.
    color = load_weights("resnet20", str(path), classes=7)
    gray = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        one = loaded.model.eval().run(gray, stop="head")
        three = color.model.eval().run(gray.expand(-1, 3, -1, -1), stop="head")
    torch.testing.assert_close(one, three, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.1.conv2.weight"), "missing: layer2.1.conv2.weight"),
        (lambda s: s.update({"layer9.weight": torch.ones(1)}), "unknown: layer9.weight"),
        (lambda s: s.update({"bn1.bias": torch.ones(8)}), r"shape: bn1.bias is \(8,\) and should be \(16,\)"),
        (lambda s: s.update({"fc.weight": torch.ones(1000, 32)}), r"fc.weight is \(1000, 32\)"),
        (lambda s: s.update({"conv1.weight": torch.ones(16, 1, 3, 3)}), r"conv1.weight is \(16, 1, 3, 3\)"),
        (lambda s: s.update({"epoch": 3}), "'epoch' is a int, not a tensor"),
        (lambda s: s.clear(), "holds no tensors"),
    ],
)
def test_a_mismatch_is_refused_by_name(tmp_path: Path, change, message: str) -> None:
    state = trained()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_weights("resnet20", str(tmp_path / "w.pth"), classes=5)
    assert "w.pth" in str(caught.value)


class Hostile:
    """Runs code when it is unpickled carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": trained(), "extra": Hostile(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="Python objects beside tensors"):
        load_weights("resnet20", str(tmp_path / "w.pth"), classes=5)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}", b"PK\x03\x04" + bytes(40), b"\xff" * 64])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"w{suffix}"):
        load_weights("resnet20", str(path), classes=5)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_files_cut_short_are_named(tmp_path: Path, share: float) -> None:
    for path, save in ((tmp_path / "w.pth", torch.save), (tmp_path / "w.safetensors", save_file)):
        save(trained(), path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=path.name):
            load_weights("resnet20", str(path), classes=5)


def test_the_header_decides(tmp_path: Path) -> None:
    """The place of the stride and the normalisation come from the file, and a contradiction is refused."""
    path = tmp_path / "w.safetensors"
    state = trained("resnet50")
    mean_std = json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    save_file(state, path, metadata={"arch": "resnet50", "stride_in": "1x1", "normalisation": mean_std})
    loaded = load_weights("resnet50", str(path), classes=1000)
    assert loaded.model.arch["arguments"]["stride_in"] == "1x1"
    assert loaded.normalisation["mean"] == (0.1, 0.2, 0.3)
    assert "stride_in = '1x1', as the weights were trained with" in loaded.notes
    with pytest.raises(UserError, match="stride_in = '1x1', not '3x3'; leave stride_in out"):
        load_weights("resnet50", str(path), classes=1000, arguments={"stride_in": "3x3"})
    with pytest.raises(UserError, match="for resnet50, not for resnet101"):
        load_weights("resnet101", str(path), classes=1000)
    save_file(state, path, metadata={"normalisation": "whatever"})
    with pytest.raises(UserError, match="normalisation 'whatever' is none of torchvision"):
        load_weights("resnet50", str(path), classes=1000)
    save_file(state, path)
    assert any("3x3 is assumed" in note for note in load_weights("resnet50", str(path), classes=5).notes)


def test_a_model_file_is_a_file_of_weights(tmp_path: Path) -> None:
    arch = create("resnet20", 4, shortcut="B", zero_init=True).arch
    images = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize": 40, "size": 32, "interpolation": "bicubic"}
    header = json.dumps({"arch": arch, "preprocessing": images})
    (tmp_path / "run").mkdir()
    save_file(trained(classes=4, shortcut="B"), tmp_path / "run" / "model.safetensors", metadata={"linnaeus": header})
    loaded = load_weights("resnet20", str(tmp_path / "run"), classes=9)
    assert loaded.model.arch["arguments"] == {"shortcut": "B", "zero_init": False}
    assert loaded.normalisation == {key: tuple(v) if isinstance(v, list) else v for key, v in images.items()}


def test_import_and_use(published: tuple[Published, Path]) -> None:
    entry, path = published
    assert NAME not in weights.at_hand()
    with pytest.raises(UserError, match=f"{NAME}: not at hand; type: linnaeus weights pull {NAME}"):
        load_weights("resnet20", NAME, classes=5)
    place, notes = weights.import_file(NAME, path)
    assert (place, notes) == (weights.folder() / entry.file, [])
    assert weights.at_hand() == [NAME]
    for choice in (NAME, "imagenet", str(path)):  # by name, by preference, and recognized by its hash
        loaded = load_weights("resnet20", choice, classes=5)
        assert loaded.source == NAME
        assert loaded.normalisation["size"] == 224
        assert loaded.model.arch["arguments"]["shortcut"] == "A"
    assert f"{place}" in weights.render_list()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_import_of_the_same_weights_saved_again(published: tuple[Published, Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": t for key, t in trained().items()}}, path)
    else:
        save_file(trained(), path, metadata={"arch": "resnet20"})
    place, notes = weights.import_file(NAME, path)
    assert place == weights.folder() / f"{NAME}{suffix}"
    assert "not the published bytes" in notes[0]
    assert load_weights("resnet20", NAME, classes=5).source == NAME
    weights.import_file(NAME, published[1])  # the real ones take their place
    assert [file.name for file in weights.folder().iterdir()] == [published[0].file]
    weights.import_file(NAME, path)
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="so it was deleted; type: linnaeus weights pull"):
        load_weights("resnet20", NAME, classes=5)
    assert not place.exists()


def test_import_refuses_what_is_something_else(published: tuple[Published, Path], tmp_path: Path) -> None:
    def refused(message: str, path: Path) -> None:
        with pytest.raises(UserError, match=message):
            weights.import_file(NAME, path)
        assert path.name == "gone.pth" or path.exists()  # the user's file is left alone
        assert not weights.folder().exists() or not list(weights.folder().iterdir())

    entry, path = published
    refused("no such file", tmp_path / "gone.pth")
    altered = tmp_path / entry.file
    altered.write_bytes(path.read_bytes()[:-1] + b"?")
    refused("SHA-256 begins with .* cut short or altered", altered)
    other = tmp_path / "other.safetensors"
    save_file(trained("resnet32"), other)
    refused("unknown: layer1.3.bn1.bias.*; they fit resnet32$", other)
    save_file({"a": torch.zeros(2)}, other)
    refused(r"has no fc\.weight", other)
    save_file({"a": torch.zeros(2), "fc.weight": torch.zeros(1000, 64)}, other)
    refused(r"missing: .*; unknown: a$", other)
    save_file(trained(classes=5), other)
    refused("1000 classes", other)
    save_file(trained(), other, metadata={"arch": "resnet32"})
    refused("says arch = resnet32, and resnet20-test has resnet20", other)
    save_file(trained(), other, metadata={"normalisation": "half"})
    refused("says mean", other)
    with pytest.raises(UserError, match=r"unknown weights 'resnet20-tset' \(did you mean"):
        weights.import_file("resnet20-tset", path)


def test_published_bytes_under_another_name(published: tuple[Published, Path]) -> None:
    with pytest.raises(UserError, match=rf"holds {NAME}, to the byte; linnaeus weights import {NAME} "):
        weights.import_file("resnet18-torchvision-v1", published[1])
    assert not weights.folder().exists() or not list(weights.folder().iterdir())


def test_a_wrong_hash_is_deleted_and_named(published: tuple[Published, Path]) -> None:
    entry, path = published
    place, _ = weights.import_file(NAME, path)
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=f"{entry.file}: its SHA-256 begins with .* deleted"):
        load_weights("resnet20", NAME, classes=5)
    assert not place.exists()


def test_pull(published: tuple[Published, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entry, path = published
    place = weights.pull(NAME, fetch=copying(path))
    assert place == weights.folder() / entry.file
    assert weights.pull(NAME, fetch=copying(Path("nowhere"))) == place  # at hand: nothing is fetched
    place.unlink()
    assert load_weights("resnet20", "imagenet", classes=5, fetch=copying(path)).source == NAME
    with pytest.raises(UserError, match="cannot be downloaded; bring the file and type: linnaeus weights import"):
        weights.pull("resnet50-v1-imagenet", fetch=copying(path))


def test_pull_from_a_mirror_and_without_network(
    published: tuple[Published, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from linnaeus.data.download import fetch

    entry, path = published
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    with pytest.raises(JobError) as caught:
        weights.pull(NAME, fetch=fetch)
    assert entry.url in str(caught.value)
    assert f"linnaeus weights import {NAME} FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("LINNAEUS_OFFLINE")
    path.parent.rename(path.parent.with_name("weights"))
    with serving(path.parent.parent) as address:
        monkeypatch.setenv("LINNAEUS_MIRROR", address)
        assert weights.pull(NAME, fetch=fetch).read_bytes()
    assert load_weights("resnet20", NAME, classes=5).source == NAME


@contextlib.contextmanager
def serving(root: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_hub_gives_safetensors(
    published: tuple[Published, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the hub's client the safetensors come, under the hash that the hub states; without it the .pth."""
    file = tmp_path / "model.safetensors"
    save_file(trained(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = Published(**{**vars(published[0]), "hub": "somebody/resnet20"})
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    hub = SimpleNamespace(
        hf_hub_url=lambda repo, name: f"http://hub/{repo}/{name}",
        get_hf_file_metadata=lambda url: SimpleNamespace(etag=digest),
    )
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", hub)
    assert weights.address(entry) == ("http://hub/somebody/resnet20/model.safetensors", digest, f"{NAME}.safetensors")
    assert weights.pull(NAME, fetch=copying(file)).name == f"{NAME}.safetensors"
    assert load_weights("resnet20", NAME, classes=5).source == NAME
    monkeypatch.setenv("LINNAEUS_MIRROR", "http://mirror")
    assert weights.address(entry) == (entry.url, entry.sha256, entry.file)
    monkeypatch.delenv("LINNAEUS_MIRROR")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert weights.address(entry) == (entry.url, entry.sha256, entry.file)


@pytest.mark.parametrize(
    ("model", "choice", "message"),
    [
        ("resnet50", "imagenett", "unknown weights 'imagenett'.* `linnaeus weights import NAME FILE` takes a file in"),
        ("resnet50", "resnet50-torchvision-v3", "did you mean resnet50-torchvision-v"),
        ("resnet50", "missing.pth", "missing.pth: there is no such file"),
        ("resnet18", "resnet50-v1-imagenet", "for resnet50, not for resnet18"),
        ("plain20", "imagenet", "plain20: there are no published weights"),
        ("resnet51", "imagenet", "unknown model 'resnet51'"),
        ("resnet50", "imagenet", "resnet50-torchvision-v1: not at hand; type: linnaeus weights pull"),
    ],
)
def test_misuse_is_named(model: str, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_weights(model, choice, classes=5)


def test_the_given_weights(shared_data: Path) -> None:
    """The stride goes into the 1x1 by itself, by name and by file, and the float16 tensors become float32."""
    file = shared_data / "weights" / "resnet50-v1-imagenet.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    place, notes = weights.import_file("resnet50-v1-imagenet", file)
    assert (place.name, notes) == (file.name, [])
    for choice in ("imagenet", str(file)):
        loaded = load_weights("resnet50", choice, classes=16)
        assert loaded.source == "resnet50-v1-imagenet"
        assert loaded.model.get_submodule("layer2.0.conv1").stride == (2, 2)
        assert loaded.model.get_submodule("layer2.0.conv2").stride == (1, 1)
        assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
        assert loaded.normalisation["mean"] == (0.485, 0.456, 0.406)


def test_a_head_on_several_stages_is_new_and_says_so(tmp_path: Path) -> None:
    """Also where the classes are the same; and weights trained with such a head serve a network without."""
    path = tmp_path / "w.pth"
    torch.save(trained(), path)
    loaded = load_weights("resnet20", str(path), classes=1000, arguments={"head_stages": ["layer2", "layer3"]})
    assert "new head for 1000 classes, on 96 features of layer2, layer3" in loaded.notes
    assert loaded.model.state_dict()["fc.weight"].shape == (1000, 96)
    file = tmp_path / "model.safetensors"
    wide = create("resnet20", 3, head_stages=["layer2", "layer3"])
    write_model(file, wide.state_dict(), ModelFile(wide.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(32, 32)))
    again = load_weights("resnet20", str(file), classes=3, arguments={"head_stages": ["layer3", "layer2"]})
    assert torch.equal(again.model.state_dict()["fc.weight"], wide.state_dict()["fc.weight"])
    with pytest.raises(UserError, match=r"fc.weight is \(3, 96\) and should be \(3, 64\)"):
        load_weights("resnet20", str(file), classes=3)
