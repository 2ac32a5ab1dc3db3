"""Tests that fork pass on a machine with a GPU, whatever ran before them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from killing import in_child
from several import several

from linnaeus.device import choose_device

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


@pytest.fixture
def _initialized_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a test that has used a GPU: in a fork, CUDA refuses to be initialized again."""

    def initialize() -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialize)


def touch(rank: int = 0) -> str:
    """Use the fastest device, as a command without --device does."""
    device = choose_device("auto")
    if device.type == "cuda":
        torch.cuda._lazy_init()
    return device.type


@pytest.mark.usefixtures("_initialized_gpu")
def test_a_fork_sees_no_gpu():
    with pytest.raises(RuntimeError, match="forked"):
        touch()
    assert in_child(touch) == 0
    assert several(2, touch) == ["cpu", "cpu"]


def test_all_forks_of_the_tests_are_such_forks():
    files = [file for file in Path(__file__).parent.rglob("*.py") if file.name not in ("forking.py", "test_forking.py")]
    bare = re.compile(r"\bos\.fork\(\)")
    assert [file.name for file in files if bare.search(file.read_text(encoding="utf-8"))] == []
