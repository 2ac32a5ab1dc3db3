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
        ("train/photos/a/1.jpg train/photos/b/1.jpg", "its folders 'a', 'b' may be the classes"),
    ],
)
def test_wrong_classes_are_refused(tmp_path: Path, files: str, message: str):
    with pytest.raises(UserError) as error:
        open_source(lay(tmp_path, *files.split()))
    assert message in str(error.value)


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
