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
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.runs.layout import CHECK

if TYPE_CHECKING:
    from torch import nn

    from linnaeus.inference.classifier import Classifier, Prediction
    from linnaeus.recipe import Recipe

Images = Sequence[str | Path] | Sequence[np.ndarray] | np.ndarray
"""Paths of n files; or n images (H, W) or (H, W, 3) uint8 of one size, as a list or as one array."""


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """An image classifier with scikit-learn's interface.

    Parameters are those of `linnaeus.train`. `out` is a folder to keep the run in, which must not exist yet; without it
    nothing is kept but the model. A part of what is given to `fit` is set aside as validation, as the recipe says
    (`settings={"data.split.valid": 0.2}`): it chooses the best epoch and calibrates the probabilities.

    After `fit`: `classes_` (classes,) in the order of the columns of `predict_proba`, `metrics_` with the figures on
    that validation part, `check_` with the findings of the data check (empty for arrays), and `model_file_`, the bytes
    of a model file that `linnaeus.load` reads.
    """

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
        verbose: bool = False,
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

    def fit(
        self, X: Images, y: Sequence[Any] | np.ndarray, groups: Sequence[Any] | np.ndarray | None = None
    ) -> ImageClassifier:
        """Train on images with their labels (n,). Images of one of `groups` (n,) stay together in the split.

        y (n, labels) of 0 and 1 says which labels each image has, perhaps none; predictions then have this form too.

        Raises UserError where images and labels do not fit together, or nothing can be trained on them.
        """
        from linnaeus.training.run import train

        table, self.classes_ = _table(X, y, groups)
        own = self._own_network()
        with tempfile.TemporaryDirectory(prefix="linnaeus-") as folder:
            run = train(
                table,
                self.recipe,
                model=self.model if own is None else own,
                weights=self.weights,
                epochs=self.epochs,
                out=self.out or Path(folder) / "run",
                settings=self.settings,
                device=self.device,
                seed=self.seed,
                draw=self.out is not None,
                console=Console(quiet=not self.verbose),
            )
            self.metrics_ = run.figures["valid"].to_dict()
            self.check_ = _read_check(run.path)
            self.model_file_ = (run.path / "model.safetensors").read_bytes()
        self._classifier: Classifier | None = None
        return self

    def predict_proba(self, X: Images) -> np.ndarray:
        """(n, classes) float64: calibrated; rows sum to 1, except with several labels. Raises UserError where one is
        unreadable."""
        check_is_fitted(self)
        answers = list(self._loaded().stream(_images(X)))
        return np.stack([_known(answer) for answer in answers]) if answers else np.zeros((0, len(self.classes_)))

    def predict(self, X: Images) -> np.ndarray:
        """(n,) the most likely of `classes_`; with several labels (n, labels) int64, 1 for each that an image has."""
        check_is_fitted(self)
        thresholds = self._loaded().thresholds
        if thresholds is not None:
            return (self.predict_proba(X) >= thresholds).astype(np.int64)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def score(self, X: Images, y: Sequence[Any] | np.ndarray, sample_weight: Any = None) -> float:
        """Accuracy, in 0..1; with several labels, of all of them together.

        Labels that were not in training count as wrong, with a warning.

        Raises UserError where images and labels do not fit together, a label is missing, or none was in training.
        """
        check_is_fitted(self)
        images, labels = _images(X), np.asarray(y)
        if labels.ndim == 2:
            _check_lengths(images, "score", labels=labels[:, 0], sample_weight=sample_weight)
            has = _indicator(y, labels, "score")[1]
            return float(np.average((self.predict(images) == has).all(1), weights=sample_weight))
        _check_lengths(images, "score", labels=labels, sample_weight=sample_weight)
        _check_labels(list(y), labels, "score")
        known = [label in self.classes_.tolist() for label in labels.tolist()]
        first = next((label for label, is_known in zip(labels.tolist(), known, strict=True) if not is_known), None)
        if len(known) and not any(known):
            raise UserError(
                f"score: no label was in training, such as {first!r}; the classes are {_listed(self.classes_)}; give "
                "labels of the same form as to fit"
            )
        if not all(known):
            warnings.warn(
                f"score: {known.count(False)} of {len(known)} labels were not in training, such as {first!r}; they "
                "count as wrong",
                stacklevel=2,
            )
        if not len(known):
            raise UserError("score: no images; give at least one")
        right = np.array([a == b for a, b in zip(self.predict(images).tolist(), labels.tolist(), strict=True)])
        return float(np.average(right, weights=sample_weight))

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


def _table(
    X: Images, y: Sequence[Any] | np.ndarray, groups: Sequence[Any] | np.ndarray | None
) -> tuple[Table, np.ndarray]:
    """The images as a table, unsplit, and the labels' values in class order."""
    labels = np.asarray(y)
    images = _images(X)
    _check_lengths(images, "fit", labels=labels if labels.ndim != 2 else labels[:, 0], groups=groups)
    if labels.ndim == 2:
        values, index = _indicator(y, labels, "fit")
    else:
        _check_labels(list(y), labels, "fit")
        values, index = np.unique(labels, return_inverse=True)
    names = tuple(str(value) for value in values)
    table = Table(
        source="the images given to fit",
        kind="arrays" if isinstance(images, np.ndarray) else "paths",
        classes=names,
        names=names,
        labels=index,
        split=np.full(len(images), "", "<U5"),
        paths=None if isinstance(images, np.ndarray) else tuple(str(Path(path).absolute()) for path in images),
        images=images if isinstance(images, np.ndarray) else None,
        groups=None if groups is None else tuple(str(group) for group in groups),
    )
    return table, values


def _indicator(y: Any, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Names of the labels, and (n, labels) bool: which of them each image has. Raises UserError unless 0 and 1."""
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{where}: labels of shape {labels.shape} must be 0 or 1, a column for each label")
    names = np.array([str(name) for name in getattr(y, "columns", range(labels.shape[1]))], object)
    return names, labels.astype(bool)


def _read_check(run: Path) -> dict[str, Any]:
    """The content of check.json; empty where the images are arrays, which are not checked."""
    if not (run / CHECK).exists():
        return {}
    return json.loads((run / CHECK).read_text(encoding="utf-8"))


def _listed(classes: np.ndarray, most: int = 5) -> str:
    shown = ", ".join(map(repr, classes[:most].tolist()))
    return f"{shown} …" if len(classes) > most else shown


def _check_lengths(images: Sequence[Any] | np.ndarray, where: str, **columns: Any) -> None:
    """Raise UserError unless each column that is given has one value for each image."""
    for what, values in columns.items():
        if values is not None and (np.ndim(values) != 1 or len(values) != len(images)):
            raise UserError(f"{where}: {len(images)} images, but {what} of shape {np.shape(values)}; give one for each")


def _check_labels(given: list[Any], labels: np.ndarray, where: str) -> None:
    """Raise UserError where a label is missing, or where labels of several kinds have no order.

    `given` are the values before NumPy made them `labels`, which turns NaN among words into the word "nan", and 1
    beside "1" into the same word.
    """
    missing = [i for i, value in enumerate(given) if _is_missing(value)]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(given)} labels are missing, the first at position {missing[0]} "
            f"({given[missing[0]]}); leave these images out, or label them"
        )
    mixed = labels.dtype.kind in "US" and not all(isinstance(value, str | bytes) for value in given)
    try:
        np.unique(labels)
    except TypeError:
        mixed = True
    if mixed:
        raise UserError(f"{where}: labels of several kinds, which have no order; make them all numbers or all words")


def _is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, or the missing value of pandas, whose comparison is neither true nor false."""
    return label is None or type(label).__name__ in ("NAType", "NaTType") or bool(label != label)


def _images(X: Images) -> np.ndarray | list[str | Path]:
    """Images as one array (n, H, W[, 3]) uint8, or paths."""
    if isinstance(X, np.ndarray) and X.ndim > 1:
        images = X
    else:
        given = list(X)
        if all(isinstance(one, str | Path) for one in given):
            return given
        if len({np.shape(one) for one in given}) > 1:
            raise UserError("images of several sizes: give their paths, or arrays of one size")
        images = np.stack([np.asarray(one) for one in given])
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UserError(
            f"images of shape {images.shape} and type {images.dtype}: give paths, or uint8 (n, H, W) or (n, H, W, 3)"
        )
    return images


def _known(answer: Prediction) -> np.ndarray:
    if answer.probabilities is None:
        raise UserError(f"{answer.path}: {answer.error}; leave it out")
    return answer.probabilities
