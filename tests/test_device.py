"""Which device a name stands for, and how much memory it has free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from linnaeus import device
from linnaeus.device import free_memory

CPU = torch.device("cpu")


def test_free_memory_heeds_the_limit_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert 0 < free_memory(CPU) < 1 << 50
    read = Path.read_text

    def limited(path: Path, *args, **kwargs) -> str:
        pretended = {"/sys/fs/cgroup/memory.max": "5000000\n", "/sys/fs/cgroup/memory.current": "4000000\n"}
        return pretended.get(str(path)) or read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", limited)
    assert free_memory(CPU) == 1_000_000
    monkeypatch.setattr(device, "_available", lambda: 10)
    assert free_memory(CPU) == 10
