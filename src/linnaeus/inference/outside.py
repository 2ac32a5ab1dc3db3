"""How well a model tells images of none of its classes from those that it knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.console import Console, counted
from linnaeus.data.content import UNKNOWN
from linnaeus.data.folder import loose_images
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.evaluate import Evaluation
from linnaeus.inference.inputs import expand
from linnaeus.inference.membership import Membership
from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.ood import auroc, auroc_interval, combined_scores, false_positive_rate
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.stores import default_cache
from linnaeus.stores.contents import HashedImages
from linnaeus.text import align, percent

TITLES = {"distance": "distance", "probability": "probability", "combined": "both"}


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The two scores of n images."""

    distance: np.ndarray | None
    """(n,); None where the model has no distance."""
    probability: np.ndarray
    """(n,) of the most likely class."""

    def columns(self) -> dict[str, np.ndarray]:
        """Score -> (n,), larger for images that are less known."""
        return ({} if self.distance is None else {"distance": self.distance}) | {"probability": -self.probability}


@dataclass(frozen=True, eq=False)
class Outside:
    """Images of none of the classes, compared with known ones."""

    source: str
    n: int
    known: int
    let_through: int
    """Images that the model takes for one of its classes, at its own thresholds."""
    known_accepted: int
    areas: dict[str, tuple[float, tuple[float, float]]]
    """Score -> AUROC with its 95 % interval."""
    false_positives: dict[str, float]
    """Score -> share of outside images let through where 95 % of the known images are accepted."""

    @classmethod
    def of(cls, source: str, detector: UnknownDetector, known: ImageScores, outside: ImageScores) -> Outside:
        columns = [known.columns(), outside.columns()]
        if len(columns[0]) > 1:
            base = [*columns[0].values()]
            for each in columns:
                each["combined"] = combined_scores(base, [*each.values()])
        inside, other = columns
        limits = detector.thresholds
        return cls(
            source,
            len(outside.probability),
            len(known.probability),
            int((~limits.unknown(outside.distance, outside.probability)).sum()),
            int((~limits.unknown(known.distance, known.probability)).sum()),
            {name: (auroc(inside[name], other[name]), auroc_interval(inside[name], other[name])) for name in inside},
            {name: false_positive_rate(inside[name], other[name]) for name in inside},
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        scores = {
            name: {
                "auroc": area,
                "auroc_ci95": list(interval),
                "fpr_at_95_tpr": self.false_positives[name],
                "fpr_at_95_tpr_ci95": list(wilson(round(self.false_positives[name] * self.n), self.n)),
            }
            for name, (area, interval) in self.areas.items()
        }
        return {
            "source": self.source,
            "n": self.n,
            "known": self.known,
            "let_through": self.let_through,
            "let_through_share": self.let_through / self.n,
            "let_through_ci95": list(wilson(self.let_through, self.n)),
            "known_accepted": self.known_accepted,
            "known_accepted_ci95": list(wilson(self.known_accepted, self.known)),
            "scores": scores,
        }

    def render(self) -> str:
        """A few lines for the terminal."""
        low, high = wilson(self.let_through, self.n)
        rows = [("", "AUROC", "95 % interval", "let through at 95 % accepted")]
        for name, (area, (lower, upper)) in self.areas.items():
            share = percent(self.false_positives[name])
            rows.append((TITLES[name], f"{area:.4f}", f"{lower:.4f} to {upper:.4f}", share))
        return "\n".join(
            [
                f"outside {self.source}: {self.n:,} images of none of the classes, against {self.known:,} known ones",
                f"  let through  {percent(self.let_through / self.n)} ({self.let_through} of {self.n}, 95 % interval "
                f"{percent(low)} to {percent(high)}), where {percent(self.known_accepted / self.known)} of the known "
                f"images are accepted ({self.known_accepted} of {self.known})",
                *align(rows, "<>>>"),
            ]
        )


def detector_of(classifier: Classifier) -> UnknownDetector:
    """The model's detector. Raises UserError for a model without one."""
    if classifier.detector is None:
        raise UserError(
            f"{classifier.path}: cannot tell unknown images, because it was trained by an earlier version or was not "
            "finished; train it again, or leave out --outside"
        )
    return classifier.detector


def measure_outside(evaluation: Evaluation, folders: Iterable[str], console: Console) -> list[Outside]:
    """Compare the images below each of `folders` with the known images of an evaluation.

    Images of the run and of the evaluated source belong to a class, so they are left out, with a warning. Raises
    UserError for a model that cannot tell, and for a folder without another readable image.
    """
    classifier = evaluation.classifier
    detector = detector_of(classifier)
    assert evaluation.measured is not None, "only models for one label per image have a detector"
    known = evaluation.measured.outputs
    scores = ImageScores(known.distances, known.confidence)
    contents = _contents_of_classes(evaluation)
    return [
        Outside.of(folder, detector, scores, _scores_of_files(classifier, folder, contents, console))
        for folder in folders
    ]


def _contents_of_classes(evaluation: Evaluation) -> np.ndarray:
    """(k,) uint64: the content hashes of the images of the run and of the source, all of which have a class."""
    about, table = evaluation.classifier.about, evaluation.images.table
    of_source = HashedImages(table, default_cache()).hashes(np.arange(len(table)))
    of_run = Membership.from_dict(about.data.get("contents"), evaluation.classifier.path)
    return np.concatenate([of_source, *(of_run.hashes.values() if of_run is not None else ())])


def _outside_paths(folder: str, contents: np.ndarray, console: Console) -> list[str]:
    """The images below `folder` but for those with one of the `contents` (k,). Raises UserError where none is left."""
    table = loose_images(folder, expand([folder]))
    hashes = HashedImages(table, default_cache()).hashes(np.arange(len(table)))
    of_class = np.isin(hashes, contents) & (hashes != UNKNOWN)
    if of_class.all():
        raise UserError(
            f"--outside {folder}: all of its {counted(len(table), 'image')} are images of the run or of the evaluated "
            "source, so they have a class; give a folder of images of none of the classes"
        )
    if n := int(of_class.sum()):
        console.warn(
            f"--outside {folder}: {n:,} of {counted(len(table), 'image')} are images of the run or of the evaluated "
            "source, so they have a class; left out"
        )
    assert table.paths is not None
    return [path for path, left_out in zip(table.paths, of_class.tolist(), strict=True) if not left_out]


def _scores_of_files(classifier: Classifier, folder: str, contents: np.ndarray, console: Console) -> ImageScores:
    distances, probabilities = list[float](), list[float]()
    for prediction in classifier.stream(_outside_paths(folder, contents, console)):
        if prediction.error is not None:
            console.warn(f"{prediction.path}: {prediction.error}; left out")
            continue
        probabilities.append(prediction.probability)
        if prediction.distance is not None:
            distances.append(prediction.distance)
    if line := classifier.color.take_line():
        console.warn(f"{folder}: {line}")
    if not probabilities:
        raise UserError(f"--outside {folder}: no image can be read; give a folder of images of none of the classes")
    return ImageScores(np.array(distances) if distances else None, np.array(probabilities))
