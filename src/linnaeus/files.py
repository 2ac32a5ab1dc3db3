"""Files: atomic writes, locks, checksums, and one-line errors for a disk that is full or read-only."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from linnaeus.errors import JobError, UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
BRIEFLY = 0.1  # seconds until a lock counts as held
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system about writing `path` into one line that names it.

    A full disk or a read-only place is a JobError; a name that no file can have is a UserError. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise JobError(
                f"{path}: no space left on the disk ({error.strerror}); free some, or choose another place"
            ) from None
        if error.errno in FORBIDDEN:
            raise JobError(f"{path}: may not be written ({error.strerror}); choose another place") from None
        if error.errno in NO_PLACE and _concerns(error, path):
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
        raise


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about `path`, a folder above it, or a temporary file beside it."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    about = Path(error.filename)
    return about.parent == path.parent or about in (path, *path.parents)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed over it if the block succeeds and removed if it fails.

    The bytes are synced before the rename, and the rename before this returns: after a power cut the file is the old
    one or the new one, never a part.
    """
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
        # The suffix stays, because writers such as matplotlib choose the format by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that killed writers left in `folder`; no other process may be writing there."""
    return [path for path in folder.glob(".*-????????*") if path.is_file()] if folder.is_dir() else []


def numbered(stem: Path) -> Path:
    """A new folder `stem`-1, or the first number that is free."""
    n = 1
    while True:
        path = stem.with_name(f"{stem.name}-{n}")
        try:
            with disk_errors(path):
                path.mkdir(parents=True)
            return path
        except FileExistsError:  # mkdir decides, so that two programs started at once get two folders
            n += 1


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's umask: mkstemp makes files private, and ours should be as readable as other files of the user."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
