"""Rows that list an image again, and labels that were written as fractions."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from laid_out import lay
from tiny import write_images, write_tiny_model

from linnaeus.data.readers.csvfile import open_frame
from linnaeus.data.sources import open_source
from linnaeus.data.split import write_split
from linnaeus.modelfile.safetensors import read_model, write_model


def write(file: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("path", "label")) -> Path:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return file


@pytest.mark.parametrize("again", ["a/0.png", "./a/0.png", "a/../a/0.png", "{folder}/a/0.png"])
def test_an_image_that_is_listed_again_counts_once(tmp_path: Path, again: str):
    lay(tmp_path, "a/0.png", "a/1.png", "b/0.png")
    rows = [("a/0.png", "a"), ("a/1.png", "a"), ("b/0.png", "b"), (again.format(folder=tmp_path), "a")]
    table = open_source(write(tmp_path / "list.csv", rows))
    assert [table.sample_id(i) for i in range(len(table))] == ["a/0.png", "a/1.png", "b/0.png"]
    assert (
        "1 row of 4 list an image again with the same label, such as 'a/0.png': each image counts once" in table.notes
    )
    (tmp_path / "list.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    assert len(open_source(tmp_path / "list.txt")) == 3


def test_an_image_in_two_splits_stays_in_both_for_the_check_to_report(tmp_path: Path):
    lay(tmp_path, "a/0.png", "a/1.png", "b/0.png")
    rows = [("a/0.png", "a", "train"), ("b/0.png", "b", "train"), ("a/0.png", "a", "test"), ("a/0.png", "a", "test")]
    table = open_source(write(tmp_path / "list.csv", rows, ("path", "label", "split")))
    assert table.split.tolist() == ["train", "train", "test"]


def test_several_labels_that_are_listed_again(tmp_path: Path):
    lay(tmp_path, "0.png", "1.png", "2.png")
    rows = [("0.png", "x|y"), ("1.png", "x"), ("2.png", "y"), ("0.png", "y|x")]
    assert len(open_source(write(tmp_path / "list.csv", rows, ("path", "labels")))) == 3


@pytest.mark.parametrize("kind", ["csv", "txt", "frame"])
def test_whole_numbers_that_were_written_as_fractions(tmp_path: Path, kind: str):
    lay(tmp_path, "0.png", "1.png", "2.png")
    rows = [("0.png", "0.0"), ("1.png", "1.0"), ("2.png", "10.0")]
    (tmp_path / "classes.txt").write_text(
        "".join(f"{k} {name}\n" for k, name in ((0, "rose"), (1, "oak"), (10, "elm")))
    )
    if kind == "frame":
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"path": [str(tmp_path / path) for path, _ in rows], "label": [0.0, 1.0, 10.0]})
        table, expected = open_frame(frame), ("0", "1", "10")
    elif kind == "csv":
        table, expected = open_source(write(tmp_path / "list.csv", rows)), ("rose", "oak", "elm")
        assert table.classes == ("0", "1", "10")
    else:
        (tmp_path / "list.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
        table, expected = open_source(tmp_path / "list.txt"), ("rose", "oak", "elm")
    assert table.names == expected
    assert any("'0.0' is read as '0'" in note for note in table.notes)


@pytest.mark.parametrize("labels", [("1.0", "2.5", "3.0"), ("1.0", "3.0", "v2"), ("1", "2", "3")])
def test_other_labels_stay_as_they_are(tmp_path: Path, labels: Sequence[str]):
    lay(tmp_path, "0.png", "1.png", "2.png")
    rows = [(f"{k}.png", label) for k, label in enumerate(labels)]
    table = open_source(write(tmp_path / "list.csv", rows))
    assert table.classes == tuple(labels)
    assert not table.notes


def test_the_split_of_a_run_keeps_classes_that_look_like_fractions(tmp_path: Path):
    table = open_source(write_images(tmp_path / "images", ("1.0", "2.0"), each=2))
    write_split(replace(table, split=table.split.astype("<U5")), tmp_path / "split.csv")
    assert open_source(tmp_path / "split.csv").classes == table.classes == ("1.0", "2.0")


@pytest.mark.parametrize(("known", "written"), [("{}", "{}.0"), ("{}.0", "{}"), ("{}.0", "{}.0")])
def test_a_model_is_evaluated_on_classes_that_are_the_same_number(tmp_path: Path, say, known: str, written: str):
    write_tiny_model(tmp_path / "m.safetensors")
    network, about = read_model(tmp_path / "m.safetensors")
    names = tuple(map(known.format, range(3)))
    write_model(tmp_path / "m.safetensors", network.state_dict(), replace(about, classes=names, names=names))
    write_images(tmp_path / "images", each=4)
    paths = sorted((tmp_path / "images").glob("*/*.png"))
    write(tmp_path / "list.csv", [(str(path), written.format(path.parent.name)) for path in paths])
    said = say("evaluate", tmp_path / "m.safetensors", tmp_path / "list.csv", "--device", "cpu")
    assert said.status == 0, said.err
    assert "12 images" in said.out


def test_a_model_is_not_evaluated_on_images_with_two_labels(tmp_path: Path, say):
    write_tiny_model(tmp_path / "m.safetensors")
    write_images(tmp_path / "images", each=1)
    rows = [("images/0/0 0.png", "0"), ("images/1/1 0.png", "1"), ("./images/0/0 0.png", "1")]
    said = say("evaluate", tmp_path / "m.safetensors", write(tmp_path / "list.csv", rows), "--device", "cpu")
    assert said.status == 2
    assert "'images/0/0 0.png' is listed with the labels '0', '1'" in said.err


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_labels_that_stand_for_other_folders_in_another_split(tmp_path: Path, kind: str, swapped: bool):
    lay(tmp_path, *(f"{name}/{k}.png" for name in "ab" for k in range(3)))
    rows = {
        "train": [("a/0.png", "0"), ("a/1.png", "0"), ("b/0.png", "1")],
        "val": [("a/2.png", "01"[swapped]), ("b/2.png", "10"[swapped])],
    }
    for name, part in rows.items():
        if kind == "csv":
            write(tmp_path / f"{name}.csv", part)
        else:
            (tmp_path / f"{name}.txt").write_text("".join(f"{path} {label}\n" for path, label in part))
    notes = [note for note in open_source(tmp_path).notes if "in train but for" in note]
    assert len(notes) == swapped
    assert not swapped or notes[0].endswith("the labels of one split are wrong, and so are metrics on it")
