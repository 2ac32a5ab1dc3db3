"""The learning curve of a labelling session: accuracy over the number of labels, kept in a file beside the journal."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from linnaeus.label.estimate import Estimate

SHOWN = 200  # most points that the page receives


@dataclass
class LearningCurve:
    """Points {"labels", "accuracy", "low", "high"}, sorted by the number of labels."""

    file: Path
    points: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def open(cls, file: Path) -> LearningCurve:
        """Read the curve of earlier sessions; points that cannot be read are left out."""
        curve = cls(file)
        with suppress(OSError):
            for line in file.read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    point = json.loads(line)
                    curve._insert({key: point[key] for key in ("labels", "accuracy", "low", "high")})
        return curve

    def add(self, labels: int, estimate: Estimate) -> None:
        """Add the accuracy at a number of labels."""
        point = {"labels": labels, "accuracy": estimate.accuracy, "low": estimate.low, "high": estimate.high}
        if self.points and self.points[-1] == point:
            return
        self._insert(point)
        with suppress(OSError), self.file.open("a", encoding="utf-8") as stream:  # a full disk costs a point of a curve
            stream.write(json.dumps(point) + "\n")

    def thinned(self) -> list[dict[str, float]]:
        """At most SHOWN points, the last one included."""
        step = -(-len(self.points) // SHOWN)
        return self.points[::-1][:: max(step, 1)][::-1]

    def _insert(self, point: dict[str, float]) -> None:
        # Points with more labels come from answers that have been undone.
        self.points = [p for p in self.points if p["labels"] < point["labels"]] + [point]
