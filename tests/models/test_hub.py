"""Weights from a hub: downloads, faults of the network, licenses and names, against a hub on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import TOKEN, Hub, serving
from reference import torchvision
from safetensors.torch import load_file, save_file
from tiny_transformers import write_repository

from linnaeus.data import download
from linnaeus.data.download import fetch
from linnaeus.errors import JobError, UserError
from linnaeus.models.backbones import hub as hub_module
from linnaeus.models.backbones.hub import card_license
from linnaeus.models.backbones.hub_weights import image_geometry, normalization
from linnaeus.models.weights import sharded
from linnaeus.models.weights.loading import describe_weights, load_weights
from linnaeus.models.weights.records import read_record
from linnaeus.models.weights.store import find, import_file, pull, render_list, stored_backbones, weights_dir

REPO = "somebody/dinov2-tiny"
NAME = f"hf/{REPO}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision()
    pytest.importorskip("transformers", reason="pip install transformers")
    return write_repository(tmp_path_factory.mktemp("hub") / "copy", "dinov2")


@pytest.fixture
def hub(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with serving(Hub({REPO: copy})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.delenv("LINNAEUS_OFFLINE", raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(download, "WAIT", 0.0)
        yield hub


def refused(call: Any, reason: str) -> str:
    with pytest.raises(UserError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download_and_its_use_without_a_network(hub: Hub, copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Progress is reported, no token is sent, and the second use sends no request."""
    seen: list[tuple[int, int | None]] = []
    loaded = load_weights(NAME, "pretrained", classes=3, fetch=fetch, progress=lambda *step: seen.append(step))
    size = (copy / "model.safetensors").stat().st_size
    assert seen[-1] == (size, size)
    assert loaded.license == "apache-2.0"
    assert loaded.normalization["size"] == 32
    path = find(NAME)
    assert path is not None
    assert path.read_bytes() == (copy / "model.safetensors").read_bytes()
    record = read_record(path.stem)
    assert (record["size"], len(record["sha256"]), record["license"]) == (size, 64, "apache-2.0")
    assert stored_backbones() == {NAME: path}
    row = next(line for line in render_list().splitlines() if line.startswith(NAME))
    assert "apache-2.0" in row
    assert str(path) in row
    count = len(hub.requests)
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    again = load_weights(NAME, "pretrained", classes=3)
    assert len(hub.requests) == count
    torch.testing.assert_close(
        again.model.state_dict()["body.layernorm.weight"], loaded.model.state_dict()["body.layernorm.weight"]
    )


def test_a_cut_download_goes_on_where_it_ended(hub: Hub):
    hub.cut_after = 5000
    path = pull(NAME, fetch=fetch)
    assert path.is_file()
    assert len(hub.asked("/storage/")) == 2


def test_a_wrong_checksum_leaves_no_file(hub: Hub):
    hub.damaged = True
    reason = refused(lambda: pull(NAME, fetch=fetch), "could not be downloaded .*sha256")
    assert f"linnaeus weights import {NAME} FILE" in reason
    assert not list(weights_dir().glob("*.safetensors"))
    hub.damaged = False
    assert pull(NAME, fetch=fetch).is_file()


def test_a_damaged_local_file_is_deleted(hub: Hub):
    path = pull(NAME, fetch=fetch)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(
        lambda: load_weights(NAME, "pretrained", classes=3),
        "SHA-256 begins with .* deleted; run: linnaeus weights pull",
    )
    assert not path.exists()
    path.write_bytes(content[:-1])
    refused(
        lambda: load_weights(NAME, "pretrained", classes=3), r"it has [\d,]+ bytes instead of [\d,]+, so it was deleted"
    )


def test_a_slow_drip_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.drip = True
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    monkeypatch.setattr(download, "SLOWEST", 10_000)
    refused(lambda: pull(NAME, fetch=fetch), "less than 10000 bytes a second")


def test_the_token_is_for_the_hub_and_not_for_its_storage(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.gated.add(REPO)
    reason = refused(lambda: pull(NAME, fetch=fetch), "access is refused .* accept the conditions at .*HF_TOKEN")
    assert f"{hub.address}/{REPO}" in reason
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(lambda: pull(NAME, fetch=fetch), r"access is refused \(HTTP 403\)")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pull(NAME, fetch=fetch)
    assert [request[2] for request in hub.asked("/storage/")] == [""]
    loaded = load_weights(NAME, "pretrained", classes=3)
    assert loaded.gated


def test_unknown_names_come_with_a_suggestion(hub: Hub):
    refused(
        lambda: describe_weights("pretrained", "hf/other/dinov2-tiny"), rf"no such repository .*did you mean {NAME}\?"
    )
    refused(lambda: describe_weights("pretrained", "hf/facebook/dinov2-smal"), r"did you mean hf/facebook/dinov2-small")
    refused(lambda: describe_weights("pretrained", "hf/a/b/c"), "not a repository of the hub; write hf/OWNER/NAME")


def test_repositories_without_a_configuration_or_weights(hub: Hub, copy: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    hub.repositories["somebody/empty"] = tmp_path / "empty"
    refused(lambda: describe_weights("pretrained", "hf/somebody/empty"), r"has no config\.json")
    (tmp_path / "empty" / "config.json").write_bytes((copy / "config.json").read_bytes())
    refused(lambda: pull("hf/somebody/empty", fetch=fetch), r"has no .*model\.safetensors")
    (tmp_path / "empty" / "model.safetensors.index.json").write_text("{}")
    refused(lambda: pull("hf/somebody/empty", fetch=fetch), r"index\.json: does not say which tensor")


def divided(copy: Path, folder: Path) -> Path:
    """A copy of the repository whose weights are in two shards, as the hub's libraries save large ones."""
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((copy / name).read_bytes())
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(names)}
    for file in sorted(set(files.values())):
        # Narrow types and odd sizes: merged carelessly, the tensors behind them would not be aligned.
        more = {"odd": torch.ones(3, dtype=torch.uint8)} if "00001" in file else {}
        save_file({name: tensors[name] for name in names if files[name] == file} | more, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def test_weights_in_several_files_become_one(hub: Hub, copy: Path, tmp_path: Path):
    hub.repositories["somebody/large"] = divided(copy, tmp_path / "large")
    hub.cut_after = 3000
    seen: list[tuple[int, int | None]] = []
    path = pull("hf/somebody/large", fetch=fetch, progress=lambda *step: seen.append(step))
    assert path.name == "hf--somebody--large.safetensors"
    expected = load_file(copy / "model.safetensors")
    merged = load_file(path)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {entry.suffix for entry in weights_dir().iterdir()} <= {".safetensors", ".json", ".lock"}
    assert len(hub.asked("/storage/")) == 3  # the shard that was cut goes on
    again = load_weights("hf/somebody/large", "pretrained", classes=3)
    assert again.normalization["size"] == 32


def test_shards_that_are_damaged_or_missing_are_one_line(hub: Hub, copy: Path, tmp_path: Path):
    large = divided(copy, tmp_path / "large")
    hub.repositories["somebody/large"] = large
    hub.damaged = True
    refused(lambda: pull("hf/somebody/large", fetch=fetch), "could not be downloaded .*sha256")
    hub.damaged = False
    index = large / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model-00002-of-00002", "../model"))
    refused(lambda: pull("hf/somebody/large", fetch=fetch), "does not say which tensor")
    index.write_text(text.replace("layernorm.weight", "layernorm.other"))
    refused(lambda: pull("hf/somebody/large", fetch=fetch), r"lacks layernorm\.other, which .* download both again")
    index.write_text(text)
    (large / "model-00002-of-00002.safetensors").unlink()
    refused(lambda: pull("hf/somebody/large", fetch=fetch), "names model-00002-of-00002.safetensors, which the repos")
    assert not list(weights_dir().glob("*.safetensors"))


def test_local_shards_are_imported_and_used(copy: Path, tmp_path: Path):
    large = divided(copy, tmp_path / "large")
    path, _ = import_file("hf/somebody/large", large)
    expected = load_file(copy / "model.safetensors")
    assert load_file(path).keys() == expected.keys()
    assert find("hf/somebody/large") == path
    load_weights("hf/somebody/large", "pretrained", classes=3)
    for place in (large, large / "model.safetensors.index.json"):
        loaded = load_weights("hf/somebody/large", str(place), classes=3)
        torch.testing.assert_close(loaded.model.state_dict()["body.layernorm.weight"], expected["layernorm.weight"])
    (large / "model-00001-of-00002.safetensors").unlink()
    refused(lambda: load_weights("hf/somebody/large", str(large), classes=3), "is missing, and .* bring all files")


def test_a_shard_that_is_cut_while_it_is_copied(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    large = divided(copy, tmp_path / "large")
    shard = large / "model-00002-of-00002.safetensors"
    checked = sharded.open_shards

    def check_then_cut(index: Path) -> dict[str, Any]:
        shards = checked(index)
        os.truncate(shard, shard.stat().st_size - 1)
        return shards

    monkeypatch.setattr(sharded, "open_shards", check_then_cut)
    refused(lambda: sharded.merge_shards(large / "model.safetensors.index.json", tmp_path / "whole"), "was cut short")


def test_weights_that_are_only_a_torch_file(hub: Hub, copy: Path, tmp_path: Path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_bytes((copy / "config.json").read_bytes())
    torch.save(load_file(copy / "model.safetensors"), folder / "pytorch_model.bin")
    hub.repositories["somebody/old"] = folder
    assert pull("hf/somebody/old", fetch=fetch).suffix == ".pth"
    loaded = load_weights("hf/somebody/old", "pretrained", classes=3)
    assert loaded.normalization["mean"] == (0.485, 0.456, 0.406)


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    refused(lambda: describe_weights("pretrained", NAME), "not on this machine, and LINNAEUS_OFFLINE is set")
    refused(lambda: describe_weights("pretrained", "hf/facebook/dinov2-smal"), r"did you mean hf/facebook/dinov2-small")
    assert not hub.requests
    monkeypatch.delenv("LINNAEUS_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    reason = refused(lambda: describe_weights("pretrained", NAME), "cannot be reached .*; set HF_ENDPOINT to a mirror")
    assert f"linnaeus weights import {NAME}" in reason
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    describe_weights("pretrained", NAME)  # the configuration is known from here on
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    with pytest.raises(JobError, match="LINNAEUS_OFFLINE is set"):
        pull(NAME, fetch=fetch)


def test_a_mirror_that_serves_files_alone(hub: Hub):
    hub.no_api = True
    pull(NAME, fetch=fetch)
    assert load_weights(NAME, "pretrained", classes=3).license == "unknown"


def test_licenses_with_conditions(hub: Hub):
    hub.licenses[REPO] = "cc-by-nc-4.0"
    assert describe_weights("pretrained", NAME).license == "cc-by-nc-4.0"


def test_import_from_a_copy_needs_no_network(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    for given in (copy, copy / "model.safetensors"):
        path, notes = import_file(NAME, given)
        assert path == weights_dir() / "hf--somebody--dinov2-tiny.safetensors"
        assert "imported without verification" in notes[0]
    loaded = load_weights(NAME, "pretrained", classes=3)
    assert loaded.license == "apache-2.0"
    assert loaded.normalization["resize"] == 40
    refused(lambda: import_file("hf/other/tiny", path), "not on this machine, and LINNAEUS_OFFLINE is set")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((copy / "config.json").read_bytes())
    refused(
        lambda: import_file("hf/other/tiny", tmp_path), "misses .* so it does not hold the weights of hf/other/tiny"
    )
    assert set(stored_backbones()) == {NAME}


def test_the_license_in_the_header_of_a_file_wins(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    for file in copy.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(load_file(copy / "model.safetensors"), tmp_path / "model.safetensors", {"license": "cc-by-nc-4.0"})
    assert load_weights(NAME, str(tmp_path), classes=3).license == "cc-by-nc-4.0"
    path, _ = import_file(NAME, tmp_path)
    assert read_record(path.stem)["license"] == "cc-by-nc-4.0"
    assert load_weights(NAME, "pretrained", classes=3).license == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: dinov3-license\nlicense_link: LICENSE\n---\n", "dinov3-license"),
        ("---\ntags:\n- x\n---\nlicense: mit\n", ""),
        ("# A card without a header", ""),
    ],
)
def test_license_of_a_card(card: str, license: str):
    assert card_license(card) == license


@pytest.mark.parametrize(
    ("preprocessor", "geometry"),
    [
        ({"size": 224}, (224, 224, "crop")),
        ({"size": {"height": 224, "width": 224}, "do_center_crop": False}, (224, 224, "squash")),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (256, 224, "crop")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (256, 224, "crop")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384, "squash")),
        ({"max_num_patches": 256, "patch_size": 16}, (256, 256, "crop")),
        ({}, (518, 518, "crop")),
    ],
)
def test_geometry_of_a_preprocessor(preprocessor: dict[str, Any], geometry: tuple[int, int, str]):
    found = image_geometry(NAME, preprocessor, {"image_size": 518})
    assert (found.resize, found.size, found.fit) == geometry


def test_normalization_of_a_preprocessor():
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert normalization(NAME, half) == ((0.5,) * 3, (0.5,) * 3)
    assert normalization(NAME, half | {"rescale_factor": 2 / 255}) == ((0.25,) * 3, (0.25,) * 3)
    assert normalization(NAME, half | {"do_normalize": False}) == ((0.0,) * 3, (1.0,) * 3)
    for bad in ({"image_std": [0.0] * 3}, {"image_mean": ["a"] * 3}, {"image_mean": [0.5]}, {"rescale_factor": 0}):
        refused(lambda bad=bad: normalization(NAME, half | bad), "cannot be used; get a fresh copy")


def test_the_record_of_a_repository_is_read_as_data(hub: Hub):
    describe_weights("pretrained", NAME)
    path = weights_dir() / "hf--somebody--dinov2-tiny.json"
    content = json.loads(path.read_text())
    content["repository"]["unknown"] = 1
    path.write_text(json.dumps(content))
    assert hub_module.repository(NAME).license == "apache-2.0"
    path.write_text("[")
    assert hub_module.repository(NAME).license == "apache-2.0"


def test_weights_of_timm(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They come from the same hub, are verified when they are used again, and say whose they are."""
    timm = pytest.importorskip("timm", reason="pip install --no-deps timm")
    torch.manual_seed(0)
    tensors = timm.create_model("test_vit").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    hub.repositories[timm.get_pretrained_cfg("test_vit").hf_hub_id] = tmp_path
    loaded = load_weights("timm/test_vit", "pretrained", classes=3, fetch=fetch)
    assert loaded.license == "apache-2.0"
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    again = load_weights("timm/test_vit", "pretrained", classes=3)
    torch.testing.assert_close(again.model.state_dict()["body.norm.weight"], tensors["norm.weight"])
    assert "timm/test_vit " in render_list()
    refused(lambda: pull("timm/test_vitt", fetch=fetch), r"did you mean timm/test_vit")
