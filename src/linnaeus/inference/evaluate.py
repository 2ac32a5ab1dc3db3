"""Evaluation of a model on the images of a split."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import Console, counted
from linnaeus.data.table import SPLITS, Table
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.perceptual import AlteredCopies
from linnaeus.inference.problems import folded
from linnaeus.inference.runners import finite_scores
from linnaeus.inference.source import LabeledImages
from linnaeus.inference.tta import answer_views
from linnaeus.inference.verdicts import Verdicts
from linnaeus.metrics.assessment import Assessment, assess
from linnaeus.metrics.calibration import FEWEST_FITTING
from linnaeus.metrics.label_assessment import LabelAssessment, assess_labels, decided
from linnaeus.metrics.label_shift import label_shift
from linnaeus.metrics.multilabel import Headline, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.slices import Slice, accuracy_by_slice
from linnaeus.stores.contents import with_copies

CopySearch = Callable[[Table], tuple[np.ndarray, dict[str, np.ndarray]]]
"""Of a table: a number (n,) int64 that copies share, and by split the samples with a copy in an earlier split."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model assessed on the images of a split, as `linnaeus evaluate` reports it."""

    classifier: Classifier
    images: LabeledImages
    assessment: Assessment | LabelAssessment
    # Figures without the images that have a copy in an earlier split; None where none has or all have.
    without_leaks: Headline | None = None
    validation: Headline | None = None  # figures of the images that chose the model, where they are counted apart
    answers: Outputs | None = None  # calibrated, image by image; None if images may have several labels
    # (n,) bool: the images without a copy in an earlier split; None where calibration and verdicts count all.
    unseen: np.ndarray | None = None
    column: str = ""  # the column of `slices`
    slices: tuple[Slice, ...] = ()  # accuracy on the images of each value of the column, the lowest first

    @property
    def split(self) -> str:
        return self.images.split

    @property
    def unseen_answers(self) -> Outputs | None:
        """Those of the images that measure how certain answers are."""
        return self.answers if self.answers is None or self.unseen is None else self.answers.take(self.unseen)

    @property
    def verdicts(self) -> Verdicts | None:
        """What the model answers at its own thresholds; None for one that recognizes no unknown images."""
        answers, detector = self.unseen_answers, self.classifier.detector
        if answers is None or detector is None:
            return None
        return Verdicts.of(answers, self.classifier.threshold, detector.thresholds)

    def by_slice(self, column: str, values: Sequence[str]) -> Evaluation:
        """The evaluation with the accuracy by value of a column; `values` are those of the images, (n,)."""
        self.classifier.require_one_label("--slice")
        assert self.answers is not None
        slices = accuracy_by_slice(self.answers.correct, values, self.answers.groups)
        return replace(self, column=column, slices=tuple(slices))

    def to_json(self, more: dict[str, Any] | None = None) -> str:
        """The whole evaluation as JSON, by split as in a run's metrics.json, with the entries of `more`."""
        details = {
            "source": self.images.source,
            "left_out": [{"path": path, "reason": reason} for path, reason in self.images.left_out],
            "trained_on": self.images.trained_on,
            "selected_on": self.images.selected_on,
            "calibrated_on": self.images.calibrated_on,
            "unfinished": self.images.unfinished,
            "recognized_by": self.images.recognized_by or None,
            "training_left_out": self.images.training,
        }
        if (verdicts := self.verdicts) is not None:
            details["verdicts"] = verdicts.to_dict()
        if self.without_leaks is not None:
            details["without_leaks"] = self.without_leaks.to_dict()
        long = self.assessment.long_dict(self.classifier.classes, self.classifier.names)
        if self.column:
            details["slices"] = {"column": self.column, "values": [part.to_dict() for part in self.slices]}
        apart = {} if self.validation is None else {"valid": self.validation.to_dict()}
        entries = {self.split: long | details} | apart | (more or {})
        return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def open_images(
    classifier: Classifier,
    source: str | Path,
    split: str | None,
    console: Console,
    group: ProcessGroup = SINGLE_PROCESS,
) -> LabeledImages:
    """The images of a split of a source, the same in all processes of `group`. Warns of what makes scores optimistic.

    Raises UserError as `Classifier.images` does, and where the machines hold different images.
    """
    images = group.local_main_first(lambda: classifier.images(source, split))
    if len(set(group.all_gather((images.table.fingerprint(), images.indices.tobytes())))) > 1:
        raise UserError(f"{source}: is not the same on all machines; copy it to each of them again")
    for note in images.table.notes:
        console.say(f"data      {note}")
    for line in folded((path, f"{reason}; left out") for path, reason in images.left_out):
        console.warn(line)
    for line in (*images.notes(), classifier.color_line(images)):
        if line:
            console.warn(line)
    return images


def evaluate_model(
    classifier: Classifier,
    images: LabeledImages,
    *,
    error: float | None = None,
    tta: bool = False,
    copies: CopySearch | None = None,
    console: Console,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Evaluation | None:
    """Assess a model on labeled images. Each process of `group` computes a share; only rank 0 gets the result.

    `error` is the risk allowed among the answered images; None: the one that the model was calibrated for. `tta`
    evaluates sets of views too. With `copies` the result has figures without the images that have a copy in an earlier
    split, and the intervals count copies of each other as one group.
    """
    if error is not None:
        classifier.require_one_label("--error, a share of wrong answers,")
    if tta:
        classifier.require_one_label("--tta")
    n = len(images.labels)
    since = time.perf_counter()
    outputs = classifier.outputs(images, group)
    console.detail(f"{counted(n, 'image')} classified in {time.perf_counter() - since:.1f} s")
    views = {}
    if tta:
        if classifier.preprocessing.resize == classifier.preprocessing.size:
            console.say("the network sees the whole image, so no crops are evaluated, only the mirrored view")
        batches = classifier.batches(images, group)
        scores = partial(finite_scores, classifier.run.scores)
        views = answer_views(scores, classifier.preprocessing, batches, classifier.temperature, group)
    apart = None if images.validation is None else classifier.outputs(images.validation, group)
    if not group.is_main:
        return None
    without_leaks, unseen = None, None
    if copies is not None and images.split != "train":
        numbers, leaked_ones = copies(_ranked(images))
        outputs = replace(outputs, groups=with_copies(outputs.groups, numbers[images.indices].astype(np.uint64) + 1))
        kept = _without_copies(images, classifier, leaked_ones, console)
        if not kept.any():
            console.warn(f"all of these {n} images have a copy in an earlier split: these scores are optimistic")
        if kept.any() and not kept.all():
            without_leaks = _figures(classifier, outputs, images.calibrated_on, kept)
            leaked, unseen = n - without_leaks.n, kept if without_leaks.n >= FEWEST_FITTING else None
            console.warn(f"{leaked} of these {n} images have a copy in an earlier split; without them: {without_leaks}")
    _warn_of_images(classifier, images, outputs, console)
    assessment = _assess(classifier, images, outputs, error, views, unseen)
    validation = None if apart is None else _figures(classifier, apart, True)
    answers = None if classifier.several else classifier.calibrated(outputs)
    return Evaluation(classifier, images, assessment, without_leaks, validation, answers, unseen)


def _warn_of_images(classifier: Classifier, images: LabeledImages, outputs: Outputs, console: Console) -> None:
    """Warn of copies among the images, and of classes in other shares than in those that calibrated the model."""
    n, calibration, classes = len(images.labels), classifier.calibration, len(classifier.classes)
    if outputs.groups is not None and images.table.groups is None:
        copies = n - len(np.unique(outputs.groups))
        console.warn(f"{copies:,} of these {n:,} images repeat another one: intervals count each image once")
    if calibration is None or images.calibrated_on or len(calibration.class_counts) != classes:
        return
    counts = np.bincount(outputs.labels, minlength=classes)
    if line := label_shift(np.array(calibration.class_counts), counts, classifier.names, outputs.group_count):
        console.warn(line)


def _ranked(images: LabeledImages) -> Table:
    """The table with the measured images in their split; images of no split come after all others."""
    split = images.table.split.copy()
    split[images.indices] = images.split if images.split in SPLITS else "test"
    return replace(images.table, split=split)


def _without_copies(
    images: LabeledImages, classifier: Classifier, leaks: dict[str, np.ndarray], console: Console
) -> np.ndarray:
    """(n,) bool: the images without a copy in an earlier split of the source, or of the run."""
    # Altered copies of training images are others by their content, and are found by their pixels.
    altered = AlteredCopies.among(images, classifier.about, classifier.path)
    if altered.note:
        console.warn(altered.note)
    rank = images.split if images.split in SPLITS else "test"
    return ~altered.found & ~np.isin(images.indices, leaks.get(rank, []))


def _figures(classifier: Classifier, outputs: Outputs, fitted: bool, rows: np.ndarray | None = None) -> Headline:
    """The headline metrics of uncalibrated outputs, or of the images `rows`, (n,) bool, among them.

    `fitted`: the calibration was fitted on them, so that thresholds of several labels are those that others chose.
    """
    rows = np.ones(len(outputs.labels), bool) if rows is None else rows
    calibration = classifier.label_calibration
    if calibration is None or not fitted:
        return classifier.figures(outputs.take(rows))
    return label_figures(calibration.apply(outputs).take(rows), decided(outputs, calibration, True, rows)[1][rows])


def _assess(
    classifier: Classifier,
    images: LabeledImages,
    outputs: Outputs,
    error: float | None,
    views: dict[str, Outputs],
    unseen: np.ndarray | None,
) -> Assessment | LabelAssessment:
    """The assessment of the model's task. `unseen`: (n,) bool, the images without copies, if there are others."""
    fitted = images.calibrated_on
    if classifier.several:
        return assess_labels(outputs, classifier.label_calibration, cross_fitted=fitted, unseen=unseen)
    return assess(
        outputs,
        classifier.calibration,
        cross_fitted=fitted,
        unseen=unseen,
        target_risk=error,
        views=views,
        limits=None if classifier.detector is None else classifier.detector.thresholds,
    )
