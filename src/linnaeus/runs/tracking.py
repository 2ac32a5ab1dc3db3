"""`--track`: send the metrics of a run to experiment trackers while it trains."""

from __future__ import annotations

import contextvars
import json
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from linnaeus.console import Console
from linnaeus.errors import UserError, did_you_mean, first_line, install
from linnaeus.files import read_object, write_text
from linnaeus.runs.history import Row
from linnaeus.runs.layout import TRACKING

if TYPE_CHECKING:
    from linnaeus.metrics.multilabel import Headline
    from linnaeus.runs.folder import RunFolder
    from linnaeus.runs.trackers import Tracker

TRACKERS = ("tensorboard", "mlflow", "trackio")
"""The names that `--track` takes; each is also the name of a package and of an extra."""
WHERE = {
    "tensorboard": "the folder of the run must be writable",
    "mlflow": "MLFLOW_TRACKING_URI names the server or the folder",
    "trackio": "TRACKIO_SERVER_URL or TRACKIO_SPACE_ID names the server, TRACKIO_DIR the folder",
}
METRICS = ("lr", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "valid_map")
"""Columns of history.csv that are sent, `train_loss` under the name `train/loss`."""
PATIENCE = 60.0  # seconds until a tracker that does not answer is left out


def check_trackers(names: Iterable[str]) -> tuple[str, ...]:
    """The trackers in the order given, each once. Raises UserError if one is unknown or not installed."""
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in TRACKERS:
            raise UserError(f"--track {name}: not one of {', '.join(TRACKERS)}{did_you_mean(name, TRACKERS)}")
        if find_spec(name) is None:
            raise UserError(f"--track {name}: not installed: {install(name)}")
    return chosen


class TimeLimit:
    """Runs calls of a library in a separate thread, one at a time, and stops waiting for one that takes too long.

    The thread is then abandoned: it is a daemon, so that it does not delay the end of the process.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # One thread and one context: trackers keep their current run in either.
        self._context = contextvars.copy_context()
        threading.Thread(target=self._work, name="linnaeus-tracker", daemon=True).start()

    def call(self, act: Callable[[], Any]) -> Any:
        """The result of `act`, or its exception. Raises TimeoutError when it takes longer than `seconds`."""
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put((self._context.run(act), None))
            except BaseException as error:
                outcome.put((None, error))

        self._calls.put(run)
        try:
            result, error = outcome.get(timeout=self.seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {self.seconds:g} seconds") from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            self._calls.get()()


class Tracking:
    """Sends what a run records to its trackers. A tracker that fails is left out with a warning; training goes on.

    As a context, it ends the run in all trackers when an exception leaves it.
    """

    def __init__(self, console: Console):
        self.console = console
        self.trackers: dict[str, Tracker] = {}
        self.threads: dict[str, TimeLimit] = {}  # one for each tracker, because any of them may stop answering
        self.epochs = 0

    def open(self, name: str, make: Callable[[], Tracker]) -> Tracker:
        """Begin the run in a tracker. Raises what `make` raises, or TimeoutError."""
        self.threads[name] = TimeLimit(PATIENCE)
        tracker: Tracker = self.threads[name].call(make)
        self.trackers[name] = tracker
        return tracker

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close("KILLED" if kind is not None and issubclass(kind, KeyboardInterrupt) else "FAILED")

    def add_epoch(self, row: Row, number: int) -> None:
        """Send the row of history.csv of the epoch `number`, counted over all phases."""
        self.epochs = number
        values = {name.replace("_", "/"): getattr(row, name) for name in METRICS}
        self._send({name: value for name, value in values.items() if value is not None})

    def finish(self, figures: Mapping[str, Headline], interrupted: bool) -> None:
        """Send the metrics of the saved model by split, as `final/valid/accuracy`, and end the run."""
        self._send(
            {
                f"final/{split}/{name}": value
                for split, result in figures.items()
                for name, value in result.to_dict().items()
                if isinstance(value, float)
            }
        )
        self._close("KILLED" if interrupted else "FINISHED")

    def _close(self, status: str) -> None:
        self._each(lambda tracker: tracker.close(status))
        self.trackers.clear()

    def _send(self, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.add(values, self.epochs))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                self.threads[name].call(partial(act, tracker))
            except (Exception, SystemExit) as error:  # some libraries exit where they cannot log in
                del self.trackers[name]
                self.console.warn(f"--track {name}: {first_line(error)}; the run continues without it")


def open_tracking(names: Iterable[str], folder: RunFolder, recipe: Mapping[str, Any], console: Console) -> Tracking:
    """Begin the run in each tracker, or continue it there. Raises UserError if one cannot be reached.

    TRACKING in the run folder keeps how each tracker names the run.
    """
    from linnaeus.runs.trackers import OPENERS, TrackedRun, parameters

    file, tracking = folder.path / TRACKING, Tracking(console)
    tracking.epochs = len(folder.rows)
    known = read_object(file)
    for name in names:
        resumed = tracking.epochs if folder.resumed else None
        try:
            run = TrackedRun(folder.path, parameters(recipe), resumed, known.get(name))
            tracker = tracking.open(name, partial(OPENERS[name], run))
        except (Exception, SystemExit) as error:
            # Trackers that were opened before must be closed, or their servers show the run as active.
            tracking.__exit__(type(error))
            raise UserError(f"--track {name}: {first_line(error)}; {WHERE[name]}") from None
        # Stored at once: after a crash the run is continued in the tracker, not begun again.
        if tracker.identifier is not None:
            known[name] = tracker.identifier
            write_text(folder.file(TRACKING), json.dumps(known, indent=2) + "\n")
            console.say(f"tracked   {name}: {tracker.identifier}")
    return tracking
