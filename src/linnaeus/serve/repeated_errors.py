"""Log a repeated error as one line, so that requests cannot fill a disk."""

from __future__ import annotations

import asyncio
import logging

MAX_ERRORS = 100  # different errors that get a traceback


class OneTraceback(logging.Filter):
    """Keeps the traceback of the first occurrence of an error, and shortens the later ones to one line.

    A request that was abandoned because the server stops is no error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[tuple[object, ...]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            error, traceback = record.exc_info[1], record.exc_info[2]
            if isinstance(error, asyncio.CancelledError):
                return False
            while traceback is not None and traceback.tb_next is not None:
                traceback = traceback.tb_next
            place = None if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
            if (type(error), place) in self._known or len(self._known) >= MAX_ERRORS:
                record.msg = f"{record.getMessage().strip()}: {type(error).__name__} again"
                record.args, record.exc_info, record.exc_text = (), None, None
            self._known.add((type(error), place))
        return True
