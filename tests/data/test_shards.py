"""Shards: written, indexed, read by offset from the disk and from a web server, and refused where they are hostile."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_idx, write_images, write_recipe

from linnaeus.cache import default_cache
from linnaeus.data.archives import remote
from linnaeus.data.batches import Batches, Partition, Sampling
from linnaeus.data.images.decode import RowSpec, UnreadableError
from linnaeus.data.readers.shards import INDEX
from linnaeus.data.readers.shardwriter import write_shards
from linnaeus.data.sources import open_source
from linnaeus.errors import JobError, UserError
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.pixels import build_pixels
from linnaeus.stores.pixelstore import StreamedRows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", ("rose", "tulip.x"), each=6)


@pytest.fixture
def shards(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as only_here:  # undo() would take the cache of the tests away too
        only_here.setattr("linnaeus.data.readers.shardwriter._Writer._split", partial_limit(4000))
        write_shards(open_source(photos), tmp_path / "shards")
    return tmp_path / "shards"


def partial_limit(limit: int):
    """`_Writer._split` with a limit so low that there are several shards."""
    from linnaeus.data.readers.shardwriter import _Writer

    original = _Writer._split

    def split(self, *given):
        self.limit = limit
        original(self, *given)

    return split


class Handler(SimpleHTTPRequestHandler):
    """A file server with ranges, and with faults that a test sets."""

    faults: dict[str, int]

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        self.faults["asked"] = self.faults.get("asked", 0) + 1
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        if body and self.faults.get("busy", 0) > 0:
            self.faults["busy"] -= 1
            return self.send_error(503)
        data = path.read_bytes()
        given = self.headers.get("Range") if not self.faults.get("no ranges") else None
        start, stop = 0, len(data)
        if given:
            start, stop = (int(n) for n in given.removeprefix("bytes=").split("-"))
            stop += 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        part = data[start:stop]
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body and self.faults.get("cut", 0) > 0 and len(part) > 10:
            self.faults["cut"] -= 1
            part = part[: len(part) // 2]
        if body:
            self.wfile.write(part)

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, int], Any]]:
    """(address of tmp_path, its faults, the server)"""
    monkeypatch.setattr(remote, "WAIT", 0.001)
    monkeypatch.delenv("LINNAEUS_OFFLINE", raising=False)
    faults: dict[str, int] = {}
    handler = type("Faulty", (Handler,), {"faults": faults})
    found = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}", faults, found
    found.shutdown()
    found.server_close()
    thread.join()


def contents(table) -> dict[str, tuple[str, bytes]]:
    """Sample -> (class, bytes)."""
    return {table.sample_id(i): (table.classes[table.labels[i]], table.image(i)) for i in range(len(table))}


def test_what_is_written_is_what_is_read(photos: Path, shards: Path):
    table = open_source(shards)
    assert table.kind == "shards"
    assert len(list(shards.glob("all-*.tar"))) > 2
    expected = {f"{p.parent.name}/{p.name}": (p.parent.name, p.read_bytes()) for p in photos.rglob("*.png")}
    assert contents(table) == expected
    order = [table.sample_id(i) for i in range(len(table))]
    assert order != sorted(order), "others read from front to back"
    again = open_source(shards)
    assert again.fingerprint() == table.fingerprint()
    some = table.select(np.array([3, 1]))
    assert contents(some) == {name: expected[name] for name in (order[3], order[1])}


def test_the_table_exists_without_reading_an_image(shards: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*given: Any) -> bytes:
        raise AssertionError("a shard was read")

    monkeypatch.setattr(remote.LocalFiles, "read", never)
    assert len(open_source(shards)) == 12


def test_webdataset_reads_what_we_write(photos: Path, shards: Path):
    webdataset = pytest.importorskip("webdataset")
    names = sorted(map(str, shards.glob("*.tar")))
    found = list(webdataset.WebDataset(names, shardshuffle=False, empty_check=False))
    assert len(found) == 12
    for sample in found:
        about = json.loads(sample["json"])
        assert sample["png"] == (photos / about["name"]).read_bytes()
        assert ("rose", "tulip.x")[int(sample["cls"])] == about["label"]


def test_splits_arrays_and_smaller_images(tmp_path: Path):
    write_shards(open_source(write_idx(tmp_path / "idx", train=9, test=3)), tmp_path / "out")
    table = open_source(tmp_path / "out")
    assert {split: int(n.sum()) for split, n in table.counts().items()} == {"train": 9, "test": 3}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [INDEX, "test-00000.tar", "train-00000.tar"]
    given = table.image(0)
    assert isinstance(given, bytes)
    assert Image.open(io.BytesIO(given)).format == "PNG"
    for name in ("a", "b"):
        (tmp_path / "large" / name).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "large" / name / "x.jpg")
        Image.new("RGB", (9, 8)).save(tmp_path / "large" / name / "y.bmp")
        (tmp_path / "large" / name / "bad.jpg").write_bytes(b"no image")
    done = write_shards(open_source(tmp_path / "large"), tmp_path / "small", resize=20)
    assert [name for name, _ in done.left_out] == ["a/bad.jpg", "b/bad.jpg"] or len(done.left_out) == 2
    sizes = {
        name: Image.open(io.BytesIO(data)).size for name, (_, data) in contents(open_source(tmp_path / "small")).items()
    }
    assert sizes["a/x.jpg"] == (30, 20)
    assert sizes["a/y.bmp"] == (9, 8)


def test_an_existing_folder_is_not_changed(photos: Path, shards: Path):
    with pytest.raises(UserError, match="already exists"):
        write_shards(open_source(photos), shards)
    assert len(open_source(shards)) == 12
    assert not list(shards.parent.glob(".*"))


def foreign(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, label: str, kind: str = "cls") -> tuple[tuple[str, bytes], ...]:
    text = label if kind == "cls" else json.dumps({"label": label, "other": [1]})
    return (f"{key}.{kind}", text.encode()), (f"{key}.jpg", f"image {key}".encode())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.replace(b'"9"', b'"8"'),
        lambda content: content[:-1],
        lambda _: b"null",
        lambda _: b"[[1]]",
        lambda _: b"",
        lambda _: b"\xff",
    ],
)
def test_a_damaged_index_in_the_cache_is_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache"))
    shard = foreign(tmp_path / "one.tar", *sample("a", "10"), *sample("b", "9"))
    whole = contents(open_source(shard))
    (cached,) = (tmp_path / "cache" / "shards").glob("*.json")
    cached.write_bytes(damage(before := cached.read_bytes()))
    assert contents(open_source(shard)) == whole
    assert cached.read_bytes() == before


def test_shards_of_others_are_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = "deep/" + "x" * 150 + "é"
    foreign(tmp_path / "set" / "train-0.tar", *sample("a", "10"), *sample("b", "9"), *sample(long, "9", "json"))
    foreign(tmp_path / "set" / "val-0.tar", *sample("a", "9"))
    table = open_source(tmp_path / "set")
    assert table.classes == ("9", "10")
    assert table.split.tolist() == ["train", "train", "train", "valid"]
    assert contents(table) == {
        "train-0.tar/a.jpg": ("10", b"image a"),
        "train-0.tar/b.jpg": ("9", b"image b"),
        f"train-0.tar/{long}.jpg": ("9", f"image {long}".encode()),
        "val-0.tar/a.jpg": ("9", b"image a"),
    }
    monkeypatch.setattr("linnaeus.data.readers.webdataset.scan_samples", None)  # the index was kept
    assert open_source(tmp_path / "set").fingerprint() == table.fingerprint()
    assert len(open_source(str(tmp_path / "set" / "train-{0..0}.tar"))) == 3
    monkeypatch.undo()
    foreign(tmp_path / "set" / "val-0.tar", *sample("c", "10"), *sample("d", "10"))
    assert len(open_source(tmp_path / "set")) == 5, "a shard that has changed is read again"
    assert len(open_source(foreign(tmp_path / "one.tar", *sample("a", "x"), *sample("b", "y")))) == 2


def test_a_shard_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path):
    place, signatures = tmp_path / "set.tar", []
    for label in ("x", "y"):
        new = foreign(tmp_path / "new" / "set.tar", *sample("a", label), *sample("b", "z"))
        os.utime(new, (1, 1))
        shutil.copy2(new, place)
        table = open_source(place)
        assert table.classes == (label, "z")
        signatures.append(Decoding(table, np.arange(2), RowSpec(8), 1, None).signatures.tolist())
    assert not set(signatures[0]) & set(signatures[1])


def test_a_shard_that_is_replaced_while_it_is_read_stops_the_reading(tmp_path: Path):
    """Before and after its file was opened; `chmod` changes nothing, and the new shard is another source."""
    place = foreign(tmp_path / "set.tar", *sample("a", "x"), *sample("b", "z"))
    table = open_source(place)
    place.chmod(0o600)
    assert table.image(0) == b"image a"
    other = foreign(tmp_path / "other.tar", *sample("a", "z"), *sample("b", "x"))
    other.replace(place)
    for _ in range(2):
        with pytest.raises(JobError, match=r"set\.tar: was changed or replaced while it was read"):
            table.image(1)
    assert open_source(place).image(1) == b"image b"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((("a.jpg", b"x"), ("b.cls", b"1")), "'a.jpg' has no label"),
        ((("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")), "two images of one sample"),
        ((("a.cls", b"\xff"), ("a.jpg", b"x")), "not UTF-8 text"),
        ((("a.cls", b" "), ("a.jpg", b"x")), "the label is empty"),
        ((("a.json", b"{"), ("a.jpg", b"x")), "not JSON"),
        ((("a.jpg", b"x"), ("a.cls", b"1"), ("../b.jpg", b"x")), "'../b.jpg' has a name that leads out"),
        ((("a.jpg", b"x"), ("a.cls", b"1"), ("/etc/b.jpg", b"x")), "'/etc/b.jpg' has a name that leads out"),
        ((("a.jpg", b"x"), ("a.cls", b"1"), ("b.cls", b"1" * 2_000_000)), "too many for a label"),
        ((("a.jpg", b"x"), ("a.cls", b"1"), ("y" * 70_000 + ".jpg", b"1")), "a header at byte"),
    ],
)
def test_shards_of_others_that_are_wrong_are_refused_by_name(tmp_path: Path, members: Any, said: str):
    path = foreign(tmp_path / "x.tar", *members)
    with pytest.raises(UserError) as found:
        open_source(path)
    assert said in str(found.value)
    assert str(path) in str(found.value)


def test_a_damaged_header_is_not_taken_for_the_end_of_the_archive(tmp_path: Path):
    """tarfile stops at an invalid header and would drop the images behind it."""
    path = foreign(tmp_path / "x.tar", *sample("a", "1"), *sample("b", "2"))
    data = bytearray(path.read_bytes())
    data[2048 + 10] ^= 1  # changes a name, so the checksum of the header is wrong
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tar: not a readable tar archive \(no tar header at byte 2,048\)"):
        open_source(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused_by_name(tmp_path: Path, kind: bytes):
    path = foreign(tmp_path / "x.tar", *sample("a", "1"))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("evil.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"x\.tar: member 'evil\.jpg' is a "):
        open_source(path)


def test_a_shard_that_was_cut_or_changed_is_reported(shards: Path):
    table = open_source(shards)
    members = table.members
    assert members is not None
    first = sorted(shards.glob("*.tar"))[0]
    data = bytearray(first.read_bytes())
    data[512] ^= 1
    first.write_bytes(data)
    with pytest.raises(UnreadableError, match="do not match the checksum in the index"):
        contents(table)
    first.write_bytes(data[:-512])
    with pytest.raises(UserError, match=r"bytes, but the index says"):
        open_source(shards)
    first.unlink()
    with pytest.raises(UserError, match="a shard of the index is missing"):
        open_source(shards)


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (0, {"format": 2}, "format 2"),
        (0, {"classes": ["a", "a"]}, "two classes have the same name"),
        (0, {"shards": [{"file": "../x.tar", "bytes": 9}]}, "is not in the folder of the index"),
        (1, {"label": 7}, "is not in the first line"),
        (1, {"label": True}, "label, shard, offset, size, crc32 are"),
        (1, {"offset": -1}, "label, shard, offset, size, crc32 are"),
        (1, {"size": 1 << 40}, "beyond the end of shard"),
        (1, {"split": "other"}, "split 'other'"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(shards: Path, line: int, change: dict[str, Any], said: str):
    lines = (shards / INDEX).read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **change})
    (shards / INDEX).write_text("\n".join(lines))
    with pytest.raises(UserError) as found:
        open_source(shards)
    assert said in str(found.value)
    assert f"{INDEX}:{line + 1}: not an index of shards" in str(found.value)


def test_a_web_server_gives_the_same(shards: Path, server):
    address, faults, _ = server
    table = open_source(f"{address}/shards")
    here = open_source(shards)
    assert contents(table) == contents(here)
    assert table.fingerprint() == here.fingerprint()
    faults |= {"busy": 2, "cut": 2}
    assert contents(open_source(f"{address}/shards/{INDEX}")) == contents(here)
    assert faults["busy"] == faults["cut"] == 0, "both faults happened"
    faults["no ranges"] = 1
    with pytest.raises(UserError, match="does not send parts of files"):
        contents(table)
    with pytest.raises(JobError, match=r"nowhere/index\.jsonl: cannot be read \(HTTP 404"):
        open_source(f"{address}/nowhere")


def test_shards_of_others_on_a_web_server(tmp_path: Path, server):
    address, faults, _ = server
    for k in range(2):
        foreign(tmp_path / f"x-{k}.tar", *sample("a", "1"), *sample("b", "2"))
    faults["cut"] = 2
    table = open_source(f"{address}/x-{{0..1}}.tar")
    assert contents(table) == contents(open_source(str(tmp_path / "x-{0..1}.tar")))
    assert len(table) == 4
    assert faults["cut"] == 0


def test_a_server_that_is_gone_is_one_line_and_no_unreadable_image(shards: Path, server):
    address, _, found = server
    table = open_source(f"{address}/shards")
    assert table.image(0)
    found.shutdown()
    found.server_close()
    with pytest.raises(JobError, match=r"all-0000\d\.tar: cannot be read \(.*\); check the address and the server"):
        build_pixels(table, np.arange(12), RowSpec(8), cache=default_cache())


def test_programs_and_other_schemes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server):
    monkeypatch.chdir(tmp_path)
    for source in ("pipe:touch x", "file:///etc/passwd", "ftp://host/x.tar", "pipe:touch x{0..1}.tar"):
        with pytest.raises(UserError):
            open_source(source)
    assert not Path("x").exists()
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    with pytest.raises(UserError, match="LINNAEUS_OFFLINE forbids"):
        open_source(f"{server[0]}/shards")


def test_reading_takes_constant_memory(tmp_path: Path):
    """Streaming 40 MB of images in batches holds a few MB at a time."""
    generator = np.random.default_rng(0)
    for k in range(2):
        (tmp_path / "large" / str(k)).mkdir(parents=True)
    for i in range(50):
        pixels = generator.integers(0, 255, (520, 520, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "large" / str(i % 2) / f"{i}.bmp")
    write_shards(open_source(tmp_path / "large"), tmp_path / "out", size=10)
    table = open_source(tmp_path / "out")
    members = table.members
    assert members is not None
    assert sum(members.sizes[:50]) > 40e6
    tracemalloc.start()
    rows = build_pixels(table, np.arange(50), RowSpec(16), cache=default_cache(), threads=1)
    assert isinstance(rows, StreamedRows)
    for start in range(0, 50, 10):
        rows.gather(np.arange(start, start + 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6, f"{peak / 1e6:.1f} MB"


def test_training_evaluating_and_checking_shards(tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch, server):
    """The commands on shards, on the disk and over HTTP, give what they give on the folder, and keep no pixels."""
    monkeypatch.chdir(tmp_path)
    photos = write_images(tmp_path / "photos", each=10)
    assert say("data", "shard", photos, "--out", "shards").status == 0
    recipe = write_recipe(tmp_path / "tiny.toml", {"train": ["head"]}, {"epochs": 1})
    trained = {}
    for name, source in (("folder", photos), ("disk", "shards"), ("web", f"{server[0]}/shards")):
        said = say("train", source, "--recipe", recipe, "--out", f"run-{name}", "--device", "cpu")
        assert said.status == 0, said.err
        trained[name] = json.loads((tmp_path / f"run-{name}" / "metrics.json").read_text())
        if name == "disk":
            kinds = {entry.name.partition("-")[0] for entry in default_cache().entries() if "rows" in entry.about}
            assert "verdict" in kinds
    assert trained["disk"]["valid"] == trained["web"]["valid"]
    assert trained["disk"]["valid"]["n"] == trained["folder"]["valid"]["n"] == 3
    assert trained["disk"]["fingerprint"] == trained["web"]["fingerprint"]
    said = say("evaluate", "run-disk", "shards", "--device", "cpu")
    assert said.status == 0, said.err
    assert "valid of shards: 3 images" in said.out
    said = say("check", "shards", "--weights", "none", "--json", "check.json", "--gallery", "check.html")
    assert said.status in (0, 1), said.err
    assert json.loads(Path("check.json").read_text())
    assert (tmp_path / "run-disk" / "report.html").exists()


def test_ranks_share_the_shards_and_an_epoch_continues_at_any_batch(shards: Path):
    """Two ranks see every image once between them; an epoch from batch 2 on is the rest of the same epoch."""
    table = open_source(shards)
    rows = build_pixels(table, np.arange(12), RowSpec(8), cache=default_cache())

    def seen(rank: int = 0, world: int = 1, start: int = 0) -> list[list[int]]:
        sampling, partition = Sampling(shuffle=True, seed=3), Partition(rank, world)
        device = torch.device("cpu")
        batches = Batches(rows, table.labels, batch=4, device=device, sampling=sampling, partition=partition)
        return [batch.indices.tolist() for batch in batches.epoch(1, start)]

    whole = seen()
    assert sorted(i for batch in whole for i in batch) == list(range(12))
    halves = [seen(rank, 2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
    assert seen(start=2) == whole[2:]
