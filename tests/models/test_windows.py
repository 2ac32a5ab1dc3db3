"""Heads on windows of the last feature map: their probabilities, gradients, solution and limits."""

import numpy as np
import pytest
import torch

from linnaeus.errors import UserError
from linnaeus.models import create
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.logistic_regression import Problems, objective
from linnaeus.models.windows import SURE, WindowClassifier, cut_windows, evidence, label_logits


def test_a_label_is_missing_only_where_all_windows_lack_it():
    p = torch.tensor([[[0.5, 0.0, 1.0], [0.2, 0.0, 0.0]]])
    q = SURE * p.double()
    expected = 1 - (1 - q[:, 0]) * (1 - q[:, 1])
    assert torch.allclose(torch.sigmoid(label_logits(evidence(p))).double(), expected, atol=1e-6)


def test_logits_are_exact_for_rare_and_for_sure_labels():
    p = torch.tensor([1e-9, 1e-6, 1e-3, 0.0099, 0.0101, 0.3, 0.9], dtype=torch.float64)
    expected = torch.logit(1 - (1 - SURE * p) ** 4)
    logits = label_logits(evidence(p.float().expand(1, 4, -1)))
    assert torch.allclose(logits[0].double(), expected, atol=2e-3, rtol=1e-6)


def test_gradients_stay_finite_where_a_window_is_sure():
    classifier = WindowClassifier(2, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[90.0, 0], [-90, 0], [0, 0]]))
    x = torch.tensor([[[1.0, 0], [1, 1]], [[-1, 0], [0, 0]]], requires_grad=True)
    classifier(x).sum().backward()
    for gradient in (x.grad, classifier.weight.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("balanced", [False, True])
def test_the_written_gradient_is_that_of_autograd(balanced):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6 * 4, 5, dtype=torch.float64, generator=generator)
    y = (torch.rand(6, 3, generator=generator) < 0.4).double()
    weights = torch.rand(6, 2, dtype=torch.float64, generator=generator)
    class_weights = torch.rand(2, 3, dtype=torch.float64, generator=generator) if balanced else None
    problems = Problems(x, y, weights, 3, class_weights, windows=4)
    solution = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    losses, gradient = objective(problems, 0.1, solution.detach())

    expected = []
    for k in range(2):
        z = problems.logits(x, solution[k])
        of_pairs = None if class_weights is None else torch.where(y > 0.5, class_weights[1], class_weights[0])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y, of_pairs, reduction="none").sum(1)
        expected.append(loss @ weights[:, k] + 0.05 * solution[k, :, :-1].square().sum())
    assert torch.allclose(losses, torch.stack(expected).detach(), atol=1e-9)
    torch.stack(expected).sum().backward()
    assert solution.grad is not None
    assert torch.allclose(gradient, solution.grad, atol=1e-9)


def test_windows_cover_the_map_and_overlap_by_half():
    x = torch.arange(14 * 14.0).view(1, 1, 14, 14)
    windows = cut_windows(x, 3)
    assert [tuple(window.shape[2:]) for window in windows] == [(7, 7)] * 9
    assert [int(windows[0].min()), int(windows[-1].max())] == [0, 14 * 14 - 1]
    assert {int(window[0, 0, 0, 0]) % 14 for window in windows} == {0, 4, 7}
    assert torch.equal(cut_windows(x, 1)[0], x)
    channels_last = cut_windows(x.permute(0, 2, 3, 1), 3, (1, 2))
    assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(windows, channels_last, strict=True))
    with pytest.raises(UserError, match=r"model.head.windows = 15: the last feature map has 14 x 14 positions"):
        cut_windows(x, 15)


def test_a_network_with_windows_can_be_cut_below_its_head():
    network = create("resnet20", 4, head_windows=3).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits, below = network(x), network.run(x, stop="head")
        assert torch.allclose(network.run(below, start="head"), logits)
        windows = network.head_features(below)
        assert windows.shape == (2, 9, 64)
        assert torch.allclose(network.run(windows, start="head"), logits)
        assert torch.allclose(network.features(below), network.features(windows))
    again = create(**{**network.arch["arguments"], **{k: network.arch[k] for k in ("name", "classes", "channels")}})
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x), logits)
    with pytest.raises(UserError, match="head_windows = 'all' must be an integer above 0"):
        create("resnet20", 4, head_windows="all")  # type: ignore[arg-type]


def test_windows_tell_labels_apart_that_an_average_mixes():
    """Each image has two things in two of four places, among noise: their average has twice the noise of a window."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(6, 16))
    labels, features = np.zeros((400, 6), bool), generator.normal(size=(400, 4, 16)) * 1.5
    for i in range(len(labels)):
        for place in generator.permutation(4)[:2]:
            k = generator.integers(6)
            labels[i, k] = True
            features[i, place] += 2 * directions[k]
    x = torch.from_numpy(features).float()

    def errors(features: torch.Tensor) -> float:
        return float(((fit_linear_probe(features, labels, 6).probabilities > 0.5) != labels).mean())

    mixed = errors(x.mean(1))
    assert errors(x.clone()) < 0.6 * mixed, mixed
