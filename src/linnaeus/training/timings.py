"""Durations of the parts of a run."""

from __future__ import annotations

import time


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
