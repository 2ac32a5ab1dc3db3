"""Networks as backbones of `linnaeus label`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from linnaeus.label.backbone import open_backbone
from linnaeus.models import create


def test_a_weights_file_gives_features_and_no_note_on_a_head(tmp_path: Path) -> None:
    file = tmp_path / "resnet20.safetensors"
    save_file(create("resnet20", 10, 3).state_dict(), file, metadata={"arch": "resnet20", "shortcut": "A"})
    backbone = open_backbone(str(file), "cpu")
    assert (backbone.model, backbone.weights, backbone.width) == ("resnet20", str(file), 64)
    side = backbone.preprocessing.size
    assert backbone.features(np.zeros((2, side, side, 3), np.uint8), 2).shape == (2, 64)
    assert any("resnet20.safetensors" in note for note in backbone.notes)
    assert not any("head" in note for note in backbone.notes)
