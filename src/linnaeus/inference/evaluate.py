"""Evaluation of a model on the images of a split."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.console import Console, counted
from linnaeus.data.table import SPLITS, Table
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.source import LabeledImages
from linnaeus.inference.tta import answer_views
from linnaeus.metrics.assessment import Assessment, assess
from linnaeus.metrics.classification import Figures, figures


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model assessed on the images of a split, as `linnaeus evaluate` reports it."""

    classifier: Classifier
    images: LabeledImages
    assessment: Assessment
    without_leaks: Figures | None = None
    """Figures without the images that have a copy in an earlier split; None where none has or all have."""

    @property
    def split(self) -> str:
        return self.images.split

    def to_json(self) -> str:
        """The whole evaluation as JSON, by split as in a run's metrics.json."""
        details = {
            "source": self.images.source,
            "left_out": [{"path": path, "reason": reason} for path, reason in self.images.left_out],
            "trained_on": self.images.trained_on,
            "calibrated_on": self.images.calibrated_on,
        }
        if self.without_leaks is not None:
            details["without_leaks"] = self.without_leaks.to_dict()
        long = self.assessment.long_dict(self.classifier.classes, self.classifier.names)
        return json.dumps({self.split: long | details}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
    n = len(images.labels)
    for path, reason in images.left_out:
        console.warn(f"{path}: {reason}; left out")
    if images.trained_on:
        console.warn(f"the model was trained on {images.trained_on} of these {n} images: these scores are optimistic")
    if images.calibrated_on:
        console.warn("the model was selected and calibrated on these images: these scores are slightly optimistic")
    return images


def evaluate_model(
    classifier: Classifier,
    images: LabeledImages,
    *,
    error: float | None = None,
    tta: bool = False,
    leaks: Callable[[Table], dict[str, np.ndarray]] | None = None,
    console: Console,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Evaluation | None:
    """Assess a model on labeled images. Each process of `group` computes a share; only rank 0 gets the result.

    `error` is the risk allowed among the answered images; None: the one that the model was calibrated for. `tta`
    evaluates sets of views too. `leaks` finds the samples that have a copy in an earlier split, by split; the result
    then has figures without them.
    """
    n = len(images.labels)
    since = time.perf_counter()
    outputs = classifier.outputs(images, group)
    console.detail(f"{counted(n, 'image')} classified in {time.perf_counter() - since:.1f} s")
    views = {}
    if tta:
        if classifier.preprocessing.resize == classifier.preprocessing.size:
            console.say("the network sees the whole image, so no crops are evaluated, only the mirrored view")
        batches = classifier.batches(images, group)
        views = answer_views(classifier.run, classifier.preprocessing, batches, classifier.temperature, group)
    if not group.is_main:
        return None
    assessment = assess(
        outputs, classifier.calibration, cross_fitted=images.calibrated_on, target_risk=error, views=views
    )
    without_leaks = None
    if leaks is not None and images.split in SPLITS[1:] and images.table.paths is not None:
        kept = ~np.isin(images.indices, leaks(images.table).get(images.split, []))
        if kept.any() and not kept.all():
            without_leaks = figures(outputs.at(classifier.temperature).take(kept))
            leaked = n - without_leaks.n
            console.warn(f"{leaked} of these {n} images have a copy in an earlier split; without them: {without_leaks}")
    return Evaluation(classifier, images, assessment, without_leaks)
