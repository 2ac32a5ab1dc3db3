"""One process at a time writes into a run folder."""

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
    """A run folder that is this process's until `release`, or until the process ends, however it does.

    What counts is the system's lock on the file .lock; that the file is there, as after a kill, says nothing. In it
    stands who holds it.
    """

    def __init__(self, folder: Path):
        """Raises UserError, which names the folder and the process, where another one has it."""
        self.path = folder / LOCK
        with disk_errors(self.path):
            while True:
                self.file = self.path.open("a+b")
                if not acquire(self.file, wait=False):
                    self.file.close()
                    raise UserError(
                        f"{folder}: is being trained by {self._holder()}; wait for it, or choose another --out"
                    )
                if self._current():
                    break
                self.file.close()  # whoever had it has removed it since: there may be a new one
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            self.file.truncate(0)
            self.file.write(f"process {os.getpid()} on {platform.node()} since {since}\n".encode())
            self.file.flush()

    def release(self) -> None:
        """Leave the folder to others. Once more does nothing."""
        if not self.file.closed:
            with suppress(OSError):  # while it is still locked, so that nobody else's is removed
                self.path.unlink(missing_ok=True)
            self.file.close()

    def _current(self) -> bool:
        """Whether the file that is locked is the one of that name."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        return False

    def _holder(self) -> str:
        said = ""
        with suppress(OSError):
            said = self.path.read_text(encoding="utf-8", errors="replace").strip()
        return said or "another process"


def clear(folder: Path) -> None:
    """Remove the file that a process left which was killed after its run had ended. Who holds it keeps it."""
    if (folder / LOCK).exists():
        with suppress(UserError):
            Lock(folder).release()
