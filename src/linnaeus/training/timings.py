"""Durations of the parts of a run, and of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timings(dict[str, float]):
    """Seconds by part of the run; a resumed run adds to the seconds of the processes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.perf_counter()

    def add_since(self, name: str, started: float) -> None:
        """Add to part `name` the time since `started`, a value of time.perf_counter()."""
        self[name] = self.get(name, 0.0) + time.perf_counter() - started

    def update_total(self) -> None:
        self["total"] = time.perf_counter() - self.started

    def add_earlier(self, earlier: dict[str, float]) -> None:
        """Add the durations of an earlier process of the same run."""
        for name, seconds in earlier.items():
            self[name] = self.get(name, 0.0) + seconds
        self.started -= earlier.get("total", 0.0)

    def rounded(self) -> dict[str, float]:
        """Milliseconds are precise enough for a file; the total comes last."""
        return {name: round(self[name], 3) for name in sorted(self, key=lambda name: name == "total")}


WARM_UP, MEASURED = 3, 10
"""Steps that are not measured, because memory is allocated and kernels are searched in them, and steps that are."""


class StepTimer:
    """Measures the duration of a training step once, over some steps after a warm-up.

    What happens between two epochs does not count: the first model, which is written there, takes as long as hundreds
    of steps of a head.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.steps, self.measured, self.seconds = clock, 0, 0, 0.0
        self.last: tuple[int, float] = 0, 0.0  # epoch and time of the last step

    def seconds_per_step(self, epoch: int) -> float | None:
        """To be called after every step. The mean duration of a step after the last one measured, else None."""
        (last_epoch, last), now = self.last, self.clock()
        self.last, self.steps = (epoch, now), self.steps + 1
        if self.steps <= WARM_UP or epoch != last_epoch or self.measured == MEASURED:
            return None
        self.seconds, self.measured = self.seconds + now - last, self.measured + 1
        return self.seconds / MEASURED if self.measured == MEASURED else None
