"""The part of a model file that recognizes unknown images: thresholds, and the reference vectors as a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.thumbnails import SIDE, Thumbnails
from linnaeus.text import fraction, fraction_range, percent, percent_range

PREFIX = "unknown."  # names of the tensors that are no weights of the network
REFERENCES = PREFIX + "references"
THUMBNAILS = PREFIX + "thumbnails"
OPTIMISTIC = "; optimistic: the features were trained on all classes"
"""What to say of a class that only the head was not trained on."""


@dataclass(frozen=True, eq=False)
class UnknownDetector:
    """Tells images of the kinds that a model knows from others, by distance and probability."""

    thresholds: Thresholds
    references: np.ndarray | None = None
    """(m, features) float16 of length 1; None where the network has no features below its head."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Figures that were measured when the thresholds were chosen."""
    thumbnails: Thumbnails | None = None
    """Of small images, whose distance is the larger of both; only with `references`."""

    def notice(self, has_distance: bool) -> str:
        """What to say of an export that lacks the distance of its thresholds; empty otherwise."""
        if self.thresholds.distance is None or has_distance:
            return ""
        return "this export has no distance: it recognizes unknown images by their probability alone, unlike its model"

    def near_kinds(self) -> str:
        """How well images of similar kinds are recognized, as training measured it; empty where it could not."""
        measured = self.measured.get("left_out_classes")
        if not measured:
            return ""
        area, interval = fraction(measured["auroc"]["combined"]), fraction_range(*measured["auroc_ci95"])
        optimistic = OPTIMISTIC if measured.get("trained_features") else ""
        turns = f"{len(measured['classes'])} of {measured['of']} classes were left out, one at a time"
        lines = [f"near kinds, measured in training: {turns}"]
        if "accepted" in measured:  # not in files of earlier versions
            share, ends = percent(measured["accepted"]), percent_range(measured["accepted_ci95"])
            lines.append(
                f"  let through  {share} of their images (95 % interval {ends}), where 95 % of the known images are "
                f"accepted{optimistic}"
            )
        lines.append(
            f"  both  AUROC {area} (95 % interval {interval}), {measured['unknown']:,} images against "
            f"{measured['known']:,} known ones{optimistic if len(lines) == 1 else ''}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The entry `unknown` of a model file."""
        small = self.thumbnails
        m, d = (0, 0) if self.references is None else self.references.shape
        return {
            "metric": "cosine",
            "k": 1,
            "references": m,
            "features": d,
            "thresholds": self.thresholds.to_dict(),
            "measured": self.measured,
        } | ({} if small is None else {"thumbnails": len(small.vectors), "thumbnail_scale": small.scale})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors beside the weights."""
        small = None if self.thumbnails is None else self.thumbnails.vectors
        arrays = {REFERENCES: self.references, THUMBNAILS: small}
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}

    @classmethod
    def read(cls, entry: dict[str, Any] | None, tensors: dict[str, Tensor]) -> UnknownDetector | None:
        """The detector of a model file whose entry and tensors were checked; None for one without."""
        if entry is None:
            return None
        references = tensors.get(REFERENCES)
        thresholds = Thresholds(**entry["thresholds"])
        small = tensors.get(THUMBNAILS)
        return cls(
            thresholds,
            None if references is None else references.numpy(),
            entry.get("measured", {}),
            None if small is None else Thumbnails(small.numpy(), entry["thumbnail_scale"]),
        )


def check_tensors(path: Path, entry: dict[str, Any] | None, tensors: dict[str, Tensor], channels: int) -> None:
    """Raise UserError unless the tensors are those that the entry `unknown` announces."""
    expected = {REFERENCES: (entry["references"], entry["features"])} if entry and entry["references"] else {}
    if entry and entry.get("thumbnails"):
        expected[THUMBNAILS] = (entry["thumbnails"], SIDE * SIDE * channels)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == torch.float16}
    if shapes != expected or len(tensors) != len(expected):
        raise UserError(
            f"{path}: its tensors for unknown images, {', '.join(sorted(tensors)) or 'none'}, are not those that its "
            "description names; get a fresh copy"
        )
