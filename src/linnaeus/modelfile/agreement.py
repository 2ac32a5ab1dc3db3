"""How often an export predicts the same class as its original, as measured by the gate of `linnaeus export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linnaeus.text import percent

AGREEMENT = 0.99
"""Smallest share of images to which int8 gives the same class: the default of the gate, and of what answers unasked."""
FEW = 100  # on fewer images a share of 99 % only means that none differed, and up to 3 % of all may (the rule of three)


@dataclass(frozen=True)
class Agreement:
    """The share of n images on which an export and its original give the same class."""

    share: float  # the smaller one of resized and of full-size images, in 0..1
    n: int

    @classmethod
    def read(cls, values: Any) -> Agreement | None:
        """From an entry of exports.json; None where it has no usable figures, as those of earlier versions."""
        try:
            agreement = cls(float(values["agreement"]), int(values["n"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return agreement if 0 <= agreement.share <= 1 and agreement.n >= 1 else None

    @classmethod
    def of_record(cls, record: Any) -> Agreement | None:
        """From what an ONNX file says of its export; None where it was compared with nothing."""
        try:
            passed = record["tried"][record["chosen"]]
            shares = [passed[images]["agreement"] for images in ("same_pixels", "raw_pixels") if passed[images]]
            return cls.read({"agreement": min(shares), "n": record["n"]})
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def __str__(self) -> str:
        return f"the same class as the original on {percent(self.share)} of {self.n:,} images"


def why_not_by_default(kind: str, agreement: Agreement | None) -> str | None:
    """Why an export does not answer unless `--use` names it; None if it does.

    A float export has the original's probabilities up to rounding, which a few images show. An int8 export is another
    model: it must agree as often as the gate requires by default, whatever `--agree` accepted, on enough images.
    """
    if kind == "onnx":
        return None
    if agreement is None:
        return "how often it agrees with the original is not recorded"
    if agreement.share < AGREEMENT:
        return f"it gives {agreement}, and {percent(AGREEMENT, 0, exact=True)} is required"
    if agreement.n < FEW:
        return f"it was compared on {agreement.n} images only, and {FEW} are required"
    return None
