"""The search for the penalty of a linear probe: held-out folds, and the penalties that are tried on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.console import Advance
from linnaeus.models.logistic_regression import Problems, Solution, solve

FIRST_PENALTY = 0.1
VANISHING = 3.0  # for which the weights are taken as zero when those for FIRST_PENALTY / 10 are predicted
WEAKEST, STRONGEST = 1e-8, 1e3  # bounds of the search for the penalty

STEPS, TOLERANCE = 30, 3e-3  # of a fit during cross-validation, from the solution for a stronger penalty
FEWEST_PENALTIES = 4  # tried: the first, one on either side, and the refinement
CHUNK = 8 << 20  # bytes of features that are copied at a time
FIRST_FIT = 10  # passes expected of a fit before any has ended


@dataclass(frozen=True)
class Folds:
    """Some of the folds: the samples of each are predicted by a probe that learns from those of all other folds."""

    problems: Problems  # the folds are solved as one problem, so that a single matrix product serves all of them
    rows: Tensor  # (m,) ascending: the samples of these folds
    problem_of: Tensor  # (m,): index of the problem whose solution predicts each
    held_out: Tensor  # (m,): weights of the samples in the held-out loss, which sum to 1

    @classmethod
    def of(cls, problem: Problems, fold: Tensor, numbers: range, progress: SearchProgress) -> Folds:
        weights = problem.weights[:, 0]
        training = torch.stack([fold != k for k in numbers], 1) * weights[:, None]  # (n, folds)
        problems = replace(problem, weights=training / training.sum(0), evaluated=progress.passed)
        held_out = torch.where(fold >= 0, weights, torch.zeros_like(weights))
        # A sample of no fold counts nowhere, but has an answer.
        problem_of = fold.clamp(min=0) - numbers.start
        rows = torch.nonzero((problem_of >= 0) & (problem_of < len(numbers)))[:, 0]
        return cls(problems, rows, problem_of[rows], held_out[rows] / held_out[rows].sum())

    @property
    def labels(self) -> Tensor:
        """(m,), or (m, classes) where there may be several."""
        return self.problems.y[self.rows]

    def logits(self, solution: Tensor) -> Tensor:
        """(m, classes): logits of each sample by the probe of the fold that held it out."""
        x = self.problems.x.unflatten(0, (len(self.problems.y), -1))
        z = torch.empty(len(self.rows), self.problems.classes, device=solution.device)
        for k in range(len(self.problems)):
            places = torch.nonzero(self.problem_of == k)[:, 0]
            for chunk in places.split(chunk_of(self.problems.x)):
                z[chunk] = self.problems.logits(x[self.rows[chunk]].flatten(0, 1), solution[k])
        return z

    def losses(self, z: Tensor) -> Tensor:
        """(m,): losses of logits z (m, classes)."""
        y, weights = self.labels, self.problems.class_weights
        if y.ndim == 1:
            return F.cross_entropy(z, y, reduction="none")
        of_pairs = None if weights is None else torch.where(y > 0.5, weights[1], weights[0])
        return F.binary_cross_entropy_with_logits(z, y, of_pairs, reduction="none").sum(1)


@dataclass(frozen=True)
class Candidate:
    """A penalty with the solutions of the folds."""

    penalty: float
    loss: float  # held-out cross-entropy in nats
    solution: Tensor  # (folds, classes, d + 1)

    def decades(self, penalty: float) -> float:
        """The distance to another penalty on a logarithmic scale, positive for a stronger one."""
        return math.log10(penalty / self.penalty)


class PenaltySearch:
    """Chooses the penalty with the smallest held-out loss.

    The penalty first changes by factors of ten until the loss rises on both sides of the best one. One refinement
    follows: the minimum of the parabola through the best penalty and its neighbors, on a logarithmic scale.

    The solution of a fold is nearly linear in the logarithm of the penalty. Therefore a fit starts on the line through
    the two nearest solutions, with the curvature pairs of the last fit, and most take 4 to 8 evaluations.
    """

    def __init__(self, folds: Folds, progress: SearchProgress):
        self.folds, self.problems, self.progress = folds, folds.problems, progress
        # Where solving them together would take more memory than the features, some of them at a time.
        self.parts = self.problems.parts()
        # The last one and the two nearest to it; zeros are close to the solution for a very strong penalty.
        self.near = [Candidate(VANISHING, math.inf, self.problems.zeros())]
        self.last: Solution | None = None
        self.losses: dict[float, float] = {}
        self.accuracies: dict[float, float] = {}

    def run(self) -> Candidate:
        best = self._try(FIRST_PENALTY)
        while (weaker := self._neighbor(best, 0.1)) and weaker.loss < best.loss:
            best = weaker
        while best.penalty >= FIRST_PENALTY and (stronger := self._neighbor(best, 10.0)) and stronger.loss < best.loss:
            best = stronger
        refined = self._vertex(best.penalty)
        return best if refined is None else min(best, self._try(refined, last=True), key=lambda other: other.loss)

    def _neighbor(self, candidate: Candidate, factor: float) -> Candidate | None:
        """The candidate for a penalty ten times weaker or stronger; None beyond the bounds."""
        penalty = float(f"{candidate.penalty * factor:.6g}")
        return self._try(penalty) if WEAKEST <= penalty <= STRONGEST else None

    def _vertex(self, penalty: float) -> float | None:
        """Minimum of the parabola through the losses at `penalty` and its neighbors; None if one is missing."""
        neighbors = [self.losses.get(float(f"{penalty * factor:.6g}")) for factor in (0.1, 10.0)]
        if neighbors[0] is None or neighbors[1] is None:
            return None
        below, above, here = neighbors[0], neighbors[1], self.losses[penalty]
        curvature = below - 2 * here + above
        if curvature <= 0:
            return None
        return float(f"{penalty * math.pow(10, 0.5 * (below - above) / curvature):.2g}")

    def _try(self, penalty: float, *, last: bool = False) -> Candidate:
        # At least one more neighbor and the refinement follow, unless this is the refinement.
        self.progress.begin(f"penalty {penalty:g}", 0 if last else max(2, FEWEST_PENALTIES - 1 - len(self.losses)))
        solution = self._solve(penalty)
        z = self.folds.logits(solution)
        loss = self.folds.losses(z) @ self.folds.held_out
        self.losses[penalty] = float(loss)
        if self.problems.y.ndim == 1:
            right, counted = z.argmax(1) == self.folds.labels, self.folds.held_out > 0
            self.accuracies[penalty] = float(right[counted].float().mean())
        candidate = Candidate(penalty, float(loss), solution)
        self.near = sorted([*self.near, candidate], key=lambda other: abs(other.decades(penalty)))[:3]
        return candidate

    def _solve(self, penalty: float) -> Tensor:
        """(folds, classes, d + 1)"""
        solution = self._start(penalty)
        if len(self.parts) == 1:
            self.last = solve(self.problems, penalty, solution, steps=STEPS, tolerance=TOLERANCE, before=self.last)
            return self.last.values
        done = 0
        for part in self.parts:
            rows = solution[done : done + len(part)]
            rows.copy_(solve(part, penalty, rows, steps=STEPS, tolerance=TOLERANCE).values)
            done += len(part)
        return solution

    def _start(self, penalty: float) -> Tensor:
        """The point for this penalty on the line through the two nearest solutions, or the only one."""
        near = sorted(self.near, key=lambda candidate: abs(candidate.decades(penalty)))
        if len(near) == 1:
            return near[0].solution.clone()
        share = near[0].decades(penalty) / near[0].decades(near[1].penalty)
        return torch.lerp(near[0].solution, near[1].solution, share)


def chunk_of(x: Tensor) -> int:
    """Rows of x (n, d) that are copied at a time."""
    return max(16, CHUNK // (4 * x.shape[1]))


class SearchProgress:
    """Counts the passes over the features in a sequence of fits.

    How many fits and passes there will be is known only at the end. The expected number is that of the fits that follow
    at least, each with the mean number of passes so far; it rises when the search goes on.
    """

    def __init__(self, advance: Advance | None):
        self.advance = advance
        self.note = ""
        self.ended: list[int] = []  # passes of each fit that has ended
        self.passes, self.following = 0, 0

    def begin(self, note: str, following: int) -> None:
        """A fit begins, which at least `following` others will follow, beside the last one on all samples."""
        if self.passes:
            self.ended.append(self.passes)
        self.note, self.passes, self.following = note, 0, following

    def passed(self) -> None:
        """A pass over the features ended."""
        self.passes += 1
        if self.advance is None:
            return
        mean = sum(self.ended) / len(self.ended) if self.ended else FIRST_FIT
        done = sum(self.ended) + self.passes
        self.advance(done, round(done + max(mean - self.passes, 1) + mean * self.following), self.note)
