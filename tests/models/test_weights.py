"""Loading weights by name or from a file: what the file or the table says is applied, contradictions are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sample_weights import trained

from linnaeus.errors import UserError
from linnaeus.models import create
from linnaeus.models.weights import store as weight_store
from linnaeus.models.weights.loading import load_weights


def test_the_header_decides(tmp_path: Path) -> None:
    """Stride and normalization come from the header of the file, and a contradiction is refused."""
    path = tmp_path / "w.safetensors"
    state = trained("resnet50")
    mean_std = json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    save_file(state, path, metadata={"arch": "resnet50", "stride_in": "1x1", "normalisation": mean_std})
    loaded = load_weights("resnet50", str(path), classes=1000)
    assert loaded.model.arch["arguments"]["stride_in"] == "1x1"
    assert loaded.normalization["mean"] == (0.1, 0.2, 0.3)
    assert "stride_in = '1x1' is set to match the weights" in loaded.notes
    with pytest.raises(UserError, match="stride_in = '1x1', not '3x3'; remove stride_in"):
        load_weights("resnet50", str(path), classes=1000, arguments={"stride_in": "3x3"})
    with pytest.raises(UserError, match="for resnet50, not for resnet101"):
        load_weights("resnet101", str(path), classes=1000)
    save_file(state, path, metadata={"normalization": "whatever"})
    with pytest.raises(UserError, match="unknown normalization 'whatever'; choose from torchvision"):
        load_weights("resnet50", str(path), classes=1000)
    save_file(state, path)
    assert any("assuming 3x3" in note for note in load_weights("resnet50", str(path), classes=5).notes)


def test_a_model_file_is_a_file_of_weights(tmp_path: Path) -> None:
    arch = create("resnet20", 4, shortcut="B", zero_init=True).arch
    images = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize": 40, "size": 32, "interpolation": "bicubic"}
    header = json.dumps({"arch": arch, "preprocessing": images})
    (tmp_path / "run").mkdir()
    save_file(trained(classes=4, shortcut="B"), tmp_path / "run" / "model.safetensors", metadata={"linnaeus": header})
    loaded = load_weights("resnet20", str(tmp_path / "run"), classes=9)
    assert loaded.model.arch["arguments"] == {"shortcut": "B", "zero_init": False}
    assert loaded.normalization == {key: tuple(v) if isinstance(v, list) else v for key, v in images.items()}


@pytest.mark.parametrize(
    ("model", "choice", "message"),
    [
        (
            "resnet50",
            "imagenett",
            "unknown weights 'imagenett'.* `linnaeus weights import NAME FILE` stores a local file",
        ),
        ("resnet50", "resnet50-torchvision-v3", "did you mean resnet50-torchvision-v"),
        ("resnet50", "ImageNet", r"unknown weights 'ImageNet' \(did you mean imagenet\?\)"),
        ("resnet50", "IMAGENET1K_V2", r"did you mean imagenet\?"),
        ("resnet50", "DEFAULT", r"did you mean imagenet\?"),
        ("resnet50", "missing.pth", "missing.pth: there is no such weights file"),
        ("resnet18", "resnet50-v1-imagenet", "for resnet50, not for resnet18"),
        ("plain20", "imagenet", "plain20: there are no pretrained weights"),
        ("resnet51", "imagenet", "unknown model 'resnet51'"),
        ("resnet50", "imagenet", "resnet50-torchvision-v1: there is no local file; run: linnaeus weights pull"),
    ],
)
def test_misuse_is_named(model: str, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_weights(model, choice, classes=5)


def test_the_provided_weights(shared_data: Path) -> None:
    """The stride is set to the 1x1 convolution, by name and by file, and the float16 tensors become float32."""
    file = shared_data / "weights" / "resnet50-v1-imagenet.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    place, notes = weight_store.import_file("resnet50-v1-imagenet", file)
    assert (place.name, notes) == (file.name, [])
    for choice in ("imagenet", str(file)):
        loaded = load_weights("resnet50", choice, classes=16)
        assert loaded.source == "resnet50-v1-imagenet"
        assert loaded.model.get_submodule("layer2.0.conv1").stride == (2, 2)
        assert loaded.model.get_submodule("layer2.0.conv2").stride == (1, 1)
        assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
        assert loaded.normalization["mean"] == (0.485, 0.456, 0.406)
