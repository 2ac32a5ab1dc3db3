"""Labels of `linnaeus label`: those that its classifier gave train, and no figure counts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_images, write_recipe

import linnaeus
from linnaeus.cache import default_cache
from linnaeus.console import Console
from linnaeus.data.readers.csvfile import LABELS_CSV
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.errors import UserError
from linnaeus.probe.evaluation import ProbeEvaluator

NOT_AT_RANDOM = "labels.csv: `linnaeus label` does not ask for images at random"
ACCEPTED = "labels.csv: 18 of 36 labels were accepted from a classifier: these images train, and no figure counts them"


def write_labels(folder: Path, accepted: int = 6, columns: tuple[str, ...] = LABELS_CSV, valid: int = 0) -> Path:
    """Labels of 3 classes of 12 images, of which the first `accepted` are the classifier's, and the next validate."""
    write_images(folder, each=12)
    rows = [",".join(columns)]
    for label in "012":
        for i in range(12):
            cells = {"path": f"{label}/{label} {i}.png", "label": label, "time": "2026-01-01T00:00:00"}
            cells["provenance"] = "accepted" if i < accepted else "human"
            cells["split"] = "valid" if accepted <= i < accepted + valid else "train" if valid else ""
            rows.append(",".join(cells.get(name, "") for name in columns))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_a_classifier_only_train(seed: int, tmp_path: Path):
    table = open_source(write_labels(tmp_path))
    assert any(note.startswith(NOT_AT_RANDOM) for note in table.notes)
    assert ACCEPTED in table.notes
    split = split_table(table, valid=0.5, test=0.0, seed=seed)
    assert split.accepted is not None
    assert split.accepted.sum() == 18
    assert split.counts()["valid"].tolist() == [3, 3, 3]
    assert set(split.split[split.accepted].tolist()) == {"train"}


def test_without_other_labels_nothing_is_set_aside(tmp_path: Path):
    table = open_source(write_labels(tmp_path, accepted=12))
    with pytest.raises(UserError, match="all of their labels were accepted from a classifier"):
        split_table(table, valid=0.5, test=0.0, seed=0)


def test_labels_of_people_with_a_random_sample_need_no_note(tmp_path: Path):
    columns = ("path", "label", "split", "group", "provenance")
    assert open_source(write_labels(tmp_path, 0, columns, valid=4)).notes == ()
    assert open_source(write_labels(tmp_path, 6, columns, valid=4)).notes == (ACCEPTED,)


def test_another_column_of_this_name_is_left_alone(tmp_path: Path):
    file = write_labels(tmp_path)
    file.write_text(file.read_text().replace("human", "Museum of Bern"))
    table = open_source(file)
    assert (table.accepted, table.notes) == (None, ())


def test_no_figure_counts_labels_of_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_labels(tmp_path / "images")
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1})
    run = linnaeus.train(source, str(recipe), out=tmp_path / "run", settings={"data.split.valid": 0.5}, draw=False)
    said = capsys.readouterr().out
    assert "no cross-validated accuracy, because these were not labelled at random" in said
    assert "held out  " not in said
    assert "held_out" not in json.loads((run.path / "metrics.json").read_text())["valid"]
    # Nor those of another model, or of the heads of a probe.
    write_images(tmp_path / "others", each=6, seed=9)
    other = linnaeus.train(tmp_path / "others", str(recipe), out=tmp_path / "other", draw=False)
    assert other.load().evaluate(source).n == 18
    table = split_table(open_source(source), valid=0.5, test=0.0, seed=0)
    assert table.accepted is not None
    evaluator = ProbeEvaluator(table, 0, default_cache(), Console(silent=True))
    answers = evaluator._solve(torch.randn(36, 4), np.arange(36))
    assert answers.indices.tolist() == np.flatnonzero(~table.accepted).tolist()
