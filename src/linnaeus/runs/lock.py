"""The lock of a run folder: one process at a time writes into it."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from linnaeus.errors import UserError
from linnaeus.files import acquire, disk_errors

LOCK = ".lock"


class Lock:
    """A run folder that only this process may write to, until `release` or until the process ends in any way.

    The operating system's lock on the file .lock counts, not the file's existence: a killed process leaves the file
    behind. The file names the process that holds the lock.
    """

    def __init__(self, folder: Path):
        """Raises UserError, which names the folder and the process, where another process holds the lock."""
        self.path = folder / LOCK
        with disk_errors(self.path):
            lock = acquire(self.path, wait=False)
            if lock is None:
                raise UserError(f"{folder}: is being trained by {self._holder()}; wait for it, or choose another --out")
            self.lock = lock
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            with suppress(PermissionError):  # Windows lets nobody write to a locked file
                self.path.write_text(f"process {os.getpid()} on {platform.node()} since {since}\n", encoding="utf-8")
            self._file = self.path.stat()

    def release(self) -> None:
        """Unlock the folder and remove the file. A second call does nothing."""
        if self.lock.is_locked:
            with suppress(OSError):  # while it is still locked, so that no other process's file is removed
                if os.path.samestat(self.path.stat(), self._file):  # the folder may have been moved and made anew
                    self.path.unlink(missing_ok=True)
            self.lock.release()

    def _holder(self) -> str:
        """The process that the file names."""
        text = ""
        with suppress(OSError):
            text = self.path.read_text(encoding="utf-8", errors="replace").strip()
        return text or "another process"


def clear(folder: Path) -> None:
    """Remove the lock file of a process that was killed after its run had ended; a lock that is held stays."""
    if (folder / LOCK).exists():
        with suppress(UserError):
            Lock(folder).release()
