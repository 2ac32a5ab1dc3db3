"""Training images that raise or lower the probability of a class, as `explain --influence` reports them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linnaeus.explain.neighbors import Neighbor
from linnaeus.text import probability_percent


@dataclass(frozen=True, eq=False)
class InfluentialImage:
    """A training image and what the answer would be without it."""

    shown: Neighbor
    # What the image adds to the log-odds of the explained class, estimated by a Newton step or to first order.
    first_order: float
    influence: float  # the same, solved again without the image
    probability: float  # calibrated probability of the explained class without the image

    def line(self) -> str:
        """As `explain` prints it."""
        without = f"{probability_percent(self.probability)} without it"
        return f"{self.influence:>+8.3f}  {self.shown.name:<22}  {self.shown.path}  ({without})"

    def to_dict(self) -> dict[str, Any]:
        about = {key: value for key, value in self.shown.to_dict().items() if key != "similarity"}
        return about | {
            "influence": self.influence,
            "first_order": self.first_order,
            "probability_without": self.probability,
        }


@dataclass(frozen=True, eq=False)
class InfluentialImages:
    """The most influential training images, strongest first; in the terms of TracIn (Pruthi et al. 2020)."""

    proponents: list[InfluentialImage]  # they raise the probability of the explained class
    opponents: list[InfluentialImage]  # they lower it

    @property
    def all(self) -> list[InfluentialImage]:
        return [*self.proponents, *self.opponents]

    def to_dict(self) -> dict[str, Any]:
        return {
            "proponents": [image.to_dict() for image in self.proponents],
            "opponents": [image.to_dict() for image in self.opponents],
        }
