"""Features for the linear head: in memory, or streamed from a file where memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from linnaeus.errors import DiskError
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.stores import feature_matrix as module
from linnaeus.stores.feature_matrix import feature_matrix

CPU = torch.device("cpu")


def features() -> tuple[torch.Tensor, np.ndarray]:
    labels = np.arange(120) % 3
    torch.manual_seed(0)
    return torch.randn(3, 8)[torch.from_numpy(labels)] + torch.randn(120, 8), labels


def test_a_head_on_streamed_features_is_that_on_features_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path))
    x, labels = features()
    heads = []
    for free in (1 << 40, 0):
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        with feature_matrix(120, 8, CPU) as matrix:
            matrix.copy_(x)
            in_file = any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
            assert in_file == (free == 0)
            heads.append(fit_linear_probe(matrix, labels, 3))
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].losses == heads[1].losses
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("features-")]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "free_memory", lambda device: 0)

    def full(file: object, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_allocate", full)
    with pytest.raises(DiskError, match="no space left"), feature_matrix(120, 8, CPU):
        pass
