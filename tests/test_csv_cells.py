"""No cell of a CSV file that the package writes is a formula, and each is read back as it was."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_images, write_recipe

import linnaeus
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table, write_split
from linnaeus.inference.resume import read_existing
from linnaeus.inference.writers import open_writer
from linnaeus.runs.predictions import PredictionRow, read_predictions, write_predictions
from linnaeus.text import FORMULA, SafeCsvWriter, plain_cell, safe_cell

EVIL = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''=1", " =1", "＝1", "-5x", "=cmd|' /C calc'!A0")
PLAIN = ("", "rose", "'rose", "-0.5", "+3", "-1e-3", "a=b", "-inf")


@pytest.mark.parametrize("text", EVIL)
def test_a_formula_gets_a_quote_mark(text: str):
    assert safe_cell(text) == f"'{text}"
    assert plain_cell(safe_cell(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_and_numbers_stay(text: str):
    assert safe_cell(text) == text
    assert plain_cell(text) == text


@given(st.text(alphabet=st.sampled_from([*FORMULA, "'", " ", "1", "e", "a", "."])) | st.text())
def test_every_cell_is_read_back_as_it_was(text: str):
    assert plain_cell(safe_cell(text)) == text
    assert plain_cell(safe_cell(safe_cell(text))) == safe_cell(text)


def test_the_writer_escapes_names_and_leaves_numbers(tmp_path: Path):
    file = io.StringIO()
    SafeCsvWriter(file).writerows([["=1+1", -0.5, -3, None], ["a,b", "-0.5"]])
    assert file.getvalue() == '\'=1+1,-0.5,-3,\n"a,b",-0.5\n'


def cells(path: Path) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline="")) for cell in row]


def formulas(path: Path) -> list[str]:
    """The cells that a spreadsheet would compute."""

    def number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    return [cell for cell in cells(path) if cell.lstrip().startswith(FORMULA) and not number(cell)]


def test_a_run_on_classes_that_are_formulas(tmp_path: Path):
    """Every CSV file of a run is free of formulas, and the run is read, evaluated and split again by its files."""
    classes = ("=1+1", "@x", "-y+2")
    source = write_images(tmp_path / "data", classes, each=8)
    (source / "=1+1" / "=broken.png").write_bytes(b"no image")
    run = linnaeus.train(source, recipe=str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run")
    files = sorted(run.path.glob("*.csv"))
    assert {"bad_images.csv", "history.csv", "predictions.csv", "split.csv"} <= {file.name for file in files}
    for file in files:
        assert formulas(file) == [], file.name
        assert any(cell.startswith("'") for cell in cells(file)) or file.name in ("history.csv", "bad_images.csv")
    assert {row.true for row in read_predictions(run.path / "predictions.csv")} <= set(classes)
    assert set(open_source(run.path / "split.csv").classes) == set(classes)
    model = linnaeus.load(run.path)
    assert model.evaluate(run.path / "split.csv", "valid").n == run.valid.n
    out = tmp_path / "p.csv"
    with out.open("w", newline="") as stream:
        write = open_writer("csv", stream, 1)
        for image in sorted((source / "@x").iterdir()):
            write(model.predict(image))
    assert formulas(out) == []
    assert {probe.best_class for probe in read_existing(out, "csv", 1).probes} <= set(classes)


def test_a_split_beside_images_whose_names_are_formulas(tmp_path: Path):
    source = write_images(tmp_path, ("=a", "+b"), each=4)
    table = split_table(open_source(source), valid=0.5, test=0, seed=0)
    write_split(table, tmp_path / "split.csv")
    assert formulas(tmp_path / "split.csv") == []
    again = open_source(tmp_path / "split.csv")
    assert sorted(again.paths or ()) == sorted(table.paths or ())


def test_predictions_are_read_back(tmp_path: Path):
    rows = [PredictionRow(text, "valid", text, text, 0.5, 0.5, text) for text in EVIL]
    write_predictions(tmp_path / "predictions.csv", rows)
    assert formulas(tmp_path / "predictions.csv") == []
    assert read_predictions(tmp_path / "predictions.csv") == rows


@pytest.mark.parametrize("name", ["labels.csv", "split.csv"])
def test_a_quote_mark_in_a_file_of_the_user_belongs_to_the_cell(name: str, tmp_path: Path):
    """Only the quote marks that this package has written are removed: a user's class may begin with one."""
    write_images(tmp_path, ("a", "b"), each=2)
    lines = [f"{folder}/{folder} {i}.png,'={folder}" for folder in ("a", "b") for i in range(2)]
    (tmp_path / name).write_text("path,label\n" + "\n".join(lines) + "\n")
    assert open_source(tmp_path / name).classes == ("'=a", "'=b")
    with_split = [f"{line},train" for line in lines]
    (tmp_path / "own.csv").write_text("path,label,split\n" + "\n".join(with_split) + "\n")
    assert open_source(tmp_path / "own.csv").classes == ("'=a", "'=b")


def test_the_split_of_a_run_is_read_under_any_name(tmp_path: Path):
    source = write_images(tmp_path, ("=a", "'=b"), each=4)
    table = split_table(open_source(source), valid=0.5, test=0, seed=0)
    write_split(table, tmp_path / "copy.csv", np.arange(8) + 1)
    assert set(open_source(tmp_path / "copy.csv").classes) == {"=a", "'=b"}
