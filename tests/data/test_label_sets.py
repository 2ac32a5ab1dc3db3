"""Several labels per image: columns of 0 and 1, a column with a separator, what is recognized and what is refused."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tiny import write_images, write_label_sets

from linnaeus.data.readers.columns import LabelFormat
from linnaeus.data.readers.csvfile import read_csv
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table, write_split
from linnaeus.data.table import Table
from linnaeus.errors import UserError

MULTI, SINGLE = LabelFormat("multi-label"), LabelFormat("single-label")


def source(root: Path, header: str, *cells: str, name: str = "all.csv") -> Path:
    for k in range(len(cells)):
        (root / f"{k}.png").touch()
    (root / name).write_text("\n".join([header, *(f"{k}.png,{cell}" for k, cell in enumerate(cells))]))
    return root / name


def sets(table: Table) -> list[str]:
    assert table.several
    return ["+".join(table.labels_of(i)) for i in range(len(table))]


def test_columns_of_0_and_1_with_several_labels_are_recognized_and_reported(tmp_path: Path):
    path = source(tmp_path, "image,MEL,NV,BCC,age", "1.0,0,1,40", "0,1,0,35", "0,0,0,", "0.0,1.0,0,7")
    table = open_source(path)
    assert sets(table) == ["BCC+MEL", "NV", "", "NV"]
    (note,) = (note for note in table.notes if "labels" in note)
    assert "columns 'MEL', 'NV', 'BCC': 1 of 4 images have several, 1 none" in note
    assert "data.task=single-label" in note
    assert "not used: 'age'" in note


def test_columns_without_a_row_of_several_labels_stay_single_unless_stated(tmp_path: Path):
    path = source(tmp_path, "image,a,b", "1,0", "0,1", "0,1")
    assert not open_source(path).several
    assert sets(open_source(path, labels=MULTI)) == ["a", "b", "b"]
    path = source(tmp_path, "image,a,b", "1,0", "0,1", "0,0")
    with pytest.raises(UserError, match=r"all.csv:4: .*no class.*data.task=multi-label"):
        open_source(path)
    assert sets(open_source(path, labels=MULTI)) == ["a", "b", ""]
    path = source(tmp_path, "image,melanoma", "1", "0", "0")  # a single label: yes or no
    assert sets(open_source(path, labels=MULTI)) == ["melanoma", "", ""]


@pytest.mark.parametrize("several", [True, False])
def test_a_typo_in_a_column_of_0_and_1_does_not_remove_the_label(several: bool, tmp_path: Path):
    """A column with many other cells is something else, such as a count; one of 40 is a mistake."""
    rows = ["1,1" if several and k % 4 == 0 else f"{k % 2},{1 - k % 2}" for k in range(40)]
    typo = [*rows[:20], f"1 ?,{1 - int(not several)}", *rows[21:]]
    with pytest.raises(UserError, match=r"all.csv:22: cat is '1 \?', neither 0 nor 1 as 39 of 40 cells"):
        open_source(source(tmp_path, "image,cat,dog", *typo))
    counted = [f"{row},{k % 7}" for k, row in enumerate(rows)]
    assert open_source(source(tmp_path, "image,cat,dog,number", *counted), labels=MULTI).classes == ("cat", "dog")


def test_a_cell_that_is_neither_0_nor_1_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"all.csv:3: edema is '-1', neither 0 nor 1"):
        open_source(source(tmp_path, "image,edema,cyst,mass", "1,1,0", "-1,1,1", "0,0,0"))


@pytest.mark.parametrize(
    ("header", "cells", "form", "expected"),
    [
        ("image,labels", ["cat|dog", "dog", "", "cat"], None, ["cat+dog", "dog", "", "cat"]),
        ("image,labels", ["cat; dog", "dog", "bird"], None, ["cat+dog", "dog", "bird"]),
        ("image,labels", ['"cat, dog"', "dog", "bird"], None, ["cat+dog", "dog", "bird"]),
        ("Image Index,Finding Labels", ["Mass|Cyst", "No Finding", "Cyst"], None, ["Cyst+Mass", "", "Cyst"]),
        ("image,tags", ["cat|dog", "dog|", "| cat"], None, ["cat+dog", "dog", "cat"]),
        ("image,label", ["cat|dog", "dog", "bird"], None, ["cat+dog", "dog", "bird"]),
        ("image,label", ["cat;x", "dog", "bird"], LabelFormat("multi-label", "|"), ["cat;x", "dog", "bird"]),
        ("image,label", ['"cat,dog"', "dog", "bird"], MULTI, ["cat+dog", "dog", "bird"]),
        ("image,label", ["cat", "dog", "bird"], MULTI, ["cat", "dog", "bird"]),
    ],
)
def test_a_column_of_labels(tmp_path: Path, header, cells, form, expected):
    table = open_source(source(tmp_path, header, *cells), **({} if form is None else {"labels": form}))
    assert sets(table) == expected
    assert any("labels are read from column" in note for note in table.notes)


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize(
    "cells",
    [
        ["['cat', 'small']", "['small']", "[]"],  # a list of Python in a column of pandas
        ['["cat","small"]', '["small"]', "[]"],  # JSON
        ["['cat' 'small']", "['small']", "[]"],  # an array of NumPy
        ["('cat', 'small')", "('small',)", "()"],
        ["{'cat', 'small'}", "{'small'}", "{}"],
        ["{cat,small}", "{small}", "{}"],  # PostgreSQL
        ['{"choices":["cat","small"]}', "small", "[]"],  # Label Studio
    ],
)
def test_cells_that_are_lists_hold_the_labels_without_brackets_and_quotes(tmp_path: Path, column, cells):
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    table = open_source(source(tmp_path, f"image,{column}", *quoted))
    assert sets(table) == ["cat+small", "small", ""]
    assert any("whose cells are lists: 1 of 3 images have several, 1 none" in note for note in table.notes)


def test_numbers_in_lists_are_labels_unless_they_are_one_for_each_class(tmp_path: Path):
    assert sets(open_source(source(tmp_path, "image,label", '"[0, 2]"', "[1 2]", "[]"))) == ["0+2", "1+2", ""]
    for cells in (['"[0, 0, 1]"', '"[1, 0, 0]"'], ["[0 1]", "[1 0]"], ['"(0.2, 0.8)"', '"(0.5, 0.5)"']):
        with pytest.raises(UserError, match=r"all.csv:2: label is '.*', one number for each class; write the name"):
            open_source(source(tmp_path, "image,label", *cells))


def test_lists_of_one_are_one_label_for_each_image(tmp_path: Path):
    table = open_source(source(tmp_path, "image,labels", "['cat']", "['dog']", "bird"))
    assert not table.several
    assert table.classes == ("bird", "cat", "dog")
    assert sets(open_source(source(tmp_path, "image,labels", "['cat']", "['dog']"), labels=MULTI)) == ["cat", "dog"]


def test_brackets_without_quotes_or_commas_belong_to_a_class_name(tmp_path: Path):
    table = open_source(source(tmp_path, "image,label", "[other]", "(none)", "cat", "{x}"))
    assert set(table.classes) == {"[other]", "(none)", "cat", "{x}"}


def test_an_object_is_no_label(tmp_path: Path):
    path = source(tmp_path, "image,label", "cat", "dog", name="all.jsonl")
    path.write_text('{"image": "0.png", "label": {"name": "cat", "id": 3}}\n{"image": "1.png", "label": "dog"}\n')
    with pytest.raises(
        UserError, match=r"all.jsonl:1: label is .*'cat'.*, an object; write only the name of the class"
    ):
        open_source(path)


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("image,label", ['"rose, red"', '"rose, white"', "rose"]),
        ("image,label", ["fruit|apple", "fruit|pear", "nut|hazel"]),
        ("image,labels", ['"rose, red"', '"tulip, white"', "aster"]),
        ("image,species", ["a;b", "c;d", "e"]),
    ],
)
def test_class_names_that_contain_a_separator_stay_whole(tmp_path: Path, header, cells):
    table = open_source(source(tmp_path, header, *cells))
    assert not table.several
    assert len(table.classes) == 3


def test_labels_that_join_others_by_a_comma_are_voiced(tmp_path: Path):
    path = source(tmp_path, "image,label", "1", '"1,5"', "2")
    told = "'1,5': read as one class each, although a part is a class too"
    assert any(told in note and '--set data.separator=","' in note for note in open_source(path).notes)
    assert sets(open_source(path, labels=LabelFormat(separator=","))) == ["1", "1+5", "2"]
    assert not any(told in note for note in open_source(path, labels=SINGLE).notes)
    plain = open_source(source(tmp_path, "image,label", '"rose, red"', '"rose, white"', "aster"))
    assert not any("read as one class each" in note for note in plain.notes)


def test_several_can_be_refused(tmp_path: Path):
    path = source(tmp_path, "image,labels", "cat|dog", "dog", "bird")
    assert open_source(path, labels=SINGLE).classes == ("bird", "cat|dog", "dog")


def test_folders_and_lists_have_one_label_per_image(tmp_path: Path):
    table = open_source(write_images(tmp_path / "f", each=2), labels=MULTI)
    assert sets(table) == ["0", "0", "1", "1", "2", "2"]
    assert "one label" in table.notes[-1]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,1", "1,0"], "every training image has the label 'a'"),
        (["0,0", "0,0"], "no image has a label"),
    ],
)
def test_labels_that_cannot_be_learned(tmp_path: Path, cells, message):
    with pytest.raises(UserError, match=message):
        open_source(source(tmp_path, "image,a,b", *cells), labels=MULTI)


def test_an_image_in_two_rows(tmp_path: Path):
    path = source(tmp_path, "image,labels", "cat|dog", "dog", "bird")
    path.write_text(path.read_text() + "\n0.png,bird")
    with pytest.raises(UserError, match=r"'0.png' is listed with the labels 'cat', 'dog' and with 'bird'; write all"):
        open_source(path)


def test_a_split_spreads_each_label_keeps_groups_and_is_read_back(tmp_path: Path):
    path = write_label_sets(tmp_path, 200, patients=50)
    table = open_source(path, group="patient")
    split = split_table(table, valid=0.2, test=0.2, seed=1)
    for name, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        part = split.labels[split.where(name)]
        assert abs(len(part) - 200 * share) <= 8
        assert np.abs(part.sum(0) - share * table.labels.sum(0)).max() <= 4
    of_group: dict[str, set[str]] = {}
    for group, part_of in zip(split.groups or (), split.split.tolist(), strict=True):
        of_group.setdefault(group, set()).add(part_of)
    assert all(len(parts) == 1 for parts in of_group.values())
    write_split(split, tmp_path / "split.csv")
    again = open_source(tmp_path / "split.csv", labels=MULTI)
    assert again.fingerprint() == split.fingerprint()
    other = split_table(table, valid=0.2, test=0.2, seed=2)
    assert (other.split != split.split).any()
    assert split_table(table, valid=0.2, test=0.2, seed=1).split.tolist() == split.split.tolist()


def test_names_with_commas_survive_the_split_file(tmp_path: Path):
    table = open_source(
        source(tmp_path, "image,labels", *['"a, x|b"', "b", '"a, x"', ""] * 4), labels=LabelFormat("multi-label", "|")
    )
    split = split_table(table, valid=0.25, test=0, seed=0)
    write_split(split.select(np.flatnonzero(split.labels.sum(1) == 1)), tmp_path / "split.csv")
    assert open_source(tmp_path / "split.csv", labels=MULTI, lenient=True).classes == ("a, x", "b")


def test_a_rare_label_is_in_training(tmp_path: Path):
    table = open_source(source(tmp_path, "image,a,b", "1,1", *["1,0", "0,0"] * 20))
    for seed in range(5):
        split = split_table(table, valid=0.3, test=0.3, seed=seed)
        assert split.labels[split.where("train"), 1].sum() == 1


def test_the_time_is_proportional_to_the_columns(tmp_path: Path):
    """Each column was looked for among all the others: 20 s of processor time for so many."""
    count = 30_000
    path = source(tmp_path, "path," + ",".join(f"c{k}" for k in range(count)), ",".join(["1", "0"] * (count // 2)))
    start = time.process_time()
    assert read_csv(path).sets == [tuple(f"c{k}" for k in range(0, count, 2))]
    assert time.process_time() - start < 5
