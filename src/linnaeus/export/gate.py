"""The gate: compare an export with the original model on real images, and reject it if predictions differ."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.export.material import Material
from linnaeus.inference.runners import OnnxRunner, Runner
from linnaeus.malloc import steady_heap
from linnaeus.metrics.mcnemar import McNemar
from linnaeus.metrics.outputs import Outputs

SAME_PIXELS = 1e-4
"""Largest difference of a probability on the same pixels, for a float export."""

RAW_PIXELS = 1e-2
"""Largest difference of a probability where the graph resizes too, for a float export."""

AGREEMENT = 0.99
"""Least share of images to which int8 gives the same class."""

SIGNIFICANT = 0.05
FEW = 50  # images; that none of them differs leaves room for 6 % that would (the rule of three)
RAW_MOST = 256  # images that are decoded at full size and answered one by one
TURNS = 5
LONG_ENOUGH = 30.0  # seconds of one size after which no further turn is taken


@dataclass(frozen=True)
class Comparison:
    """Predictions of an export compared with those of the original model, on the same images."""

    n: int
    differing: int
    """Number of images whose predicted class differs."""
    clearly: int
    """Those among them where the original's two likeliest classes are RAW_PIXELS or more apart."""
    largest: float
    """Largest difference of a probability."""
    mean: float
    """Mean over the images of their largest difference."""
    accuracy: float
    original_accuracy: float
    paired: McNemar

    @classmethod
    def of(cls, original: Outputs, export: Outputs) -> Comparison:
        """Compare two sets of calibrated outputs for the same images."""
        p, q = original.probabilities, export.probabilities
        top = np.sort(p, axis=1)
        margin = top[:, -1] - top[:, -2] if p.shape[1] > 1 else np.ones(len(p))
        differs = original.predicted != export.predicted
        right = [out.predicted == out.labels for out in (original, export)]
        return cls(
            len(p), int(differs.sum()), int((differs & (margin >= RAW_PIXELS)).sum()), float(np.abs(p - q).max()),
            float(np.abs(p - q).max(1).mean()), float(right[1].mean()), float(right[0].mean()), McNemar.of(*right),
        )  # fmt: skip

    @property
    def agreement(self) -> float:
        return 1 - self.differing / self.n

    def to_dict(self) -> dict[str, Any]:
        said = asdict(self) | {"agreement": self.agreement}
        return said | {"paired": self.paired.to_dict()}


def why_not_float(prepared: Comparison, raw: Comparison) -> str | None:
    """Why a float export may not be written; None where it may."""
    if prepared.differing:
        return f"{prepared.differing} of {prepared.n} images get another class on the same pixels; none may"
    if not prepared.largest <= SAME_PIXELS:
        return f"a probability differs by {prepared.largest:.2g} on the same pixels; {SAME_PIXELS:g} is allowed"
    if not raw.largest <= RAW_PIXELS:
        return f"a probability differs by {raw.largest:.2g} from raw pixels; {RAW_PIXELS:g} is allowed"
    if raw.clearly:
        return f"{raw.clearly} of {raw.n} images clearly get another class from raw pixels; none may"
    return None


def why_not_int8(found: Comparison, agree: float) -> str | None:
    """Why an int8 export may not be written; None where it may. Of prepared images, or of raw ones."""
    if found.agreement < agree:
        return f"agrees on {found.agreement:.1%} of {found.n} images; {agree:.1%} is asked for"
    if found.paired.difference < 0 and found.paired.p < SIGNIFICANT:
        was, p = found.original_accuracy, found.paired.p
        return f"is less accurate ({found.accuracy:.1%} instead of {was:.1%}, p = {p:.2g})"
    return None


@dataclass(frozen=True)
class Drafted:
    """What decoding JPEGs at a fraction of their size, as `linnaeus predict` does, changes in the answers."""

    n: int
    """Images that it touches, of those looked at."""
    differing: int
    largest: float


class Original:
    """The original model and its cached outputs, computed once per image."""

    def __init__(self, run: Runner, temperature: float, material: Material, console: Console):
        self.run, self.temperature, self.material, self.console = run, temperature, material, console
        self._prepared: Outputs | None = None
        self._raw: Outputs | None = None
        self.raw_chosen = np.unique(np.linspace(0, len(material) - 1, min(len(material), RAW_MOST)).astype(np.int64))
        self.drafted: Drafted | None = None

    def answers(self, run: Callable[[torch.Tensor], np.ndarray], whose: str) -> Outputs:
        """What `run` answers to the prepared images, calibrated as the original."""
        logits: list[np.ndarray] = []
        with self.console.progress(f"answers of the {whose}") as advance:
            for square in self.material.squares():
                logits.append(run(square))
                advance(sum(map(len, logits)), len(self.material))
        return Outputs(self.material.labels, np.concatenate(logits)).at(self.temperature)

    @property
    def prepared(self) -> Outputs:
        if self._prepared is None:
            self._prepared = self.answers(self.run, "original")
        return self._prepared

    def compare(self, run: Runner) -> Comparison:
        """Compare an export with the original on the same preprocessed pixels."""
        return Comparison.of(self.prepared, self.answers(run, "export"))

    def compare_raw(self, run: OnnxRunner) -> Comparison:
        """An export on images decoded at full size by another program, resized in its graph."""
        chosen = self.material.part(self.raw_chosen)
        logits, original, known = [], [], self.prepared.logits * self.temperature
        moved = []
        squares = (square[None] for batch in chosen.squares() for square in batch)
        with self.console.progress("answers from raw pixels") as advance:
            for i, drafted in enumerate(squares):
                raw = chosen.raw(i)
                logits.append(run.raw(raw))
                if self._raw is None:
                    square = chosen.square_of(raw)
                    same = torch.equal(square, drafted)
                    original.append(known[self.raw_chosen[i]] if same else self.run(square)[0])
                    moved.append(not same)
                advance(i + 1, len(chosen))
        if self._raw is None:
            self._raw = Outputs(chosen.labels, np.stack(original)).at(self.temperature)
            self._note_drafted(np.array(moved))
        return Comparison.of(self._raw, Outputs(chosen.labels, np.stack(logits)).at(self.temperature))

    def _note_drafted(self, moved: np.ndarray) -> None:
        assert self._raw is not None
        at = np.flatnonzero(moved)
        whole, drafted = self._raw.take(at), self.prepared.take(self.raw_chosen[at])
        largest = float(np.abs(whole.probabilities - drafted.probabilities).max()) if len(at) else 0.0
        self.drafted = Drafted(len(at), int((whole.predicted != drafted.predicted).sum()), largest)

    def speed(self, run: Runner) -> dict[str, float]:
        """How many times faster `run` is, at one image and at a batch: medians of ratios, measured in turns."""
        batch = next(iter(self.material.squares()))
        found = {}
        for size in sorted({1, len(batch)}):
            part = batch[:size]
            seconds: list[tuple[float, float]] = []
            with steady_heap():  # as both have it when they predict
                for _ in range(TURNS + 1):
                    seconds.append((_timed(self.run, part), _timed(run, part)))
                    if len(seconds) > 1 and sum(map(sum, seconds)) > LONG_ENOUGH:
                        break
            found[str(size)] = statistics.median(ours / theirs for ours, theirs in seconds[1:])  # the first warms up
        return found


def _timed(run: Runner, part: torch.Tensor) -> float:
    since = time.perf_counter()
    run(part)
    return time.perf_counter() - since
