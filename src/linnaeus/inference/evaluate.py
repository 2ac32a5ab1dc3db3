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
from linnaeus.distributed.group import ALONE, Peers
from linnaeus.errors import UserError
from linnaeus.inference.classifier import BATCH, Classifier
from linnaeus.inference.source import Pictures
from linnaeus.inference.tta import answer_views
from linnaeus.metrics.assessment import Assessment, assess
from linnaeus.metrics.figures import Figures, figures


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `linnaeus evaluate` found."""

    classifier: Classifier
    source: str
    pictures: Pictures
    found: Assessment
    without_leaks: Figures | None = None
    """On the pictures of which no copy stands in an earlier split, where others have one."""

    @property
    def split(self) -> str:
        return self.pictures.split

    def to_json(self) -> str:
        """Everything, by split as in a run's metrics.json."""
        about = {
            "source": self.source,
            "left_out": [{"path": path, "reason": reason} for path, reason in self.pictures.left_out],
            "trained_on": self.pictures.trained_on,
            "calibrated_on": self.pictures.calibrated_on,
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
    group: Peers = ALONE,
) -> Evaluation | None:
    """Judge a model by the pictures of a split of a source. Warns of what makes figures flatter.

    `leaks` finds, by split, the samples of which a copy stands in an earlier split; figures then come without them too.
    The processes of `group` answer a part of the pictures each; the first one judges, and the others get nothing.
    """
    pictures = group.once_a_machine(lambda: classifier.pictures(source, split))
    if len(set(group.collect((pictures.table.fingerprint(), pictures.indices.tobytes())))) > 1:
        raise UserError(f"{source}: is not the same on all machines")
    n = len(pictures.labels)
    for path, reason in pictures.left_out:
        console.warn(f"{path}: {reason}; left out")
    if pictures.trained_on:
        console.warn(f"the model was trained on {pictures.trained_on} of these {n} pictures: the figures flatter")
    if pictures.calibrated_on:
        console.warn("the model was selected and calibrated on these pictures: the figures flatter a little")
    since = time.perf_counter()
    outputs = classifier.outputs(pictures, group)
    console.detail(f"{counted(n, 'picture')} answered in {time.perf_counter() - since:.1f} s")
    views = {}
    if tta:
        if classifier.preprocessing.resize == classifier.preprocessing.size:
            console.say("the network sees the whole picture: no crops to try, only the mirrored view")
        views = answer_views(
            classifier.run, classifier.preprocessing, pictures.rows, pictures.labels,
            temperature=classifier.temperature, batch=BATCH, device=classifier.device, group=group,
        )  # fmt: skip
    if not group.first:
        return None
    found = assess(outputs, classifier.calibration, own=pictures.calibrated_on, error=error, views=views)
    clean = None
    if leaks is not None and pictures.split in SPLITS[1:] and pictures.table.paths is not None:
        kept = ~np.isin(pictures.indices, leaks(pictures.table).get(pictures.split, []))
        if kept.any() and not kept.all():
            clean = figures(outputs.at(classifier.temperature).take(kept))
            console.warn(f"{n - clean.n} of these {n} pictures have a copy in an earlier split; without them: {clean}")
    return Evaluation(classifier, str(source), pictures, found, clean)
