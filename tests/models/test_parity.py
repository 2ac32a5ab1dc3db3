"""Same weights, same logits, same gradients as torchvision: these are the published architectures."""

from __future__ import annotations

import pytest
import torch
from reference import torchvision
from torch import Tensor, nn

from linnaeus.models import Network, create

RESNETS = [
    "resnet18",
    pytest.param("resnet34", marks=pytest.mark.long),
    "resnet50",
    pytest.param("resnet101", marks=pytest.mark.long),
    pytest.param("resnet152", marks=pytest.mark.long),
]


def make_unequal(theirs: nn.Module, x: Tensor) -> None:
    """Give every parameter and every running statistic a value of its own: fresh BatchNorms would hide a swap."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num(1.0).clamp(min=0.2) * torch.randn_like(parameter))
        theirs.train()(x)


def compare(theirs: nn.Module, ours: Network, x: Tensor, targets: Tensor, *, train: bool) -> tuple[float, float]:
    """The largest difference of logits, and of any gradient relative to that gradient's largest entry."""
    results = []
    for network in (theirs, ours):
        network.train(train).zero_grad()
        output = network(x)
        logits, auxiliary = (output[0], list(output[1:])) if isinstance(output, tuple) else (output, [])
        if auxiliary and isinstance(auxiliary[0], list):
            auxiliary = auxiliary[0]
        elif auxiliary:
            auxiliary.reverse()  # torchvision returns (logits, aux2, aux1)
        loss = nn.functional.cross_entropy(logits, targets)
        loss = loss + sum(0.3 * nn.functional.cross_entropy(a, targets) for a in auxiliary)
        loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        results.append((torch.stack([logits, *auxiliary]).detach(), gradients))
    (their_logits, their_gradients), (our_logits, our_gradients) = results
    assert their_gradients.keys() == our_gradients.keys()
    gradient = max(
        float((g - our_gradients[name]).abs().max() / g.abs().max().clamp(min=1e-6))
        for name, g in their_gradients.items()
    )
    return float((their_logits - our_logits).abs().max() / their_logits.abs().max()), gradient


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_matches_torchvision(name: str) -> None:
    tv = torchvision()
    torch.manual_seed(0)
    x, targets = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    theirs = getattr(tv.models, name)(num_classes=7)
    ours = create(name, classes=7)
    make_unequal(theirs, x)
    ours.load_state_dict(theirs.state_dict())
    for train in (False, True):
        logits, gradient = compare(theirs, ours, x, targets, train=train)
        assert logits < 1e-4
        assert gradient < 1e-3


@pytest.mark.parametrize("aux", [False, True])
def test_inception_matches_torchvision(aux: bool) -> None:
    tv = torchvision()
    torch.manual_seed(0)
    x, targets = torch.randn(4, 3, 96, 96), torch.tensor([0, 1, 2, 3])
    theirs = tv.models.googlenet(num_classes=7, aux_logits=aux, init_weights=False, dropout=0.0, dropout_aux=0.0)
    ours = create("inception_v1", classes=7, branch5x5="3x3", aux=aux, dropout=0.0)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    make_unequal(theirs, x)
    ours.load_state_dict(theirs.state_dict())
    for train in (False, True):
        logits, gradient = compare(theirs, ours, x, targets, train=train)
        assert logits < 1e-4
        assert gradient < 1e-3
