"""Writing files: whole or not at all, and one line for what the disk refuses."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from linnaeus.errors import JobError, UserError, next_step
from linnaeus.files import atomic, disk_errors, explained, write_text


def test_the_file_is_there_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".txt"
        assert temporary.parent.parent == path.parent
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


WRITER = """
import os, signal, sys
from pathlib import Path
from linnaeus.files import atomic
with atomic(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(1000))
    (temporary.parent / ".tmpAbCdEf").write_bytes(bytes(1000))  # as the safetensors library does
    print("writing", flush=True)
    {end}
"""


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path):
    """And nothing else: not the files of a writer that is alive, not the user's."""
    mine = [tmp_path / ".pre-commit-config.yaml", tmp_path / ".tmpABC123", tmp_path / ".linnaeus-tmp-file"]
    for file in mine:
        file.write_text("mine")
    (tmp_path / ".linnaeus-tmp-folder-of-mine").mkdir()
    kept = {*os.listdir(tmp_path)}  # noqa: PTH208
    for _ in range(2):
        code = WRITER.format(end="os.kill(os.getpid(), signal.SIGKILL)")
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False, capture_output=True)
    assert len({*os.listdir(tmp_path)} - kept) == 1  # noqa: PTH208
    code = WRITER.format(end="sys.stdin.read()")
    command = [sys.executable, "-c", code, str(tmp_path / "b.txt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as alive:
        assert alive.stdout is not None
        assert alive.stdout.readline() == b"writing\n"
        write_text(tmp_path / "c.txt", "")
        assert len({*os.listdir(tmp_path)} - kept - {"c.txt"}) == 1  # noqa: PTH208
        alive.communicate(b"")
    assert (tmp_path / "b.txt").stat().st_size == 1000
    assert {*os.listdir(tmp_path)} == kept | {"b.txt", "c.txt"}  # noqa: PTH208


def test_links_are_followed_and_streams_are_not_replaced(tmp_path: Path):
    target, link, pipe = tmp_path / "target" / "a.txt", tmp_path / "link.txt", tmp_path / "pipe"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    code = "from pathlib import Path; from linnaeus.files import write_text; write_text(Path('/dev/stdout'), 'said')"
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=out)
    assert (tmp_path / "out.txt").read_text() == "said"


def test_file_permissions_follow_those_of_the_user(tmp_path: Path):
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


@pytest.mark.parametrize("number", [errno.EIO, errno.EINTR, errno.EBUSY, errno.ESTALE])
@pytest.mark.parametrize("call", ["tempfile.mkdtemp", "os.fsync", "pathlib.Path.replace", "pathlib.Path.write_text"])
def test_a_failing_disk_is_one_line(number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(JobError, match=r"/a: cannot be written \(.+\); check the disk") as caught:
            write_text(tmp_path / "a", "new")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_too_many_open_files_are_not_blamed_on_the_disk():
    error = explained(OSError(errno.EMFILE, "Too many open files"), Path("a"))
    assert str(error) == "a: cannot be written (Too many open files); " + next_step(OSError(errno.EMFILE, ""))
    assert "ulimit" in str(error)


def test_an_impossible_path_is_wrong_input(tmp_path: Path):
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs the locks of POSIX")
def test_a_signal_before_the_folder_is_used_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise it stays until the next command that writes there."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("linnaeus.files.fcntl.flock", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []
