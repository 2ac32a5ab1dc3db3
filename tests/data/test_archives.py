"""Archives as sources: a zip or tar is read like its folder; a hostile or damaged one gives one line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from laid_out import refused
from PIL import Image

from linnaeus import cache as caches
from linnaeus.cache import default_cache
from linnaeus.cli.main import cli
from linnaeus.data import tree
from linnaeus.data.archives import unpacking
from linnaeus.data.images.content import UNKNOWN, content_hash
from linnaeus.data.images.decode import RowSpec, UnreadableError, header_size, load_row
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.errors import UserError
from linnaeus.inference.inputs import expand
from linnaeus.stores.pixels import build_pixels
from linnaeus.stores.purge import purge_images
from linnaeus.stores.samples import decode_split

FORMS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


def picture(seed: int, size: int = 12) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folder_of(root: Path) -> Path:
    """Classes of 6, 5 and 4 images, one of them below a subfolder, a hidden file and a display name."""
    for c, (name, n) in enumerate({"rose": 6, "Tulpe ü": 5, "雛菊": 4}.items()):
        for k in range(n):
            file = root / name / ("inside" if k == 3 else "") / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(10 * c + k))
    (root / "rose" / ".hidden.png").write_bytes(b"x")
    (root / "cat_to_name.json").write_text('{"rose": "Rosa"}')
    return root


def pack(folder: Path, path: Path, top: str = "") -> Path:
    """An archive of the files in `folder`, in the format of its suffix, with names that start with `top`."""
    files = {f"{top}{file.relative_to(folder).as_posix()}": file.read_bytes() for file in sorted(folder.rglob("*.*"))}
    return write(path, files)


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
        return path
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress, ".tgz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress
    }  # fmt: skip
    path.write_bytes(packers.get(path.suffix, bytes)(raw.getvalue()))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top", ["", "photos/", "./"])
def test_an_archive_is_read_as_its_folder(tmp_path: Path, form: str, top: str):
    folder = folder_of(tmp_path / "photos")
    archive = pack(folder, tmp_path / f"p.{form}", top)
    expected, table = open_source(folder), open_source(archive)
    assert table.fingerprint() == expected.fingerprint()  # ids, sizes, labels, classes
    assert table.names == expected.names
    assert table.ignored == expected.ignored
    one, other = (split_table(each, valid=0.2, test=0.2, seed=3) for each in (expected, table))
    assert (one.split == other.split).all()
    for i in range(len(table)):
        a, b = expected.image(i), table.image(i)
        assert (load_row(a, RowSpec(8)) == load_row(b, RowSpec(8))).all()
        assert content_hash(a) == content_hash(b)
    assert header_size(str(table.image(0))) == (12, 12)


def test_a_zip_is_read_in_place_and_a_compressed_tar_is_decompressed_once(tmp_path: Path, cache: Path):
    folder = folder_of(tmp_path / "photos")
    pack(folder, tmp_path / "p.zip")
    open_source(tmp_path / "p.zip")
    assert not cache.exists()
    open_source(pack(folder, tmp_path / "p.tar.gz"))
    [tar] = cache.rglob("*.tar")
    before = tar.stat().st_mtime_ns
    shutil.copy(tmp_path / "p.tar.gz", tmp_path / "q.tgz")  # the same bytes at another place
    notes = open_source(tmp_path / "q.tgz").notes
    assert [tar] == list(cache.rglob("*.tar"))
    assert tar.stat().st_mtime_ns == before
    assert f"read from its decompressed copy in the cache, {tar}" in notes[0]


def test_a_tar_that_is_replaced_by_one_of_the_same_size_and_time_has_other_files(tmp_path: Path):
    """A tar has no checksums of its files."""
    place, found = tmp_path / "p.tar", []
    for content in (b"abc", b"xyz"):
        write(tmp_path / "new.tar", {"oak/1.bmp": content})
        os.utime(tmp_path / "new.tar", (1, 1))
        shutil.copy2(tmp_path / "new.tar", place)
        found.append((tree.version(place / "oak/1.bmp"), tree.open_binary(place / "oak/1.bmp").read()))
    assert [content for _, content in found] == [b"abc", b"xyz"]
    assert found[0][0] != found[1][0]


def test_lists_and_tables_in_an_archive(tmp_path: Path):
    """As in a folder; a list in an archive cannot name files outside of the archive."""
    images = {f"images/{k}.png": picture(k) for k in range(4)}
    table = b"path,label\n" + b"".join(f"images/{k}.png,{'ab'[k % 2]}\n".encode() for k in range(4))
    path = write(tmp_path / "t.zip", {**images, "labels.csv": table})
    assert [open_source(path).sample_id(i) for i in range(4)] == [f"images/{k}.png" for k in range(4)]
    listed = b"".join(f"images/{k}.png {'ab'[k % 2]}\n".encode() for k in range(4))
    assert len(open_source(write(tmp_path / "l.tar", {**images, "train.txt": listed, "x/y.txt": b""}))) == 4
    (tmp_path / "own.png").write_bytes(picture(9))
    for name in (str(tmp_path / "own.png"), "../own.png"):
        refused(
            write(tmp_path / "evil.zip", {**images, "train.txt": listed + f"{name} a\n".encode()}), "does not exist"
        )


def test_a_path_may_lead_into_an_archive(tmp_path: Path):
    archive = pack(folder_of(tmp_path / "photos"), tmp_path / "p.zip", "photos/")
    assert len(open_source(archive / "photos")) == 15
    paths = list(expand([str(archive)]))
    assert len(paths) == 15
    assert paths == list(expand([str(archive / "photos")]))
    assert next(expand([str(archive / "photos" / "rose")])).endswith("p.zip/photos/rose/0.png")
    with pytest.raises(UnreadableError, match="No such file"):
        load_row(str(archive / "photos" / "rose" / "99.png"), RowSpec(8))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil/1.png", "leads out of the archive"),
        ("/etc/1.png", "leads out of the archive"),
        ("a/../../1.png", "leads out of the archive"),
        ("C:\\x\\1.png", "leads out of the archive"),
        ("a" * 5000 + ".png", "a name that no file can have"),
        ("rose/0.png/x.png", "'rose/0.png' is both a file and a folder"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, form: str, name: str, said: str):
    path = write(tmp_path / f"x.{form}", {"rose/0.png": picture(0), "tulip/0.png": picture(1), name: picture(2)})
    refused(path, said if form == "zip" or said != "leads out of the archive" else "leads out of")


def test_names_that_differ_in_case_are_reported_and_equal_ones_refused(tmp_path: Path):
    files = {"rose/0.png": picture(0), "rose/0.PNG": picture(1), "tulip/0.png": picture(2)}
    table = open_source(write(tmp_path / "x.zip", files))
    assert len(table) == 3
    assert any("differ from others only in capitals" in note for note in table.notes)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "x.zip", "a") as zipped:
        zipped.writestr("rose/0.png", picture(3))
    refused(tmp_path / "x.zip", "holds 'rose/0.png' twice")


def test_encodings_of_names(tmp_path: Path):
    """UTF-8 without its flag, as macOS writes it, is read, as are backslashes; an unknown encoding is reported."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, seed in (("Blüte/0.png", 0), ("tulip\\0.png", 1), ("__MACOSX/Bl/._0.png", 2)):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            zipped.writestr(info, picture(seed))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\0\x08", b"\0\0"))  # clears the flag that says UTF-8
    table = open_source(path)
    assert table.classes == ("Blüte", "tulip")
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\x81\x82"))
    table = open_source(path)
    assert len(table) == 2
    assert any("names is not recorded" in note for note in table.notes)


def test_links_and_encrypted_files_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.zip", {"rose/0.png": picture(0), "tulip/0.png": picture(1)})
    with zipfile.ZipFile(path, "a") as zipped:
        info = zipfile.ZipInfo("tulip/1.png")
        info.external_attr = 0o120777 << 16
        zipped.writestr(info, "/etc/passwd")
    refused(path, "'tulip/1.png' is a symbolic link")
    path = write(tmp_path / "y.zip", {"rose/0.png": picture(0), "tulip/0.png": picture(1)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(path, "'rose/0.png' is encrypted")
    data[data.index(b"PK\1\2") + 8 : data.index(b"PK\1\2") + 12] = struct.pack("<HH", 0, 9)
    path.write_bytes(data)
    refused(path, "is packed with Deflate64")
    path = write(tmp_path / "z.tar", {"rose/0.png": picture(0), "tulip/0.png": picture(1)})
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("tulip/1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    refused(path, "'tulip/1.png' is a symbolic link")


def test_damage_is_one_line_for_the_archive_or_one_image(tmp_path: Path):
    whole = pack(folder_of(tmp_path / "photos"), tmp_path / "p.zip").read_bytes()
    (tmp_path / "p.zip").write_bytes(whole[:-200])
    refused(tmp_path / "p.zip", "its end is missing: the download may be incomplete")
    (tmp_path / "p.zip").write_bytes(b"")
    refused(tmp_path / "p.zip", "it is empty")
    (tmp_path / "p.zip").write_bytes(b"<html>" + bytes(99))
    refused(tmp_path / "p.zip", "it has no directory of files")
    changed = bytearray(whole)
    changed[whole.index(b"IDAT") + 20] ^= 1  # in the first image
    (tmp_path / "p.zip").write_bytes(changed)
    table = open_source(tmp_path / "p.zip")
    bad = [i for i in range(len(table)) if content_hash(table.image(i)) == UNKNOWN]
    assert len(bad) == 1
    with pytest.raises(UnreadableError, match="damaged in the archive"):
        load_row(table.image(bad[0]), RowSpec(8))
    zipped = pack(tmp_path / "photos", tmp_path / "p.tar.gz").read_bytes()
    (tmp_path / "p.tar.gz").write_bytes(zipped[: len(zipped) // 2])
    refused(tmp_path / "p.tar.gz", "not a readable tar archive")


def test_an_archive_that_changes_while_it_is_used_is_reported(tmp_path: Path):
    table = open_source(pack(folder_of(tmp_path / "photos"), tmp_path / "p.tar"))
    (tmp_path / "p.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(UserError, match=r"p\.tar"):
        load_row(table.image(0), RowSpec(8))


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("gone", [False, True])
def test_an_archive_that_is_replaced_stops_the_reading_of_its_table(tmp_path: Path, form: str, gone: bool):
    """A table of the old archive never has images of the new one; the next source is the new one."""
    path = pack(folder_of(tmp_path / "photos"), tmp_path / f"p.{form}")
    table = open_source(path)
    path.chmod(0o600)  # changes no content
    load_row(table.image(0), RowSpec(8))
    new = write(tmp_path / f"new.{form}", {"rose/0.png": picture(7), "tulip/0.png": picture(8)})
    path.unlink() if gone else new.replace(path)
    with pytest.raises(UserError, match=rf"p\.{form}: was changed or replaced while it was read"):
        build_pixels(table, np.arange(len(table)), RowSpec(8), cache=default_cache())
    if not gone:
        assert len(open_source(path)) == 2
        load_row(str(path / "tulip/0.png"), RowSpec(8))


def test_an_unreadable_image_in_an_archive_is_left_out(tmp_path: Path):
    files = {f"{name}/{k}.png": picture(k) for name in ("rose", "tulip") for k in range(3)}
    table = open_source(write(tmp_path / "p.zip", {**files, "rose/0.png": b"no image"}))
    decoded = decode_split(table, np.arange(len(table)), RowSpec(8), default_cache())
    assert [name for name, _ in decoded.left_out] == ["rose/0.png"]


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = {"rose/0.png": picture(0), "tulip/0.png": picture(1)}
    refused(write(tmp_path / "x.zip", {**images, "rose/1.png": bytes(70 << 20)}), "like a decompression bomb")
    refused(write(tmp_path / "x.tar.gz", {**images, "rose/1.png": bytes(70 << 20)}), "like a decompression bomb")
    with monkeypatch.context() as full:
        full.setattr(caches, "_RESERVE", 1 << 60)
        with pytest.raises(UserError, match="the disk has no room"):
            open_source(write(tmp_path / "y.tar.gz", images))
    path = write(tmp_path / "y.zip", images)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 42 : at + 46] = bytes(4)  # the second file is where the first one is (Fifield 2019)
    path.write_bytes(data)
    refused(path, "overlaps")
    data[at + 20 : at + 24] = struct.pack("<L", 1 << 20)
    path.write_bytes(data)
    refused(path)


def test_an_unsuccessful_decompression_leaves_nothing(tmp_path: Path, cache: Path):
    path = write(tmp_path / "x.tar.gz", {"rose/1.png": bytes(70 << 20)})
    refused(path, "like a decompression bomb")
    refused(write(tmp_path / "y.tar.gz", {"rose/1.png": picture(1), "../2.png": picture(2)}), "leads out of")
    assert not list(cache.rglob("*.tar"))


def test_decompressed_archives_are_evicted_like_any_entry(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """The least recently used one, also while a table is read from it; one larger than the budget is refused."""
    monkeypatch.setattr(unpacking, "STEP", 32 << 10)
    monkeypatch.setattr(unpacking, "CHUNK", 8 << 10)
    monkeypatch.setenv("LINNAEUS_CACHE_GB", "0.0002")  # two of three
    tables = {}
    for k, name in enumerate("abc"):
        noise = np.random.default_rng(k).bytes(60_000)
        path = write(tmp_path / f"{name}.tar.gz", {"rose/0.png": picture(k), "tulip/0.png": picture(9), "x.txt": noise})
        tables[name] = open_source(path)
        assert sum(file.stat().st_size for file in cache.rglob("*.tar")) < 200_000
    assert len(list(cache.rglob("*.tar"))) == 2
    assert not Path(tables["a"].notes[0].partition("cache, ")[2].partition(" (")[0]).exists()
    (tmp_path / "0.png").write_bytes(picture(0))
    assert content_hash(tables["a"].image(0)) == content_hash(str(tmp_path / "0.png"))
    monkeypatch.setenv("LINNAEUS_CACHE_GB", "0.0001")
    refused(write(tmp_path / "d.tar.gz", {"rose/0.png": picture(3), "x.txt": bytes(200_000)}), "LINNAEUS_CACHE_GB")
    assert not list(cache.rglob("*.partial"))


def test_the_command_lists_and_clears_archives(tmp_path: Path, cache: Path):
    open_source(pack(folder_of(tmp_path / "photos"), tmp_path / "p.tar.gz"))
    listed = CliRunner().invoke(cli, ["data", "cache"]).output
    assert "archive  archive-" in listed
    assert CliRunner().invoke(cli, ["data", "cache", "--clear"]).exit_code == 0
    assert not list(cache.rglob("*.tar"))


def test_forgetting_images_removes_the_copies_of_archives(tmp_path: Path):
    """Their images are not looked at; the archive itself is the user's, and makes the copy again."""
    open_source(pack(folder_of(tmp_path / "photos"), tmp_path / "p.tar.gz"))
    assert purge_images(default_cache(), np.array([7], np.uint64)).entries == 1
    assert default_cache().entries() == []
