"""Where a run's time went."""

from __future__ import annotations

import time


class RunTimes(dict[str, float]):
    """Seconds by part of the run; those of a run that was cut and resumed are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.perf_counter()

    def lap(self, name: str, since: float) -> None:
        """Add the time since `since`, on time.perf_counter()'s scale."""
        self[name] = self.get(name, 0.0) + time.perf_counter() - since

    def total(self) -> float:
        self["total"] = time.perf_counter() - self.started
        return self["total"]

    def go_on(self, before: dict[str, float]) -> None:
        """Count what an earlier process spent too."""
        for name, seconds in before.items():
            self[name] = self.get(name, 0.0) + seconds
        self.started -= before.get("total", 0.0)
