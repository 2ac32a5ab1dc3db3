"""What a run says about the head that it solves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_idx, write_recipe

import linnaeus
from linnaeus.models import linear_probe

pytestmark = pytest.mark.usefixtures("undrawn_runs")


@pytest.mark.parametrize("large", [False, True])
def test_the_accuracy_of_one_fold_is_not_called_cross_validated(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if large:
        monkeypatch.setattr(linear_probe, "LARGE", 1)
        monkeypatch.setattr(linear_probe, "JUDGES", 1)
    source = write_idx(tmp_path / "idx")
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1})
    linnaeus.train(source, str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    said = capsys.readouterr().out
    assert ("cross-validated training accuracy" in said) != large
    assert ("was held out: its accuracy" in said) == large
