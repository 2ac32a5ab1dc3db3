"""Adapting weights to a network: head, channels and auxiliary heads; other differences are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import torchvision
from safetensors.torch import save_file
from sample_weights import trained

from linnaeus.errors import UserError
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models import create
from linnaeus.models.weights.loading import load_weights
from linnaeus.preprocess import Preprocessing


def test_adapting(tmp_path: Path) -> None:
    state = trained()
    path = tmp_path / "w.pth"
    torch.save({key: t for key, t in state.items() if not key.endswith("num_batches_tracked")}, path)
    loaded = load_weights("resnet20", str(path), classes=7, channels=1, arguments={"shortcut": "A"})
    assert any(note == "new head for 7 classes (the weights have 1000)" for note in loaded.notes)
    ours = loaded.model.state_dict()
    assert ours["fc.weight"].shape == (7, 64)
    torch.testing.assert_close(ours["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(ours["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
    assert ours["bn1.num_batches_tracked"] == 0
    assert loaded.normalization["mean"] == (0.449,)
    assert loaded.normalization["std"] == (0.226,)
    # A gray image in one channel gives the same features as the same image in three channels.
    color = load_weights("resnet20", str(path), classes=7, arguments={"shortcut": "A"})
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
        (lambda s: s.clear(), "contains no tensors"),
    ],
)
def test_a_mismatch_is_refused_by_name(tmp_path: Path, change, message: str) -> None:
    state = trained()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_weights("resnet20", str(tmp_path / "w.pth"), classes=5)
    assert "w.pth" in str(caught.value)


def test_googlenet_loads_as_torchvision_has_it(tmp_path: Path) -> None:
    """Auxiliary heads in the file are dropped, and the 3x3 branch is recognized by its tensor."""
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
    assert "the auxiliary heads are initialized from scratch" in again.notes
    assert not torch.equal(again.model.state_dict()["aux1.fc1.weight"], state["aux1.fc1.weight"])
    with pytest.raises(UserError, match="was trained with branch5x5 = '3x3', not '5x5'"):
        load_weights("inception_v1", str(tmp_path / "g.pth"), classes=5, arguments={"branch5x5": "5x5"})


def test_a_head_on_several_stages_is_new_and_says_so(tmp_path: Path) -> None:
    """Even for the same classes. Weights trained with such a head are refused for a network without it."""
    path = tmp_path / "w.pth"
    torch.save(trained(), path)
    chosen = {"head_stages": ["layer2", "layer3"], "shortcut": "A"}
    loaded = load_weights("resnet20", str(path), classes=1000, arguments=chosen)
    assert "new head for 1000 classes on 96 features of layer2, layer3" in loaded.notes
    assert loaded.model.state_dict()["fc.weight"].shape == (1000, 96)
    file = tmp_path / "model.safetensors"
    wide = create("resnet20", 3, head_stages=["layer2", "layer3"])
    write_model(file, wide.state_dict(), ModelFile(wide.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(32, 32)))
    again = load_weights("resnet20", str(file), classes=3, arguments={"head_stages": ["layer3", "layer2"]})
    assert torch.equal(again.model.state_dict()["fc.weight"], wide.state_dict()["fc.weight"])
    with pytest.raises(UserError, match=r"fc.weight is \(3, 96\) and should be \(3, 64\)"):
        load_weights("resnet20", str(file), classes=3)


def published_resnet20(x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits as the most used public ResNet-20 for CIFAR computes them, whose zeros enclose the channels."""

    def block(x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        y = x
        for i, step in ((1, stride), (2, 1)):
            y = F.conv2d(y, state[f"{name}.conv{i}.weight"], stride=step, padding=1)
            scale, shift, mean, variance = (
                state[f"{name}.bn{i}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
            )
            y = F.batch_norm(y, mean, variance, scale, shift)
            y = F.relu(y) if i == 1 else y
        quarter = y.shape[1] // 4
        return F.relu(y + (x if stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    scale, shift, mean, variance = (state[f"bn1.{key}"] for key in ("weight", "bias", "running_mean", "running_var"))
    x = F.relu(F.batch_norm(x, mean, variance, scale, shift))
    for layer in (1, 2, 3):
        for i in range(3):
            x = block(x, f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def test_public_names_and_centered_zeros(tmp_path: Path) -> None:
    """`module.linear.weight` is our `fc.weight`, and A-centered computes what the public network does."""
    path = tmp_path / "resnet20.th"
    torch.manual_seed(0)
    public = {name.replace("fc.", "linear."): tensor for name, tensor in create("resnet20", 10).state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in public.items()}, "best_prec1": 91.7}, path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = published_resnet20(x, public)
        logits = {
            kind: load_weights("resnet20", str(path), classes=10, arguments={"shortcut": kind}).model.eval()(x)
            for kind in ("A", "A-centered")
        }
    torch.testing.assert_close(logits["A-centered"], theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits["A"], theirs, atol=1e-5, rtol=1e-2)


def test_the_kind_of_shortcut_is_never_guessed(tmp_path: Path) -> None:
    """Projections have tensors; zeros have none, so the header of the file or the user has to tell their kind."""
    path = tmp_path / "w.safetensors"
    save_file(trained(), path)
    with pytest.raises(
        UserError, match=r"w\.safetensors: fits both kinds .* model\.arguments\.shortcut to A .* or A-centered"
    ):
        load_weights("resnet20", str(path), classes=5)
    save_file(trained(), path, metadata={"shortcut": "A-centered"})
    assert load_weights("resnet20", str(path), classes=5).model.arch["arguments"]["shortcut"] == "A-centered"
    with pytest.raises(UserError, match="trained with shortcut = 'A-centered', not 'A'"):
        load_weights("resnet20", str(path), classes=5, arguments={"shortcut": "A"})
    projected = trained(shortcut="B")
    names = {name: name.replace("fc.", "linear.").replace(".downsample.", ".shortcut.") for name in projected}
    save_file({names[name]: tensor for name, tensor in projected.items()}, path)
    assert load_weights("resnet20", str(path), classes=5).model.arch["arguments"]["shortcut"] == "B"
    with pytest.raises(UserError, match="trained with shortcut = 'B', not 'A'"):
        load_weights("resnet20", str(path), classes=5, arguments={"shortcut": "A"})
