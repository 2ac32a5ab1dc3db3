"""Which files of a folder belong to a run: only these may be replaced or deleted.

A run writes checkpoint/run.json before anything else into its folder and deletes it when it has finished. A folder
without it is a finished run, or not a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from linnaeus.errors import UserError
from linnaeus.files import is_scratch, remove_scratch
from linnaeus.runs import layout
from linnaeus.runs.lock import LOCK

CHECKPOINT_FILE = re.compile(r"run\.json|checkpoint\.json|(state|best)-\d{6}\.safetensors")
_REMAIN = re.compile(r"\.(?P<stem>.+)-[a-z0-9_]{8}(?P<suffix>\.[a-z]+)")
"""Temporary files of earlier versions, which wrote `name.suffix` as `.name-XXXXXXXX.suffix`."""
_SAFETENSORS_REMAIN = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # temporary files of the safetensors library


def is_in_progress(folder: Path) -> bool:
    """Whether `folder` holds a run that has begun and not finished."""
    return (folder / layout.CHECKPOINT / layout.IDENTITY).is_file()


def taken(folder: str | Path) -> UserError:
    """The error for a run folder that is not free; one with an unfinished run need not be removed."""
    if is_in_progress(Path(folder)):
        return UserError(f"{folder}: holds an unfinished run; continue it with --resume, or choose another --out")
    return UserError(f"{folder}: already exists; choose another --out")


def is_vacant(folder: Path) -> bool:
    """Whether `folder` is empty, but for what a process leaves that is killed before its run begins."""
    checkpoint = folder / layout.CHECKPOINT
    if any(path.name not in (LOCK, layout.CHECKPOINT) and not is_scratch(path) for path in folder.iterdir()):
        return False
    if not _is_lock(folder / LOCK):
        return False
    return not checkpoint.exists() or (checkpoint.is_dir() and all(map(is_scratch, checkpoint.iterdir())))


def _is_lock(path: Path) -> bool:
    """Whether `path` is missing, or the lock file of a run."""
    if not path.exists():
        return True
    with suppress(OSError):
        return path.is_file() and path.stat().st_size < 1000 and path.read_bytes()[:8] in (b"", b"process ")
    return False


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[Path]:
    """`folder`, which is removed at the end if nothing was written into it, so that the next run can have its name."""
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def remove_remains(folder: Path, *, alone: bool = False) -> None:
    """Remove the temporary files that killed writers have left in the folder of a run, or in its checkpoint.

    `alone`: the caller holds the lock of the run.
    """
    remove_scratch(folder, alone=alone)
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_file() and not path.is_symlink() and _is_remain(path):
                path.unlink(missing_ok=True)


def _is_remain(path: Path) -> bool:
    if match := _REMAIN.fullmatch(path.name):
        name = match["stem"] + match["suffix"]
        return name in layout.FILES or CHECKPOINT_FILE.fullmatch(name) is not None
    if not _SAFETENSORS_REMAIN.fullmatch(path.name):
        return False
    with path.open("rb") as file:  # other programs use such names too
        start = file.read(9)
    return not start or (len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000)


def remove_checkpoint(folder: Path) -> None:
    """Remove the files of a checkpoint, and its folder unless it holds other files."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if CHECKPOINT_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    remove_remains(folder)
    with suppress(OSError):
        folder.rmdir()
