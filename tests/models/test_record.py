"""Choices that were measured on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from linnaeus.models.record import ChoiceRecord, choice_key


def test_a_choice_holds_for_the_instructions_it_was_measured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    record = ChoiceRecord(tmp_path / "choices.json")
    record.write(choice_key(["resnet50"]), "bf16-mixed")
    assert record.read(choice_key(["resnet50"])) == "bf16-mixed"
    assert record.read(choice_key(["resnet18"])) is None
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert record.read(choice_key(["resnet50"])) is None
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another one")
    assert record.read(choice_key(["resnet50"])) is None
