"""Loads the training images that answers are compared with, in a thread, because it can take minutes the first time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from linnaeus.console import Advance, Console
from linnaeus.errors import UserError, exhausted
from linnaeus.serve.service import Service


class CancelledError(Exception):
    """The server has stopped before the images were loaded."""


class CancellableConsole(Console):
    """A console without progress bars, whose `cancel` ends the work that reports progress to it.

    Long computations already report their progress after every chunk, which makes this the one place where they can be
    interrupted without passing a flag through all of them.
    """

    def __init__(self, console: Console):
        super().__init__(quiet=console.quiet, verbose=console.verbose, stream=console.stream)
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Raise CancelledError in the work at its next report of progress."""
        self._cancelled.set()

    @contextmanager
    def progress(self, description: str, unit: str = "images") -> Iterator[Advance]:
        def advance(done: int, total: int | None, note: str = "") -> None:
            if self._cancelled.is_set():
                raise CancelledError

        yield advance


@contextmanager
def load_gallery(service: Service, source: str | None, console: Console) -> Iterator[None]:
    """Load the service's gallery from `source` in a thread that ends with the block; nothing if `source` is None.

    Until it is loaded, answers come without similar images. If the source is missing, a warning is printed.
    """
    if source is None:
        yield
        return
    cancellable = CancellableConsole(console)
    thread = threading.Thread(target=_load, args=(service, source, cancellable), name="linnaeus-gallery")
    thread.start()
    try:
        yield
    finally:
        cancellable.cancel()
        thread.join()


def _load(service: Service, source: str, console: Console) -> None:
    from linnaeus.explain.neighbors import gallery

    try:
        service.explainer.gallery = gallery(service.explainer.classifier, source, console)
    except CancelledError:
        return
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        lack = exhausted(error)
        if not lack and not isinstance(error, UserError | OSError):
            raise
        console.warn(f"no training images to compare with: {f'out of {lack}' if lack else error}")
        return
    console.say(f"compares  with {len(service.explainer.gallery):,} training images")
