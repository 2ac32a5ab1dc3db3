"""Layouts that are not one folder per class: read where they are known, refused where they would mislead."""

from __future__ import annotations

from pathlib import Path

import pytest
from laid_out import lay

from linnaeus.data.images.decode import UnreadableError, decode
from linnaeus.data.sources import open_source
from linnaeus.errors import UserError


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("cam1/a/1.jpg cam1/b/1.jpg cam2/a/1.jpg cam2/b/1.jpg", "'cam1', 'cam2' all contain 'a', 'b', which may be"),
        ("x/train/1.jpg x/test/1.jpg y/train/1.jpg y/test/1.jpg", "all contain 'test', 'train', which are splits"),
        ("seg_train/seg_train/a/1.jpg seg_test/seg_test/a/1.jpg", "'seg_test', 'seg_train' are named like splits"),
        ("Train_set/a/1.jpg Test_set/a/1.jpg", "rename them to train, valid or test"),
        ("images/1.jpg labels/1.txt", "images/ beside labels/ is a layout for detection"),
        ("train/images/1.jpg train/labels/1.txt valid/images/1.jpg", "is a layout for detection"),
        ("train2017/1.jpg val2017/1.jpg annotations/x.json", "is a layout for detection"),
        ("train/a/1.jpg train/b/1.jpg test_set/a/1.jpg", "test_set: beside train/ and named like test; rename it"),
        ("train/a/1.jpg train/b/1.jpg vaild/a/1.jpg", "named like valid; rename it to valid"),
        ("train/a/1.jpg train/b/1.jpg dev/a/1.jpg", "named like valid"),
        ("train/photos/a/1.jpg train/photos/b/1.jpg", "the folders 'a', 'b' below it may be the classes"),
        ("x/x/images/a/1.jpg x/x/images/b/1.jpg", "only one class folder, 'x'; the folders 'a', 'b' below it may be"),
        ("x/y/Train/a/1.jpg x/y/Test/a/1.jpg", "may be the classes or splits: then point at {}/x/y"),
        ("train/a/1.jpg train/b/1.jpg Validate/a/1.jpg", "Validate: beside train/ and named like valid; rename it"),
        ("训练集/a/1.jpg 训练集/b/1.jpg 测试集/a/1.jpg", "'测试集', '训练集' are named like splits, not classes"),
    ],
)
def test_wrong_classes_are_refused(tmp_path: Path, files: str, message: str):
    with pytest.raises(UserError) as error:
        open_source(lay(tmp_path, *files.split()))
    assert message.format(tmp_path) in str(error.value)


def test_common_folders_inside_classes_are_pointed_out(tmp_path: Path):
    table = open_source(lay(tmp_path, "rose/day/1.jpg", "rose/night/1.jpg", "tulip/day/1.jpg", "tulip/night/1.jpg"))
    assert table.classes == ("rose", "tulip")
    assert "'day', 'night' inside each are not" in table.notes[0]
    plain = open_source(lay(tmp_path / "plain", "rose/1.jpg", "tulip/day/1.jpg", "model_train/1.jpg"))
    assert plain.notes == ()


def test_food_101_as_published(tmp_path: Path):
    lay(tmp_path, "images/pie/1.jpg", "images/pie/2.jpg", "images/taco/1.jpg", "meta/labels.txt")
    (tmp_path / "meta/train.txt").write_text("pie/1\ntaco/1\n")
    (tmp_path / "meta/test.txt").write_text("pie/2\n")
    table = open_source(tmp_path)
    assert table.classes == ("pie", "taco")
    assert table.split.tolist() == ["train", "train", "test"]
    assert table.paths is not None
    assert table.paths[2] == str(tmp_path / "images/pie/2.jpg")
    assert "the class is the folder" in table.notes[0]


def test_labels_beside_images(tmp_path: Path):
    lay(tmp_path, "train/a1.jpg", "train/b2.jpg", "test/c3.jpg")
    (tmp_path / "train.csv").write_text("id,breed\na1,pug\nb2,boxer\n")
    (tmp_path / "sample_submission.csv").write_text("id,boxer,pug\nc3,0.5,0.5\n")
    table = open_source(tmp_path)
    assert table.classes == ("boxer", "pug")
    assert "train.csv" in table.notes[0]


def test_tab_lists_hold_blanks_in_labels(tmp_path: Path):
    lay(tmp_path, "images/1.jpg", "images/2.jpg")
    (tmp_path / "train_list.txt").write_text("images/1.jpg\tred rose\nimages/2.jpg\tblue tulip\n")
    assert open_source(tmp_path).classes == ("blue tulip", "red rose")


def test_a_git_lfs_pointer_is_named(tmp_path: Path):
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(UnreadableError, match="git lfs pull"):
        decode(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ("a/1.jpg, b/1.jpg, loose.jpg", "1 image outside of the class folders is not used: loose.jpg"),
        (
            "train/a/1.jpg, train/b/1.jpg, train/2.jpg, val/a/3.jpg",
            "outside of the class folders is not used: train/2",
        ),
        (
            "train/a/1.jpg, train/b/1.jpg, valid/a/1.jpg, more/a/2.jpg",
            "folders beside the splits are not used: 'more'",
        ),
        (
            "a/1.png, a/1_mask.png, b/1.png, b/1_mask_1.png",
            "2 images of the class folders are named like masks of others",
        ),
        ("a/x (1).png, a/x (1)_mask.png, b/1.png", "1 image of the class folders is named like masks of others"),
        ("a/1.png, b/1.png, no_label/1.png", "'no_label' is taken for a class; if its images have no label"),
        ("animal/cat/1.png, plant/oak/1.png", "the folders inside, such as animal/cat, are not"),
    ],
)
def test_what_is_not_used_or_doubtful_is_said(tmp_path: Path, files: str, note: str):
    assert any(note in line for line in open_source(lay(tmp_path, *files.split(", "))).notes)


def test_names_that_are_no_masks(tmp_path: Path):
    table = open_source(lay(tmp_path, "mask/1_mask.png", "mask/2_mask.png", "gt/1.png", "gt/gt.png"))
    assert table.notes == ()


@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl"])
def test_a_table_beside_class_folders_is_pointed_out(tmp_path: Path, name: str):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg")
    (tmp_path / name).write_text("name,label\ntrain/a/1.jpg,b\n")
    (tmp_path / "times.csv").write_text("epoch,loss\n1,2\n")
    (note,) = open_source(tmp_path).notes
    assert f"{name} is not used, because the class folders give the labels" in note


def test_lists_of_splits_as_csv_beside_class_folders(tmp_path: Path):
    lay(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / "train.csv").write_text("path,label\na/1.jpg,a\nb/1.jpg,b\n")
    (tmp_path / "val.csv").write_text("path,label\na/2.jpg,a\n")
    assert open_source(tmp_path).split.tolist() == ["train", "train", "valid"]
    (tmp_path / "val.csv").write_text("path\na/2.jpg\n")  # without labels, as for a competition
    assert open_source(tmp_path).split.tolist() == [""] * 4


@pytest.mark.parametrize("form", ["csv", "jsonl", "flags"])
def test_a_table_among_the_images_of_each_split(tmp_path: Path, form: str):
    """As Hugging Face's imagefolder and Roboflow have it."""
    for split in ("train", "test"):
        lay(tmp_path, f"{split}/1.jpg", f"{split}/2.jpg")
        name, text = {
            "csv": ("metadata.csv", "file_name,label\n1.jpg,a\n2.jpg,b\n"),
            "jsonl": (
                "metadata.jsonl",
                '{"file_name": "1.jpg", "label": "a"}\n\n{"label": "b", "file_name": "2.jpg"}\n',
            ),
            "flags": ("_classes.csv", "filename, a, b\n1.jpg,1,0\n2.jpg,0,1\n"),
        }[form]
        (tmp_path / split / name).write_text(text)
    table = open_source(tmp_path)
    assert table.classes == ("a", "b")
    samples = [(table.sample_id(i), table.labels_of(i)[0], str(table.split[i])) for i in range(len(table))]
    assert sorted(samples) == [
        ("test/1.jpg", "a", "test"),
        ("test/2.jpg", "b", "test"),
        ("train/1.jpg", "a", "train"),
        ("train/2.jpg", "b", "train"),
    ]


def test_a_table_in_the_folder_of_its_images(tmp_path: Path):
    lay(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.jpg,a\n2.jpg,b\n")
    assert open_source(tmp_path).classes == ("a", "b")


def test_json_lines_with_several_labels_and_mistakes(tmp_path: Path):
    lay(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    lines = [
        '{"path": "1.jpg", "labels": ["a", "b"]}',
        '{"path": "2.jpg", "labels": ["a"]}',
        '{"path": "3.jpg", "labels": []}',
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    table = open_source(tmp_path / "l.jsonl")
    assert [table.labels_of(i) for i in range(3)] == [("a", "b"), ("a",), ()]
    for line, message in (("{", "l.jsonl:1: not JSON"), ("[1]", "l.jsonl:1: not an object")):
        (tmp_path / "l.jsonl").write_text(line)
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / "l.jsonl")


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("red fox", "red_fox")])
def test_classes_that_splits_spell_differently(tmp_path: Path, one: str, other: str):
    with pytest.raises(
        UserError, match=f"valid and train spell classes differently: '{one}' in train is '{other}' here"
    ):
        open_source(lay(tmp_path, f"train/{one}/1.jpg", "train/b/1.jpg", f"valid/{other}/1.jpg", "valid/b/1.jpg"))


def test_dogs_vs_cats_has_its_classes_in_the_names(tmp_path: Path):
    """Only where every name has one: a number of a camera, or one class, is none."""
    train = lay(tmp_path / "train", *(f"{name}.{k}.jpg" for name in ("cat", "dog ü") for k in range(3)), "notes.txt")
    table = open_source(train)
    assert table.classes == ("cat", "dog ü")
    assert table.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.ignored == ("notes.txt",)
    assert table.notes == (f"{train}: the class is the part of each name before the first dot: cat.0.jpg is of 'cat'",)
    lay(tmp_path, "sampleSubmission.csv").joinpath("sampleSubmission.csv").write_text("id,label\n1,0\n")
    assert open_source(tmp_path).split.tolist() == ["train"] * 6
    lay(tmp_path / "test1", "1.jpg", "2.jpg")
    with pytest.raises(UserError, match="test1: beside train/ and named like test; rename it to test, or move it away"):
        open_source(tmp_path)
    for other in ("1.jpg", "IMG_1.jpg", "2020.7.jpg", "cat.jpg"):
        (train / other).touch()
        with pytest.raises(UserError, match="7 images, but in no class folder"):
            open_source(train)
        (train / other).unlink()
    with pytest.raises(UserError, match="3 images, but in no class folder"):
        open_source(lay(tmp_path / "one", *(f"IMG.{k}.jpg" for k in range(3))))
