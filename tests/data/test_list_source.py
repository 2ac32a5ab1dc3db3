"""List files, CSV and TSV."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laid_out import lay, refused

from linnaeus.data.readers.columns import LabelFormat
from linnaeus.data.sources import open_source
from linnaeus.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return lay(tmp_path, "img/rose/1.jpg", "img/rose/2.jpg", "img/tulip/a b.jpg", "img/tulip/4.jpg")


def test_food10(shared_data: Path):
    table = open_source(shared_data / "food10")
    assert (table.kind, len(table)) == ("list", 520)
    assert table.counts()["train"].tolist() == [40] * 10
    assert table.counts()["test"].tolist() == [12] * 10
    assert table.classes[0] == "apple_pie"  # the lists hold numbers; the parent folders name them
    assert table.sample_id(0) == "images/apple_pie/1005649.jpg"


def test_split_at_the_last_blank(images: Path):
    (images / "train.txt").write_bytes("\ufeffimg/rose/1.jpg 1\r\n\r\nimg/tulip/a b.jpg\t0\r\n".encode())
    table = open_source(images / "train.txt")
    assert table.classes == ("tulip", "rose")  # in the order of the numbers
    assert table.labels.tolist() == [1, 0]
    assert table.sample_id(1) == "img/tulip/a b.jpg"
    assert set(table.split) == {""}


def test_labels_by_name(images: Path):
    (images / "train.txt").write_text("img/rose/1.jpg Rosé\nimg/tulip/4.jpg 10\nimg/tulip/4.jpg 郁金香\n")
    refused(images, "train.txt:2: label '10' is a number where the other labels are names", "classes.txt")
    (images / "train.txt").write_text("img/rose/1.jpg Rose\u0301\nimg/tulip/4.jpg 郁金香\nimg/rose/2.jpg Rosé\n")
    table = open_source(images)
    assert table.classes == ("Rosé", "郁金香")
    assert table.labels.tolist() == [0, 1, 0]
    assert set(table.split) == {"train"}


def test_one_name_among_numbers_is_the_mistake(images: Path):
    (images / "train.txt").write_text("img/rose/1.jpg 0\nimg/tulip/4.jpg 1\nimg/rose/2.jpg rose\n")
    refused(images, "train.txt:3: label 'rose' is a name where the other labels are numbers")


def test_classes_txt_names_the_numbers(images: Path):
    (images / "train.txt").write_text("img/rose/1.jpg 2\nimg/tulip/4.jpg 0\n")
    (images / "classes.txt").write_text("Tulpe\nNelke\nRose\n")
    assert open_source(images).classes == ("Tulpe", "Rose")  # what no line uses is left out
    (images / "classes.txt").write_text("2 Rosa canina\n0 Tulipa\n")
    assert open_source(images).classes == ("Tulipa", "Rosa canina")
    (images / "classes.txt").write_text("Tulpe\nNelke\n")
    refused(images, "train.txt:1: label '2', but", "classes.txt has 2 classes, 0 to 1")
    (images / "classes.txt").write_text("Tulpe\n\nRose\n")
    refused(images, "classes.txt:2: an empty line would shift the classes")
    (images / "classes.txt").write_text("Tulpe\nRose\nTulpe\n")
    refused(images, "classes.txt:3: class 'Tulpe' is on line 1 too")


def test_classes_txt_orders_names(images: Path):
    (images / "train.txt").write_text("img/rose/1.jpg rose\nimg/tulip/4.jpg 3\n")
    (images / "classes.txt").write_text("rose\n3\nunused\n")
    assert open_source(images).classes == ("rose", "3")
    (images / "classes.txt").write_text("rose\ntulip\n")
    refused(images, "train.txt:2: label '3'", "classes.txt lacks it")


def test_numbers_stay_numbers_where_folders_do_not_name_them(images: Path):
    (images / "train.txt").write_text("img/rose/1.jpg 10\nimg/rose/2.jpg 9\nimg/tulip/4.jpg 9\n")
    assert open_source(images).classes == ("9", "10")
    (images / "train.txt").write_text("img/rose/1.jpg 1\nimg/rose/2.jpg -1\nimg/tulip/4.jpg -1\n")
    assert open_source(images).classes == ("-1", "1")


def test_other_list_names(images: Path):
    (images / "trainda.txt").write_text("img/rose/1.jpg 0\nimg/tulip/4.jpg 1\n")
    (images / "testda.txt").write_text("img/rose/2.jpg 0\n")
    table = open_source(images, train="trainda.txt", test="testda.txt")
    assert {split: counts.tolist() for split, counts in table.counts().items()} == {"train": [1, 1], "test": [1, 0]}
    refused(images, "nosuch.txt: no such list file", "data.valid", train="trainda.txt", valid="nosuch.txt")
    refused(images / "trainda.txt", "not a folder", "'test'", test="testda.txt")


def test_the_usual_names_fill_in(images: Path):
    (images / "mine.txt").write_text("img/rose/1.jpg 0\nimg/tulip/4.jpg 1\n")
    for name in ("train.txt", "val.txt", "test.txt"):
        (images / name).write_text("img/rose/2.jpg 0\nimg/tulip/a b.jpg 1\n")
    assert set(open_source(images, train="mine.txt").split) == {"train", "valid", "test"}
    (images / "train.txt").unlink()
    assert set(open_source(images).split) == {"valid", "test"}  # something to evaluate on


def test_paths_relative_to_the_working_directory(images: Path, monkeypatch: pytest.MonkeyPatch):
    lists = lay(images / "lists", "x") / "all.txt"
    absolute = images / "img/rose/2.jpg"
    lists.write_text(f"img/rose/1.jpg a\n{absolute} b\nimg\\tulip\\4.jpg b\n../img/tulip/4.jpg b\n")
    refused(lists, "all.txt:1: 'img/rose/1.jpg' does not exist (nor do 1 more of 4)", "correct the path")
    monkeypatch.chdir(images)
    table = open_source("lists/all.txt")
    assert table.paths is not None
    assert table.paths[:2] == (str(images / "img/rose/1.jpg"), str(absolute))
    assert table.paths[2:] == (str(images / "img/tulip/4.jpg"),)
    assert table.sample_id(1) == absolute.as_posix()  # outside of the list's folder: absolute


def test_one_clear_line_for_each_mistake(images: Path):
    place = images / "train.txt"
    for content, said in (
        (b"img/rose/1.jpg 0\nimg/tulip/4.jpg\n", "train.txt:2: 'img/tulip/4.jpg' has no label; write `path label`"),
        (b"img/rose/1.jpg 0\nimg/rose/7.jpg 1\n", "train.txt:2: 'img/rose/7.jpg' does not exist"),
        (b"", "train.txt: lists no images"),
        (b"\n \n", "train.txt: lists no images"),
        (b"img/rose/1.jpg 0\nimg/rose/2.jpg 0\n", "one class, 'rose'"),
        (b"img/rose/1.jpg caf\xe9\n", "train.txt:1: label 'café' (a guess from its bytes) is not UTF-8; save the"),
        ("img/rose/1.jpg 玫瑰\n".encode("gbk"), "train.txt:1: label '玫瑰' (a guess from its bytes) is not UTF-8"),
        (b"img 0\nimg/rose 1\n", "train.txt:1: 'img' does not exist"),
    ):
        place.write_bytes(content)
        refused(images, said)


def test_a_class_that_only_the_test_list_has(images: Path):
    (images / "train.txt").write_text("img/rose/1.jpg rose\nimg/tulip/4.jpg tulip\n")
    (images / "test.txt").write_text("img/rose/2.jpg lily\n")
    refused(images, "class 'lily' is in test but not in train")


def test_csv(images: Path):
    (images / "all.csv").write_text(
        "\ufeffSplit , PATH,comment,Label,group\r\n"
        'train, img/rose/1.jpg,"two\nlines",9,p\r\n'
        'val,"img/tulip/a b.jpg",, 10 ,\r\n'
        "\r\n,img/tulip/4.jpg,,9,p\r\nTraining,img/rose/2.jpg,,10,\r\n"
    )
    table = open_source(images / "all.csv")
    assert (table.kind, table.classes) == ("csv", ("9", "10"))
    assert table.split.tolist() == ["train", "valid", "", "train"]
    assert table.labels.tolist() == [0, 1, 0, 1]
    assert table.groups == ("p", "", "p", "")
    assert table.sample_id(1) == "img/tulip/a b.jpg"
    (images / "classes.txt").write_text("\n".join(f"class {i}" for i in range(11)))
    assert open_source(images / "all.csv").names == ("class 9", "class 10")


def test_tsv_and_semicolons(images: Path):
    rows = [("path", "label"), ("img/rose/1.jpg", "a, b"), ("img/tulip/4.jpg", "c;d")]
    (images / "x.tsv").write_text("\n".join("\t".join(row) for row in rows))
    assert open_source(images / "x.tsv").classes == ("a, b", "c;d")
    (images / "x.csv").write_text("\n".join(";".join(row) for row in rows[:2]) + '\nimg/tulip/4.jpg;"c;d"')
    assert open_source(images / "x.csv").classes == ("a, b", "c;d")
    (images / "x.csv").write_bytes("\n".join(",".join(row) for row in rows[::2]).encode("utf-16"))
    refused(images / "x.csv", "one class, 'c;d'")


def test_wide_encodings_are_read_or_named(images: Path):
    text = "path,label\nimg/rose/1.jpg,röse\nimg/tulip/4.jpg,tulip\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (images / "x.csv").write_bytes(text.encode(encoding))
        assert open_source(images / "x.csv").classes == ("röse", "tulip")
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        (images / "x.csv").write_bytes(text.encode(encoding))
        refused(images / "x.csv", "x.csv: has NUL bytes, as UTF-16 and UTF-32 have")


def test_a_separator_is_for_the_cells_of_a_csv(images: Path):
    with pytest.raises(UserError, match=r"data\.separator = ';' divides the cells of a CSV"):
        open_source(images / "img", labels=LabelFormat(separator=";"))
    assert len(open_source(images / "img", labels=LabelFormat(separator=";"), lenient=True))


def test_csv_files_by_split(images: Path):
    (images / "a.csv").write_text("path,label\nimg/rose/1.jpg,rose\nimg/tulip/4.jpg,tulip\n")
    (images / "b.csv").write_text("path,label\nimg/rose/2.jpg,rose\n")
    assert open_source(images, train="a.csv", test="b.csv").split.tolist() == ["train", "train", "test"]
    (images / "b.txt").write_text("img/rose/2.jpg rose\n")
    refused(images, "use list files or CSVs, not both", train="a.csv", test="b.txt")


def test_one_clear_line_for_each_mistake_in_a_csv(images: Path):
    place = images / "x.csv"
    for content, said in (
        ("", "x.csv: has no columns; write `path,label` on the first line"),
        ("photo,label\n", "x.csv:1: no column 'path', only 'photo', 'label'"),
        ("path,label,class,label\n", "x.csv:1: columns 2 and 4 are both called 'label'; rename or remove one"),
        ("file,image,label\n", "x.csv:1: no column 'path'; rename the right one of 'file', 'image' to path"),
        ("path,label\nimg/rose/1.jpg,a,b\n", "x.csv:2: 3 cells, but 2 columns; put quotes around"),
        ("path,label\nhttps://a.org/1.jpg,a\n", "it is an address, and a list names files: download"),
        ("path,label\nD:\\data\\img\\rose\\1.jpg,a\n", "img/rose/1.jpg exists: remove the part before it"),
        ("nothing,label\n", "the first line must name path, label [, split]: rename the columns that hold them"),
        ("path,label\n", "x.csv: lists no images"),
        ("path,label\nimg/rose/1.jpg\n", "x.csv:2: no label; write one"),
        ("path,label\n,rose\n", "x.csv:2: no path"),
        ("path,label\na,\nb,rose\n,rose\nc,\n", "x.csv:4: no path; write one, or remove the line"),
        ("path,label\na,\nb,rose\nc, \nd\n", "x.csv:2: no label, nor in 2 more (4, 5); write one"),
        ("path,label\n" + "a,\n" * 9, "x.csv:2: no label, nor in 8 more (3, 4, 5, 6, 7 …)"),
        (
            "path,label,split\nimg/rose/1.jpg,a,trian\n",
            "split 'trian' is none of train, valid, test (did you mean train",
        ),
        ("path,label\nimg/rose/1.jpg,a\nimg/rose/9.jpg,a\n", "x.csv:3: 'img/rose/9.jpg' does not exist, neither in"),
        ("path,label\nimg/rose/1.jpg," + "a" * 200_000 + "\n", "x.csv:2: field larger than field limit"),
    ):
        place.write_text(content)
        refused(place, said)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("4.jpg", "img/tulip/4.jpg"),  # only the name of an image in a folder of its class
        ("/data/upload/1/4.jpg", "img/tulip/4.jpg"),  # Label Studio
        ("img/tulip/4.png", "img/tulip/4.jpg"),  # another suffix
        ("IMG/TULIP/4.JPG", "img/tulip/4.jpg"),
        ("flower\\4", "img/tulip/4.jpg"),
        ("photos/7.jpg", None),
    ],
)
def test_a_path_that_does_not_exist_leads_to_an_image_of_its_name(images: Path, written: str, meant: str | None):
    lay(images, "img/4.txt", "img/rose/14.jpg")
    (images / "x.csv").write_text(f"path,label\nimg/rose/1.jpg,a\n{written},b\n")
    hint = (
        f"{meant} exists: if it is meant, write the paths that way" if meant else "correct the path or remove the line"
    )
    refused(images / "x.csv", f"x.csv:3: {written!r} does not exist", f"; {hint}")


def test_a_folder_in_place_of_an_image_is_named_once(images: Path, monkeypatch: pytest.MonkeyPatch):
    (images / "x.csv").write_text("path,label\nimg/rose/1.jpg,a\nimg/rose/9.jpg,a\n")
    monkeypatch.chdir(images)
    refused(images / "x.csv", f"x.csv:3: 'img/rose/9.jpg' does not exist in {images}; correct the path")


@given(
    raw=st.one_of(st.binary(max_size=300), st.text(st.sampled_from('ab/. \t\r\n",;01é\0'), max_size=80).map(str.encode))
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.tsv", "x"])
def test_any_bytes_are_refused_in_one_line(tmp_path: Path, name: str, raw: bytes):
    lay(tmp_path, "a", "b")
    (tmp_path / name).write_bytes(raw)
    try:
        open_source(tmp_path / name)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("column", ["patient", "Patient_ID", "lesion id", "subjects", "Scene", "camera"])
def test_a_column_that_may_name_groups_is_offered(images: Path, column: str):
    rows = ["img/rose/1.jpg,a,p", "img/rose/2.jpg,b,p", "img/tulip/4.jpg,b,q"]
    (images / "x.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    table = open_source(images / "x.csv")
    assert table.offered == (column.lower(),)
    assert f"data.split.groups={column.lower()}" in table.offer
    assert open_source(images / "x.csv", group=column).offer == ""  # taken
    divided = dataclasses.replace(table, split=np.array(["train", "train", "test"]))
    assert divided.offer == ""  # too late


@pytest.mark.parametrize("column", ["age", "sex", "comment", "patients_age", "group"])
def test_other_columns_are_not_offered(images: Path, column: str):
    rows = ["img/rose/1.jpg,a,p", "img/rose/2.jpg,b,p", "img/tulip/4.jpg,b,q"]
    (images / "x.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    assert open_source(images / "x.csv").offer == ""


def test_a_column_in_which_nothing_repeats_is_not_offered(images: Path):
    (images / "x.csv").write_text("path,label,case\nimg/rose/1.jpg,a,1\nimg/rose/2.jpg,b,2\n")
    assert open_source(images / "x.csv").offer == ""


def test_groups_by_a_column_of_choice(images: Path):
    (images / "all.csv").write_text(
        "path,label,Patient\nimg/rose/1.jpg,a,p1\nimg/rose/2.jpg,b,p2\nimg/tulip/4.jpg,a,p1\n"
    )
    assert open_source(images / "all.csv").groups is None
    assert open_source(images / "all.csv", group="patient").groups == ("p1", "p2", "p1")
    with pytest.raises(
        UserError,
        match=r"all\.csv:1: no column 'plant'; the columns are 'path', 'label', 'patient'",
    ):
        open_source(images / "all.csv", group="plant")
    with pytest.raises(UserError, match=r"cannot be grouped by 'patient', because only a CSV has columns"):
        open_source(images / "img", group="patient")


@pytest.mark.parametrize("above", ["", "data/", "C:\\sets\\x\\"])
@pytest.mark.parametrize("name", ["all.csv", "all.txt", "all.jsonl"])
def test_paths_through_train_and_test_state_the_split(tmp_path: Path, name: str, above: str):
    places = [f"{part}/{kind}/{k}.jpg" for part in ("Train", "validation", "test") for kind in "ab" for k in (1, 2)]
    lay(tmp_path, *places)
    if above == "data/":
        above = f"{tmp_path}/"
    elif above:
        above, places = "", [place.replace("/", "\\") for place in places]
    rows = [(above + place, place[-7]) for place in places]
    if name.endswith("jsonl"):
        text = "\n".join(json.dumps({"path": path, "label": label}) for path, label in rows)
    else:
        text = "\n".join(
            ["path,label"] * name.endswith("csv") + [("," if "csv" in name else "\t").join(row) for row in rows]
        )
    (tmp_path / name).write_text(text)
    table = open_source(tmp_path / name)
    assert table.split.tolist() == ["train"] * 4 + ["valid"] * 4 + ["test"] * 4
    told = (
        f"{name}: the split is that of the folders 'test', 'train', 'validation' in the paths: 4 train, 4 valid, 4 test"
    )
    assert told in table.notes


def test_a_column_or_other_folders_outweigh_folders_named_like_splits(tmp_path: Path):
    lay(tmp_path, "train/1.jpg", "test/2.jpg", "bus/3.jpg")
    (tmp_path / "all.csv").write_text("path,label,split\ntrain/1.jpg,a,\ntest/2.jpg,b,\n")
    assert set(open_source(tmp_path / "all.csv").split) == {""}
    (tmp_path / "all.csv").write_text("path,label\ntrain/1.jpg,a\ntest/2.jpg,b\nbus/3.jpg,b\n")
    assert set(open_source(tmp_path / "all.csv").split) == {""}  # vehicles
    (tmp_path / "all.csv").write_text("path,label,is_test\ntrain/1.jpg,a,1\ntest/2.jpg,b,0\ntrain/1.jpg,a,1\n")
    assert set(open_source(tmp_path / "all.csv", lenient=True).split) == {"train", "test"}
