"""A model on the hub: pushed from one machine, predicted with on another, against a hub on this machine."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import TOKEN, Hub, serving

import linnaeus
from linnaeus.errors import UserError
from linnaeus.export.model_card import model_card
from linnaeus.inference.classifier import load
from linnaeus.models.backbones import hub as hub_module

pytest.importorskip("huggingface_hub", reason="needs the extra hub")
yaml = pytest.importorskip("yaml")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "format1"
IMAGE = GOLDEN / "picture.png"
REPO = "ana/garden-flowers"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({}, uploads=tmp_path / "uploads")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("LINNAEUS_OFFLINE", raising=False)
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    shutil.copy(GOLDEN / "color.safetensors", tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


Say = Callable[..., Any]


def test_what_is_pushed_predicts_elsewhere_and_then_without_a_network(
    hub: Hub, run: Path, say: Say, monkeypatch: pytest.MonkeyPatch
):
    said = say("push", run, REPO, "--license", "cc-by-4.0")
    assert said.status == 0, said.err
    assert said.out == f"{hub.address}/{REPO}\n"
    assert sorted(file.name for file in hub.repositories[REPO].iterdir()) == ["README.md", "model.safetensors"]
    expected = load(run).predict(IMAGE).probabilities
    monkeypatch.delenv("HF_TOKEN")
    model = linnaeus.load(f"hf:{REPO}")
    assert model.predict(IMAGE).probabilities == pytest.approx(expected)
    assert (model.path.read_bytes(), model.path.parent.name) == (
        (run / "model.safetensors").read_bytes(),
        "garden-flowers",
    )
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    said = say("predict", f"hf:{REPO}", IMAGE)
    assert said.status == 0, said.err
    assert said.out
    said = say("export", f"hf:{REPO}", "--to", "onnx")
    assert said.status == 2
    assert "--out: is needed" in said.err, "an export does not vanish in the cache folder"


def test_the_card_says_how_to_use_the_repository_and_is_valid_for_the_hub(hub: Hub, run: Path, say: Say):
    from huggingface_hub import ModelCard

    say("push", run, REPO, "--license", "cc-by-4.0")
    text = (hub.repositories[REPO] / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)  # raises for a model-index that the hub would refuse
    about = card.data.to_dict()
    assert (about["license"], about["library_name"]) == ("cc-by-4.0", "linnaeus")
    assert about["pipeline_tag"] == "image-classification"
    (result,) = card.data.eval_results  # type: ignore[attr-defined]
    assert (result.metric_type, float(result.metric_value)) == ("accuracy", 0.94)
    assert f"linnaeus predict hf:{REPO} IMAGES" in text
    assert "torchvision" not in text
    assert text.count("```") % 2 == 0
    other = model_card(load(run), "torchvision.pth", "resnet18(num_classes=3)")
    assert 'torch.load("torchvision.pth", weights_only=True)' in other
    assert ModelCard(other).data.to_dict()["license"] == "unknown"
    assert other.count("```") % 2 == 0


@pytest.mark.parametrize("name", ["flowers", '"quoted": #1', "- [a]", "yes", "1e5", "花 & 'b'"])
def test_the_metadata_is_what_the_hub_itself_would_write(run: Path, name: str):
    """Its own validation, and nothing is lost or changed when it reads the metadata and writes them."""
    from huggingface_hub.repocard_data import ModelCardData, eval_results_to_model_index
    from huggingface_hub.utils import yaml_dump

    model = load(run)
    model.about.recipe["name"] = name
    model.about.metrics["test"] = model.about.metrics["valid"]
    front = yaml.safe_load(model_card(model, "model.safetensors", repository=REPO, license="mit").split("---\n")[1])
    data = ModelCardData(**front, ignore_metadata_errors=False)  # raises for a model-index that it cannot read
    index = front.pop("model-index")
    assert data.model_name
    assert data.eval_results
    assert eval_results_to_model_index(data.model_name, data.eval_results) == index
    assert {key: value for key, value in data.to_dict().items() if key != "model-index"} == front
    assert [result["dataset"]["split"] for result in index[0]["results"]] == ["test", "valid"]
    assert index[0]["results"][0]["dataset"]["name"].startswith(name)
    # The hub refuses another form of this identifier.
    assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", index[0]["results"][0]["dataset"]["type"])
    assert yaml.safe_load(yaml_dump(front)) == front


def test_the_card_does_not_deny_that_unknown_images_are_recognized():
    always = "always answers with one of its classes"
    assert always not in model_card(load(GOLDEN / "unknown.safetensors"), "model.safetensors", repository=REPO)
    assert always in model_card(load(GOLDEN / "unknown.safetensors"), "torchvision.pth", "resnet18(num_classes=3)")
    assert always in model_card(load(GOLDEN / "color.safetensors"), "model.safetensors", repository=REPO)


def test_a_run_on_a_full_disk_is_pushed(hub: Hub, run: Path, say: Say, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("copyfile", "copy2", "copyfileobj"):
        monkeypatch.setattr(shutil, name, full)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    before = sorted(run.iterdir())
    said = say("push", run, REPO)
    assert said.status == 0, said.err
    assert (hub.repositories[REPO] / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert sorted(run.iterdir()) == before


def test_a_card_that_was_edited_is_kept(hub: Hub, run: Path, say: Say):
    say("push", run, REPO)
    card = hub.repositories[REPO] / "README.md"
    card.write_text("---\nlicense: mit\n---\nmine")
    said = say("push", run, REPO)
    assert said.status == 0
    assert "was kept" in said.err
    assert card.read_text().endswith("mine")


def test_a_new_version_is_fetched_again(hub: Hub, run: Path, say: Say):
    say("push", run, REPO)
    first = load(f"hf:{REPO}").path
    shutil.copy(GOLDEN / "gray.safetensors", run / "model.safetensors")
    say("push", run, REPO)
    assert load(f"hf:{REPO}").path != first
    assert first.is_file()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf:ana", "write hf:OWNER/NAME"),
        ("hf:ana/../x", "write hf:OWNER/NAME"),
        ("hf:ana/nothing", "no such repository on the hub, or a private one"),
        (f"hf:{REPO}", "holds no model.safetensors"),
    ],
)
def test_names_without_a_model_are_refused_in_one_line(hub: Hub, tmp_path: Path, say: Say, name: str, reason: str):
    hub.repositories[REPO] = tmp_path
    said = say("predict", name, IMAGE)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert reason in said.err
    with pytest.raises(UserError, match=reason):
        linnaeus.load(name)


def test_what_cannot_be_pushed_is_refused_in_one_line(hub: Hub, run: Path, say: Say, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(GOLDEN / "color.onnx", run)
    for arguments, reason in (
        ((run, "flowers"), "write hf:OWNER/NAME"),
        ((run, f"{REPO}@v1"), "without @v1"),
        ((run / "color.onnx", REPO), "push uploads the original"),
    ):
        said = say("push", *arguments)
        assert (said.status, said.err.count("\n")) == (2, 1), said.err
        assert reason in said.err
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "may read it, or write to it" in say("push", run, REPO).err
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN" in say("push", run, REPO).err
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    assert "LINNAEUS_OFFLINE is set" in say("push", run, REPO).err
    monkeypatch.delenv("LINNAEUS_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = say("predict", f"hf:{REPO}", IMAGE)
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "cannot be reached" in said.err


@pytest.mark.parametrize(
    ("part", "status", "body", "reason"),
    [
        ("/create", 401, b"{}", "or HF_TOKEN has expired .HTTP 401"),
        ("/create", 429, b"{}", "HTTP 429.* wait some minutes"),
        ("/create", 200, b"<html>Log in to this network</html>", "does not answer as the hub does .*; set HF_ENDPOINT"),
        (
            "/commit/",
            409,
            b'{"error": "a newer commit exists"}',
            "HTTP 409: a newer commit exists.*run the command again",
        ),
        ("/commit/", 500, b"{}", "HTTP 500.*run the command again"),
        ("/preupload/", 200, b"[]", "does not answer as the hub does"),
        ("/upload", 413, b"{}", "HTTP 413.*change what the hub objects to"),
        ("lfs/objects/batch", 422, b"{}", "HTTP 422"),
        ("/create", 0, b"", "cannot be reached .*timed out"),
        ("/upload", 0, b"", "cannot be reached .*timed out"),
    ],
)
def test_a_hub_that_refuses_or_hangs_ends_the_upload_in_one_line(
    hub: Hub, run: Path, say: Say, monkeypatch: pytest.MonkeyPatch, part: str, status: int, body: bytes, reason: str
):
    monkeypatch.setattr(hub_module, "UPLOAD_TIMEOUT", 0.5)
    hub.large = True
    hub.refuse = (part, status, body)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
    said = say("push", run, REPO)
    errors = [line for line in said.err.splitlines() if not line.startswith("warning")]
    assert said.status in (1, 2)
    assert len(errors) == 1, said.err
    assert re.search(reason, errors[0])
    hub.refuse = None
    assert say("push", run, REPO).status == 0


def test_an_upload_says_nothing_about_this_machine(hub: Hub, run: Path, say: Say, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    hub.large = True
    assert say("push", run, REPO).status == 0
    assert hub.agents
    assert not [agent for agent in hub.agents if "torch" in agent or "agent/" in agent]
    assert not hub.asked("agent-harnesses")
