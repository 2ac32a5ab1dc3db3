"""Evaluate a model on a split of a source."""

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
from linnaeus.inference.classifier import BATCH, Classifier
from linnaeus.inference.source import Images
from linnaeus.inference.tta import answer_views
from linnaeus.metrics.assessment import Assessment, assess
from linnaeus.metrics.figures import Figures, figures


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `linnaeus evaluate` found."""

    classifier: Classifier
    source: str
    images: Images
    found: Assessment
    without_leaks: Figures | None = None
    """On the images of which no copy stands in an earlier split, where others have one."""

    @property
    def split(self) -> str:
        return self.images.split

    def to_json(self) -> str:
        """Everything, by split as in a run's metrics.json."""
        about = {
            "source": self.source,
            "left_out": [{"path": path, "reason": reason} for path, reason in self.images.left_out],
            "trained_on": self.images.trained_on,
            "calibrated_on": self.images.calibrated_on,
        }
        if self.without_leaks is not None:
            about["without_leaks"] = self.without_leaks.to_dict()
        long = self.found.long_dict(self.classifier.classes, self.classifier.names)
        return json.dumps({self.split: long | about}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def evaluate_model(
    classifier: Classifier,
    source: str | Path,
    split: str | None = None,
    *,
    error: float | None = None,
    tta: bool = False,
    leaks: Callable[[Table], dict[str, np.ndarray]] | None = None,
    console: Console,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Evaluation | None:
    """Judge a model by the images of a split of a source. Warns of what makes figures flatter.

    `leaks` finds, by split, the samples of which a copy stands in an earlier split; figures then come without them too.
    The processes of `group` answer a part of the images each; the first one judges, and the others get nothing.
    """
    images = group.local_main_first(lambda: classifier.images(source, split))
    if len(set(group.all_gather((images.table.fingerprint(), images.indices.tobytes())))) > 1:
        raise UserError(f"{source}: is not the same on all machines")
    n = len(images.labels)
    for path, reason in images.left_out:
        console.warn(f"{path}: {reason}; left out")
    if images.trained_on:
        console.warn(f"the model was trained on {images.trained_on} of these {n} images: the figures flatter")
    if images.calibrated_on:
        console.warn("the model was selected and calibrated on these images: the figures flatter a little")
    since = time.perf_counter()
    outputs = classifier.outputs(images, group)
    console.detail(f"{counted(n, 'image')} answered in {time.perf_counter() - since:.1f} s")
    views = {}
    if tta:
        if classifier.preprocessing.resize == classifier.preprocessing.size:
            console.say("the network sees the whole image: no crops to try, only the mirrored view")
        views = answer_views(
            classifier.run, classifier.preprocessing, images.rows, images.labels,
            temperature=classifier.temperature, batch=BATCH, device=classifier.device, group=group,
        )  # fmt: skip
    if not group.is_main:
        return None
    found = assess(outputs, classifier.calibration, own=images.calibrated_on, error=error, views=views)
    clean = None
    if leaks is not None and images.split in SPLITS[1:] and images.table.paths is not None:
        kept = ~np.isin(images.indices, leaks(images.table).get(images.split, []))
        if kept.any() and not kept.all():
            clean = figures(outputs.at(classifier.temperature).take(kept))
            console.warn(f"{n - clean.n} of these {n} images have a copy in an earlier split; without them: {clean}")
    return Evaluation(classifier, str(source), images, found, clean)
