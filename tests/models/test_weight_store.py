"""The store of pretrained weights: import, download and verification."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sample_weights import NAME, trained, write_pretrained

from linnaeus.errors import JobError, UserError
from linnaeus.models.backbones.hub_files import RemoteFile
from linnaeus.models.weights import store as weight_store
from linnaeus.models.weights.loading import load_weights
from linnaeus.models.weights.pretrained import PRETRAINED, PretrainedWeights
from linnaeus.models.weights.records import remembered


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PretrainedWeights, Path]:
    """Small weights in the table, and their file, which is not in the store yet."""
    entry, path = write_pretrained(tmp_path)
    monkeypatch.setitem(PRETRAINED, NAME, entry)
    return entry, path


def copying(path: Path):
    """A download function that copies `path`, whatever the address."""

    def fetch(urls: str, destination: Path, *, sha256: str | None, progress: object) -> Path:
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(path.read_bytes())
        return destination

    return fetch


def test_import_and_use(pretrained: tuple[PretrainedWeights, Path]) -> None:
    entry, path = pretrained
    assert NAME not in weight_store.local_weights()
    with pytest.raises(UserError, match=f"{NAME}: there is no local file; run: linnaeus weights pull {NAME}"):
        load_weights("resnet20", NAME, classes=5)
    place, notes = weight_store.import_file(NAME, path)
    assert (place, notes) == (weight_store.weights_dir() / entry.file, [])
    assert weight_store.local_weights() == [NAME]
    for choice in (NAME, "imagenet", str(path)):  # by name, by preference, and recognized by its checksum
        loaded = load_weights("resnet20", choice, classes=5)
        assert loaded.source == NAME
        assert loaded.normalization["size"] == 224
        assert loaded.model.arch["arguments"]["shortcut"] == "A"
    assert f"{place}" in weight_store.render_list()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_import_of_the_same_weights_saved_again(
    pretrained: tuple[PretrainedWeights, Path], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": t for key, t in trained().items()}}, path)
    else:
        save_file(trained(), path, metadata={"arch": "resnet20"})
    place, notes = weight_store.import_file(NAME, path)
    assert place == weight_store.weights_dir() / f"{NAME}{suffix}"
    assert "not the published file" in notes[0]
    assert load_weights("resnet20", NAME, classes=5).source == NAME
    weight_store.import_file(NAME, pretrained[1])  # the published file replaces it
    assert [file.name for file in weight_store.weights_dir().iterdir()] == [pretrained[0].file]
    weight_store.import_file(NAME, path)
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="so it was deleted; run: linnaeus weights pull"):
        load_weights("resnet20", NAME, classes=5)
    assert not place.exists()


def test_import_refuses_what_is_something_else(pretrained: tuple[PretrainedWeights, Path], tmp_path: Path) -> None:
    def refused(message: str, path: Path) -> None:
        with pytest.raises(UserError, match=message):
            weight_store.import_file(NAME, path)
        assert path.name == "gone.pth" or path.exists()  # the user's file is left alone
        assert not weight_store.weights_dir().exists() or not list(weight_store.weights_dir().iterdir())

    entry, path = pretrained
    refused("no such file", tmp_path / "gone.pth")
    refused("not a regular file", Path(os.devnull))
    text = tmp_path / "passwd"
    text.write_text("root:x:0:0:root:/root:/bin/bash\n")
    refused("passwd: neither a torch file nor safetensors", text)
    altered = tmp_path / entry.file
    altered.write_bytes(path.read_bytes()[:-1] + b"?")
    refused("SHA-256 begins with .* incomplete or altered", altered)
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
    refused("its header says arch = resnet32, but resnet20-test has resnet20", other)
    save_file(trained(), other, metadata={"normalisation": "half"})
    refused("its header says mean", other)
    with pytest.raises(UserError, match=r"unknown weights 'resnet20-tset' \(did you mean"):
        weight_store.import_file("resnet20-tset", path)


def test_published_bytes_under_another_name(pretrained: tuple[PretrainedWeights, Path]) -> None:
    with pytest.raises(UserError, match=rf"is the published file of {NAME}; run: linnaeus weights import {NAME} "):
        weight_store.import_file("resnet18-torchvision-v1", pretrained[1])
    assert not weight_store.weights_dir().exists() or not list(weight_store.weights_dir().iterdir())


def test_a_file_with_a_wrong_checksum_is_deleted_and_named(pretrained: tuple[PretrainedWeights, Path]) -> None:
    entry, path = pretrained
    place, _ = weight_store.import_file(NAME, path)
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=f"{entry.file}: its SHA-256 begins with .* deleted"):
        load_weights("resnet20", NAME, classes=5)
    assert not place.exists()


def test_pull(pretrained: tuple[PretrainedWeights, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entry, path = pretrained
    place = weight_store.pull(NAME, fetch=copying(path))
    assert place == weight_store.weights_dir() / entry.file
    assert (
        weight_store.pull(NAME, fetch=copying(Path("nowhere"))) == place
    )  # the local file is used; nothing is downloaded
    place.unlink()
    assert load_weights("resnet20", "imagenet", classes=5, fetch=copying(path)).source == NAME
    with pytest.raises(UserError, match="has no download address; get the file and run: linnaeus weights import"):
        weight_store.pull("resnet50-v1-imagenet", fetch=copying(path))


def test_pull_from_a_mirror_and_without_network(
    pretrained: tuple[PretrainedWeights, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from linnaeus.data.download import fetch

    entry, path = pretrained
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    with pytest.raises(JobError) as caught:
        weight_store.pull(NAME, fetch=fetch)
    assert entry.url in str(caught.value)
    assert f"linnaeus weights import {NAME} FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("LINNAEUS_OFFLINE")
    path.parent.rename(path.parent.with_name("weights"))
    with serving(path.parent.parent) as address:
        monkeypatch.setenv("LINNAEUS_MIRROR", address)
        assert weight_store.pull(NAME, fetch=fetch).read_bytes()
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
    pretrained: tuple[PretrainedWeights, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client gives safetensors, with the checksum that the hub states; without it the .pth is downloaded."""
    file = tmp_path / "model.safetensors"
    save_file(trained(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = PretrainedWeights(**{**vars(pretrained[0]), "hub": "somebody/resnet20"})
    monkeypatch.setitem(PRETRAINED, NAME, entry)
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_url", lambda repo, name, **_: f"http://hub/{repo}/{name}")
    found = lambda url, **_: SimpleNamespace(etag=digest, location=url, size=None)
    monkeypatch.setattr(hub, "get_hf_file_metadata", found)
    url, published = "http://hub/somebody/resnet20/model.safetensors", RemoteFile(entry.url, entry.sha256, entry.file)
    assert weight_store.remote_weights(entry) == RemoteFile(url, digest, f"{NAME}.safetensors")
    assert weight_store.pull(NAME, fetch=copying(file)).name == f"{NAME}.safetensors"
    assert load_weights("resnet20", NAME, classes=5).source == NAME
    monkeypatch.setenv("LINNAEUS_MIRROR", "http://mirror")
    assert weight_store.remote_weights(entry) == published
    monkeypatch.delenv("LINNAEUS_MIRROR")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert weight_store.remote_weights(entry) == published


def test_the_whole_checksum_and_the_size_are_trusted_on_first_use(pretrained: tuple[PretrainedWeights, Path]) -> None:
    """The eight published digits reveal a damaged file, but not a forged one."""
    entry, path = pretrained
    assert len(entry.sha256) == 8
    place, _ = weight_store.import_file(NAME, path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    assert remembered(place.name) == (checksum, path.stat().st_size)
    assert load_weights("resnet20", NAME, classes=5).source == NAME
    record = weight_store.weights_dir().with_name("checksums") / f"{place.name}.json"
    record.write_text(json.dumps({"sha256": checksum[:8] + "0" * 56, "size": path.stat().st_size}))
    with pytest.raises(
        UserError, match=rf"begins with {checksum[:16]} instead of {checksum[:8]}00000000, so it was del"
    ):
        load_weights("resnet20", NAME, classes=5)
    assert not place.exists()
    record.unlink()
    place.write_bytes(path.read_bytes())  # put there by hand, or by an earlier version
    assert load_weights("resnet20", NAME, classes=5).source == NAME
    assert remembered(place.name) == (checksum, path.stat().st_size), "recorded when it was first read"
    place.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"it has [\d,]+ bytes instead of [\d,]+, so it was deleted"):
        load_weights("resnet20", NAME, classes=5)
