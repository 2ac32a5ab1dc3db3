"""What runs on backbones of other libraries can do: cuts, rates of stages, heat maps, exports, classes, labels.

The table of docs/howto/backbones.md says the same. What `test_backbones.py` trains is not repeated here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from test_backbones import NETWORKS, _offline, train  # noqa: F401
from tiny import write_images

import linnaeus
from linnaeus.errors import UserError
from linnaeus.explain.saliency import choose_stages, grad_cam
from linnaeus.inference.classifier import Classifier
from linnaeus.label.backbone import open_backbone
from linnaeus.models.weights.store import import_file

sys.path.insert(0, str(Path(__file__).parents[1] / "label"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from labelling import opened, photos
from served import client, files
from tiny_transformers import write_repository

pytestmark = pytest.mark.long


def repository(kind: str) -> Callable[[Path], str]:
    """A network of transformers of this type, whose weights are on this machine."""

    def write(folder: Path) -> str:
        import_file(f"hf/somebody/{kind}", write_repository(folder, kind))
        return f"hf/somebody/{kind}"

    return write


KINDS = {**NETWORKS, "siglip": repository("siglip_vision_model"), "convnext": repository("convnext")}
TRAINED = [kind for kind in KINDS if kind != "onnx"]


class Case:
    """A backbone, images for it, and runs on both."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder, self.model = kind, folder, KINDS[kind](folder / "net")
        self.source = write_images(folder / "images", each=12)

    def solved(self) -> Path:
        """A run with a linear head."""
        if not (run := self.folder / "solved").exists():
            train(self.source, run, self.model, settings={"data.split.valid": 0.25})
        return run

    def tuned(self, stages: list[str], name: str = "tuned", **phase: Any) -> Path:
        """A run that has trained these stages."""
        phases = [{"train": stages, "epochs": 1, "lr": 1e-3, "batch": 8, **phase}]
        settings = {"data.split.valid": 0.25, "model.weights": "pretrained", "phase": phases}
        train(self.source, self.folder / name, self.model, recipe="photos", settings=settings)
        return self.folder / name


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    return Case(request.param, tmp_path)


def cases(kinds: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", kinds, indirect=True)


def changed(run: Path, start: Path) -> set[str]:
    """The tensors of the network that training has changed."""
    before, after = load_file(start / "model.safetensors"), load_file(run / "model.safetensors")
    network = [name for name in after if not name.startswith("unknown.")]
    return {name for name in network if float((before[name] - after[name]).abs().max()) > 1e-8}


@cases(TRAINED)
def test_a_cut_trains_the_stages_above_it_at_rates_that_decay(case: Case):
    solved = case.solved()
    network = linnaeus.load(solved).network
    top = list(network.stages[-2:])
    # With hardly any rate below the head, only the head changes.
    for name, decay, stages in (("tuned", 1.0, top), ("decayed", 1e-9, top[-1:])):
        run = case.tuned(top, name, lr_decay=decay, optimizer="sgd", weight_decay=0.0)
        assert {network.stage_of(tensor) for tensor in changed(run, solved)} == set(stages), name
    with pytest.raises(UserError, match=r'phase\.norms = "frozen": .* has no BatchNorm'):
        case.tuned(top, "frozen", norms="frozen")


@cases(["onnx"])
def test_what_a_graph_refuses(case: Case):
    with pytest.raises(UserError, match=r"body of onnx/.* cannot be trained; use train = \['head'\]"):
        case.tuned(["body", "head"])
    with pytest.raises(UserError, match=r"no stage gives a map that Grad-CAM could draw; use --method occlusion$"):
        choose_stages(linnaeus.load(case.solved()).network, 32)


@cases(list(KINDS))
def test_exports_agree_and_the_server_answers(case: Case, say: Any):
    run = case.solved()
    expected = linnaeus.load(run).predict(case.source / "0" / "0 0.png").top(1)[0]
    for kind, more in (("onnx", ()), ("onnx-int8", ("--agree", "0.8"))):
        said = say("export", run, "--to", kind, "--data", case.source, *more)
        assert said.status == 0, said
    with client(run / "model.safetensors") as page:
        answer = page.post("/predict", files=files((case.source / "0" / "0 0.png").read_bytes())).json()
    best = answer["predictions"][0]["top"][0]
    assert (best["class"], best["probability"]) == (expected[0], pytest.approx(expected[1], abs=1e-4))


@cases(list(KINDS))
def test_other_classes_and_forgotten_images(case: Case, say: Any):
    run = case.solved()
    said = say("classes", run, "--merge", "0,1=low", "--out", case.folder / "merged")
    assert said.status == 0, said
    assert linnaeus.load(case.folder / "merged").classes == ("2", "low")
    (case.folder / "list.txt").write_text(f"{case.source / '0' / '0 1.png'}\n")
    said = say("forget", run, "--images", case.folder / "list.txt", "--out", case.folder / "forgotten")
    assert said.status == 0, said
    assert "0 1.png" not in (case.folder / "forgotten" / "split.csv").read_text()


@cases(list(KINDS))
def test_labels_are_learned_from_its_features(case: Case):
    backbone = open_backbone(case.model, "cpu")
    with opened(photos(case.folder / "photos", each=12), backbone=backbone) as page:
        page.settle()
        for _ in range(20):
            image = page.get_json("/api/next?n=1")["questions"][0]["image"]
            page.put_json("/api/answer", images=[image], label=page.truth(image))
        assert page.settle()["labelled"] == 20
        session = page.server.session
        assert session.view.learned.answers is not None
        assert re.search(r"--model\S* \S+", " ".join(page.server.finish._training(Path("x.csv"), Path("run"))))


def shuffled(classifier: Classifier, stages: tuple[str, ...]) -> None:
    """Shuffle the weights of these stages within each tensor, which keeps the scale of the activations."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in classifier.network.named_parameters():
            if classifier.network.stage_of(name) in stages:
                order = torch.randperm(weights.numel(), generator=generator)
                weights.copy_(weights.flatten()[order].view_as(weights))


@cases(["hf", "timm", "siglip", "convnext"])
def test_heat_maps_of_a_trained_network_depend_on_its_weights(case: Case):
    """Adebayo et al. 2018, arXiv:1810.03292, section 3.1: with shuffled weights little remains of the maps."""
    names = linnaeus.load(case.solved()).network.stages
    classifier = linnaeus.load(case.tuned(list(names), epochs=15, optimizer="adamw"))
    network = classifier.network.eval()
    paths = [case.source / name / f"{name} {i}.png" for name in "012" for i in range(4)]
    x = torch.cat([classifier.preprocessing.normalize(torch.as_tensor(square(classifier, path))) for path in paths])
    y = np.repeat([0, 1, 2], 4)
    stage = choose_stages(network, x.shape[-1])
    before = grad_cam(network, x, y, stage)[stage[0]]
    shuffled(classifier, names)
    after = grad_cam(network, x, y, stage)[stage[0]]
    ranks = [spearmanr(a, b, axis=None).statistic for a, b in zip(before, after, strict=True)]
    assert np.ptp(before) > 0
    assert abs(float(np.nan_to_num(ranks).mean())) < 0.5


def square(classifier: Classifier, path: Path) -> np.ndarray:
    """The network's view of an image, (1, size, size, C) uint8."""
    shown = classifier.preprocessing
    return shown.load(str(path))[None]
