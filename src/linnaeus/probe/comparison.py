"""The result of a probe: accuracy and cost of each candidate, paired tests against the best, and a recommendation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from linnaeus.data.table import Table
from linnaeus.metrics.classification import no_better_than_one_class
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.mcnemar import SIGNIFICANT, McNemar, holm
from linnaeus.probe.backbones import Candidate
from linnaeus.probe.evaluation import HeldOutAnswers
from linnaeus.probe.features import Cost

CLOSE = 0.01
"""Accuracy that the recommended backbone may be below the best one, if no test finds a significant difference."""


@dataclass(frozen=True)
class Result:
    """What was measured for one candidate."""

    candidate: Candidate
    answers: HeldOutAnswers
    cost: Cost
    license: str  # license of the weights, `unknown` without one; of several joined with " + "

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def n(self) -> int:
        """Number of images evaluated."""
        return len(self.answers.correct)

    @property
    def accuracy(self) -> float:
        return float(self.answers.correct.mean())


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be measured."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All candidates on the same images."""

    table: Table
    results: tuple[Result, ...]
    failures: tuple[Failure, ...] = ()

    @cached_property
    def best(self) -> Result:
        """The most accurate candidate; of equal ones the fastest."""
        return max(self.results, key=lambda result: (result.accuracy, -result.cost.seconds))

    @cached_property
    def shown_names(self) -> dict[str, str]:
        """Name of each candidate -> its name in the table and the plot: short, where that is unique."""
        short = {r.name: r.candidate.short_name for r in self.results}
        uses = Counter(short.values())
        return {name: shown if uses[shown] == 1 else name for name, shown in short.items()}

    @cached_property
    def tests(self) -> dict[str, McNemar]:
        """Candidate -> paired test of the best against it, on the images that both were evaluated on."""
        return {r.name: self._test(r) for r in self.results if r is not self.best}

    @cached_property
    def p(self) -> dict[str, float]:
        """Candidate -> p-value of its test, with Holm's correction for their number."""
        return dict(zip(self.tests, holm([test.p for test in self.tests.values()]), strict=True))

    @property
    def front(self) -> frozenset[str]:
        """The candidates that no other one beats in accuracy and time: the Pareto front."""
        return frozenset(
            r.name
            for r in self.results
            if not any(
                (o.accuracy >= r.accuracy and o.cost.seconds <= r.cost.seconds)
                and (o.accuracy > r.accuracy or o.cost.seconds < r.cost.seconds)
                for o in self.results
            )
        )

    @property
    def recommended(self) -> Result | None:
        """The fastest single backbone that is as good as the best one; None if all are ensembles.

        As good: at most CLOSE less accurate, and not significantly so. `train` cannot train an ensemble, so that the
        best single backbone takes its place.
        """
        single = [r for r in self.results if len(r.candidate.backbones) == 1]
        if not single:
            return None
        best = max(single, key=lambda r: (r.accuracy, -r.cost.seconds))
        others = [r for r in single if r is not best]
        p = holm([self._test(r, best).p for r in others])
        least = best.accuracy - CLOSE - 1e-9  # rounding must not decide
        near = [r for r, p in zip(others, p, strict=True) if p >= SIGNIFICANT and r.accuracy >= least]
        return min([best, *near], key=lambda r: (r.cost.seconds, -r.accuracy))

    @property
    def no_better(self) -> str:
        """What to know of the best accuracy if no image is needed for it; empty otherwise."""
        counts = np.bincount(self.table.labels[self.best.answers.indices])
        values = {"n": self.best.n, "most_frequent": int(counts.max()), "accuracy_ci95": self.interval(self.best)}
        return no_better_than_one_class(values)

    def interval(self, result: Result) -> tuple[float, float]:
        """95 % interval of a candidate's accuracy."""
        answers = result.answers
        return proportion_interval(answers.correct, self.table.group_numbers(answers.indices))

    def _test(self, result: Result, best: Result | None = None) -> McNemar:
        """Of the best candidate (first) against `result` (second)."""
        first, second = (best or self.best).answers, result.answers
        common = np.intersect1d(first.indices, second.indices)
        return McNemar.of(first.at(common), second.at(common), self.table.group_numbers(common))

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object for each candidate, the most accurate first, then those that failed."""
        ordered = sorted(self.results, key=lambda r: (-r.accuracy, r.cost.seconds))
        recommended, front = self.recommended, self.front
        rows = [
            {
                "name": r.name,
                **_named(r.candidate),
                "accuracy": r.accuracy,
                "accuracy_ci95": list(self.interval(r)),
                "correct": int(r.answers.correct.sum()),
                "n": r.n,
                "p": self.p.get(r.name),
                "mcnemar": self.tests[r.name].to_dict() if r.name in self.tests else None,
                "features": r.answers.width,
                "penalty": r.answers.penalty,
                "parameters": r.cost.parameters,
                "multiply_adds": r.cost.multiply_adds,
                "ms_per_image": 1000 * r.cost.seconds,
                "images_per_second": 1 / r.cost.seconds,
                "model_bytes": r.cost.model_bytes,
                "license": r.license,
                "pareto": r.name in front,
                "recommended": r is recommended,
                "error": None,
            }
            for r in ordered
        ]
        # Failed candidates have the same columns, so that the CSV stays rectangular.
        empty = dict.fromkeys(rows[0]) if rows else {}
        failed = [{**empty, "name": f.candidate.name, **_named(f.candidate), "error": f.reason} for f in self.failures]
        return [*rows, *failed]


def _named(candidate: Candidate) -> dict[str, Sequence[str]]:
    return {
        "models": [backbone.model for backbone in candidate.backbones],
        "weights": [backbone.weights for backbone in candidate.backbones],
    }
