"""Networks of timm: their stages compute what timm computes, and they load, save and explain like our own."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import torchvision
from safetensors.torch import save_file

from linnaeus.errors import UserError
from linnaeus.explain.saliency import choose_stages, grad_cam
from linnaeus.modelfile.safetensors import ModelFile, read_model, write_model
from linnaeus.models import create
from linnaeus.models.backbones.timm_backbone import library, pretrained_weights
from linnaeus.models.executors import FrozenPart
from linnaeus.models.onnx_graph import fuse_batchnorms
from linnaeus.models.weights.loading import load_weights
from linnaeus.models.weights.pretrained import license_warning
from linnaeus.preprocess import Preprocessing
from linnaeus.training.optim import train_mode

LITE0 = Path("../shared/data/weights/tf_efficientnet_lite0-imagenet.safetensors")

SMALL = {
    "convnext_atto": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"],
    "mobilenetv3_small_050": ["stem", *(f"blocks.{i}" for i in range(6)), "head"],
    "regnetx_002": ["stem", "s1", "s2", "s3", "s4", "head"],
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
    "tf_efficientnet_lite0": ["stem", *(f"blocks.{i}" for i in range(7)), "head"],
    "vit_tiny_patch16_224": ["stem", "blocks.0-2", "blocks.3-5", "blocks.6-8", "blocks.9-11", "head"],
}
LARGE = [
    "swin_tiny_patch4_window7_224",
    "densenet121",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "mobilenetv4_conv_small",
    "deit_tiny_distilled_patch16_224",
    "repvgg_a0",
    "efficientformer_l1",
    "levit_128s",
    "mixer_s32_224",
    "vgg11_bn",
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "maxvit_rmlp_pico_rw_256",
]


@pytest.fixture(autouse=True)
def timm() -> Any:
    pytest.importorskip("yaml")
    torchvision()  # makes torchvision importable beside a CPU build of torch
    return pytest.importorskip("timm", reason="pip install --no-deps timm")


def network(name: str, classes: int = 3, channels: int = 3, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return create(f"timm/{name}", classes, channels, **arguments).eval()


def images(model: Any, n: int = 2) -> torch.Tensor:
    return torch.randn(n, model.arch["channels"], model.usual_size, model.usual_size)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.long) for name in LARGE)])
def test_stages_compute_what_timm_computes(name: str, timm: Any):
    """Features and logits of the whole, and from every cut; 1e-5 of the largest value."""
    model = network(name)
    x = images(model)
    with torch.inference_mode():
        theirs = model.body.forward_head(model.body.forward_features(x), pre_logits=True)
        logits = model(x)
        scale = float(theirs.abs().max())
        torch.testing.assert_close(model.pool(model.run(x, stop="head")), theirs, atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(logits, model.fc(theirs), atol=1e-5 * float(logits.abs().max()), rtol=0)
        for cut in model.stages[1:]:
            part = FrozenPart(model, cut)(x)
            torch.testing.assert_close(model.run(part, start=cut), logits, atol=1e-5, rtol=1e-4)
    assert part.shape == (2, model.head_input), "what is stored below the head is pooled"


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_belongs_to_the_stage_that_uses_it(name: str):
    """A gradient of what leaves a stage reaches its parameters and those below, and none above."""
    model = network(name)
    assert list(model.stages) == SMALL[name]
    x = images(model, 1)
    for i, stop in enumerate(model.stages[1:], 1):
        model.zero_grad()
        model.run(x, stop=stop).square().sum().backward()
        below = model.stages[:i]
        for parameter, value in model.named_parameters():
            if value.grad is not None:
                assert model.stage_of(parameter) in below, parameter
    model.zero_grad()
    model(x).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "fc_norm" not in name)


def test_frozen_stages_are_in_evaluation_mode():
    model = network("resnet18")
    train_mode(model, ["layer4", "head"])
    assert model.body.layer4.training
    assert not model.body.layer3[0].bn1.training
    assert not model.body.bn1.training


def test_norms_with_an_activation_are_merged_with_it():
    model = network("tf_efficientnet_lite0")
    x = images(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                module.bias.normal_(std=0.1)
        fused = fuse_batchnorms(model, x)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
        torch.testing.assert_close(fused(x), model(x), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.long)]
)
def test_a_model_file_holds_it(name: str, tmp_path: Path):
    """Swin has buffers that no file holds: they are computed again."""
    model = network(name)
    size = model.usual_size
    about = ModelFile(model.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(size, size))
    write_model(tmp_path / "model.safetensors", model.state_dict(), about)
    again, about = read_model(tmp_path / "model.safetensors")
    assert about.versions["timm"] == library().__version__
    x = images(model)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_maps_of_its_stages_follow_the_image(name: str):
    """Grad-CAM works on maps and on patch tokens, and a map changes with the image."""
    model = network(name)
    x = images(model)
    stages = choose_stages(model, model.usual_size, "all")
    maps = grad_cam(model, x, np.array([0, 1]), stages)
    assert set(stages) >= ({"blocks.6-8"} if name.startswith("vit") else {"stages.3"})
    assert "blocks.9-11" not in stages, "its patch tokens reach no logit: the class token has read them before"
    for stage in stages[1:]:
        assert maps[stage].shape == (2, model.usual_size, model.usual_size)
        assert np.isfinite(maps[stage]).all()
    assert any(not np.allclose(maps[stage][0], maps[stage][1]) for stage in stages)


def test_images_of_another_size_where_the_network_allows_it():
    model = network("vit_tiny_patch16_224")
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 96, 96)).shape == (1, 3)
        with pytest.raises(AssertionError, match="divisible"):
            model(torch.randn(1, 3, 100, 100))


@pytest.mark.skipif(not LITE0.is_file(), reason=f"needs {LITE0}")
@pytest.mark.parametrize("prefix", ["", "model."])
def test_real_weights_load_with_their_preprocessing(prefix: str, tmp_path: Path, timm: Any):
    from safetensors.torch import load_file, save_file

    tensors = load_file(LITE0)
    file = tmp_path / "weights.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, file)
    loaded = load_weights("timm/tf_efficientnet_lite0", str(file), classes=7)
    assert loaded.normalization["mean"] == loaded.normalization["std"] == (0.5, 0.5, 0.5)
    assert [loaded.normalization[key] for key in ("size", "resize", "interpolation")] == [224, 256, "bicubic"]
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    theirs.load_state_dict({k: v.float() for k, v in tensors.items() if not k.startswith("classifier.")}, strict=False)
    x = torch.randn(2, 3, 224, 224)
    ours = loaded.model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours.pool(ours.run(x, stop="head")), theirs(x), atol=1e-4, rtol=1e-4)


def test_one_channel_and_another_pooling():
    assert network("resnet18", channels=1)(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    token, average = network("vit_tiny_patch16_224"), network("vit_tiny_patch16_224", pool="avg")
    x = images(token)
    with torch.inference_mode():
        assert not torch.allclose(token(x), average(x))


def test_bad_names_and_files_are_one_line(tmp_path: Path):
    one = tmp_path / "one.safetensors"
    save_file({"weight": torch.zeros(3)}, one)  # no prefix that could be removed
    for call, reason in (
        (lambda: create("timm/tf_efficientnet_lit0", 2), "did you mean timm/tf_efficientnet_lite0"),
        (lambda: create("timm/resnet18", 2, head_stages=["layer3"]), r"model\.head is available for"),
        (lambda: create("timm/resnet18", 2, pool="nonsense"), "cannot create it with pool = 'nonsense'"),
        (lambda: create("timm/resnet18", 2, depth=3), "has no argument 'depth'"),
        (lambda: pretrained_weights("timm/resnet99"), "has no such network"),
        (lambda: load_weights("timm/resnet18", str(tmp_path / "no.safetensors"), classes=2), "no such weights file"),
        (lambda: load_weights("timm/resnet18", str(one), classes=2), "these weights do not fit the network"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not LITE0.is_file(), reason=f"needs {LITE0}")
def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="these weights are for timm/tf_efficientnet_lite0, not for timm/resnet18"):
        load_weights("timm/resnet18", str(LITE0), classes=2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_timm_or_with_an_unfit_torchvision_one_line_says_what_to_install(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
):
    """transformers reports a torchvision that does not fit as a missing module without a name."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm: pip install timm"):
        library()
    monkeypatch.delitem(sys.modules, "timm")
    original = builtins.__import__

    def broken(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "timm":
            error = RuntimeError("operator torchvision::nms does not exist")
            raise (ModuleNotFoundError("Could not import module") if wrapped else error) from (
                wrapped and error
            ) or None
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(UserError, match=r"nms does not exist.*torchvision 0\.28 .* torch 2\.13\.0\+cpu"):
        library()


def test_a_model_file_without_timm_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = network("resnet18")
    about = ModelFile(model.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(64, 64))
    write_model(tmp_path / "model.safetensors", model.state_dict(), about)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model\.safetensors: .*pip install timm") as caught:
        read_model(tmp_path / "model.safetensors")
    assert "fresh copy" not in str(caught.value)


@pytest.mark.parametrize(
    ("license", "warning"),
    [
        ("apache-2.0", ""),
        ("BSD-3-Clause", ""),
        ("", ""),
        ("cc-by-nc-4.0", "forbids commercial use"),
        ("fair-noncommercial-research-license", "forbids commercial use"),
        ("apple-amlr", "forbids commercial use"),
        ("dinov3-license", "read its conditions"),
        ("unknown", "read its conditions"),
    ],
)
def test_a_license_with_conditions_is_a_warning(license: str, warning: str):
    found = license_warning(license)
    assert warning in found
    assert bool(found) == bool(warning)
