"""Writing files: whole or not at all, and what the disk says in one line."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from linnaeus.errors import JobError, UserError
from linnaeus.files import atomic, disk_errors, write_text


def test_the_file_is_there_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".txt"
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "one"
    write_text(path, "ü 一")
    assert path.read_text(encoding="utf-8") == "ü 一"
    assert os.listdir(path.parent) == ["a.txt"]  # noqa: PTH208


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = f"""
import os, signal
from pathlib import Path
from linnaeus.files import atomic
with atomic(Path({str(path)!r})) as temporary:
    temporary.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.read_text() == "old"


def test_others_may_read_it_as_far_as_the_user_lets_them(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert os.umask(before) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_failed_job(number: int, tmp_path: Path):
    def fail() -> None:
        with atomic(tmp_path / "a.txt") as temporary:
            raise OSError(number, os.strerror(number), str(temporary))

    with pytest.raises(JobError, match=r"a\.txt: no space left on the disk \(.*\); free some") as caught:
        fail()
    assert caught.value.status == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_may_not_be_written_is_a_failed_job(number: int, tmp_path: Path):
    with pytest.raises(JobError, match="may not be written"), disk_errors(tmp_path / "a"):
        raise OSError(number, os.strerror(number))


def test_a_place_that_cannot_be_is_wrong_input(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be written") as caught:
            write_text(path, "")
        assert caught.value.status == 2
        assert str(path) in str(caught.value)


def test_the_absence_of_another_file_is_not_blamed_on_this_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "a"):
        Path("/no/such/picture.png").read_bytes()
