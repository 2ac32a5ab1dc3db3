"""A scikit-learn estimator around `train` and `load`, so that its cross-validation and grid search work on images.

    from sklearn.model_selection import GridSearchCV
    from linnaeus.sklearn import ImageClassifier

    search = GridSearchCV(ImageClassifier("photos"), {"settings": [{"data.size": 224}, {"data.size": 288}]}, cv=5)
    search.fit(paths, labels)

Decoded images and the activations of frozen stages are stored and shared: a second fit on the same files computes
neither again.
"""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from linnaeus.console import Console
from linnaeus.data.masked import refuse_masked
from linnaeus.errors import UserError
from linnaeus.runs.layout import CHECK, LABEL_CHECK
from linnaeus.sklearn.inputs import (
    Images,
    check_labels,
    check_lengths,
    images_of,
    indicator,
    listed,
    put_label,
    same_label,
    table_of,
)

if TYPE_CHECKING:
    from torch import nn

    from linnaeus.inference.classifier import Classifier, Prediction
    from linnaeus.recipe import Recipe


class MostLikelyClass:
    """Default of `unknown_label`: images that belong to none of the classes get the most likely one."""


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """An image classifier with scikit-learn's interface.

    The parameters are those of `linnaeus.train`, and:

    - `out`: new folder for the run; by default only the model is kept.
    - `verbose`: 0 prints only warnings, 1 each epoch, 2 also details.
    - `unknown_label`: returned by `predict` for images that belong to none of the classes, such as None, "unknown" or
      -1, and accepted by `score` as their label. By default, such images get the most likely class.

    `fit` sets a part of its images aside for validation, as the recipe says (`settings={"data.split.valid": 0.2}`).
    They select the best epoch and calibrate the probabilities.

    Attributes after `fit`: `classes_` (classes,), in the order of the columns of `predict_proba`; `metrics_`, on the
    validation part; `check_`, the findings of the data check (for arrays only labels that look wrong to a solved head);
    `model_file_`, the bytes of a model file that `linnaeus.load` reads.
    """

    unknown_label: Any = MostLikelyClass  # for estimators pickled before it was a parameter

    def __init__(
        self,
        recipe: str | Recipe | None = None,
        *,
        model: str | nn.Module | None = None,
        weights: str | None = None,
        epochs: int | str | list[int] | None = None,
        settings: dict[str, Any] | None = None,
        device: str = "auto",
        seed: int | None = None,
        out: str | Path | None = None,
        verbose: int = 0,
        unknown_label: Any = MostLikelyClass,
    ):
        self.recipe = recipe
        self.model = model
        self.weights = weights
        self.epochs = epochs
        self.settings = settings
        self.device = device
        self.seed = seed
        self.out = out
        self.verbose = verbose
        self.unknown_label = unknown_label

    def fit(
        self, X: Images, y: Sequence[Any] | np.ndarray, groups: Sequence[Any] | np.ndarray | None = None
    ) -> ImageClassifier:
        """Train on images X with labels y (n,). Images of one group in `groups` (n,) stay in one split.

        With several labels per image, y is (n, labels) of 0 and 1, as are the predictions.

        Raises UserError if images and labels do not match, or nothing can be trained on them.
        """
        from linnaeus.training.run import train

        table, self.classes_ = table_of(X, y, groups)
        self._check_unknown_label(several=table.several)
        # A module is trained as a copy, since estimators must not change their parameters.
        network = self._own_network()
        with tempfile.TemporaryDirectory(prefix="linnaeus-") as folder:
            run = train(
                table,
                self.recipe,
                model=self.model if network is None else network,
                weights=self.weights,
                epochs=self.epochs,
                out=self.out or Path(folder) / "run",
                settings=self.settings,
                device=self.device,
                seed=self.seed,
                draw=self.out is not None,
                console=Console(quiet=not self.verbose, verbose=self.verbose > 1),
            )
            self.metrics_ = run.figures["valid"].to_dict()
            self.check_ = _read_check(run.path)
            # The file is kept in memory, so that the estimator can be pickled and outlives the folder.
            self.model_file_ = (run.path / "model.safetensors").read_bytes()
        self._classifier: Classifier | None = None
        return self

    def predict_proba(self, X: Images) -> np.ndarray:
        """Calibrated probabilities (n, classes) float64; rows sum to 1 unless images may have several labels.

        Raises UserError if an image cannot be read.
        """
        answers = self._answers(X)
        return (
            np.stack([probabilities_of(answer) for answer in answers]) if answers else np.zeros((0, len(self.classes_)))
        )

    def predict(self, X: Images) -> np.ndarray:
        """Predicted classes (n,), or `unknown_label`; with several labels, (n, labels) int64 of 0 and 1.

        Raises UserError if an image cannot be read.
        """
        check_is_fitted(self)
        loaded = self._loaded()
        if loaded.thresholds is not None:
            self._check_unknown_label(several=True)
            return (self.predict_proba(X) >= loaded.thresholds).astype(np.int64)
        answers = self._answers(X)
        labels = self.classes_[[int(probabilities_of(answer).argmax()) for answer in answers]]
        if self.unknown_label is MostLikelyClass:
            return labels
        self._check_unknown_label()
        if loaded.detector is None:
            raise UserError("unknown_label: the model does not recognize unknown images; fit again, or leave it out")
        return put_label(labels, np.array([answer.unknown for answer in answers], bool), self.unknown_label)

    def score(self, X: Images, y: Sequence[Any] | np.ndarray, sample_weight: Any = None) -> float:
        """Accuracy, in 0..1; with several labels, the share of images whose labels are all correct.

        Labels that were not in training count as wrong, with a warning.

        Raises UserError if images and labels do not match, a label is missing, or none was in training.
        """
        check_is_fitted(self)
        refuse_masked(y, "score: labels")
        images, labels = images_of(X), np.asarray(y)
        if labels.ndim == 2:
            check_lengths(images, "score", {"labels": labels[:, 0], "sample_weight": sample_weight})
            has = indicator(y, labels, "score")[1]
            return float(np.average((self.predict(images) == has).all(1), weights=sample_weight))
        check_lengths(images, "score", {"labels": labels, "sample_weight": sample_weight})
        # By default unknown images have no label, so none is expected.
        default = self.unknown_label is MostLikelyClass
        outside = [not default and same_label(label, self.unknown_label) for label in y]
        inside = [label for label, is_outside in zip(y, outside, strict=True) if not is_outside]
        check_labels(inside, np.asarray(inside), "score")
        values = iter(np.asarray(inside).tolist())
        expected = [self.unknown_label if is_outside else next(values) for is_outside in outside]
        classes = self.classes_.tolist()
        foreign = [label for label, out in zip(expected, outside, strict=True) if not out and label not in classes]
        if len(expected) and len(foreign) == len(expected):
            raise UserError(
                f"score: none of the labels, such as {foreign[0]!r}, was in training; the classes are "
                f"{listed(self.classes_)}; give labels of the same form as to fit"
            )
        if foreign:
            warnings.warn(
                f"score: {len(foreign)} of {len(expected)} labels were not in training, such as {foreign[0]!r}; they "
                "count as wrong",
                stacklevel=2,
            )
        if not expected:
            raise UserError("score: no images; give at least one")
        right = [same_label(a, b) for a, b in zip(self.predict(images).tolist(), expected, strict=True)]
        return float(np.average(right, weights=sample_weight))

    def _answers(self, X: Images) -> list[Prediction]:
        check_is_fitted(self)
        loaded = self._loaded()
        answers = list(loaded.stream(images_of(X)))
        if line := loaded.color.take_line():
            warnings.warn(line, stacklevel=3)
        return answers

    def _check_unknown_label(self, several: bool = False) -> None:
        """Raise UserError if `unknown_label` is a class, or images may have several labels and none is unknown."""
        label = self.unknown_label
        if label is MostLikelyClass:
            return
        if several:
            raise UserError(
                "unknown_label: a model that gives images several labels has no unknown images; leave it out"
            )
        if any(same_label(label, known) for known in self.classes_.tolist()):
            raise UserError(f"unknown_label: {label!r} is one of the classes; choose another")

    def _own_network(self) -> nn.Module | None:
        """A copy of `model` if it is a network, since training and loading change the weights of their argument."""
        return None if self.model is None or isinstance(self.model, str) else copy.deepcopy(self.model)

    def _loaded(self) -> Classifier:
        from linnaeus.inference.classifier import load

        if self._classifier is None:
            with tempfile.TemporaryDirectory(prefix="linnaeus-") as folder:
                file = Path(folder) / "model.safetensors"
                file.write_bytes(self.model_file_)
                self._classifier = load(file, device=self.device, model=self._own_network())
        return self._classifier

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds the bytes of the model file, from which the network is built again when it is needed."""
        state = super().__getstate__()
        return state | {"_classifier": None} if "_classifier" in state else state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_file_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags


def _read_check(run: Path) -> dict[str, Any]:
    """check.json, with the labels that look wrong to a solved head; arrays have no data check, and perhaps neither."""
    files = [run / name for name in (CHECK, LABEL_CHECK) if (run / name).exists()]
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    joined = {key: [entry for part in parts for entry in part[key]] for key in ("notes", "findings")}
    return {**parts[0], **joined} if parts else {}


def probabilities_of(answer: Prediction) -> np.ndarray:
    """(classes,) of an image. Raises UserError if it is unreadable."""
    if answer.probabilities is None:
        raise UserError(f"{answer.path}: {answer.error}; leave it out")
    return answer.probabilities
