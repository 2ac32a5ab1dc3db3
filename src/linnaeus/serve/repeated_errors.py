"""Log a repeated error as one line, so that requests cannot fill a disk."""

from __future__ import annotations

import asyncio
import logging
import time

from linnaeus.errors import exhausted, one_line, out_of

MAX_ERRORS = 100  # different errors that get a traceback
SILENCE = 60.0  # seconds after a line that says what the process has run out of: asyncio fails ten times a second


class OneTraceback(logging.Filter):
    """Keeps the traceback of the first occurrence of an error, and shortens the later ones to one line.

    A request that was abandoned because the server stops is no error, and an error that says that the process has run
    out of memory, threads or open files is no mistake in the code: it never gets a traceback.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[tuple[object, ...]] = set()
        self._told: dict[str, float] = {}  # what the process has run out of -> when that was logged

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            error, traceback = record.exc_info[1], record.exc_info[2]
            if isinstance(error, asyncio.CancelledError):
                return False
            if lack := exhausted(error):
                return self._tell(lack, record)
            while traceback is not None and traceback.tb_next is not None:
                traceback = traceback.tb_next
            place = None if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
            if (type(error), place) in self._known or len(self._known) >= MAX_ERRORS:
                record.msg = f"{record.getMessage().strip()}: {type(error).__name__} again"
                record.args, record.exc_info, record.exc_text = (), None, None
            self._known.add((type(error), place))
        elif not record.args and "JobError: " in (last := str(record.msg).rstrip().rpartition("\n")[2]):
            record.msg = last.partition("JobError: ")[2]  # of startup, the traceback is logged as text
        return True

    def _tell(self, lack: str, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._told.get(lack, -SILENCE) < SILENCE:
            return False
        self._told[lack] = now
        during = one_line(record.getMessage().strip().partition("\n")[0])
        record.msg = out_of(lack, during)
        record.args, record.exc_info, record.exc_text = (), None, None
        return True
