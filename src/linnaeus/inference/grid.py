"""Which of many predictions a grid shows: the mistakes, then unknown images, then those of lowest confidence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from linnaeus.data.images.content import content_hash
from linnaeus.inference.membership import Membership
from linnaeus.inference.prediction import Prediction
from linnaeus.text import selection_title


@dataclass
class GridSelection:
    """The `most` predictions to show of all that are added, in constant memory."""

    most: int
    # The images of the model's run; None if the model file does not hold their hashes.
    membership: Membership | None = None
    total: int = 0
    mistakes: int = 0
    labelled: int = 0  # images whose true class is known
    trained: int = 0  # images that the model was trained on
    _kept: list[tuple[tuple[bool, bool, float, int], Prediction, int | None]] = field(default_factory=list)

    def add(self, prediction: Prediction, true: int | None) -> None:
        """Add a prediction for an image that was read, with the index of its true class, None where it is unknown."""
        wrong = true is not None and prediction.index != true
        self.total += 1
        self.mistakes += wrong
        self.labelled += true is not None
        if self.membership is not None:
            content = np.array([content_hash(prediction.path)], np.uint64)
            self.trained += int(self.membership.split_of(content)[0] == "train")
        # Confident mistakes tell most, and among the others images of none of the classes, which may get a class with
        # high confidence, and those of low confidence.
        rank = (
            not wrong,
            not prediction.unknown,
            -prediction.probability if wrong else prediction.probability,
            self.total,
        )
        self._kept.append((rank, prediction, true))
        if len(self._kept) >= 2 * self.most:
            self._cut()

    def shown(self) -> list[tuple[Prediction, int | None]]:
        """The predictions: the most confident mistakes first, then unknown images, then the others by rising
        confidence."""
        self._cut()
        return [(prediction, true) for _, prediction, true in self._kept]

    def title(self) -> str:
        """What is shown of how many, of how many the class is known, and which say nothing about new images."""
        shown, unlabelled = min(self.most, self.total), self.total - self.labelled
        title = selection_title(shown, self.total, "images", min(self.mistakes, shown), self.mistakes)
        if self.labelled and not self.mistakes:
            title += ", no mistakes"
        if unlabelled:  # their folders do not say what they show
            title += f"; {unlabelled:,} without a known class" if self.labelled else ", without known classes"
        were = "was a training image" if self.trained == 1 else "were training images"
        return f"{title}; {self.trained:,} of the {self.total:,} {were}" if self.trained else title

    def _cut(self) -> None:
        self._kept.sort(key=lambda kept: kept[0])
        del self._kept[self.most :]
