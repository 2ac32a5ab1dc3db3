"""Columns of a CSV under other names: used or refused, and always reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import GRAY

import linnaeus
from linnaeus.data.readers.columns import LabelFormat
from linnaeus.data.readers.csvfile import open_csv, open_frame
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.errors import UserError
from linnaeus.inference.source import _in_words_of
from linnaeus.modelfile.safetensors import ModelFile

ROWS = ("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d.jpg")


def write(root: Path, header: str, *cells: str, paths: tuple[str, ...] = ROWS) -> Path:
    (root / "images").mkdir()
    for name in ROWS:
        (root / name).touch()
    lines = [f"{path},{cell}" for path, cell in zip(paths, cells, strict=True)]
    (root / "all.csv").write_text("\n".join([header, *lines]))
    return root / "all.csv"


@pytest.mark.parametrize(
    ("column", "values", "splits"),
    [
        ("is_valid", "False True False True", "train valid train valid"),
        ("is_test", "0 1 0 0", "train test train train"),
        ("Is_Train", "yes no yes yes", "train test train train"),
        ("holdout", "0 1 0 0", "train test train train"),
        ("Evaluation", "no no yes no", "train train valid train"),
        ("set", "training validation testing train", "train valid test train"),
        ("Usage", "Training PublicTest PrivateTest Training", "train valid test train"),
        ("whatever", "train dev train test", "train valid train test"),
    ],
)
def test_a_split_under_another_name_is_used_and_reported(tmp_path: Path, column: str, values: str, splits: str):
    cells = [f"{'xy'[k % 2]},{value}" for k, value in enumerate(values.split())]
    table = open_source(write(tmp_path, f"path,label,{column}", *cells), lenient=True)
    assert table.split.tolist() == splits.split()
    assert column.lower() in table.notes[0]


def test_rows_without_a_split_among_others_are_reported(tmp_path: Path):
    table = open_source(write(tmp_path, "path,label,split", "x,train", "y,valid", "x,", "y,"))
    assert table.notes == ("all.csv: 2 of 4 rows have no split: they train, or are drawn for a split that no row has",)
    assert list(split_table(table, valid=0.5, test=0.0, seed=0).split) == ["train", "valid", "train", "train"]


def test_labels_that_other_programs_write_for_a_missing_one_are_reported(tmp_path: Path):
    table = open_source(write(tmp_path, "path,label", "x", "nan", "nan", "none"), lenient=True)
    assert table.classes == ("nan", "none", "x")
    (note,) = table.notes
    assert note.startswith(
        "all.csv: label 'nan' of 2 images is taken for a class; if it means that the label is missing"
    )


def test_folds_are_not_used_and_that_is_reported(tmp_path: Path):
    table = open_source(write(tmp_path, "path,label,fold", "x,0", "y,1", "x,0", "y,1"))
    assert set(table.split) == {""}
    assert "column 'fold' ('0', '1') is not used" in table.notes[0]
    path = tmp_path / "all.csv"
    path.write_text(path.read_text().replace("fold", "is_valid").replace("x,0", "x,2"))
    assert "column 'is_valid' ('1', '2') is not used" in open_source(path).notes[0]


def test_two_columns_that_name_the_split(tmp_path: Path):
    with pytest.raises(UserError, match="columns 'set', 'is_valid' may all hold the split"):
        open_source(write(tmp_path, "path,label,set,is_valid", "x,train,0", "y,val,1", "x,train,0", "y,train,0"))


def test_one_column_for_each_class(tmp_path: Path):
    path = write(tmp_path, "image,rose,tulip", "1,0", "0.0,1.0", "1,0", "0,1", paths=("a", "b", "c", "d"))
    table = open_source(path)
    assert [table.classes[label] for label in table.labels] == ["rose", "tulip", "rose", "tulip"]
    assert table.sample_id(0) == "images/a.jpg"  # an id without folder and suffix
    assert "the columns 'rose', 'tulip', one for each class" in table.notes[1]
    assert "images are found in images/ with .jpg added" in table.notes[2]
    path.write_text("image,rose,tulip\na,1,1\nb,0,1\n")
    with pytest.raises(UserError, match=r"all.csv:2: .* give this image classes 'rose', 'tulip'; exactly one class"):
        open_source(path, labels=LabelFormat("single-label"))


def test_other_columns_beside_one_for_each_class(tmp_path: Path):
    rows = "1,0,phone,60,0", "0,1,reflex,41,1", "1,0,phone,33,0", "0,1,,70,0"
    path = write(tmp_path, "image,rose,tulip,camera,age,is_valid", *rows, paths=("a", "b", "c", "d"))
    table = open_source(path)
    assert [table.classes[label] for label in table.labels] == ["rose", "tulip", "rose", "tulip"]
    assert table.split.tolist() == ["train", "valid", "train", "train"]
    assert any("the columns 'rose', 'tulip', one for each class" in note for note in table.notes)
    path.write_text(path.read_text().replace("0,1,,70", "0,0,,70"))
    with pytest.raises(UserError, match=r"all.csv:1: no column 'label'"):
        open_source(path)


def test_labels_under_another_name_and_the_separator_line_of_excel(tmp_path: Path):
    path = write(tmp_path, "filename,species", *"xyxy")
    path.write_bytes(("sep=;\r\n" + path.read_text().replace(",", ";") + ";;").encode("utf-16"))
    table = open_source(path)
    assert table.classes == ("x", "y")
    assert "path is read from column 'filename'" in table.notes[0]
    path.write_text("path,species,category\nimages/a.jpg,x,1\n")
    with pytest.raises(UserError, match="rename the right one of 'species', 'category' to label"):
        open_source(path)


def test_a_column_of_class_numbers_is_the_label_unless_another_names_the_classes(tmp_path: Path):
    table = open_source(write(tmp_path, "Path,ClassId", *"0101"))  # GTSRB
    assert table.classes == ("0", "1")
    assert "label is read from column 'classid'" in table.notes[0]
    rows = [f"{row},{k % 2},{'xy'[k % 2]}" for k, row in enumerate(ROWS)]
    (tmp_path / "both.csv").write_text("\n".join(["path,class_id,class_name", *rows]))
    assert open_source(tmp_path / "both.csv").classes == ("x", "y")


def test_one_image_with_two_labels(tmp_path: Path):
    with pytest.raises(UserError, match=r"'images/a.jpg' is listed with the labels 'x', 'y'"):
        open_source(write(tmp_path, "path,label", *"xyxy", paths=(ROWS[0], ROWS[0], ROWS[1], ROWS[2])))


def test_a_data_frame(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    write(tmp_path, "path,label", *"xyxy")
    paths = [str(tmp_path / row) for row in ROWS]
    frame = pandas.DataFrame({"filename": paths, "label": [1, 2, 1, 2], "is_valid": [True, False, False, False]})
    table = open_frame(frame)
    assert table.classes == ("1", "2")
    assert table.split.tolist() == ["valid", "train", "train", "train"]
    frame.loc[1, "filename"] = None
    with pytest.raises(UserError, match="DataFrame:2: no path"):
        open_frame(frame)


class Foreign:
    """An object of another library, whose text may be long."""

    def __str__(self) -> str:
        return "0    a.jpg\n" * 100


@pytest.mark.parametrize(
    "source", [["a.jpg"], np.zeros((2, 2)), None, Foreign()], ids=lambda source: type(source).__name__
)
def test_an_unsupported_source_is_named_by_its_type(source: object):
    with pytest.raises(UserError, match=rf"source of type .*{type(source).__name__}; pass the path") as error:
        linnaeus.train(source)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 240


@pytest.mark.parametrize("second", [("1", "0"), ("1", "1")], ids=["one label", "several labels"])
def test_classes_are_named_as_the_header_writes_them(tmp_path: Path, second: tuple[str, str]):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    rows = ["image,MEL,Nevus", "a.png,0,1", f"b.png,{','.join(second)}", "c.png,1,0"]
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    table = open_source(tmp_path / "truth.csv")
    assert table.classes == table.names == ("MEL", "Nevus")
    assert table.several == (second == ("1", "1"))
    assert "read from the columns 'MEL', 'Nevus'" in " ".join(table.notes)


@pytest.mark.parametrize("second", [("1", "0"), ("1", "1")], ids=["one label", "several labels"])
def test_columns_of_two_files_are_the_same_class_in_any_case(tmp_path: Path, second: tuple[str, str]):
    for name in "abcdef":
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "train.csv").write_text(f"image,MEL,Nevus\na.png,0,1\nb.png,{','.join(second)}\nc.png,1,0\n")
    (tmp_path / "valid.csv").write_text(f"image,nevus,mel\nd.png,0,1\ne.png,{','.join(second)}\nf.png,1,0\n")
    table = open_csv("both", {split: tmp_path / f"{split}.csv" for split in ("train", "valid")})
    assert table.classes == ("MEL", "Nevus")
    older = ModelFile({"name": "resnet18"}, ("mel", "nevus"), ("MEL", "Nevus"), GRAY)
    assert _in_words_of(older, table).classes == older.classes, "a model of an earlier version"
    assert [table.labels_of(i) for i in (0, 2, 3, 5)] == [("Nevus",), ("MEL",), ("MEL",), ("Nevus",)]


@pytest.mark.parametrize("name", ["pixel{}", "{}", "1x{}"])
def test_a_table_of_pixels_is_named_as_such(tmp_path: Path, name: str):
    """Without labels; with them its images are read (test_pixelcsv.py)."""
    header = [name.format(k) for k in range(64)]
    (tmp_path / "test.csv").write_text(",".join(header) + "\n" + ",".join("0" * 64) + "\n")
    with pytest.raises(UserError, match=r"test.csv:1: the columns .* hold pixels, not paths of images; they are"):
        open_source(tmp_path / "test.csv")
    (tmp_path / "train.csv").write_text(
        ",".join(["label", *header]) + "\n" + "".join(f"{k},{'7,' * 63}7\n" for k in (0, 1))
    )
    table = open_source(tmp_path / "train.csv")
    assert table.images is not None
    assert table.images.shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("module", "name"), [("datasets.arrow_dataset", "Dataset"), ("datasets.dataset_dict", "DatasetDict")]
)
def test_a_dataset_of_hugging_face_is_told_how_to_become_folders(module: str, name: str):
    source = type(name, (dict,), {"__module__": module, "column_names": ["image", "label"]})()
    with pytest.raises(UserError, match=f"^a {name} of Hugging Face; write its images into class folders"):
        open_source(source)
