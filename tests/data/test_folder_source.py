"""Folders of class folders."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laid_out import lay, refused

from linnaeus.data.class_names import class_name, natural_order
from linnaeus.data.sources import open_source


def splits(path: Path) -> dict[str, list[int]]:
    return {split: counts.tolist() for split, counts in open_source(path).counts().items()}


def test_flowers16(shared_data: Path):
    table = open_source(shared_data / "flowers16")
    counts = table.counts()
    assert (table.kind, len(table), counts["train"].sum(), counts["valid"].sum()) == ("folder", 1330, 1159, 171)
    assert table.classes[:4] == ("4", "11", "20", "39")  # natural order
    assert table.names[1] == "snapdragon"
    assert table.channels is None
    assert table.paths is not None
    for i in (0, 700, 1329):
        part, folder, _ = table.sample_id(i).split("/")
        assert (part, folder) == (table.split[i], table.classes[table.labels[i]])
        assert Path(table.paths[i]).is_file()


def test_class_folders_at_the_top(tmp_path: Path):
    lay(tmp_path, "b/1.jpg", "b/deep/er/2.PNG", "a/x.jpeg", "a/.hidden.jpg", "a/notes.txt", ".git/x.jpg", "readme.md")
    lay(tmp_path, "cat_to_name.json").joinpath("cat_to_name.json").write_text('{"a": "Akelei"}')
    table = open_source(tmp_path)
    assert [table.sample_id(i) for i in range(3)] == ["a/x.jpeg", "b/1.jpg", "b/deep/er/2.PNG"]
    assert table.ignored == (".git/", "a/.hidden.jpg", "a/notes.txt", "readme.md")
    assert set(table.split) == {""}
    assert table.names == ("Akelei", "b")


@pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
@pytest.mark.parametrize("parts", ["tv", "tx", "tvx", "t", "v", "x", "vx"])
def test_every_combination_of_parts(tmp_path: Path, valid: str, parts: str):
    names = {"t": "train", "v": valid, "x": "test"}
    for part in parts:
        lay(tmp_path, f"{names[part]}/a/1.jpg", f"{names[part]}/b/2.jpg")
    expected = {{"t": "train", "v": "valid", "x": "test"}[part]: [1, 1] for part in parts}
    assert splits(tmp_path) == expected


def test_other_folders_beside_the_parts_are_listed(tmp_path: Path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "docs/x/1.jpg")
    table = open_source(tmp_path)
    assert len(table) == 2
    assert table.ignored == ("docs/",)


def test_a_class_may_be_called_train(tmp_path: Path):
    lay(tmp_path, "train/1.jpg", "bus/1.jpg", "tram/1.jpg")
    assert open_source(tmp_path).classes == ("bus", "train", "tram")


def test_classes_match_by_name_in_any_unicode_form(tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "Märzenbecher 雪") for form in ("NFC", "NFD"))
    lay(tmp_path, f"train/{decomposed}/1.jpg", "train/z/1.jpg", f"valid/{composed}/2.jpg", "valid/z/1.jpg")
    table = open_source(tmp_path)
    assert table.classes == (composed, "z")
    assert table.counts()["valid"].tolist() == [1, 1]
    assert table.paths is not None
    assert all(os.path.exists(path) for path in table.paths)  # noqa: PTH110


def test_a_class_that_only_validation_has(tmp_path: Path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg", "valid/c/1.jpg", "test/d/1.jpg")
    refused(tmp_path, "class 'c' is in valid but not in train", "add training images")


def test_a_class_missing_from_test_is_fine(tmp_path: Path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/b/1.jpg")
    (tmp_path / "test/a").mkdir()
    assert splits(tmp_path)["test"] == [0, 1]


def test_one_clear_line_for_each_mistake(tmp_path: Path):
    refused(tmp_path / "nowhere", "nowhere: no such file or folder", "check the path")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "an empty folder", "put the images of each class into a folder")
    refused(lay(tmp_path / "texts", "a/x.txt", "b/x.txt"), "2 folders, but no images", ".jpg")
    refused(
        lay(tmp_path / "flat", "1.jpg", "2.jpg"), "2 images, but in no class folder", "flat/rose/1.jpg", "--outside"
    )
    refused(lay(tmp_path / "one", "a/1.jpg"), "one class, 'a'", "give each class a folder")
    refused(lay(tmp_path / "one2", "train/a/1.jpg", "valid/a/1.jpg"), "all 2 images are of one class, 'a'")
    refused(lay(tmp_path / "wrapped", "flowers/a/1.jpg", "flowers/b/1.jpg"), "'a', 'b'", "point at", "wrapped/flowers")
    refused(lay(tmp_path / "hole", "a/1.jpg", "b/1.jpg", "c/x.txt"), "hole/c: class folder without images")
    refused(lay(tmp_path / "flat2", "train/1.jpg", "valid/1.jpg"), "train: 1 image, but in no class folder")
    refused(lay(tmp_path / "kaggle", "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"), "test: 1 image, ", "predict")
    refused(lay(tmp_path / "both", "train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"), "two folders for valid; keep one")
    refused(lay(tmp_path / "blank", " /1.jpg", "a/1.jpg"), "name of this class folder is blank")
    refused(lay(tmp_path / "picture", "a.jpg") / "a.jpg", "a single image", "predict")


def test_links_that_loop(tmp_path: Path):
    lay(tmp_path, "data/a/1.jpg", "data/b/1.jpg", "more/2.jpg")
    (tmp_path / "data/a/self").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/b/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/b/more").symlink_to(tmp_path / "more")
    (tmp_path / "data/b/dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "data/b/ouroboros.jpg").symlink_to(tmp_path / "data/b/ouroboros.jpg")
    (tmp_path / "data/around").symlink_to(tmp_path / "data/around")
    os.mkfifo(tmp_path / "data/a/pipe.jpg")
    table = open_source(tmp_path / "data")
    ids = {table.sample_id(i) for i in range(len(table))}
    # Links that lead nowhere are images that cannot be read: the check will name them. A pipe is none.
    assert ids >= {"a/1.jpg", "b/1.jpg", "b/more/2.jpg", "b/dangling.jpg", "b/ouroboros.jpg"}
    assert not any("pipe" in name for name in ids)
    assert {"a/pipe.jpg", "a/self/", "around"} <= set(table.ignored)
    assert len(table) < 10


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lay(tmp_path, "a/1.jpg", "b/secret/1.jpg")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    refused(tmp_path, "b/secret: cannot be read (Permission denied); check its permissions")


def test_names_that_are_not_utf8(tmp_path: Path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(raw)  # noqa: PTH102
    with open(raw + b"/\xff.jpg", "wb"):  # noqa: PTH123
        pass
    lay(tmp_path, "tea/1.jpg")
    table = open_source(tmp_path)
    assert table.classes == (r"caf\udce9", "tea")
    assert table.sample_id(0) == r"caf\udce9/\udcff.jpg"
    table.fingerprint()
    assert table.paths is not None
    assert os.path.exists(table.paths[0])  # noqa: PTH110


def test_classes_txt_gives_the_order(tmp_path: Path):
    lay(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfc\r\nunused\r\na\r\nb\r\n")
    table = open_source(tmp_path)
    assert table.classes == table.names == ("c", "a", "b")
    assert table.sample_id(int((table.labels == 0).nonzero()[0][0])) == "c/1.jpg"


@pytest.mark.parametrize("lines", ["1 red rose\n10 poppy\n2 tulip\n3 none", "red rose\ntulip\npoppy\n"])
def test_classes_txt_gives_names(tmp_path: Path, lines: str):
    lay(tmp_path, "1/1.jpg", "2/1.jpg", "10/1.jpg")
    (tmp_path / "classes.txt").write_text(lines)
    table = open_source(tmp_path)
    assert table.classes == ("1", "2", "10")
    assert table.names == ("red rose", "tulip", "poppy")


def test_name_files_that_do_not_fit(tmp_path: Path):
    lay(tmp_path, "1/1.jpg", "2/1.jpg")
    (tmp_path / "classes.txt").write_text("rose\n")
    refused(tmp_path, "classes.txt: 1 lines do not fit the 2 class folders", "no line for '1', '2'", "remove the file")
    (tmp_path / "classes.txt").unlink()
    names = tmp_path / "cat_to_name.json"
    names.write_text('{"1": "rose",\n "2" "tulip"}')
    refused(tmp_path, "cat_to_name.json:2: not JSON")
    names.write_text('{"1": 5}')
    refused(tmp_path, "the name of class '1' is 5")
    names.write_text("[1]")
    refused(tmp_path, "holds no object")
    names.write_text("[" * 100_000)
    refused(tmp_path, "cat_to_name.json")


def test_names_beside_the_folder(tmp_path: Path):
    lay(tmp_path, "flowers/1/1.jpg", "flowers/2/1.jpg")
    (tmp_path / "cat_to_name.json").write_text(json.dumps({"1": "Rose", "99": "Aster"}))
    assert open_source(tmp_path / "flowers").names == ("Rose", "2")


def test_natural_order():
    assert natural_order(["10", "2", "1", "a10", "a9", "b", "02"]) == ("1", "02", "2", "10", "a9", "a10", "b")


@given(st.lists(st.text(max_size=8)))
def test_natural_order_is_an_order(names):
    assert natural_order(names) == natural_order(names[::-1])
    assert set(natural_order(names)) == set(names)


@given(st.text())
def test_class_names_are_stable(text):
    assert class_name(class_name(text)) == class_name(text)
    class_name(text).encode()


@pytest.mark.long
def test_a_hundred_thousand_files(tmp_path: Path):
    for c in range(100):
        (tmp_path / str(c)).mkdir()
        for i in range(1000):
            (tmp_path / str(c) / f"{i}.jpg").touch()
    table = open_source(tmp_path)
    assert len(table) == 100_000
    assert table.classes == tuple(str(c) for c in range(100))
