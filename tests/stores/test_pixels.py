"""A store holds what `load_row` gives, is built once, survives kills and damage, and decodes only changed files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from linnaeus.cache import Cache, Entry
from linnaeus.data import tree
from linnaeus.data.images import decode
from linnaeus.data.images.decode import RowSpec, UnreadableError, load_row
from linnaeus.errors import UserError
from linnaeus.stores import decoding
from linnaeus.stores.pixels import build_pixels, lookup
from linnaeus.stores.pixelstore import PixelStore, StreamedRows
from linnaeus.stores.rows import ROWS, RowWriter, read_index, write_index

SPEC = RowSpec(16)
N = 12


@dataclass
class Images:
    """As much of a table as a store needs."""

    paths: tuple[str, ...] | None = None
    images: np.ndarray | None = None
    members: None = None

    def image(self, i: int) -> str | np.ndarray:
        if self.paths is not None:
            return self.paths[i]
        assert self.images is not None
        return self.images[i]

    def __len__(self) -> int:
        return len(self.paths or ())


def draw(path: Path, seed: int) -> str:
    """An image whose size and content depend on the seed."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (20 + seed % 5, 24 + seed % 7, 3), np.uint8)
    Image.fromarray(image if seed % 2 else image.swapaxes(0, 1)).save(path)
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> Images:
    """Twelve images, the fifth of them broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [draw(folder / f"{k} ü.png", k) for k in range(N)]
    Path(paths[4]).write_bytes(b"no image")
    return Images(tuple(paths))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded, in the order of finishing."""
    names: list[str] = []

    def counting(source: str | np.ndarray, spec: RowSpec, observe: object) -> np.ndarray:
        names.append(Path(source).name if isinstance(source, str) else "array")
        return load_row(source, spec)

    monkeypatch.setattr(decoding, "load_row", counting)
    return names


def check(store: PixelStore | StreamedRows, table: Images, indices: np.ndarray, spec: RowSpec = SPEC) -> None:
    """Every row is the image that it should be."""
    assert table.paths is not None
    assert len(store) == len(indices)
    for k, i in enumerate(indices):
        if k in store.failed:
            assert tuple(store.shapes[k]) == (0, 0)
            assert store.row(k).shape == (0, 0, spec.channels)
            with pytest.raises(UnreadableError):
                load_row(table.paths[i], spec)
        else:
            row = load_row(table.paths[i], spec)
            assert np.array_equal(store.row(k), row)
            assert tuple(store.shapes[k]) == row.shape[:2]


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("spec", [SPEC, RowSpec(16, "squash"), RowSpec(20, "pad", channels=1)])
def test_rows_are_the_images(table: Images, cache: Cache, with_cache: bool, spec: RowSpec):
    calls: list[tuple[int, int]] = []
    indices = np.array([7, 3, 4, 0, 11, 3])
    store = build_pixels(
        table,
        indices,
        spec,
        cache=cache if with_cache else None,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert isinstance(store, PixelStore)
    check(store, table, indices, spec)
    assert calls == [(done, 6) for done in range(1, 7)]
    assert store.failed == {2: "not an image, or in an unsupported format"}
    assert store.uniform == (None if spec.fit == "crop" else (spec.size, spec.size))
    assert store.data.dtype == np.uint8
    assert store.nbytes == len(store.data)
    assert store.data.ndim == 1
    assert store.offsets.dtype == np.int64
    assert store.shapes.dtype == np.int32


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("spec", [SPEC, RowSpec(16, "squash")])
def test_gather_pads_with_zeros(
    table: Images, cache: Cache, with_cache: bool, spec: RowSpec, monkeypatch: pytest.MonkeyPatch
):
    store = build_pixels(table, np.arange(N), spec, cache=cache if with_cache else None)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 255, dtype))  # fresh memory is often zero
    for chosen in ([3, 0, 11, 3], [5], []):
        batch, shapes = store.gather(np.array(chosen, dtype=np.int64))
        assert batch.dtype == np.uint8
        assert shapes.dtype == np.int32
        assert shapes.tolist() == store.shapes[chosen].tolist()
        assert batch.shape[0] == len(chosen)
        for k, i in enumerate(chosen):
            height, width = shapes[k]
            assert batch.shape[1:3] == tuple(shapes.max(axis=0))
            assert np.array_equal(batch[k, :height, :width], store.row(i))
            assert not batch[k, height:].any()
            assert not batch[k, :, width:].any()
    with pytest.raises(ValueError, match="row 4 could not be read"):
        store.gather(np.array([0, 4]))


def test_built_once(table: Images, cache: Cache, decoded: list[str]):
    """The second run decodes nothing; nor does one that wants some of the rows, in another order, or other copies."""
    build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert len(decoded) == N
    for indices in (np.arange(N), np.array([9, 4, 2, 9])):
        store = build_pixels(table, indices, SPEC, cache=cache)
        check(store, table, indices)
    assert len(decoded) == N
    assert len(cache.entries()) == 1
    build_pixels(table, np.arange(N), RowSpec(17), cache=cache)
    assert len(decoded) == 2 * N


def test_threads_change_nothing(table: Images, tmp_path: Path):
    files = []
    for threads in (1, 7):
        cache = Cache(tmp_path / str(threads), 1 << 30)
        store = build_pixels(table, np.arange(N), SPEC, cache=cache, threads=threads)
        assert isinstance(store, PixelStore)
        assert store.path is not None
        files.append(store.path.read_bytes())
    assert files[0] == files[1]


def test_only_what_changed_is_decoded_again(table: Images, cache: Cache, decoded: list[str]):
    assert table.paths is not None
    build_pixels(table, np.arange(N), SPEC, cache=cache)
    decoded.clear()
    draw(Path(table.paths[6]), 99)
    store = build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert decoded == ["6 ü.png"]
    check(store, table, np.arange(N))


def exchange_contents(one: Path, other: Path, folder: Path) -> None:
    """As `cp -p` of both files from a copy of the folder."""
    shutil.copy2(one, folder / "one")
    shutil.copy2(other, one)
    shutil.copy2(folder / "one", other)


def exchange_names(one: Path, other: Path, folder: Path) -> None:
    """As `mv`."""
    one.rename(folder / "one")
    other.rename(one)
    (folder / "one").rename(other)


@pytest.mark.parametrize("exchange", [exchange_contents, exchange_names])
def test_images_of_one_size_that_are_exchanged_with_their_times_are_decoded_again(
    exchange: Callable[[Path, Path, Path], None], cache: Cache, tmp_path: Path
):
    paths = [tmp_path / f"{k}.bmp" for k in range(2)]
    for k, path in enumerate(paths):
        Image.fromarray(np.full((20, 20, 3), 90 * k, np.uint8)).save(path)
        os.utime(path, (1, 1))
    table = Images(tuple(map(str, paths)))
    check(build_pixels(table, np.arange(2), SPEC, cache=cache), table, np.arange(2))
    exchange(paths[0], paths[1], tmp_path)
    assert {(path.stat().st_size, path.stat().st_mtime) for path in paths} == {(paths[0].stat().st_size, 1)}
    check(build_pixels(table, np.arange(2), SPEC, cache=cache), table, np.arange(2))


def test_temporary_failures_are_tried_again(table: Images, cache: Cache, decoded: list[str]):
    """A missing image that comes back is found; one that stays away does not spoil the store."""
    assert table.paths is not None
    Path(table.paths[2]).rename(table.paths[2] + ".away")
    for _ in range(2):
        store = build_pixels(table, np.arange(N), SPEC, cache=cache)
        assert store.failed[2] == "No such file or directory"
        check(store, table, np.arange(N))
    assert sorted(set(decoded)) == sorted({Path(path).name for path in table.paths})
    assert len(decoded) < 2 * N  # the second time only the missing one
    Path(table.paths[2] + ".away").rename(table.paths[2])
    store = build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert set(store.failed) == {4}
    check(store, table, np.arange(N))


def test_images_that_could_not_be_read_this_time(table: Images, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    """A failing disk or a lack of memory is not recorded as a property of the image."""

    def failing(source: str | np.ndarray, spec: RowSpec, observe: object) -> np.ndarray:
        if isinstance(source, str) and source.endswith("8 ü.png"):
            raise UnreadableError(source, "could not be read: Input/output error", passing=True)
        return load_row(source, spec)

    for where in (cache, Cache(cache.root / "small", 0), Cache(cache.root / "verdict", 4000)):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "load_row", failing)
            assert set(build_pixels(table, np.arange(N), SPEC, cache=where).failed) == {4, 8}
        check(build_pixels(table, np.arange(N), SPEC, cache=where), table, np.arange(N))
        assert set(build_pixels(table, np.arange(N), SPEC, cache=where).failed) == {4}


def test_images_without_a_signature_match_no_stored_image():
    theirs, ours = np.array([0, 5, 9], np.uint64), np.array([9, 0, 7, 5, 9], np.uint64)
    assert lookup(theirs, ours).tolist() == [2, -1, -1, 1, 2]
    assert lookup(theirs[:0], ours).tolist() == [-1] * 5


def alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(500)
        file.write(b"\0\1\2\3")


@pytest.mark.parametrize(
    "harm", [alter, lambda path: os.truncate(path, 700), Path.unlink], ids=["alter", "cut", "lose"]
)
@pytest.mark.parametrize("name", [ROWS, "index.npy", "failed.json", "header.json"])
def test_a_damaged_store_is_rebuilt(
    table: Images, cache: Cache, decoded: list[str], harm: Callable[[Path], None], name: str
):
    store = build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert isinstance(store, PixelStore)
    assert store.path is not None
    time.sleep(0.01)
    harm(store.path.parent / name)
    decoded.clear()
    check(build_pixels(table, np.arange(N), SPEC, cache=cache), table, np.arange(N))
    assert len(decoded) == N
    check(build_pixels(table, np.arange(N), SPEC, cache=cache), table, np.arange(N))
    assert len(decoded) == N


# Kills and other processes

CHILD = """
import sys, time
from pathlib import Path
import numpy as np
from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.stores import decoding
from linnaeus.cache import Cache
from linnaeus.stores.pixels import build_pixels
root, pause, limit, *paths = sys.argv[1:]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))

def slowly(source, spec, observe):
    time.sleep(float(pause))
    print(Path(source).name, flush=True)
    return load_row(source, spec)

decoding.load_row = slowly
class table:
    images = members = None
    image = paths.__getitem__
table.paths = paths
try:
    build_pixels(table, np.arange(len(paths)), RowSpec(16), cache=Cache(Path(root), 1 << 30), threads=1)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def child(cache: Cache, table: Images, pause: float, limit: int = 0) -> subprocess.Popen[str]:
    assert table.paths is not None
    command = [sys.executable, "-c", CHILD, str(cache.root), str(pause), str(limit), *table.paths]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_killed_build_continues(table: Images, cache: Cache, decoded: list[str], tmp_path: Path, kills: int):
    """After kill -9 no finished row is decoded again, and the bytes are those of an uninterrupted build."""
    for _ in range(kills):
        process = child(cache, table, 0.05)
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    store = build_pixels(table, np.arange(N), SPEC, cache=cache, threads=1)
    assert isinstance(store, PixelStore)
    assert N - 4 * kills - kills <= len(decoded) <= N - 2 * kills
    check(store, table, np.arange(N))
    whole = build_pixels(table, np.arange(N), SPEC, cache=Cache(tmp_path / "whole", 1 << 30))
    assert isinstance(whole, PixelStore)
    assert store.path is not None
    assert whole.path is not None
    for name in (ROWS, "index.npy", "failed.json"):
        assert (store.path.parent / name).read_bytes() == (whole.path.parent / name).read_bytes()
    assert [entry.unfinished for entry in cache.entries()] == [False]


@pytest.mark.parametrize("file", ["rows.bin", "journal.bin", "reasons.jsonl"])
@pytest.mark.parametrize("harm", [alter, lambda path: os.truncate(path, path.stat().st_size * 2 // 3)])
def test_a_torn_partial_file_is_truncated(
    table: Images, cache: Cache, file: str, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    """After a power cut any of the three files may be short or hold zeros: only rows that check are kept."""

    def stop(source: str | np.ndarray, spec: RowSpec, observe: object) -> np.ndarray:
        if isinstance(source, str) and source.endswith("9 ü.png"):
            raise KeyboardInterrupt
        return load_row(source, spec)

    monkeypatch.setattr(decoding, "load_row", stop)
    with pytest.raises(KeyboardInterrupt):
        build_pixels(table, np.arange(N), SPEC, cache=cache, threads=1)
    [partial] = cache.root.glob("*.partial")
    assert (partial / "journal.bin").stat().st_size >= 6 * 16
    harm(partial / file)
    monkeypatch.setattr(decoding, "load_row", load_row)
    check(build_pixels(table, np.arange(N), SPEC, cache=cache), table, np.arange(N))


def test_two_processes_at_once_decode_once(table: Images, cache: Cache):
    processes = [child(cache, table, 0.02) for _ in range(2)]
    lines = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(len(each) for each in lines) == [0, N]
    check(build_pixels(table, np.arange(N), SPEC, cache=cache), table, np.arange(N))


def test_two_threads_at_once_build_once(
    table: Images, cache: Cache, decoded: list[str], monkeypatch: pytest.MonkeyPatch
):
    built: list[str] = []
    commit = Cache.commit

    def counting(self: Cache, name: str, about: dict[str, Any], crc32: dict[str, int] | None = None) -> Entry:
        built.append(name)
        return commit(self, name, about, crc32)

    monkeypatch.setattr(Cache, "commit", counting)
    stores: list[PixelStore | StreamedRows] = []

    def work() -> None:
        stores.append(build_pixels(table, np.arange(N), SPEC, cache=cache))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(stores) == 4
    assert len(decoded) == N
    assert len(built) == 1


def test_a_full_disk_is_one_line(table: Images, cache: Cache):
    """A limit on the size of files stands for it: the write fails in the middle of a row."""
    process = child(cache, table, 0, limit=5000)
    *names, last = process.communicate(timeout=60)[0].splitlines()
    assert 0 < len(names) <= N
    assert last.startswith(f"DiskError {cache.root}: the disk is full; free some")
    assert cache.entries() == []
    assert list(cache.root.glob("pixels*")) == []
    check(build_pixels(table, np.arange(N), SPEC, cache=cache), table, np.arange(N))


def test_too_little_disk_leaves_nothing(table: Images, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Cache, "_free", lambda self: 1000)
    with pytest.raises(UserError, match="no room"):
        build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert cache.entries() == []


# Streaming


def test_over_budget_streams(table: Images, tmp_path: Path, decoded: list[str]):
    """Unreadable images are found before training and remembered; rows and batches are those of a store."""
    cache = Cache(tmp_path / "cache", 5000)
    store = build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert isinstance(store, StreamedRows)
    assert "does not fit" in store.note
    assert "5,000" in store.note
    assert sorted(decoded) == sorted(Path(path).name for path in table.paths or ())
    check(store, table, np.arange(N))
    reference = build_pixels(table, np.arange(N), SPEC, cache=None)
    for a, b in zip(store.gather(np.array([3, 0, 11])), reference.gather(np.array([3, 0, 11])), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="row 4 could not be read"):
        store.gather(np.array([4]))
    decoded.clear()
    again = build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert decoded == []
    assert again.failed == store.failed
    assert np.array_equal(again.shapes, store.shapes)
    assert sum(entry.bytes for entry in cache.entries()) <= 5000
    assert not list(cache.root.glob("*.partial"))


def test_no_budget_at_all_streams_too(table: Images, tmp_path: Path):
    store = build_pixels(table, np.arange(N), RowSpec(16, "squash"), cache=Cache(tmp_path / "cache", 0))
    assert isinstance(store, StreamedRows)
    assert set(store.failed) == {4}
    assert store.uniform == (16, 16)


def test_an_estimate_that_was_low_ends_in_streaming(table: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding.Decoding, "estimate", lambda self: 1000)
    cache = Cache(tmp_path / "cache", 5000)
    assert isinstance(build_pixels(table, np.arange(N), SPEC, cache=cache), StreamedRows)
    assert not list(cache.root.glob("*.partial"))
    large = Cache(tmp_path / "large", 1 << 30)
    check(build_pixels(table, np.arange(N), SPEC, cache=large), table, np.arange(N))


def test_an_image_lost_while_streaming_is_named(table: Images, tmp_path: Path):
    assert table.paths is not None
    store = build_pixels(table, np.arange(N), SPEC, cache=Cache(tmp_path / "cache", 0))
    Path(table.paths[1]).unlink()
    with pytest.raises(UserError, match=r"1 ü\.png"):
        store.gather(np.array([0, 1]))


# Arrays


def test_arrays_of_the_right_size_are_not_copied(cache: Cache):
    images = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8)
    store = build_pixels(Images(images=images), np.arange(9), SPEC, cache=cache)
    assert isinstance(store, PixelStore)
    assert np.shares_memory(store.data, images)
    assert store.uniform == (16, 16)
    assert cache.entries() == []
    some = build_pixels(Images(images=images), np.array([5, 2]), SPEC, cache=cache)
    assert np.array_equal(some.gather(np.array([1, 0]))[0], images[[2, 5]])


def test_channels_of_arrays():
    """Gray is repeated; luma is the one that files get."""
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    gray = build_pixels(Images(images=images), np.arange(4), RowSpec(16, channels=1), cache=None)
    for k in range(4):
        assert np.array_equal(gray.row(k), load_row(images[k], RowSpec(16, channels=1)))
    color = build_pixels(Images(images=images[..., 0]), np.arange(4), SPEC, cache=None)
    assert np.array_equal(color.row(2), np.repeat(images[2, :, :, :1], 3, 2))
    flat = PixelStore.from_arrays(images[..., 0])
    assert flat.channels == 1
    assert flat.row(1).shape == (16, 16, 1)


def test_arrays_of_another_size_are_stored(cache: Cache, decoded: list[str]):
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8), np.uint8)
    for _ in range(2):
        store = build_pixels(Images(images=images), np.arange(5), SPEC, cache=cache)
        assert np.array_equal(store.row(3), load_row(images[3], SPEC))
        assert store.uniform == (16, 16)
    assert len(decoded) == 5
    images[2] += 1
    build_pixels(Images(images=images), np.arange(5), SPEC, cache=cache)
    assert len(decoded) == 6


def test_no_images_and_only_bad_ones(cache: Cache, tmp_path: Path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"?")
    for where in (cache, None):
        assert len(build_pixels(Images(()), np.arange(0), SPEC, cache=where)) == 0
        store = build_pixels(Images((str(bad),) * 2), np.arange(2), SPEC, cache=where)
        assert list(store.failed) == [0, 1]
        assert store.uniform is None


def test_another_version_of_decoding_is_another_store(
    table: Images, cache: Cache, decoded: list[str], monkeypatch: pytest.MonkeyPatch
):
    build_pixels(table, np.arange(N), SPEC, cache=cache)
    monkeypatch.setattr("linnaeus.stores.pixels.DECODE_VERSION", decode.DECODE_VERSION + "x")
    build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert len(decoded) == 2 * N


def test_row_writer_recovers_exactly(tmp_path: Path):
    rows = [np.full((2, 3, 1), k, np.uint8) for k in range(5)]
    with RowWriter(tmp_path, 1) as writer:
        for row in rows[:3]:
            writer.append(row)
        writer.append(UnreadableError("x", "torn", passing=True))
        assert (writer.done, writer.bytes) == (4, 18)
        checksum = writer.crc32
    for name in ("rows.bin", "journal.bin", "reasons.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"half a rec")
    with RowWriter(tmp_path, 1) as writer:
        assert (writer.done, writer.bytes, writer.crc32) == (4, 18, checksum)
        assert writer.failed == {3: "torn"}
        assert writer.temporary == {3}
        writer.append(rows[3])
        writer.finish()
        write_index(tmp_path, writer.index(np.arange(1, 6, dtype=np.uint64)))
    assert (tmp_path / "rows.bin").read_bytes() == b"".join(row.tobytes() for row in rows[:4])
    index = read_index(tmp_path)
    assert index.failed == {3: "torn"}
    assert index.signatures.tolist() == [1, 2, 3, 0, 5]
    assert index.offsets(1).tolist() == [0, 6, 12, 18, 18]


@pytest.mark.long
def test_memory_stays_flat(tmp_path: Path):
    """Gathering from 600 MB of rows costs no more memory than from 30 MB."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from linnaeus.stores.pixelstore import PixelStore
n, path = int(sys.argv[1]), Path(sys.argv[2])
shapes = np.full((n, 2), 100, np.int32)
store = PixelStore(np.memmap(path, np.uint8, "r"), np.arange(n) * 30000, shapes, 3, {}, path)
for batch in np.array_split(np.random.default_rng(0).permutation(n), n // 64):
    store.gather(batch)
print(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)
"""
    peaks = []
    for n in (1000, 20_000):
        path = tmp_path / "rows.bin"
        with path.open("wb") as file:
            file.truncate(n * 30000)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script, str(n), str(path)], capture_output=True, env=environment)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 50


def test_images_that_are_changed_while_they_are_read_are_not_stored_as_what_they_were(
    table: Images, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An image is replaced during the build, and restored with its version, as where no time of change is kept."""
    monkeypatch.setattr(tree, "version", lambda path: (Path(path).stat().st_size, Path(path).stat().st_mtime_ns))
    assert table.paths is not None
    image, other = Path(table.paths[5]), Path(table.paths[6]).read_bytes()
    original, status = image.read_bytes(), image.stat()

    def swapping(source: str, spec: RowSpec, observe: object) -> np.ndarray:
        if source == str(image):
            image.write_bytes(other)
        return load_row(source, spec)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "load_row", swapping)
        store = build_pixels(table, np.arange(N), SPEC, cache=cache)
    assert np.array_equal(store.row(5), store.row(6))
    assert f"1 file changed while the images were read: {image}" in capsys.readouterr().err
    image.write_bytes(original)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    check(build_pixels(table, np.arange(N), SPEC, cache=cache), table, np.arange(N))
