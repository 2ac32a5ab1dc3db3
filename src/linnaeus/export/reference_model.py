"""The original model during an export: runs it and each candidate on the sample images, for the gate (`gate.py`).

The predictions of the original are computed once and kept for all candidates.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.device import steady_heap
from linnaeus.export.gate import Comparison, answers_of
from linnaeus.export.sample_images import SampleImages
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.runners import OnnxRunner, Runner, Scores, finite_scores
from linnaeus.metrics.outputs import Outputs

MAX_RAW_IMAGES = 256  # they are decoded at full size and predicted one by one
TURNS = 5
MAX_SECONDS = 30.0  # per batch size: no further turn is taken after it


@dataclass(frozen=True)
class DraftEffect:
    """How predictions change because `linnaeus predict` decodes large JPEGs at a fraction of their size."""

    n: int  # number of raw images whose pixels change
    differing: int  # number of images whose predicted class changes, or with several labels any of them
    largest: float  # largest difference of a probability


class ReferenceModel:
    """The original model and its cached predictions."""

    def __init__(self, classifier: Classifier, samples: SampleImages, console: Console):
        self.run, self.classifier, self.samples, self.console = classifier.run, classifier, samples, console
        self._raw: Outputs | None = None
        count = min(len(samples), MAX_RAW_IMAGES)
        self.raw_positions = np.unique(np.linspace(0, len(samples) - 1, count).astype(np.int64))
        self.draft_effect: DraftEffect | None = None

    def calibrated(self, logits: np.ndarray, samples: SampleImages) -> Outputs:
        """Outputs with the calibration of the original."""
        return self.classifier.calibrated(Outputs(samples.labels, logits))

    def score(self, run: Runner, owner: str) -> Scores:
        """Logits and distances of `run` for the prepared images. Raises UserError if a logit is not finite."""
        parts: list[Scores] = []
        with self.console.progress(f"answers of the {owner}") as advance:
            for square in self.samples.squares():
                parts.append(finite_scores(run.scores, square))
                advance(sum(len(part.logits) for part in parts), len(self.samples))
        return Scores.joined(parts)

    @cached_property
    def scores(self) -> Scores:
        """Logits and distances of the original for the prepared images."""
        return self.score(self.run, "original")

    @cached_property
    def prepared(self) -> Outputs:
        return self.calibrated(self.scores.logits, self.samples)

    def compare(self, run: Runner) -> Comparison:
        """Compare an export with the original on the same preprocessed pixels."""
        export = self.calibrated(self.score(run, "export").logits, self.samples)
        return self._compared(self.prepared, export)

    def compare_raw(self, run: OnnxRunner) -> Comparison:
        """Compare an export that resizes images of full size in its graph with the original."""
        samples = self.samples.part(self.raw_positions)
        logits, original = [], []
        known = self.scores.logits
        changed = []
        squares = (square[None] for batch in samples.squares() for square in batch)
        with self.console.progress("answers from raw pixels") as advance:
            for i, drafted in enumerate(squares):
                raw = samples.raw(i)
                logits.append(run.raw(raw))
                # Computed for the first candidate; it is the same for all others.
                if self._raw is None:
                    square = samples.square_of(raw)
                    # Most images are decoded at full size anyway: their logits are known.
                    same = torch.equal(square, drafted)
                    original.append(known[self.raw_positions[i]] if same else self.run.scores(square).logits[0])
                    changed.append(not same)
                advance(i + 1, len(samples))
        if self._raw is None:
            self._raw = self.calibrated(np.stack(original), samples)
            self._measure_draft(self._raw, np.array(changed))
        return self._compared(self._raw, self.calibrated(np.stack(logits), samples))

    def _compared(self, original: Outputs, export: Outputs) -> Comparison:
        classifier = self.classifier
        return Comparison.of(original, export, classifier.thresholds, classifier.threshold)

    def _measure_draft(self, raw: Outputs, changed: np.ndarray) -> None:
        at = np.flatnonzero(changed)
        whole, drafted = raw.take(at), self.prepared.take(self.raw_positions[at])
        largest = float(np.abs(whole.probabilities - drafted.probabilities).max()) if len(at) else 0.0
        answers = (answers_of(outputs, self.classifier.thresholds) for outputs in (whole, drafted))
        differing = int((next(answers) != next(answers)).any(1).sum())
        self.draft_effect = DraftEffect(len(at), differing, largest)

    def speed(self, run: Runner) -> dict[str, float]:
        """Speed of `run` as a multiple of the original's, by batch size: medians of ratios measured in turns."""
        batch = next(iter(self.samples.squares()))
        ratios = {}
        for size in sorted({1, len(batch)}):
            part = batch[:size]
            seconds: list[tuple[float, float]] = []
            with steady_heap():  # both have it when they predict
                for _ in range(TURNS + 1):
                    seconds.append((_seconds(self.run, part), _seconds(run, part)))
                    if len(seconds) > 1 and sum(map(sum, seconds)) > MAX_SECONDS:
                        break
            ratios[str(size)] = statistics.median(ours / theirs for ours, theirs in seconds[1:])  # the first warms up
        return ratios


def _seconds(run: Runner, part: torch.Tensor) -> float:
    since = time.perf_counter()
    run.scores(part)
    return time.perf_counter() - since
