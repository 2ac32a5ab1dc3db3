"""Measure how well a model recognizes images that belong to none of its classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.console import Console, counted
from linnaeus.data.class_names import listed, natural_key
from linnaeus.data.display_names import match
from linnaeus.data.readers.folder import loose_images
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.evaluate import Evaluation
from linnaeus.inference.inputs import expand
from linnaeus.inference.membership import Membership, held_in
from linnaeus.inference.perceptual import RunHashes, comparable, statistics_of_table
from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.ood import Thresholds, auroc, combined_scores, false_positive_rate
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.stores.contents import HashedImages
from linnaeus.text import align, fraction, fraction_range, percent, percent_range, shorten

MOST_KINDS, NAME = 20, 24  # folders on the terminal, and columns of their names
TITLES = {"distance": "distance", "probability": "probability", "combined": "both"}


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The two scores of n images."""

    distance: np.ndarray | None  # (n,); None where the model has no distance
    probability: np.ndarray  # (n,) of the most likely class

    def take(self, rows: np.ndarray) -> ImageScores:
        """The scores of some images, selected by a boolean mask (n,)."""
        return ImageScores(None if self.distance is None else self.distance[rows], self.probability[rows])

    def columns(self) -> dict[str, np.ndarray]:
        """Score -> (n,), larger for images that are less known."""
        return ({} if self.distance is None else {"distance": self.distance}) | {"probability": -self.probability}


@dataclass(frozen=True)
class Kind:
    """The images of one folder among those of none of the classes."""

    name: str
    n: int
    let_through: int
    area: float  # AUROC of both scores together, against all known images
    area_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "n": self.n,
            **_let_through(self.let_through, self.n),
            "auroc": self.area,
            "auroc_ci95": list(self.area_interval),
        }

    def row(self) -> tuple[str, ...]:
        shares = percent(self.let_through / self.n), percent_range(wilson(self.let_through, self.n))
        area = fraction(self.area, 4), fraction_range(*self.area_interval, 4)
        return shorten(self.name, NAME), str(self.n), str(self.let_through), *shares, *area


@dataclass(frozen=True, eq=False)
class Outside:
    """Images of none of the classes, compared with known ones."""

    source: str
    n: int
    known: int
    let_through: int  # images that the model takes for one of its classes, at its own thresholds
    known_accepted: int
    areas: dict[str, tuple[float, tuple[float, float]]]  # score -> AUROC with its 95 % interval
    # Score -> share of outside images let through where 95 % of the known images are accepted.
    false_positives: dict[str, float]
    # Folder by folder, those of which most is let through first; empty for the images of a single folder.
    kinds: tuple[Kind, ...]

    @classmethod
    def of(
        cls, source: str, thresholds: Thresholds, known: ImageScores, outside: ImageScores, kinds: list[str]
    ) -> Outside:
        """`kinds` are the names (n,) of the folders of the outside images."""
        columns = [known.columns(), outside.columns()]
        # A combination needs two scores; models of earlier versions have the probability only.
        if len(columns[0]) > 1:
            base = [*columns[0].values()]
            for scores in columns:
                scores["combined"] = combined_scores(base, [*scores.values()])
        inside, other = columns
        limits, score = thresholds, [*inside][-1]
        through = ~limits.unknown(outside.distance, outside.probability)
        results = []
        for name in sorted(set(kinds), key=natural_key) if len(set(kinds)) > 1 else []:
            rows = np.array([kind == name for kind in kinds])
            both = inside[score], other[score][rows]
            results.append(Kind(name, int(rows.sum()), int(through[rows].sum()), *auroc(*both)))
        return cls(
            source,
            len(outside.probability),
            len(known.probability),
            int(through.sum()),
            int((~limits.unknown(known.distance, known.probability)).sum()),
            {name: auroc(inside[name], other[name]) for name in inside},
            {name: false_positive_rate(inside[name], other[name]) for name in inside},
            tuple(sorted(results, key=lambda kind: -kind.let_through / kind.n)),
        )

    def to_dict(self) -> dict[str, Any]:
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
            **_let_through(self.let_through, self.n),
            "known_accepted": self.known_accepted,
            "known_accepted_ci95": list(wilson(self.known_accepted, self.known)),
            "scores": scores,
            "kinds": [kind.to_dict() for kind in self.kinds],
        }

    def render(self) -> str:
        interval_through = percent_range(wilson(self.let_through, self.n))
        rows = [("", "AUROC", "95 % interval", "let through at 95 % accepted")]
        for name, (area, interval) in self.areas.items():
            share = percent(self.false_positives[name])
            rows.append((TITLES[name], fraction(area, 4), fraction_range(*interval, 4), share))
        return "\n".join(
            [
                f"outside {self.source}: {counted(self.n, 'image')} of none of the classes, against {self.known:,} "
                "known ones",
                f"  let through  {percent(self.let_through / self.n)} ({self.let_through} of {self.n}, 95 % interval "
                f"{interval_through}), where {percent(self.known_accepted / self.known)} of the known "
                f"images are accepted ({self.known_accepted} of {self.known})",
                *align(rows, "<>>>"),
                *self._kind_lines(),
            ]
        )

    def _kind_lines(self) -> list[str]:
        if not self.kinds:
            return []
        head = ("", "n", "let through", "share", "95 % interval", "AUROC", "95 % interval")
        rows = [head, *(kind.row() for kind in self.kinds[:MOST_KINDS])]
        more = len(self.kinds) - MOST_KINDS
        title = "folder by folder, those of which most is let through first"
        return ["", title, *align(rows, "<>>>>>>"), *([f"and {more} more; --json has all"] if more > 0 else [])]


def _let_through(count: int, n: int) -> dict[str, Any]:
    return {"let_through": count, "let_through_share": count / n, "let_through_ci95": list(wilson(count, n))}


def detector_of(classifier: Classifier) -> UnknownDetector:
    """The model's detector. Raises UserError for a model without one."""
    if classifier.several:
        raise UserError(
            f"{classifier.path}: images have several labels, for which nothing is called unknown; leave out --outside"
        )
    if classifier.detector is None:
        raise UserError(
            f"{classifier.path}: cannot recognize unknown images, because it was trained by an earlier version or was "
            "not finished; train it again, or leave out --outside"
        )
    return classifier.detector


def measure_outside(evaluation: Evaluation, folders: Iterable[str], console: Console) -> list[Outside]:
    """Compare the images below each of `folders` with the known images of an evaluation.

    Images of the run and of the evaluated source belong to a class, so they are left out, with a warning. Raises
    UserError for a model that cannot tell, and for a folder without another readable image.
    """
    classifier = evaluation.classifier
    thresholds = detector_of(classifier).thresholds
    known = evaluation.unseen_answers
    assert known is not None, "only models for one label per image have a detector"
    scores = ImageScores(known.distances, known.confidence)
    of_class = ImagesOfClasses.of(evaluation)
    return [
        Outside.of(folder, thresholds, scores, *_scores_of_files(classifier, folder, of_class, console))
        for folder in folders
    ]


@dataclass(frozen=True, eq=False)
class ImagesOfClasses:
    """The images of the run and of the evaluated source, all of which have a class."""

    contents: np.ndarray  # (k,) uint64: the content hashes of both
    hashes: tuple[RunHashes, ...]  # what altered copies of them are recognized by

    @classmethod
    def of(cls, evaluation: Evaluation) -> ImagesOfClasses:
        about, path, table = evaluation.classifier.about, evaluation.classifier.path, evaluation.images.table
        of_source = HashedImages(table, default_cache()).hashes(np.arange(len(table)))
        of_run = Membership.of_model(about, path)
        hashes = RunHashes.from_dict(about.data.get("perceptual"), path)
        here = RunHashes.of(statistics_of_table(table), np.full(len(table), "train")) if comparable(table) else None
        contents = np.concatenate([of_source, *(of_run.hashes.values() if of_run is not None else ())])
        return cls(contents, tuple(known for known in (hashes, here) if known is not None))

    def among(self, table: Table) -> np.ndarray:
        """(n,) bool: the images of a table that are among them, or look like altered copies of them."""
        found = held_in(self.contents, table)
        statistics = statistics_of_table(table)
        for known in self.hashes:
            found |= known.copies(statistics, "test", {"train": self.contents})
        return found


def _outside_paths(folder: str, of_class: ImagesOfClasses, console: Console) -> list[str]:
    """The images below `folder`, except those `of_class`. Raises UserError if none is left."""
    table = loose_images(folder, expand([folder]))
    known = of_class.among(table)
    if known.all():
        raise UserError(
            f"--outside {folder}: all of its {counted(len(table), 'image')} are images of the run or of the evaluated "
            "source, or altered copies of them, so they have a class; give a folder of images of none of the classes"
        )
    if n := int(known.sum()):
        console.warn(
            f"--outside {folder}: {n:,} of {counted(len(table), 'image')} are images of the run or of the evaluated "
            "source, or altered copies of them, so they have a class; left out"
        )
    assert table.paths is not None
    return [path for path, left_out in zip(table.paths, known.tolist(), strict=True) if not left_out]


def _warn_of_classes(classifier: Classifier, folder: str, kinds: Iterable[str], console: Console) -> None:
    """Warn of folders that are named like classes of the model: their images would not be unknown."""
    matches = match(dict.fromkeys(kinds), (*classifier.classes, *classifier.names))
    if matches:
        console.warn(
            f"--outside {folder}: folder {listed([*matches])} has the name of a class of the model; if its images are "
            "of this class, they are known, and the figures count the right answer as a mistake: leave it out"
        )


def _scores_of_files(
    classifier: Classifier, folder: str, of_class: ImagesOfClasses, console: Console
) -> tuple[ImageScores, list[str]]:
    """The scores of the readable images below `folder`, and the name of the folder that each lies in."""
    distances, probabilities, kinds = list[float](), list[float](), list[str]()
    for prediction in classifier.stream(_outside_paths(folder, of_class, console)):
        if prediction.error is not None:
            console.warn(f"{prediction.path}: {prediction.error}; left out")
            continue
        kinds.append(Path(prediction.path).parent.name)
        probabilities.append(prediction.probability)
        if prediction.distance is not None:
            distances.append(prediction.distance)
    # A hint that color was lost, collected over all images, not a line for each.
    if line := classifier.color.take_line():
        console.warn(f"{folder}: {line}")
    if not probabilities:
        raise UserError(f"--outside {folder}: no image can be read; give a folder of images of none of the classes")
    _warn_of_classes(classifier, folder, kinds, console)
    return ImageScores(np.array(distances) if distances else None, np.array(probabilities)), kinds
