"""How a probe measures accuracy: one linear head for each backbone, evaluated on images that it has not seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.metrics.stratification import FOLDS, stratified_folds
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.logistic_regression import logits
from linnaeus.probe.features import StoredFeatures
from linnaeus.stores.feature_matrix import feature_matrix
from linnaeus.stores.rows import save_array

VERSION = 2
LARGE_VALIDATION = 1000
"""Validation images from which on accuracy is measured on them alone: the 95 % interval is then at most 3 percentage
points to each side. Below, training and validation images are evaluated by cross-validation: several times as many."""


@dataclass(frozen=True)
class HeldOutAnswers:
    """Which images the head of a candidate classified correctly without having seen them."""

    indices: np.ndarray  # (n,) int64: their table indices, ascending
    correct: np.ndarray  # (n,) bool
    width: int  # features per image
    penalty: float

    def at(self, indices: np.ndarray) -> np.ndarray:
        """(k,) bool: whether each of these images, all of which were evaluated, was classified correctly."""
        return self.correct[np.searchsorted(self.indices, indices)]


@dataclass(frozen=True)
class ProbeEvaluator:
    """Solves a head on features, and evaluates it, in the same way for all candidates."""

    table: Table
    seed: int
    cache: Cache
    console: Console

    @property
    def by_validation(self) -> bool:
        """Whether accuracy is measured on the validation images alone, not by cross-validation."""
        return int(self.unseen.sum()) >= LARGE_VALIDATION

    @cached_property
    def unseen(self) -> np.ndarray:
        """(n,) bool, by the table: validation images of which no training image is in the same group."""
        valid, numbers = self.table.split == "valid", self.table.group_numbers(np.arange(len(self.table)))
        if self.table.accepted is not None:
            valid &= ~self.table.accepted
        return valid if numbers is None else valid & ~np.isin(numbers, numbers[self.table.split == "train"])

    def __str__(self) -> str:
        if self.by_validation:
            n, unseen = int((self.table.split == "valid").sum()), int(self.unseen.sum())
            if unseen < n:
                return f"on the {unseen:,} of {n:,} validation images without a copy or group member in training"
            return "on the validation images, which the heads have not seen"
        return f"by {FOLDS}-fold cross-validation over training and validation images"

    def evaluate(self, parts: Sequence[StoredFeatures]) -> HeldOutAnswers:
        """Solve and evaluate one head on the features of one or several backbones, concatenated.

        The answers are kept in the cache. Raises UserError if too few images can be held out.
        """
        indices = _common(parts)
        with feature_matrix(len(indices), sum(part.width for part in parts), torch.device("cpu")) as features:
            _concatenate(parts, indices, features)
            return self._known_or_solved(features, indices)

    def _known_or_solved(self, features: Tensor, indices: np.ndarray) -> HeldOutAnswers:
        key = self._key(features, indices)
        # Two probes that run at once solve a head once.
        with self.cache.lock(key):
            entry = self.cache.find(key)
            if entry is not None:
                correct, evaluated = np.load(entry.path / "correct.npy"), np.load(entry.path / "indices.npy")
                return HeldOutAnswers(evaluated, correct, features.shape[1], float(entry.about["penalty"]))
            answers = self._solve(features, indices)
            # A full cache costs time only: the head is solved again in the next probe.
            with suppress(OverBudgetError), self.cache.building(key) as folder:
                self.cache.room(key, answers.indices.nbytes + answers.correct.nbytes)
                save_array(folder / "correct.npy", answers.correct)
                save_array(folder / "indices.npy", answers.indices)
                self.cache.commit(key, {"penalty": answers.penalty, "rows": len(answers.indices)})
        return answers

    def _key(self, features: Tensor, indices: np.ndarray) -> str:
        """The cache's name of the answers: everything that they depend on."""
        groups = self.table.group_numbers(indices)
        accepted = None if self.table.accepted is None else self.table.accepted[indices]
        about = [VERSION, self.seed, self.by_validation, len(self.table.classes), list(features.shape)]
        digest = hashlib.sha256(json.dumps(about).encode())
        for array in (
            features.numpy(),
            indices,
            self.table.labels[indices],
            self.table.split[indices],
            groups,
            accepted,
        ):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        return f"probe-{digest.hexdigest()[:32]}"

    def _solve(self, features: Tensor, indices: np.ndarray) -> HeldOutAnswers:
        labels, groups = self.table.labels[indices], self.table.group_numbers(indices)
        width, seen = features.shape[1], len(indices)
        if self.by_validation:
            apart = self.table.split[indices] == "valid"
            seen = int((~apart).sum())
            assert apart[seen:].all()  # the training images come first, so that no row has to be copied
        groups = None if groups is None else groups[:seen]
        fold = stratified_folds(labels[:seen], seed=self.seed, groups=groups)
        if self.table.accepted is not None:
            fold[self.table.accepted[indices[:seen]]] = -1
        if (fold < 0).all():
            raise UserError(
                f"{self.table.source}: too few images for a comparison: no class has two that can be held out in turn"
            )
        with self.console.progress("solving the head", unit="passes") as advance:
            head = fit_linear_probe(
                features[:seen],
                labels[:seen],
                len(self.table.classes),
                fold=fold,
                all_folds=not self.by_validation,
                advance=advance,
            )
        if self.by_validation:
            solution = torch.cat([head.weight, head.bias[:, None]], 1)
            answers = logits(features[seen:], solution).argmax(1).numpy()
            unseen = self.unseen[indices[seen:]]
            evaluated, predicted = seen + np.flatnonzero(unseen), answers[unseen]
        else:
            evaluated = head.held_out  # not the only image of a class
            predicted = head.probabilities.argmax(1)
        # In the order of the table, so that the paired tests compare equal images.
        order = np.argsort(indices[evaluated])
        return HeldOutAnswers(indices[evaluated][order], (predicted == labels[evaluated])[order], width, head.penalty)


def _common(parts: Sequence[StoredFeatures]) -> np.ndarray:
    """(n,) table indices of the images that all parts have, in the order of the first."""
    common = parts[0].indices
    for part in parts[1:]:
        # An image that one backbone could not process is left out for all, so that they stay comparable.
        common = common[np.isin(common, part.indices)]
    return common


def _concatenate(parts: Sequence[StoredFeatures], indices: np.ndarray, out: Tensor) -> None:
    """Write the features of the images `indices` (n,) by all parts side by side into `out` (n, sum of widths)."""
    order = np.argsort(indices)
    column = 0
    for part in parts:
        columns = out[:, column : column + part.width]
        column += part.width
        start = 0
        for rows in part.chunks():
            here = part.indices[start : start + len(rows)]
            start += len(rows)
            kept = np.isin(here, indices)
            place = order[np.searchsorted(indices, here[kept], sorter=order)]
            columns[torch.from_numpy(place)] = torch.from_numpy(rows[kept]).float()
