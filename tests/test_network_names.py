"""The names of networks that are checked before torch is imported."""

import sys
from pathlib import Path

import pytest

from linnaeus.models import MODELS
from linnaeus.network_names import NETWORKS, did_you_mean_network


def test_the_names_are_those_of_the_networks():
    assert tuple(MODELS) == NETWORKS


def test_a_network_of_a_library_is_suggested_with_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Other tools call these networks by the bare name. timm is not imported for it, which takes seconds."""
    code = "@register_model\ndef tf_efficientnet_lite0(pretrained=False):\n    ...\n"
    (tmp_path / "timm" / "models").mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError\n")
    (tmp_path / "timm" / "models" / "efficientnet.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    for written, meant in {
        "tf_efficientnet_lite0": "timm/tf_efficientnet_lite0",
        "tf_efficientnet_lite0.in1k": "timm/tf_efficientnet_lite0.in1k",
        "timm:resnet18d": "timm/resnet18d",
        "facebook/dinov2-small": "hf/facebook/dinov2-small",
        "resnet-50": "resnet50 or resnet56 or resnet20",
    }.items():
        assert did_you_mean_network(written, NETWORKS) == f" (did you mean {meant}?)"
    assert did_you_mean_network("timm/nonsense", NETWORKS) == did_you_mean_network("zzz", NETWORKS) == ""
