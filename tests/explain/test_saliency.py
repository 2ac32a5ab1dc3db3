"""Heat maps: the right formula on every kind of network; they find the evidence and change no network."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tiny import mini, samples, write_images, write_tiny_model
from torch import Tensor, nn

from linnaeus.cli import explain as cli_explain
from linnaeus.errors import UserError
from linnaeus.explain.saliency import (
    METHODS,
    choose_stages,
    explain,
    find_class,
    grad_cam,
    integrate,
    integrated_gradients,
    map_sizes,
    occlusion,
)
from linnaeus.inference.classifier import Classifier, load
from linnaeus.models import Network, create, wrap

SIZE, PATCH = 32, 10


def alive(name: str, size: int, **arguments) -> tuple[Network, Tensor]:
    """A network with random weights whose BatchNorms have seen images, in evaluation mode; and images."""
    torch.manual_seed(0)
    network = create(name, 4, 3, **arguments)
    x = torch.rand(4, 3, size, size)
    with torch.no_grad():
        network.train()(x)
    nn.init.normal_(network.get_parameter("fc.weight"), 0.3)  # so that every class has evidence
    return network.eval(), x


def stripes(n: int, seed: int, classes: int = 2) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Images (n, 1, 32, 32) of noise with a patch of stripes: level is class 0, upright 1, and none 2.

    And their classes (n,), and the patches' corners (n, 2).
    """
    generator = np.random.default_rng(seed)
    x = generator.uniform(0.3, 0.5, (n, 1, SIZE, SIZE)).astype(np.float32)
    y = np.arange(n) % classes
    corners = generator.integers(0, SIZE - PATCH + 1, (n, 2))
    bars = np.tile([0.9, -0.1], (PATCH, PATCH // 2)).astype(np.float32)
    for image, label, (top, left) in zip(x, y, corners, strict=True):
        if label < 2:
            image[0, top : top + PATCH, left : left + PATCH] = bars if label else bars.T
    return torch.from_numpy(x - 0.4), y, corners  # normalized


@pytest.fixture(scope="module")
def trained() -> Network:
    """A small custom network that recognizes stripes anywhere, with in-place operations where possible."""
    torch.manual_seed(0)
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 8, 3, padding=1),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1),
        relu2=nn.ReLU(inplace=True),
        conv3=nn.Conv2d(16, 16, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(16, 3),
    )
    network = wrap(nn.Sequential(layers), 3, 1)
    x, y, _ = stripes(192, 1, classes=3)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(120):
        part = slice(32 * (step % 6), 32 * (step % 6) + 32)
        loss = F.cross_entropy(network(x[part]), torch.from_numpy(y[part]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "size", "first", "step", "arguments"),
    [
        ("resnet20", 32, 0, 4, {}),
        ("resnet18", 64, 0, 32, {}),
        ("inception_v1", 64, 22, 32, {}),
    ],
)
def test_at_the_last_stage_it_is_cam(name: str, size: int, first: int, step: int, arguments: dict):
    """With global average pooling and a linear head, the map is the weighted sum of channels with the class's weights
    (Zhou et al. 2016, arXiv:1512.04150, eq. 2), above zero, found where the positions of the map look."""
    network, x = alive(name, size, **arguments)
    targets = np.array([2, 0, 3, 1])
    stage = network.stages[-2]
    found = grad_cam(network, x, targets, (stage,))[stage]
    with torch.no_grad():
        maps = network.run(x, stop="head")
        weights = network.get_parameter("fc.weight")[torch.from_numpy(targets)]
        cam = torch.einsum("nc,nchw->nhw", weights, maps).relu().numpy()
    assert (cam.max((1, 2)) > 0).all()
    assert found.shape == (4, size, size)
    assert found.dtype == np.float32
    expected = cam / cam.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found[:, first::step, first::step], expected, atol=1e-4)
    assert found.max((1, 2)) == pytest.approx(np.ones(4), abs=1e-5)
    assert found.min() >= 0


def test_every_path_from_a_stage_to_the_logits_counts():
    """If the head uses a stage directly and through later stages, the gradients of both paths count."""
    network, x = alive("resnet20", 32, head_stages=["layer2", "layer3"])
    targets = np.array([0, 1, 2, 3])
    found = grad_cam(network, x, targets, ("layer2",))["layer2"]
    maps = network.run(x, stop="layer3").detach().requires_grad_()
    vector = torch.cat([maps.mean((2, 3)), network.get_submodule("layer3")(maps).mean((2, 3))], 1)
    logits = network.get_submodule("fc")(vector)
    assert torch.allclose(logits, network(x), atol=1e-5)
    (slopes,) = torch.autograd.grad(logits[torch.arange(4), torch.from_numpy(targets)].sum(), maps)
    cam = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach().numpy()
    np.testing.assert_allclose(found[:, ::2, ::2], cam / cam.max((1, 2), keepdims=True), atol=1e-4)


@pytest.mark.parametrize(("name", "frozen"), [("resnet20", False), ("mini_resnet", True), ("inception_v1", False)])
def test_the_network_is_left_alone(name: str, frozen: bool):
    network, x = alive(name, 32 if name == "resnet20" else 48, **({"aux": True} if name == "inception_v1" else {}))
    network.get_parameter("fc.weight").requires_grad_(False)
    if frozen:
        network.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    flags = [p.requires_grad for p in network.parameters()]
    x_before = x.clone()
    with torch.inference_mode():  # whatever mode the caller is in
        maps = grad_cam(network, x, np.zeros(4, int), choose_stages(network, x.shape[-1], "all"))
    assert any(m.any() for m in maps.values())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    for module in network.modules():
        assert not module.training
        assert not {*module._forward_hooks, *module._backward_hooks, *module._forward_pre_hooks}


def test_a_batch_is_its_images_one_by_one():
    network, x = alive("resnet20", 32)
    targets = np.array([3, 1, 0, 2])
    stages = choose_stages(network, 32, "all")
    assert stages == ("stem", "layer1", "layer2", "layer3")
    together = grad_cam(network, x, targets, stages)
    for i in (0, 3):
        alone = grad_cam(network, x[i : i + 1], targets[i : i + 1], stages)
        for stage in stages:
            np.testing.assert_allclose(together[stage][i], alone[stage][0], atol=1e-4)


def test_without_evidence_for_a_class_the_map_is_zero():
    network, x = alive("resnet20", 32)
    with torch.no_grad():
        network.get_parameter("fc.weight")[1] = -1
    found = grad_cam(network, x, np.ones(4, int), ("layer3",))["layer3"]
    assert not found.any()
    assert np.isfinite(found).all()


def test_maps_are_centered_on_the_evidence_for_the_class(trained: Network):
    """The center of the heat is at the patch, for each of two stages, in a network with strides and in-place code."""
    x, y, corners = stripes(24, 7)
    assert (trained(x).argmax(1).numpy() == y).all()
    places = np.arange(SIZE)
    for stage in ("conv2", "relu3"):
        heat = grad_cam(trained, x, y, (stage,))[stage] ** 2
        middle = np.stack([(heat.sum(2) * places).sum(1), (heat.sum(1) * places).sum(1)], 1) / heat.sum((1, 2))[:, None]
        off = np.abs(middle - (corners + (PATCH - 1) / 2))
        assert off.mean() < 0.4, stage  # pixels; an even spread would be 0.5 off in either direction


def test_which_stage_is_drawn():
    network, _ = alive("mini_resnet", 28)
    assert map_sizes(network, 28) == {"block1": (12, 12), "block2": (5, 5)}  # block3 is one position
    assert choose_stages(network, 28) == ("block2",)
    assert choose_stages(network, 28, "block1") == ("block1",)
    assert choose_stages(network, 28, "all") == ("block1", "block2")
    assert choose_stages(alive("resnet18", 64)[0], 224) == ("layer4",)
    assert choose_stages(alive("resnet18", 64)[0], 64) == ("layer3",)  # layer4 has 2 x 2
    with pytest.raises(UserError, match=r"--stage block4: no such stage \(did you mean block2"):
        choose_stages(network, 28, "block4")
    with pytest.raises(UserError, match=r"--stage block3: gives no map at 28 pixels; choose from 'block1', 'block2'"):
        choose_stages(network, 28, "block3")
    with pytest.raises(UserError, match=r"--stage head: gives no map"):
        choose_stages(network, 28, "head")
    one_piece = wrap(nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 2)), 2, 1)
    with pytest.raises(UserError, match=r"no stage gives a map .* --method occlusion"):
        choose_stages(one_piece, 28)


def randomized(network: Network, maps_of: Callable[[Network], np.ndarray], seed: int = 0) -> dict[str, float]:
    """Stage down to which the weights are shuffled -> mean rank correlation of the maps with those of the network.

    Adebayo et al. 2018, arXiv:1810.03292, section 3.1. Shuffling within each tensor keeps the scale of the activations.
    """
    before, twin = maps_of(network), copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    correlations = {}
    for stage in reversed(network.stages):
        with torch.no_grad():
            for name, weights in twin.named_parameters():
                if twin.stage_of(name) == stage:
                    order = torch.randperm(weights.numel(), generator=generator)
                    weights.copy_(weights.flatten()[order].view_as(weights))
        pairs = zip(before, maps_of(twin), strict=True)
        ranks = [spearmanr(a, b, axis=None).statistic for a, b in pairs]
        correlations[stage] = float(np.nan_to_num(ranks).mean())  # a constant map, NaN, shows nothing of the network
    return correlations


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_random_weights_give_other_maps(trained: Network):
    """With random weights little remains of the map."""
    x, y, _ = stripes(8, 7)

    def maps_of(network: Network) -> np.ndarray:
        return grad_cam(network, x, y, ("relu3",))["relu3"]

    found = [randomized(trained, maps_of, seed) for seed in range(4)]
    assert list(found[0]) == list(reversed(trained.stages))
    assert np.mean([each["fc"] for each in found]) < 0.6  # the head alone
    assert abs(np.mean([each["conv1"] for each in found])) < 0.3  # everything
    assert found[0]["flat"] == found[0]["fc"]  # no weights there
    image_only = randomized(trained, lambda network: x[:, 0].numpy())
    assert min(image_only.values()) == pytest.approx(1)  # a map that ignores the weights fails the check


def test_occlusion_is_what_covering_costs(trained: Network):
    """Compared with a direct computation: for each place the mean drop of the log-probability over its patches."""
    pytest.importorskip("captum")
    x, y, _ = stripes(2, 3)
    found = occlusion(trained, x, y)
    window, step = round(SIZE / 7), round(SIZE / 7) // 2
    with torch.no_grad():
        for i in range(2):
            drops, covered = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
            whole = F.log_softmax(trained(x[i : i + 1]), 1)[0, y[i]]
            for top in range(0, SIZE - window + step, step):
                for left in range(0, SIZE - window + step, step):
                    image = x[i : i + 1].clone()
                    image[:, :, top : top + window, left : left + window] = 0
                    drop = whole - F.log_softmax(trained(image), 1)[0, y[i]]
                    drops[top : top + window, left : left + window] += float(drop)
                    covered[top : top + window, left : left + window] += 1
            expected = (drops / covered).clip(0)
            np.testing.assert_allclose(found[i], expected / expected.max(), atol=2e-3)


def test_integrated_gradients_add_up_to_the_gain(trained: Network):
    """Completeness (Sundararajan et al. 2017, proposition 1), and the map is where the patch is."""
    pytest.importorskip("captum")
    x, y, corners = stripes(6, 3)
    gained = integrate(trained, x, y).sum((1, 2, 3))
    with torch.no_grad():
        at = (torch.arange(6), torch.from_numpy(y))
        expected = trained(x)[at] - trained(torch.zeros_like(x))[at]
    torch.testing.assert_close(gained, expected, rtol=0.05, atol=0.05)
    maps = integrated_gradients(trained, x, y)
    assert maps.shape == (6, SIZE, SIZE)
    assert (maps.min(), maps.max()) == (0, 1)
    inside = [m[t : t + PATCH, left : left + PATCH].mean() for m, (t, left) in zip(maps, corners, strict=True)]
    assert np.mean(inside) > 4 * maps.mean()
    assert all(p.grad is None and p.requires_grad for p in trained.parameters())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    network = mini()
    nn.init.normal_(network.get_parameter("fc.weight"))
    return load(write_tiny_model(tmp_path_factory.mktemp("model") / "m.safetensors", network), device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_images_are_explained_as_they_were_predicted(method: str, classifier: Classifier, tmp_path: Path):
    """More images than one batch holds; crop, class and order are those of the prediction."""
    if method != "gradcam":
        pytest.importorskip("captum")
    folder = write_images(tmp_path, each=3)
    predictions = classifier.predict(sorted(str(path) for path in folder.rglob("*.png")))
    found = explain(classifier, predictions, method=method)
    assert [e.prediction for e in found] == predictions
    assert [e.target for e in found] == [p.index for p in predictions]
    assert [e.name for e in found] == [p.name for p in predictions]
    assert not any(e.empty for e in found)
    assert replace(found[0], maps={name: np.zeros_like(heat) for name, heat in found[0].maps.items()}).empty
    name = "block2" if method == "gradcam" else method
    last = predictions[-1].image
    assert last is not None
    x = classifier.preprocessing.normalize(torch.from_numpy(last[None]))
    alone: np.ndarray
    if method == "gradcam":
        alone = grad_cam(classifier.network, x, np.array([found[-1].target]), (name,))[name]
    else:
        by_name = {"occlusion": occlusion, "integrated-gradients": integrated_gradients}
        alone = by_name[method](classifier.network, x, np.array([found[-1].target]))
    np.testing.assert_allclose(found[-1].maps[name], alone[0], atol=1e-4)
    other = explain(classifier, predictions[:1], target=2, method=method)[0]
    assert (other.target, other.name) == (2, "name of 2")
    assert other.probability == pytest.approx(predictions[0].probabilities[2])  # type: ignore[index]
    assert explain(classifier, []) == []


def test_a_class_is_found_by_either_name(classifier: Classifier):
    assert find_class(classifier, "1") == 1
    assert find_class(classifier, " name of 1 ") == 1
    with pytest.raises(UserError, match=r"--class name of 4: the model does not know it \(did you mean name of"):
        find_class(classifier, "name of 4")


@pytest.mark.parametrize("method", ["occlusion", "integrated-gradients"])
def test_without_captum_the_error_says_what_to_install(
    method: str, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "captum", None)
    images = list(samples(1)[0])
    with pytest.raises(UserError, match="pip install captum; or"):
        explain(classifier, classifier.predict(images), method=method)


def test_the_command_offers_the_methods():
    assert cli_explain.METHODS == METHODS


def test_the_first_explanation_does_not_import_the_compiler(tmp_path: Path):
    """It takes two seconds, in which a server answers nobody."""
    path = write_tiny_model(tmp_path / "model.safetensors", mini())
    code = """
import sys, numpy, linnaeus
from linnaeus.explain.saliency import explain
model = linnaeus.load(sys.argv[1])
(explanation,) = explain(model, [model.predict(numpy.zeros((28, 28), numpy.uint8))])
print(len(explanation.maps), "torch._dynamo" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout == "1 False\n"
