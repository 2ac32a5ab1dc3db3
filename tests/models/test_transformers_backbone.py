"""Networks of transformers: their stages compute what the library computes, and they load, save and explain."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import torchvision
from safetensors.torch import load_file, save_file
from tiny_transformers import CONFIGS, config, write_repository

from linnaeus.errors import UserError
from linnaeus.explain.saliency import choose_stages, grad_cam
from linnaeus.modelfile.safetensors import ModelFile, read_model, write_model
from linnaeus.models import create
from linnaeus.models.executors import FrozenPart
from linnaeus.models.onnx_graph import export_graph, inference_session
from linnaeus.models.weights.loading import load_weights
from linnaeus.preprocess import Preprocessing
from linnaeus.training.optim import train_mode

STAGED = {
    "convnext": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"],
    "dinov2": ["stem", "blocks.0-1", "blocks.2-3", "blocks.4", "head"],
    "dinov3_convnext": ["stages.0", "stages.1", "stages.2", "stages.3", "head"],
    "dinov3_vit": ["stem", "blocks.0-1", "blocks.2-3", "blocks.4", "head"],
    "resnet": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"],
    "siglip_vision_model": ["stem", "blocks.0-1", "blocks.2-3", "blocks.4", "head"],
    "swin": ["stem", "layers.0", "layers.1", "layers.2", "head"],
    "vit": ["stem", "blocks.0-1", "blocks.2-3", "blocks.4", "head"],
}


@pytest.fixture(autouse=True)
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    torchvision()  # transformers imports it where it is installed
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    return pytest.importorskip("transformers", reason="pip install transformers")


def network(kind: str, classes: int = 3, channels: int = 3, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return create(f"hf/somebody/{kind}", classes, channels, config=config(kind), **arguments).eval()


def images(model: Any, n: int = 2, size: int | None = None) -> torch.Tensor:
    size = size or model.usual_size
    return torch.randn(n, model.arch["channels"], size, size, generator=torch.Generator().manual_seed(1))


def library_features(model: Any, x: torch.Tensor) -> torch.Tensor:
    """What the library itself returns for images."""
    if type(model.body).__name__ == "Siglip2VisionModel":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        patches = torch.stack([convert_image_to_patches(image, 8) for image in x])
        side = x.shape[-1] // 8
        found = model.body(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32),
            spatial_shapes=torch.tensor([[side, side]] * len(x)),
        )
    else:
        found = model.body(pixel_values=x)
    pooled = getattr(found, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    states = found.last_hidden_state
    return states[:, 0] if model.family.prefix else states.mean((2, 3) if states.dim() == 4 else 1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_stages_compute_what_the_library_computes(kind: str):
    """Features and logits of the whole, and from every cut; 1e-5 of the largest value."""
    model = network(kind)
    x = images(model)
    with torch.inference_mode():
        theirs = library_features(model, x)
        scale = float(theirs.abs().max())
        assert scale > 0
        torch.testing.assert_close(model.pool(model.run(x, stop="head")), theirs, atol=1e-5 * scale, rtol=0)
        logits = model(x)
        torch.testing.assert_close(logits, model.fc(theirs), atol=1e-5 * float(logits.abs().max()), rtol=0)
        for cut in model.stages[1:]:
            part = FrozenPart(model, cut)(x)
            torch.testing.assert_close(model.run(part, start=cut), logits, atol=1e-6, rtol=1e-5)
    assert part.shape == (2, model.head_input), "what is stored below the head is pooled"


def test_siglip2_resamples_as_the_library_does():
    model = network("siglip2_vision_model")
    for size in (24, 64):
        x = images(model, 2, size)
        with torch.inference_mode():
            ours, theirs = model.pool(model.run(x, stop="head")), library_features(model, x)
            torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", STAGED)
def test_every_parameter_belongs_to_the_stage_that_uses_it(kind: str):
    """A gradient of what leaves a stage reaches its parameters and those below, and none above."""
    model = network(kind)
    assert list(model.stages) == STAGED[kind]
    x = images(model, 1)
    for i, stop in enumerate(model.stages[1:], 1):
        model.zero_grad()
        model.run(x, stop=stop).square().sum().backward()
        for parameter, value in model.named_parameters():
            if value.grad is not None:
                assert model.stage_of(parameter) in model.stages[:i], parameter
    model.zero_grad()
    model(x).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "mask_token" not in name)


def test_frozen_stages_are_in_evaluation_mode():
    model = network("resnet")
    train_mode(model, ["stages.3", "head"])
    assert model.body.encoder.stages[3].training
    assert not model.body.encoder.stages[2].training
    assert not model.body.embedder.training


def test_positions_of_dinov3_do_not_change_at_random_in_training():
    model = network("dinov3_vit")
    x = images(model, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("kind", ["dinov2", "vit", "siglip_vision_model", "clip_vision_model", "siglip2_vision_model"])
def test_position_embeddings_are_resampled_to_the_images(kind: str):
    model = network(kind)
    assert model.size_note(32) == ""
    assert model.size_note(48) == "position embeddings resampled from 4 x 4 to 6 x 6 patches"
    with torch.inference_mode():
        assert model(images(model, 2, 48)).shape == (2, 3)
        with pytest.raises(ValueError, match=r"36 is not divisible by its patches of 8 pixels; use 32 or 40"):
            model(images(model, 1, 36))


def test_pooling():
    x = images(network("dinov2"))
    with torch.inference_mode():
        tokens = network("dinov2").run(x, stop="head")
        assert tokens.shape == (2, 17, 32)
        for pool, expected in (
            ("cls", tokens[:, 0]),
            ("mean", tokens[:, 1:].mean(1)),
            ("cls+mean", torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)),
        ):
            model = network("dinov2", pool=pool)
            torch.testing.assert_close(model.pool(model.run(x, stop="head")), expected)
            assert model.head_input == expected.shape[1] == model.fc.in_features
        registers = network("dinov2_with_registers", pool="mean")
        tokens = registers.run(x, stop="head")
        torch.testing.assert_close(registers.pool(tokens), tokens[:, 5:].mean(1))
    for kind in ("siglip_vision_model", "convnext"):
        with pytest.raises(UserError, match="has no class token; use mean"):
            network(kind, pool="cls")


def test_one_channel():
    assert network("vit", channels=1)(torch.randn(1, 1, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("kind", ["dinov3_vit", "siglip2_vision_model", "convnext", "swin", "beit"])
def test_a_model_file_needs_no_repository(kind: str, tmp_path: Path):
    """It holds the configuration and all weights; positions and windows that no file holds are computed again."""
    model = network(kind, pool="mean")
    size = model.usual_size
    about = ModelFile(model.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(size, size))
    write_model(tmp_path / "model.safetensors", model.state_dict(), about)
    again, about = read_model(tmp_path / "model.safetensors")
    import transformers

    assert about.versions["transformers"] == transformers.__version__
    x = images(model)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), atol=1e-6, rtol=1e-5)


def test_a_model_file_without_the_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = network("vit")
    about = ModelFile(model.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(32, 32))
    write_model(tmp_path / "model.safetensors", model.state_dict(), about)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'model\.safetensors: .*pip install "transformers<6"') as caught:
        read_model(tmp_path / "model.safetensors")
    assert "fresh copy" not in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit", "siglip_vision_model", "siglip2_vision_model", "convnext"])
def test_an_exported_graph_computes_the_same(kind: str):
    model = network(kind)
    x = images(model, 2, 48 if kind == "dinov2" else None)
    session = inference_session(export_graph(model, x))
    for n in (1, 2):
        found = torch.from_numpy(session.run(None, {"x": x[:n].numpy()})[0])
        with torch.inference_mode():
            torch.testing.assert_close(found, model(x[:n]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "pool", "last"),
    [
        ("dinov2", "", "blocks.2-3"),
        ("dinov2", "mean", "blocks.4"),
        ("siglip_vision_model", "", "blocks.4"),
        ("convnext", "", "stages.3"),
        ("swin", "", "layers.2"),
    ],
)
def test_maps_follow_image_and_weights(kind: str, pool: str, last: str):
    """Grad-CAM at the last patch tokens that reach the logits; other weights give another map (Adebayo et al. 2018)."""
    model = network(kind, pool=pool)
    with torch.no_grad():
        model.fc.weight.normal_()
    x, target = images(model, 2, 64), np.array([0, 1])
    stages = choose_stages(model, 64, "all")
    assert stages[-1] == last
    maps = grad_cam(model, x, target, stages)[last]
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()
    assert maps.max() > 0
    other = network(kind, pool=pool)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.2)
    randomized = grad_cam(other, x, target, stages)[last]
    for one, another in zip(maps, randomized, strict=True):
        assert not np.allclose(one, another)
        if one.std() and another.std() and kind != "convnext":  # whose map here has four positions
            assert abs(np.corrcoef(one.ravel(), another.ravel())[0, 1]) < 0.95
    assert not np.allclose(maps[0], maps[1])


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "dinov2."])
def test_weights_load_under_any_common_prefix(prefix: str, tmp_path: Path, transformers: Any):
    folder = write_repository(tmp_path / "copy", "dinov2")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tensors = load_file(folder / "model.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    loaded = load_weights("hf/somebody/tiny", str(folder), classes=4)
    assert loaded.license == "apache-2.0"
    expected = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "resize": 40, "size": 32, "interpolation": "bicubic"}
    assert {key: loaded.normalization[key] for key in expected} == expected
    x = images(loaded.model)
    with torch.inference_mode():
        ours = loaded.model.eval()
        torch.testing.assert_close(ours.pool(ours.run(x, stop="head")), theirs(x).pooler_output, atol=1e-5, rtol=1e-4)


def test_weights_of_a_classifier_and_of_a_network_for_texts_too(tmp_path: Path, transformers: Any):
    """The names of earlier versions, a classifier without the pooler of the base network, an encoder of texts."""
    torch.manual_seed(0)
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIGS["vit"], num_labels=5)).eval()
    classifier.save_pretrained(tmp_path / "vit")
    loaded = load_weights("hf/somebody/vit", str(tmp_path / "vit"), classes=5)
    assert loaded.model.arch["arguments"]["pool"] == "cls"
    x = images(loaded.model)
    with torch.inference_mode():
        theirs = classifier.vit(x).last_hidden_state[:, 0]
        ours = loaded.model.eval().pool(loaded.model.run(x, stop="head"))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    both = transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=CONFIGS["siglip_vision_model"], text_config=text)
    ).eval()
    both.save_pretrained(tmp_path / "siglip")
    loaded = load_weights("hf/somebody/siglip", str(tmp_path / "siglip"), classes=5)
    assert type(loaded.model.body).__name__ == "SiglipVisionModel"
    x = images(loaded.model)
    with torch.inference_mode():
        ours = loaded.model.eval().pool(loaded.model.run(x, stop="head"))
        torch.testing.assert_close(ours, both.vision_model(x).pooler_output, atol=1e-5, rtol=1e-4)


def test_bad_configurations_and_files_are_one_line(tmp_path: Path):
    folder = write_repository(tmp_path / "copy", "dinov2")
    other = write_repository(tmp_path / "other", "convnext")
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    broken = write_repository(tmp_path / "broken", "convnext")
    (broken / "config.json").write_text("{")
    narrow = write_repository(tmp_path / "narrow", "dinov2")
    settings = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(settings | {"hidden_size": 16}))

    def load(folder: Path) -> Any:
        return load_weights("hf/somebody/tiny", str(folder), classes=2)

    def configured(**entries: Any) -> Any:
        return create("hf/somebody/tiny", 2, config=entries)

    for call, reason in (
        (lambda: create("hf/somebody/tiny", 2), "LINNAEUS_OFFLINE is set; bring config.json and model.safetensors"),
        (lambda: create("hf/../secrets", 2), "not a repository of the hub"),
        (lambda: load(other), "misses .*, so it does not hold the weights of hf/somebody/tiny"),
        (lambda: load(broken), r"config\.json: cannot be read as JSON"),
        (lambda: load(narrow), "has other shapes of"),
        (lambda: load(tmp_path / "gone.safetensors"), "no such weights file"),
        (lambda: network("vit", pool="max"), "pool = 'max' is unknown: choose from .*cls"),
        (lambda: configured(model_type="dinov22"), "no model_type 'dinov22'; did you mean dinov2"),
        (lambda: configured(model_type="bert"), "takes input_ids, not images"),
        (lambda: configured(model_type="timm_wrapper"), "network of timm; use timm/tiny"),
        (lambda: configured(model_type="vit_mae"), "hides random patches"),
        (lambda: configured(model_type="vit", num_hidden_layers=10**9), "num_hidden_layers = 1000000000 is more than"),
        (lambda: configured(model_type="vit", hidden_act="nonsense"), "cannot create it"),
        (lambda: configured(), "no model_type ''"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_configuration_runs_no_code_and_fetches_nothing():
    model: Any = create(
        "hf/somebody/tiny",
        2,
        config=config("vit")
        | {
            "auto_map": {"AutoModel": "evil--Evil"},
            "attn_implementation": "somebody/kernel",
            "_attn_implementation": "x/y",
        },
    )
    assert {"auto_map", "attn_implementation", "_attn_implementation"}.isdisjoint(model.arch["arguments"]["config"])
    assert model.body.config._attn_implementation == "sdpa"
