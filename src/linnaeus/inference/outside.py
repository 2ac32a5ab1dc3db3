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
from linnaeus.data.sources import loose_images
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.evaluate import Evaluation
from linnaeus.inference.inputs import expand
from linnaeus.inference.membership import Membership, held_in
from linnaeus.inference.perceptual import RunHashes, comparable, statistics_of_table
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.ood import Thresholds, auroc, combined_scores, passes_as_known
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.stores.contents import HashedImages, with_copies
from linnaeus.text import align, fraction, fraction_range, percent, percent_range, shorten

MOST_KINDS, NAME = 20, 24  # folders on the terminal, and columns of their names
TITLES = {"distance": "distance", "probability": "probability", "combined": "both"}


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The two scores of n images."""

    distance: np.ndarray | None  # (n,); None where the model has no distance
    probability: np.ndarray  # (n,) of the most likely class
    groups: np.ndarray | None  # (n,) int64: images of a group, and copies, share a number; None where each is its own

    def columns(self) -> dict[str, np.ndarray]:
        """Score -> (n,), larger for images that are less known."""
        return ({} if self.distance is None else {"distance": self.distance}) | {"probability": -self.probability}


@dataclass(frozen=True)
class Share:
    """`count` of n images, and the 95 % interval of their share."""

    count: int
    n: int
    ci95: tuple[float, float]

    @classmethod
    def of(cls, hits: np.ndarray, groups: np.ndarray | None) -> Share:
        """Those that are `hits`, (n,) bool, of images in these groups, (n,) int64."""
        return cls(int(hits.sum()), len(hits), proportion_interval(hits, groups))

    @property
    def value(self) -> float:
        return self.count / self.n

    def as_let_through(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "let_through": self.count,
            "let_through_share": self.value,
            "let_through_ci95": list(self.ci95),
        }


@dataclass(frozen=True)
class Kind:
    """The images of one folder among those of none of the classes."""

    name: str
    let_through: Share
    area: float  # AUROC of both scores together, against all known images
    area_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "n": self.let_through.n,
            **self.let_through.as_let_through(),
            "auroc": self.area,
            "auroc_ci95": list(self.area_interval),
        }

    def row(self) -> tuple[str, ...]:
        of = self.let_through
        area = fraction(self.area, 4), fraction_range(*self.area_interval, 4)
        return shorten(self.name, NAME), str(of.n), str(of.count), percent(of.value), percent_range(of.ci95), *area


@dataclass(frozen=True, eq=False)
class Outside:
    """Images of none of the classes, compared with known ones."""

    source: str
    let_through: Share  # images that the model takes for one of its classes, at its own thresholds
    known_accepted: Share
    areas: dict[str, tuple[float, tuple[float, float]]]  # score -> AUROC with its 95 % interval
    # Score -> share of outside images let through where 95 % of the known images are accepted.
    false_positives: dict[str, Share]
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
        score, groups = [*inside][-1], outside.groups
        through = ~thresholds.unknown(outside.distance, outside.probability)
        results = []
        for name in sorted(set(kinds), key=natural_key) if len(set(kinds)) > 1 else []:
            rows = np.array([kind == name for kind in kinds])
            of_rows = None if groups is None else groups[rows]
            area = auroc(inside[score], other[score][rows], known.groups, of_rows)
            results.append(Kind(name, Share.of(through[rows], of_rows), *area))
        return cls(
            source,
            Share.of(through, groups),
            Share.of(~thresholds.unknown(known.distance, known.probability), known.groups),
            {name: auroc(inside[name], other[name], known.groups, groups) for name in inside},
            {name: Share.of(passes_as_known(inside[name], other[name]), groups) for name in inside},
            tuple(sorted(results, key=lambda kind: -kind.let_through.value)),
        )

    def to_dict(self) -> dict[str, Any]:
        scores = {
            name: {
                "auroc": area,
                "auroc_ci95": list(interval),
                "fpr_at_95_tpr": self.false_positives[name].value,
                "fpr_at_95_tpr_ci95": list(self.false_positives[name].ci95),
            }
            for name, (area, interval) in self.areas.items()
        }
        return {
            "source": self.source,
            "n": self.let_through.n,
            "known": self.known_accepted.n,
            **self.let_through.as_let_through(),
            "known_accepted": self.known_accepted.count,
            "known_accepted_ci95": list(self.known_accepted.ci95),
            "scores": scores,
            "kinds": [kind.to_dict() for kind in self.kinds],
        }

    def render(self) -> str:
        through, known = self.let_through, self.known_accepted
        rows = [("", "AUROC", "95 % interval", "let through at 95 % accepted")]
        for name, (area, interval) in self.areas.items():
            share = percent(self.false_positives[name].value)
            rows.append((TITLES[name], fraction(area, 4), fraction_range(*interval, 4), share))
        return "\n".join(
            [
                f"outside {self.source}: {counted(through.n, 'image')} of none of the classes, against {known.n:,} "
                "known ones",
                f"  let through  {percent(through.value)} ({through.count} of {through.n}, 95 % interval "
                f"{percent_range(through.ci95)}), where {percent(known.value)} of the known images are accepted "
                f"({known.count} of {known.n})",
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
    scores = ImageScores(known.distances, known.confidence, known.groups)
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


def _outside_images(folder: str, of_class: ImagesOfClasses, console: Console) -> Table:
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
    return table.select(np.flatnonzero(~known))


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
    distances, probabilities, kinds, readable = list[float](), list[float](), list[str](), list[int]()
    table = _outside_images(folder, of_class, console)
    for i, prediction in enumerate(classifier.stream(table.paths or ())):
        if prediction.error is not None:
            console.warn(f"{prediction.path}: {prediction.error}; left out")
            continue
        readable.append(i)
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
    groups = with_copies(None, HashedImages(table, default_cache()).hashes(np.array(readable)))
    if groups is not None:
        copies, n = len(groups) - len(np.unique(groups)), len(groups)
        console.warn(f"{folder}: {copies:,} of its {n:,} images repeat another one: intervals count each image once")
    return ImageScores(np.array(distances) if distances else None, np.array(probabilities), groups), kinds
