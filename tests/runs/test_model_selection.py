"""What chose the model of a run: said by terminal, report, notebook and model card alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_images, write_recipe

import linnaeus
from linnaeus.export.model_card import model_card
from linnaeus.report.page import write_report
from linnaeus.runs.model_selection import ModelSelection
from linnaeus.training.finish.finalize import Run

SOLVED = {"train": ["head"], "head": "auto", "epochs": 1}
TRAINED = {"train": ["all"], "epochs": 2, "batch": 8}


@pytest.mark.parametrize(
    ("phases", "best", "epochs", "title", "text"),
    [
        ([SOLVED], {"by": "accuracy", "phase": 1, "epoch": 1}, 1, "Head", "solved in one step; its penalty"),
        ([TRAINED], {"by": "loss", "phase": 1, "epoch": 2}, 2, "Best epoch", "phase 1, epoch 2, by log loss on"),
        ([SOLVED, TRAINED], {"by": "map", "phase": 1, "epoch": 1}, 3, "Best model", "phase 1, the solved head, by mAP"),
        ([SOLVED, TRAINED], {"by": "accuracy", "phase": 2, "epoch": 1}, 3, "Best epoch", "phase 2, epoch 1, by acc"),
        ([], {}, 1, "Epoch", "the only one"),
    ],
)
def test_what_chose_the_model(phases: list[dict], best: dict, epochs: int, title: str, text: str):
    selection = ModelSelection.of({"phase": phases}, best, epochs)
    assert selection.title == title
    assert str(selection).startswith(text)
    assert selection.by_validation == (epochs > 1)


@pytest.mark.parametrize(("phase", "by_validation"), [(SOLVED, False), (TRAINED, True)])
def test_a_solved_head_has_no_best_epoch_anywhere(
    tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch, phase: dict, by_validation: bool
):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pics", each=8)
    recipe = write_recipe(tmp_path / "r.toml", phase)
    said = say("train", "pics", "--recipe", recipe, "--out", "run").out
    assert ("\nbest      phase 1, epoch " in said) == by_validation
    assert ("\nhead      solved in one step" in said) != by_validation
    assert ("epoch 1/" in said) == by_validation
    page = write_report("run")[0].read_text(encoding="utf-8")
    assert ("best epoch" in page.lower()) == by_validation
    assert ("penalty of the head was chosen on held-out training images" in page) != by_validation
    card = model_card(linnaeus.load("run"), "model.safetensors")
    assert ("best epoch" in card) == by_validation
    run = Run.read(Path("run"))
    assert ("epoch" in run._repr_html_()) == by_validation
