"""Training images that pull an answer towards a class or away from it, as `explain --because` reports them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linnaeus.explain.neighbors import Neighbor
from linnaeus.text import probability_percent


@dataclass(frozen=True, eq=False)
class Pull:
    """A training image and what the answer would be without it."""

    shown: Neighbor
    first_order: float
    """What the image adds to the log-odds of the explained class, estimated by a Newton step or to first order."""
    pull: float
    """The same, solved again without the image."""
    probability: float
    """Calibrated probability of the explained class without the image."""

    def line(self) -> str:
        """As `explain` prints it."""
        without = f"{probability_percent(self.probability)} without it"
        return f"{self.pull:>+8.3f}  {self.shown.name:<22}  {self.shown.path}  ({without})"

    def to_dict(self) -> dict[str, Any]:
        about = {key: value for key, value in self.shown.to_dict().items() if key != "similarity"}
        return about | {
            "pull": self.pull,
            "first_order": self.first_order,
            "probability_without": self.probability,
        }


@dataclass(frozen=True, eq=False)
class Pulls:
    """The training images that pull an answer most, each strongest first."""

    towards: list[Pull]
    away: list[Pull]

    @property
    def all(self) -> list[Pull]:
        return [*self.towards, *self.away]

    def to_dict(self) -> dict[str, Any]:
        return {"towards": [p.to_dict() for p in self.towards], "away": [p.to_dict() for p in self.away]}
