"""Benchmarks in the folders in which their authors publish them."""

from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from laid_out import lay, refused
from scipy.io import savemat

from linnaeus.data.sources import open_source
from linnaeus.data.table import Table


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def birds(root: Path) -> Path:
    lay(
        root, "images/001.Albatross/a.jpg", "images/001.Albatross/b.jpg", "images/002.Auk/c.jpg", "images/002.Auk/d.jpg"
    )
    write(root / "images.txt", "1 001.Albatross/a.jpg", "2 001.Albatross/b.jpg", "3 002.Auk/c.jpg", "4 002.Auk/d.jpg")
    write(root / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2")
    write(root / "train_test_split.txt", "1 1", "2 0", "3 0", "4 1")
    write(root / "classes.txt", "1 001.Albatross", "2 002.Auk")
    write(root / "bounding_boxes.txt", "1 0 0 9 9", "2 0 0 9 9")
    return root


def nabirds(root: Path) -> Path:
    lay(root, "images/0817/a1.jpg", "images/0817/b2.jpg", "images/0860/c3.jpg", "images/0860/d4.jpg")
    write(root / "images.txt", "a-1 0817/a1.jpg", "b-2 0817/b2.jpg", "c-3 0860/c3.jpg", "d-4 0860/d4.jpg")
    write(root / "image_class_labels.txt", "a-1 817", "b-2 817", "c-3 860", "d-4 860")
    write(root / "train_test_split.txt", "a-1 1", "b-2 0", "c-3 0", "d-4 1")
    write(root / "classes.txt", "0 Birds", "817 Oak Titmouse", "860 Mallard", "861 Mallard")
    return root


def pets(root: Path) -> Path:
    lay(root, *(f"images/{breed}_{k}.jpg" for breed in ("Maine_Coon", "pug") for k in (1, 12)))
    write(root / "annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID", "Maine_Coon_1 1 1 1")
    write(root / "annotations/trainval.txt", "Maine_Coon_1 1 1 1", "pug_12 2 2 1")
    write(root / "annotations/test.txt", "Maine_Coon_12 1 1 1", "pug_1 2 2 1")
    return root


def tiny_imagenet(root: Path) -> Path:
    for name in ("n01", "n02"):
        lay(root, f"train/{name}/images/{name}_0.JPEG", f"train/{name}/{name}_boxes.txt")
    lay(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    write(root / "val/val_annotations.txt", "val_0.JPEG\tn02\t0\t0\t9\t9", "val_1.JPEG\tn01\t0\t0\t9\t9")
    write(root / "words.txt", "n01\tcrane", "n02\tcrane, bird", "n03\tentity")
    return root


def aircraft(root: Path) -> Path:
    for k, stem in enumerate(("train", "val", "test")):
        lay(root, f"data/images/000{k}.jpg", f"data/images/001{k}.jpg")
        write(root / f"data/images_variant_{stem}.txt", f"000{k} A330 neo", f"001{k} 707-320")
        write(root / f"data/images_family_{stem}.txt", f"000{k} A330", f"001{k} Boeing 707")
    return root


def textures(root: Path) -> Path:
    for k, stem in enumerate(("train", "val", "test")):
        lay(root, f"images/dotted/dotted_{k}.jpg", f"images/banded/banded_{k}.jpg")
        write(root / f"labels/{stem}1.txt", f"dotted/dotted_{k}.jpg", f"banded/banded_{k}.jpg")
        write(root / f"labels/{stem}2.txt", "dotted/dotted_0.jpg")
    return root


def imagenet(root: Path) -> Path:
    data = "ILSVRC/Data/CLS-LOC"
    lay(root, f"{data}/train/n01/a.JPEG", f"{data}/train/n02/b.JPEG", f"{data}/val/v1.JPEG", f"{data}/val/v2.JPEG")
    write(root / "LOC_val_solution.csv", "ImageId,PredictionString", "v1,n02 1 2 3 4 n02 5 6 7 8", "v2,n01 1 2 3 4")
    write(root / "LOC_synset_mapping.txt", "n01 tench, Tinca tinca", "n02 goldfish, Carassius auratus")
    return root


def dogs(root: Path) -> Path:
    for split, k in (("train", 0), ("test", 1)):
        images = [f"n01-pug/n01_{k}.jpg", f"n02-collie/n02_{k}.jpg"]
        lay(root, *(f"Images/{image}" for image in images), *(f"Annotation/{image[:-4]}" for image in images))
        cells = np.empty((2, 1), dtype=object)
        cells[:, 0] = images
        savemat(root / f"{split}_list.mat", {"file_list": cells})
    return root


def described(table: Table) -> set[tuple[str, str, str]]:
    """(file name, split, display name) of each sample."""
    assert table.paths is not None
    names = [table.names[label] for label in table.labels]
    return set(zip((Path(path).name for path in table.paths), table.split.tolist(), names, strict=True))


EXPECTED = {
    birds: {
        ("a.jpg", "train", "001.Albatross"),
        ("b.jpg", "test", "001.Albatross"),
        ("c.jpg", "test", "002.Auk"),
        ("d.jpg", "train", "002.Auk"),
    },
    nabirds: {
        ("a1.jpg", "train", "Oak Titmouse"),
        ("b2.jpg", "test", "Oak Titmouse"),
        ("c3.jpg", "test", "Mallard"),
        ("d4.jpg", "train", "Mallard"),
    },
    pets: {
        ("Maine_Coon_1.jpg", "train", "Maine_Coon"),
        ("pug_12.jpg", "train", "pug"),
        ("Maine_Coon_12.jpg", "test", "Maine_Coon"),
        ("pug_1.jpg", "test", "pug"),
    },
    tiny_imagenet: {
        ("n01_0.JPEG", "train", "crane (n01)"),
        ("n02_0.JPEG", "train", "crane (n02)"),
        ("val_0.JPEG", "valid", "crane (n02)"),
        ("val_1.JPEG", "valid", "crane (n01)"),
    },
    aircraft: {
        (f"00{tens}{k}.jpg", split, name)
        for k, split in enumerate(("train", "valid", "test"))
        for tens, name in ((0, "A330 neo"), (1, "707-320"))
    },
    textures: {
        (f"{name}_{k}.jpg", split, name)
        for k, split in enumerate(("train", "valid", "test"))
        for name in ("banded", "dotted")
    },
    imagenet: {
        ("a.JPEG", "train", "tench"),
        ("b.JPEG", "train", "goldfish"),
        ("v1.JPEG", "valid", "goldfish"),
        ("v2.JPEG", "valid", "tench"),
    },
    dogs: {
        ("n01_0.jpg", "train", "n01-pug"),
        ("n02_0.jpg", "train", "n02-collie"),
        ("n01_1.jpg", "test", "n01-pug"),
        ("n02_1.jpg", "test", "n02-collie"),
    },
}


@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
def test_a_published_benchmark_has_the_authors_labels_and_split(make, tmp_path: Path):
    table = open_source(make(tmp_path / "data"))
    assert described(table) == EXPECTED[make]
    assert Counter(table.split.tolist()) == Counter(split for _, split, _ in EXPECTED[make])
    assert table.notes[0].startswith("layout of ")


def test_a_benchmark_is_read_in_its_archive(tmp_path: Path):
    birds(tmp_path / "data" / "CUB_200_2011")
    archive = shutil.make_archive(str(tmp_path / "CUB_200_2011"), "gztar", tmp_path / "data")
    assert described(open_source(archive)) == EXPECTED[birds]


@pytest.mark.parametrize(
    ("file", "lines", "said"),
    [
        ("images.txt", ["1 001.Albatross/a.jpg", "2"], "images.txt:2"),
        ("images.txt", ["1 001.Albatross/gone.jpg"], "gone.jpg"),
        ("image_class_labels.txt", ["1 1"], "image 2 is not in image_class_labels.txt"),
        ("train_test_split.txt", ["1 1"], "image 2 is not in train_test_split.txt"),
        ("classes.txt", ["1 001.Albatross"], "class 2 of image 3 is not in classes.txt"),
        ("images.txt", [], "lists no images"),
    ],
)
def test_a_damaged_list_is_named(tmp_path: Path, file: str, lines: list[str], said: str):
    write(birds(tmp_path / "data") / file, *lines)
    refused(tmp_path / "data", said)


def test_a_damaged_matlab_list_is_named(tmp_path: Path):
    (dogs(tmp_path / "data") / "test_list.mat").write_bytes(b"MATLAB 5.0")
    refused(tmp_path / "data", "test_list.mat", "download it again")


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_listed_name_is_found_in_its_other_unicode_form(
    tmp_path: Path, written: Literal["NFC", "NFD"], stored: Literal["NFC", "NFD"]
):
    names = [unicodedata.normalize(stored, f"é{k}.jpg") for k in range(4)]
    lay(tmp_path, *names)
    lines = [f"{unicodedata.normalize(written, name)},{'ab'[k % 2]}" for k, name in enumerate(names)]
    write(tmp_path / "list.csv", "path,label", *lines)
    table = open_source(tmp_path / "list.csv")
    assert table.paths == tuple(str(tmp_path / name) for name in names)
