"""Entries are whole or absent; the oldest go first; a full disk and other processes do no harm."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from linnaeus.cache import HEADER, Cache, OverBudgetError
from linnaeus.errors import DiskError, UserError

MB = 1_000_000
A, B, C = "pixels-00000000", "pixels-11111111", "verdict-22222222"


def build(cache: Cache, name: str, data: bytes = b"data" * 1000, used: float | None = None) -> Path:
    with cache.lock(name), cache.building(name) as folder:
        (folder / "rows.bin").write_bytes(data)
        (folder / "index").write_bytes(b"index")
        path = cache.commit(name, {"rows": 4}).path
    if used is not None:
        os.utime(path / HEADER, (used, used))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10 * MB)


def test_an_entry_exists_once_it_is_complete(cache: Cache):
    assert cache.find(A) is None
    assert cache.entries() == []
    with cache.lock(A), cache.building(A) as folder:
        (folder / "rows.bin").write_bytes(b"half")
        assert cache.find(A) is None
        [entry] = cache.entries()
        assert entry.unfinished
    build(cache, A)
    found = cache.find(A)
    assert found is not None
    assert found.about == {"rows": 4}
    assert (found.path / "rows.bin").read_bytes() == b"data" * 1000
    [entry] = cache.entries()
    assert not entry.unfinished
    assert entry.bytes == found.bytes == sum(file.stat().st_size for file in found.path.iterdir())


def test_an_interrupted_build_is_kept(cache: Cache):
    def killed() -> None:
        with cache.building(A) as folder:
            (folder / "rows.bin").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with cache.building(A) as folder:
        assert (folder / "rows.bin").read_bytes() == b"half"


@pytest.mark.parametrize(
    "harm", ["cut", "cut, same time", "longer", "altered", "no file", "header", "no header", "header of no JSON"]
)
def test_damage_is_noticed(cache: Cache, harm: str):
    path = build(cache, A)
    rows, header = path / "rows.bin", path / HEADER
    time.sleep(0.01)  # so that the time differs, as it does after any real write
    if harm == "cut":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif harm == "cut, same time":
        found = rows.stat()
        os.truncate(rows, 100)
        os.utime(rows, ns=(found.st_atime_ns, found.st_mtime_ns))
    elif harm == "longer":
        rows.write_bytes(rows.read_bytes() + b"!")
    elif harm == "altered":
        with rows.open("r+b") as file:
            file.seek(1234)
            file.write(b"X")
    elif harm == "no file":
        (path / "index").unlink()
    elif harm == "header":
        header.write_text(header.read_text().replace('"rows": 4', '"rows": 5'))
    elif harm == "no header":
        header.unlink()
    else:
        header.write_bytes(b"\xff\xfe")
    assert cache.find(A) is None
    build(cache, A)  # replaces it
    assert cache.find(A) is not None


def test_a_copy_is_as_good(cache: Cache, tmp_path: Path):
    """Copied files have other times: then the contents are compared."""
    path = build(cache, A)
    for file in path.iterdir():
        os.utime(file, (1, 1))
    shutil.copytree(cache.root, tmp_path / "copy")
    assert Cache(tmp_path / "copy", MB).find(A) is not None


def test_the_least_recently_used_goes_first(cache: Cache):
    for name, used in ((A, 1000.0), (B, 2000.0), (C, 3000.0)):
        build(cache, name, b"x" * 3 * MB, used)
    assert cache.find(A) is not None  # used now
    cache.room("pixels-33333333", 3 * MB)
    assert [entry.name for entry in cache.entries()] == [A, C]
    cache.room("pixels-33333333", 6 * MB, keep=[C])
    assert [entry.name for entry in cache.entries()] == [C]


def test_an_entry_that_cannot_fit_removes_nothing(cache: Cache):
    build(cache, A)
    with pytest.raises(OverBudgetError, match="10,000,000"):
        cache.room(B, 11 * MB)
    assert cache.find(A) is not None


def test_a_cache_that_is_removed_during_a_build_is_one_line(cache: Cache):
    """The next step is not another place, and the user has made no mistake."""

    def build_in_removed() -> None:
        with cache.building(A) as folder:
            shutil.rmtree(cache.root)
            (folder / "rows.bin").write_bytes(b"data")

    with pytest.raises(DiskError, match="cache: was removed while it was in use; run the command again"):
        build_in_removed()


def test_unfinished_entries_count_and_are_removed(cache: Cache):
    with cache.building(A) as folder:
        (folder / "rows.bin").write_bytes(b"x" * 6 * MB)
    with cache.lock(A), pytest.raises(OverBudgetError):
        cache.room(B, 5 * MB)  # somebody is building it
    cache.room(B, 5 * MB)
    assert cache.entries() == []


def test_clear(cache: Cache):
    build(cache, A)
    build(cache, B)
    held = sum(entry.bytes for entry in cache.entries())
    assert cache.clear() == held > 8000
    assert cache.entries() == []
    assert Cache(cache.root / "none", MB).entries() == []
    assert Cache(cache.root / "none", MB).clear() == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_no_half_store(cache: Cache, number: int):
    def full() -> None:
        with cache.lock(A), cache.building(A) as folder:
            (folder / "rows.bin").write_bytes(b"half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(DiskError, match="the disk is full") as error:
        full()
    assert str(cache.root) in str(error.value)
    assert "\n" not in str(error.value)
    assert cache.entries() == []
    assert not (cache.root / f"{A}.partial").exists()


def test_too_little_disk_is_reported_before_the_work(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    build(cache, A)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=64 << 20))
    with pytest.raises(UserError, match="no room"):
        cache.room(B, 5 * MB)
    assert cache.find(A) is not None


def test_other_errors_are_one_line_and_keep_the_build(cache: Cache):
    with pytest.raises(DiskError, match=r"pixels-0+\.partial: may not be written \(no\)"), cache.building(A):
        raise PermissionError(errno.EACCES, "no")
    assert (cache.root / f"{A}.partial").is_dir()


def test_an_impossible_root_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file", MB)
    with pytest.raises(UserError, match="set LINNAEUS_CACHE"), cache.lock(A):
        pass


WAITER = """
import sys, time
from pathlib import Path
from linnaeus.cache import Cache
cache = Cache(Path(sys.argv[1]), 10_000_000)
print("ready", flush=True)
with cache.lock(sys.argv[2]):
    print("in", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(cache: Cache, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WAITER, str(cache.root), A, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_wait_for_each_other_and_a_killed_one_releases_its_lock(cache: Cache):
    with cache.lock(A):
        other = start(cache, 60)
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        os.set_blocking(other.stdout.fileno(), False)
        time.sleep(0.3)
        assert not other.stdout.readline()
        os.set_blocking(other.stdout.fileno(), True)
    assert other.stdout.readline() == "in\n"
    build(cache, B)
    with cache.building(A) as folder:  # the other one builds it, so nobody may throw it away
        (folder / "rows.bin").touch()
    cache.clear()
    assert [entry.name for entry in cache.entries()] == [A]
    other.kill()
    other.wait()
    with cache.lock(A):
        pass
    other.stdout.close()
