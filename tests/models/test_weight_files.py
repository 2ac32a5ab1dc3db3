"""Reading weight files: all usual forms are understood, nothing is executed, damage is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sample_weights import trained

from linnaeus.errors import UserError
from linnaeus.models.weights.loading import load_weights


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module.", "half", "safetensors"])
def test_forms_of_files(tmp_path: Path, form: str) -> None:
    state = trained()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "module.":
        torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}, "epoch": 3}, path)
    elif form == "half":
        torch.save({key: t.half() if t.is_floating_point() else t for key, t in state.items()}, path)
    else:
        torch.save({form: state, "epoch": 3, "args": {"lr": 0.1}}, path)
    loaded = load_weights("resnet20", str(path), classes=1000, arguments={"shortcut": "A"})
    for key, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == state[key].dtype
        torch.testing.assert_close(tensor, state[key], atol=1e-3, rtol=1e-3)
    assert any("does not say how its images were normalized" in note for note in loaded.notes)
    assert loaded.normalization["mean"] == (0.485, 0.456, 0.406)


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": trained(), "extra": Hostile(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="Python objects besides tensors"):
        load_weights("resnet20", str(tmp_path / "w.pth"), classes=5)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}", b"PK\x03\x04" + bytes(40), b"\xff" * 64])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"w{suffix}"):
        load_weights("resnet20", str(path), classes=5)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_incomplete_files_are_named(tmp_path: Path, share: float) -> None:
    for path, save in ((tmp_path / "w.pth", torch.save), (tmp_path / "w.safetensors", save_file)):
        save(trained(), path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=path.name):
            load_weights("resnet20", str(path), classes=5)
