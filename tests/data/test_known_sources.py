"""Sources known by name, without the network."""

from __future__ import annotations

import builtins
import gzip
import io
import logging
import re
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from linnaeus.data.catalog import KNOWN
from linnaeus.data.download import FetchError
from linnaeus.data.readers import flowers
from linnaeus.data.readers.known_sources import home, known_sources, pull
from linnaeus.data.sources import open_source
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")


def test_digits():
    pytest.importorskip("sklearn")
    table = open_source("digits")
    assert table.images is not None
    assert (table.kind, table.images.shape, table.images.dtype) == ("digits", (1797, 8, 8), np.uint8)
    assert (table.images.min(), table.images.max()) == (0, 255)
    assert table.images[0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert table.classes == tuple("0123456789")
    assert set(table.split) == {""}
    assert table.sample_id(17) == "digits[17]"


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="not installed: pip install scikit-learn"):
        open_source("digits")


def test_list_of_known_sources():
    sources = {source.name: source for source in known_sources()}
    assert list(sources) == ["digits", "mnist", "fashion-mnist", "cifar10", "flowers102"]
    assert sources["digits"].present
    assert sources["digits"].path is None
    assert not sources["mnist"].present
    assert sources["mnist"].path == cache_dir() / "data" / "mnist"
    assert sources["mnist"].size == 11_594_722
    assert sources["cifar10"].size == 170_052_171


def test_every_file_has_a_checksum_and_mirrors():
    for name, known in KNOWN.items():
        for file in known.files:
            assert re.fullmatch("[0-9a-f]{32}", file.md5), (name, file)
            assert len(set(file.at)) >= 2
            assert all(re.match("https?://", at) for at in file.at)


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "digits"])
def test_without_network_the_error_says_what_to_put_where(name: str):
    with pytest.raises(FetchError) as error:
        open_source(name)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{name}: LINNAEUS_OFFLINE is set; fetch ")
    assert f"put into {home(name)}," in line
    for file in KNOWN[name].files:
        assert f"{file.file} (from {file.at[0]}/)" in line


def test_unknown_names():
    with pytest.raises(UserError, match="fashion_mnist: no such file or folder; did you mean fashion-mnist"):
        open_source("fashion_mnist")
    with pytest.raises(UserError, match="known names: digits, mnist"):
        open_source("imagenet")
    with pytest.raises(UserError, match="only shards can be read from an address"):
        open_source("ftp://example.org/mnist.tgz")
    with pytest.raises(UserError, match="choose one of digits"):
        pull("imagenet")


@pytest.mark.parametrize("source", ["", " ", "a\0b", "x" * 5000])
def test_odd_names(source: str):
    with pytest.raises(UserError):
        open_source(source)


def test_a_path_on_disk_comes_before_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("digits/a/1.jpg", "digits/b/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert open_source("digits").kind == "folder"


def test_repacked_archives_put_there_by_hand(shared_data: Path, caplog: pytest.LogCaptureFixture):
    """The given MNIST archives were packed again: other checksums, the same images."""
    shutil.copytree(shared_data / "mnist", home("mnist"))
    with caplog.at_level(logging.WARNING):
        table = open_source("mnist")
    assert (table.source, table.kind, len(table)) == ("mnist", "idx", 70000)
    assert len(caplog.records) == 4
    assert "differs from the published file (" in caplog.text
    assert pull("mnist") == home("mnist")  # nothing is missing
    assert {source.name for source in known_sources() if source.present} == {"digits", "mnist"}


def test_unpacked_files_are_used_as_well(shared_data: Path):
    (home("cifar10")).mkdir(parents=True)
    shutil.copytree(shared_data / "cifar10-12k/cifar-10-batches-bin", home("cifar10") / "cifar-10-batches-bin")
    assert len(open_source("cifar10")) == 12000
    home("fashion-mnist").mkdir(parents=True)
    for file in KNOWN["fashion-mnist"].files:
        n = 20
        shape = (n, 28, 28) if "images" in file.file else (n,)
        values = np.arange(n, dtype=np.uint8) % 10 if len(shape) == 1 else np.zeros(shape, np.uint8)
        raw = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()
        (home("fashion-mnist") / file.file.removesuffix(".gz")).write_bytes(raw)
    table = open_source("fashion-mnist")
    assert table.names[9] == "Ankle boot"
    assert table.classes[9] == "9"


def test_fashion_mnist_damaged_by_hand():
    home("mnist").mkdir(parents=True)
    for file in KNOWN["mnist"].files:
        (home("mnist") / file.file).write_bytes(gzip.compress(b"\0\0\x08\x03"))
    with pytest.raises(UserError, match=r"ubyte.gz: ends inside its header"):
        open_source("mnist")


@pytest.fixture
def small_flowers(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published files in miniature: 306 images."""
    io_ = pytest.importorskip("scipy.io")
    count = 306
    monkeypatch.setattr(flowers, "COUNT", count)
    folder = home("flowers102")
    folder.mkdir(parents=True)
    io_.savemat(folder / "imagelabels.mat", {"labels": (np.arange(count) % 102 + 1).astype(np.uint8)})
    ids = np.arange(1, count + 1).astype(np.uint16)
    io_.savemat(folder / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as archive:
        for i in ids:
            member = tarfile.TarInfo(f"jpg/image_{i:05d}.jpg")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"JPEG"))
        evil = tarfile.TarInfo("../../image_99999.jpg.sh")
        evil.size = 4
        archive.addfile(evil, io.BytesIO(b"evil"))
    return folder


def test_flowers102(small_flowers: Path, caplog: pytest.LogCaptureFixture):
    before = {path for path in small_flowers.parent.parent.rglob("*") if small_flowers not in path.parents}
    table = open_source("flowers102")
    assert "102flowers.tgz: differs from the published file" in caplog.text
    assert {split: counts.sum() for split, counts in table.counts().items()} == {
        "train": 102,
        "valid": 102,
        "test": 102,
    }
    assert (table.classes[0], table.names[0], table.names[73], table.names[101]) == (
        "1",
        "pink primrose",
        "rose",
        "blackberry lily",
    )
    assert len(set(table.names)) == 102
    assert table.sample_id(0) == "jpg/image_00001.jpg"
    assert table.labels[101] == 101
    assert table.split[[0, 101, 102, 203, 204, 305]].tolist() == ["train", "train", "valid", "valid", "test", "test"]
    assert {path for path in small_flowers.parent.parent.rglob("*") if small_flowers not in path.parents} == before
    (small_flowers / "102flowers.tgz").unlink()
    assert len(open_source("flowers102")) == 306  # unpacked once
    (small_flowers / "jpg/image_00007.jpg").unlink()
    with pytest.raises(UserError, match=r"image_00007.jpg: missing; remove .*jpg to unpack"):
        open_source("flowers102")


def test_damaged_flowers102(small_flowers: Path):
    whole = (small_flowers / "102flowers.tgz").read_bytes()
    (small_flowers / "102flowers.tgz").write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"102flowers.tgz: not a readable tar archive"):
        open_source("flowers102")
    assert sorted(path.name for path in small_flowers.iterdir()) == ["102flowers.tgz", "imagelabels.mat", "setid.mat"]
    (small_flowers / "setid.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(UserError, match=r"setid.mat: no MATLAB file with 'trnid'"):
        open_source("flowers102")


def test_progress_counts_over_all_files(monkeypatch: pytest.MonkeyPatch):
    """`pull` counts all files together: 11.6 MB for mnist, and progress never decreases."""

    def fake(urls, destination, *, md5, size, progress):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with destination.open("wb") as file:
            file.truncate(size)
        progress(size // 2, size)
        progress(size, size)
        return destination

    monkeypatch.setattr("linnaeus.data.readers.known_sources.fetch", fake)
    steps: list[tuple[int, int | None]] = []
    pull("mnist", lambda *step: steps.append(step))
    assert steps[-1] == (11_594_722, 11_594_722)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert {total for _, total in steps} == {11_594_722}
