"""The table of pretrained weights: complete, and equal to what torchvision publishes."""

from __future__ import annotations

import torch
from reference import torchvision

from linnaeus.models import create
from linnaeus.models.weights.pretrained import PRETRAINED


def test_table_agrees_with_torchvision() -> None:
    """Addresses, accuracy, sizes and normalization are those of the torchvision release that published them."""
    models = torchvision().models
    theirs = {}
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "googlenet"):
        for version, entry in enumerate(models.get_model_weights(name), start=1):
            theirs[f"{name.replace('googlenet', 'inception_v1')}-torchvision-v{version}"] = entry
    assert theirs.keys() == {name for name in PRETRAINED if "-torchvision-" in name}
    for name, entry in theirs.items():
        ours, transform = PRETRAINED[name], entry.transforms()
        assert ours.url == entry.url
        assert ours.sha256 in entry.url
        assert ours.top1 == entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert [ours.resize] == transform.resize_size
        assert [ours.size] == transform.crop_size
        assert ours.interpolation == transform.interpolation.value
        if ours.model != "inception_v1":
            assert [list(ours.mean), list(ours.std)] == [transform.mean, transform.std]


def test_table_is_complete() -> None:
    for name, entry in PRETRAINED.items():
        assert name == entry.name
        assert name.startswith(f"{entry.model}-")
        assert 60 < entry.top1 < 90
        assert len(entry.sha256) in (8, 64)
        assert entry.file.endswith((".pth", ".safetensors"))
        assert ("stride_in" in entry.arguments) == (entry.model in ("resnet50", "resnet101", "resnet152"))
        with torch.device("meta"):
            create(entry.model, 1000, **entry.arguments)
    assert len({entry.sha256 for entry in PRETRAINED.values()}) == len(PRETRAINED)


def test_the_normalization_of_googlenet_equals_transform_input() -> None:
    """torchvision's GoogLeNet rescales its normalized input; our normalization does both in one step."""
    models = torchvision().models
    network = models.googlenet(transform_input=True, init_weights=False, aux_logits=False)
    image = torch.rand(1, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    entry = PRETRAINED["inception_v1-torchvision-v1"]
    ours = (image - torch.tensor(entry.mean).view(3, 1, 1)) / torch.tensor(entry.std).view(3, 1, 1)
    torch.testing.assert_close(network._transform_input((image - mean) / std), ours)
