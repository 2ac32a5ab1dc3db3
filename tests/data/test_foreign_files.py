"""Sources that other programs write: read where that is possible, and otherwise named as what they are."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from laid_out import lay, refused
from tiny import write_images

from linnaeus.data.sources import open_source
from linnaeus.errors import UserError


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive, which is not supported: unpack it"),
        ("a.rar", b"Rar!\x1a\x07\0", "a RAR archive"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd0000", "compressed with Zstandard"),
        ("a.xlsx", b"PK\3\4\x14\0", "a spreadsheet: save the table as CSV"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1", "an Excel workbook: save the table as CSV"),
        ("coco.json", b'{"images": [], "annotations": []}', "JSON, which is not supported as a source"),
        ("a.parquet", b"PAR1\0", "a Parquet file: if it holds the images, save each one in a folder of its class"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("a.npy", b"\x93NUMPY\1\0", "an array of NumPy"),
        ("a.pkl", b"\x80\4\x95", "a pickle, which may run code"),
        ("a.safetensors", b"\x40\0\0\0\0\0\0\0{}", "a model or weights, not images"),
        (
            "train.manifest",
            b'{"source-ref": "s3://b/1.jpg", "class": 0}',
            "a manifest of SageMaker: download the images",
        ),
        ("list.txt", b" \n\n", "is empty"),
        ("list.csv", b"", "has no columns"),
    ],
)
def test_a_file_of_another_program_is_named(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        open_source(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {said}")
    assert "\n" not in str(error.value)


def test_a_folder_of_tables_that_hold_the_images_is_named(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UserError, match=r"1 file ending in \.parquet \(tables, not images: if they hold the images, save"
    ):
        open_source(tmp_path)


def test_an_archive_in_an_archive_is_named(tmp_path: Path):
    images = write_images(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
        for path in images.rglob("*.png"):
            inner.write(path, path.relative_to(images))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(tmp_path / "inner.zip", "inner.zip")
    with pytest.raises(UserError, match=r"the archive inner\.zip inside it; nested archives are not read: unpack"):
        open_source(tmp_path / "outer.zip")


@pytest.mark.parametrize("mixed", [False, True])
def test_backslashes_separate_folders_unless_slashes_do(tmp_path: Path, mixed: bool):
    images = write_images(tmp_path / "images", each=2)
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for path in sorted(images.rglob("*.png")):
            info = zipfile.ZipInfo("x/y.txt" if mixed else "x")
            info.filename = f"{path.parent.name}\\{path.name}"
            archive.writestr(info, path.read_bytes())
        if mixed:
            archive.writestr("note/a.txt", "")
    if mixed:
        with pytest.raises(UserError, match="in no class folder"):
            open_source(tmp_path / "w.zip")
        return
    table = open_source(tmp_path / "w.zip")
    assert table.classes == ("0", "1", "2")
    assert table.labels.tolist() == open_source(images).labels.tolist()


@pytest.mark.parametrize("target", ["source", "class"])
def test_a_link_to_a_folder_above_gives_no_image_another_label(tmp_path: Path, target: str):
    images = write_images(tmp_path / "images", each=3)
    (images / "0" / "deeper").mkdir()
    (images / "0" / "deeper" / "again").symlink_to(images if target == "source" else images / "0")
    table = open_source(images)
    assert np.bincount(table.labels).tolist() == [3, 3, 3]
    assert any("again" in name for name in table.ignored)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (".dcm", "4 files ending in .dcm (DICOM, which is not supported: save them as PNG or TIFF"),
        (".nii.gz", "volumes, not images"),
        (".CR2", "4 files ending in .cr2 (raw photos"),
        (".mp4", "videos: save frames"),
    ],
)
def test_a_folder_of_images_that_are_not_read_is_named(tmp_path: Path, ending: str, said: str):
    lay(tmp_path / "data", *(f"{name}/{k}{ending}" for name in "ab" for k in range(2)))
    refused(tmp_path / "data", "no images that can be read", said)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sagemaker.jsonl", '{"source-ref": "s3://b/1.jpg", "class": 0}'),
        ("vertex.jsonl", '{"imageGcsUri": "gs://b/1.jpg", "classificationAnnotation": {"displayName": "cat"}}'),
        ("azure.jsonl", '{"image_url": "azureml://b/1.jpg", "label": "cat"}'),
        ("vertex.csv", "TRAIN,gs://b/1.jpg,cat"),
        ("automl.csv", "gs://b/1.jpg,cat"),
    ],
)
def test_manifests_of_cloud_services_are_named(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(f"{content}\n{content}\n")
    refused(
        tmp_path / name, "a manifest for a cloud service", "download the images", "write a CSV with a row `path,label`"
    )


def test_lists_of_mxnet_begin_with_an_index(tmp_path: Path):
    lay(tmp_path, "cat/1.jpg", "cat/2.jpg", "big dog/1.jpg")
    (tmp_path / "train.lst").write_text("0\t1.000000\tcat/1.jpg\n7\t0.000000\tbig dog/1.jpg\n2\t1\tcat/2.jpg\n")
    table = open_source(tmp_path / "train.lst")
    assert table.classes == ("big dog", "cat")
    assert table.labels.tolist() == [1, 0, 1]
