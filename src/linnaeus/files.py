"""Files: atomic writes, locks, checksums, and one-line errors for a disk that is full, read-only or failing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus.errors import DiskError, UserError, next_step
from linnaeus.text import SafeCsvWriter

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from filelock import BaseFileLock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
SCRATCH = ".linnaeus-tmp-"  # start of the names of folders for files in the making
_SCRATCH_NAME = re.compile(re.escape(SCRATCH) + r"[a-z0-9_]{8}")  # as `tempfile` names them
BRIEFLY = 0.1  # seconds until a lock counts as held
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of a folder, on some network file systems
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system about writing `path` into one line that names it, by `explained`.

    The absence of another file, and a closed pipe or connection, are not blamed on `path`: these errors pass.
    """
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        if error.errno in NO_PLACE and not _concerns(error, path):
            raise
        raise explained(error, path) from None


def explained(error: OSError, path: Path | None = None) -> UserError:
    """The error as one line with the file, the reason and the next step. `path`: the file that was to be written.

    A full disk, a read-only place and a failing disk are a DiskError; a name that no file can have is a UserError.
    """
    reason = error.strerror or str(error) or type(error).__name__
    if path is None:
        place = error.filename if isinstance(error.filename, str | os.PathLike) else "a file"
        return DiskError(f"{place}: cannot be used ({reason}); {next_step(error)}")
    if error.errno in FULL:
        return DiskError(f"{path}: no space left on the disk ({reason}); free some, or choose another place")
    if error.errno in FORBIDDEN:
        return DiskError(f"{path}: may not be written ({reason}); choose another place")
    if error.errno in NO_PLACE:
        return UserError(f"{path}: cannot be written ({reason}); choose another place")
    step = next_step(error, "check the disk, then run the command again")
    return DiskError(f"{path}: cannot be written ({reason}); {step}")


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about `path`, a folder above it, or a temporary file beside it."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    about = Path(error.filename)
    return path.parent in (about.parent, about.parent.parent) or about in (path, *path.parents)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in a folder beside `path`, renamed over it if the block succeeds and removed if it fails.

    The bytes are synced before the rename, and the rename before this returns: after a power cut the file is the old
    one or the new one, never a part. A symbolic link stays, and the file that it names is replaced; a device or a pipe,
    such as /dev/stdout, gets the bytes.
    """
    with disk_errors(path):
        if _is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / path.name
                path.write_bytes((Path(folder) / path.name).read_bytes())
            return
        path = path.resolve() if path.is_symlink() else path
        with scratch(path.parent) as folder:
            # It keeps the name, because writers such as matplotlib choose the format by it.
            temporary = folder / path.name
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(stat.S_IMODE(mode))  # safetensors makes files private
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)


def _is_stream(path: Path) -> bool:
    """Whether `path` is a device, a pipe or an open file of a process, which a rename must not replace."""
    named = str(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))  # these may lead to a regular file
    return named or (path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for files in the making, which is removed at the end.

    What killed writers have left in `parent` is removed first. A writer holds a lock on its folder, so that the folders
    of other processes that are still writing are left alone.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        # A file in the place of the folder: reported as a file system would.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent)) from None
    remove_scratch(parent)
    path, lock = parent, None
    try:
        while lock is None or not path.is_dir():  # another process may remove the folder before it is locked
            if lock is not None:
                lock.close()
            path = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
            lock = _Lock(path)
        yield path
    finally:
        if path != parent:
            shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            lock.close()


def is_scratch(path: Path) -> bool:
    """Whether `path` is a folder of `scratch`."""
    return _SCRATCH_NAME.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def remove_scratch(parent: Path, *, alone: bool = False) -> None:
    """Remove the folders of `scratch` that killed writers have left in `parent`.

    `alone`: no other process writes in `parent`, so that they are removed also where the file system has no locks.
    """
    with suppress(OSError):
        for path in list(filter(is_scratch, parent.iterdir())):
            lock = _Lock(path)
            if lock.is_ours or (alone and not lock.is_taken):
                shutil.rmtree(path, ignore_errors=True)
            lock.close()


class _Lock:
    """An attempt to lock a folder or a file. The operating system drops the lock when this process ends."""

    def __init__(self, path: Path):
        self.is_ours = self.is_taken = False  # both are false where the file system has no such locks
        self._handle: int | None = None
        if fcntl is None:
            return
        with suppress(OSError):
            self._handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined, unused-ignore]
                self.is_ours = True
            except BlockingIOError:
                self.is_taken = True

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Be the only process that writes the file `path`, which is created where it is missing.

    Raises UserError where another process does. Devices and pipes have any number of writers.
    """
    if _is_stream(path):
        yield
        return
    with disk_errors(path), path.open("ab"):  # `touch` would change the time at which it was last written
        pass
    lock = _Lock(path)
    try:
        if lock.is_taken:
            raise UserError(f"{path}: another process is writing it; wait for that, or choose another name")
        yield
    finally:
        lock.close()


def check_output(path: Path, is_ours: Callable[[Path], bool], option: str = "") -> None:
    """Raise UserError if `path`, the value of `option`, is a folder or a file whose content is not ours to replace."""
    reason = "is a folder; give the name of a file in it" if path.is_dir() else ""
    if path.is_file() and path.stat().st_size and not is_ours(path):
        reason = "exists and was not written by this command; remove it, or choose another name"
    if reason:
        raise UserError(f"{option} {path}: {reason}".lstrip())


def numbered(stem: Path) -> Path:
    """A new folder `stem`-1, or the first number that is free."""
    n = 1
    while True:
        path = stem.with_name(f"{stem.name}-{n}")
        with disk_errors(path):
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:  # mkdir decides, so that two programs started at once get two folders
                n += 1


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def csv_file(path: Path, *, errors: str = "strict", line_end: str = "\n") -> Iterator[SafeCsvWriter]:
    """Write a CSV file in this block, atomically. `errors`: what becomes of text that is not UTF-8."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", errors=errors, newline="") as file:
        yield SafeCsvWriter(file, line_end)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that can be made anew; empty if there is no such file or it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def crc32_of(path: Path) -> int:
    """The CRC-32 of a file, read in blocks."""
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def sync(path: Path) -> None:
    """Force a file, or a folder's names, to the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows has no handle for a folder; its rename is durable by itself
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


def acquire(path: Path, *, wait: bool) -> BaseFileLock | None:
    """Lock the file `path`, which is created where it is missing; None if another process holds it and `wait` is false.

    The operating system drops the lock when it is released or when this process ends, however it ends. The file's
    content is left alone. Some network file systems have no locks: there everybody gets one.
    """
    from filelock import FileLock, Timeout  # late: it takes a third of the time of `--help`

    lock = FileLock(path, thread_local=False)
    try:
        # More than one attempt: a holder that removes the file while it leaves makes the first one fail.
        lock.acquire(timeout=-1 if wait else BRIEFLY)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, waiting while another process holds it."""
    lock = acquire(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()
