"""Work beside the server: finding the training images to compare with, which may take minutes the first time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from linnaeus.console import Advance, Console
from linnaeus.errors import UserError
from linnaeus.serve.service import Service


class GalleryCancelledError(Exception):
    """The server has stopped, and with it what is done beside it."""


class CancellableConsole(Console):
    """A console that says nothing of progress, and ends the work that reports to it when `over` is set."""

    def __init__(self, console: Console):
        super().__init__(quiet=console.quiet, verbose=console.verbose, stream=console.stream)
        self.over = threading.Event()

    @contextmanager
    def progress(self, what: str, unit: str = "images") -> Iterator[Advance]:
        def advance(done: int, total: int | None, note: str = "") -> None:
            if self.over.is_set():
                raise GalleryCancelledError

        yield advance


@contextmanager
def load_gallery(service: Service, source: str | None, console: Console) -> Iterator[None]:
    """Make the service's gallery of `source` in a thread, if there is one; at the end of the block the thread ends.

    Until the gallery is there, answers come without what looks alike. A source that is gone is a warning.
    """
    if source is None:
        yield
        return
    aside = CancellableConsole(console)
    thread = threading.Thread(target=_compare, args=(service, source, aside), name="linnaeus-gallery")
    thread.start()
    try:
        yield
    finally:
        aside.over.set()
        thread.join()


def _compare(service: Service, source: str, console: Console) -> None:
    from linnaeus.explain.neighbors import gallery

    try:
        service.gallery = gallery(service.original, source, console)
    except GalleryCancelledError:
        return
    except (UserError, OSError) as error:
        console.warn(f"no training images to compare with: {error}")
        return
    console.say(f"compares  with {len(service.gallery):,} training images")
