"""Predicting with a model file: the same preprocessing as validation, in constant memory."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from linnaeus.calibrate import Calibration
from linnaeus.data.batches import Rows, Subset
from linnaeus.data.decode import IMAGE_SUFFIXES, UnreadableError
from linnaeus.data.names import class_name, listed, natural_key
from linnaeus.data.table import NEAR_DUPLICATES, Table
from linnaeus.device import choose_device
from linnaeus.errors import UserError, did_you_mean
from linnaeus.evaluate import Figures, Outputs, answer_pixels, figures
from linnaeus.modelfile import model_path, read_model
from linnaeus.models import Network, wrap

BATCH = 32
Image = str | Path | bytes | np.ndarray
"""A file, its bytes, or its pixels (H, W) or (H, W, 3) uint8."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one picture."""

    path: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: np.ndarray | None
    """(classes,) float64, summing to 1; None where the picture cannot be read."""
    error: str | None = None
    picture: np.ndarray | None = None
    """(size, size, channels) uint8: what the network saw."""
    threshold: float = 0.0
    """The probability from which on the model answers; below it, it is unsure."""

    @property
    def index(self) -> int:
        """The most likely class. Raises UserError where the picture could not be read."""
        return int(self._known().argmax())

    @property
    def name(self) -> str:
        return self.names[self.index]

    @property
    def probability(self) -> float:
        return float(self._known().max())

    @property
    def unsure(self) -> bool:
        """Whether the most likely class is less likely than what the model was calibrated to answer from."""
        return self.probabilities is not None and self.probability < self.threshold

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """(display name, probability) of the k most likely classes, the likeliest first."""
        return [(self.names[i], p) for i, p in self.ranked(k)]

    def ranked(self, k: int) -> list[tuple[int, float]]:
        """(class index, probability) of the k most likely classes."""
        known = self._known()
        return [(int(i), float(known[i])) for i in np.argsort(-known, kind="stable")[:k]]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The JSON line of `linnaeus predict`."""
        top = [] if self.probabilities is None else self.ranked(k)
        return {
            "path": self.path,
            "top": [{"class": self.classes[i], "name": self.names[i], "probability": p} for i, p in top],
            "unsure": self.unsure,
            "error": self.error,
        }

    def _known(self) -> np.ndarray:
        if self.probabilities is None:
            raise UserError(f"{self.path}: {self.error}")
        return self.probabilities


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split of a source, decoded, with their labels in a model's classes."""

    split: str
    rows: Rows
    labels: np.ndarray
    """(n,) int64."""
    left_out: list[tuple[str, str]]
    """(picture, reason) of what could not be read."""
    trained_on: int
    """How many of the pictures the model was trained on, where that can be told: the source is that of its training."""
    calibrated_on: bool
    """Whether the model's calibration was fitted on any of them, where that can be told."""
    table: Table
    """Of the whole source."""
    indices: np.ndarray
    """(n,) int64: the sample of the table that each picture is."""


class Classifier:
    """A trained network with its classes and its preprocessing; made by `load`."""

    def __init__(self, path: Path, device: str = "auto", model: nn.Module | None = None):
        self.path = path
        own: Network | None = None
        if model is not None:
            from linnaeus.modelfile import read_header

            arch = read_header(path).arch
            own = wrap(model, int(arch["classes"]), int(arch["channels"]))
        self.network, self.about = read_model(path, own)
        self.device = choose_device(device)
        self.network.to(self.device)
        self.classes, self.names = self.about.classes, self.about.names
        self.preprocessing = self.about.preprocessing
        stored = self.about.calibration
        self.calibration = None if stored is None else Calibration.from_dict(stored, str(path))

    @property
    def temperature(self) -> float:
        """What logits are divided by; 1 where the model was never calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def threshold(self) -> float:
        """The probability from which on the model answers; 0 where it answers everything."""
        return 0.0 if self.calibration is None else self.calibration.rule.threshold

    @overload
    def predict(self, images: Image) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[Image]) -> list[Prediction]: ...

    def predict(self, images: Image | Sequence[Image]) -> Prediction | list[Prediction]:
        """Predict one picture or several. One that cannot be read raises UserError alone, and has `error` in a list."""
        if isinstance(images, str | Path | bytes | np.ndarray):
            single = next(self.stream([images]))
            single._known()
            return single
        return list(self.stream(images))

    def stream(self, images: Iterable[Image], batch: int = BATCH) -> Iterator[Prediction]:
        """Predictions in the order of the pictures, however many: only a few batches are in memory at a time.

        Threads decode the next pictures while the network works on these.
        """
        threads = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, "linnaeus-decode") as pool:
            waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
            source = enumerate(images, start=1)
            try:
                while True:
                    while len(waiting) < 2 * batch and (one := next(source, None)) is not None:
                        number, image = one
                        name = os.fspath(image) if isinstance(image, str | Path) else f"picture {number}"
                        waiting.append((name, pool.submit(self.preprocessing.load, image)))
                    if not waiting:
                        return
                    yield from self._batch([waiting.popleft() for _ in range(min(batch, len(waiting)))])
            finally:
                for _, future in waiting:
                    future.cancel()

    def _batch(self, tasks: list[tuple[str, Future[np.ndarray]]]) -> Iterator[Prediction]:
        pictures: list[np.ndarray] = []
        errors: list[str | None] = []
        for _, future in tasks:
            try:
                pictures.append(future.result())
                errors.append(None)
            except UnreadableError as error:
                errors.append(error.reason)
        probabilities = iter(self.probabilities(np.stack(pictures)) if pictures else [])
        seen = iter(pictures)
        for (path, _), reason in zip(tasks, errors, strict=True):
            if reason is None:
                yield Prediction(
                    path, self.classes, self.names, next(probabilities), picture=next(seen), threshold=self.threshold
                )
            else:
                yield Prediction(path, self.classes, self.names, None, error=reason)

    @torch.inference_mode()
    def probabilities(self, pictures: np.ndarray) -> np.ndarray:
        """(N, size, size, channels) uint8, as `preprocessing.load` gives them -> (N, classes) float64, calibrated."""
        x = self.preprocessing.normalise(torch.from_numpy(pictures).to(self.device))
        logits = self.network(x).float().cpu().numpy()
        return Outputs(np.zeros(len(logits), np.int64), logits).at(self.temperature).probabilities

    def pictures(self, source: str | Path, split: str | None = None) -> Pictures:
        """The pictures of a split of a source, with their labels in the model's classes.

        Without `split`: test where the source has one, else valid, else all. A source without parts of its own, which
        this model was trained on, is split as it was then; "all" would count what it was trained on.
        """
        from linnaeus.stores import default_cache
        from linnaeus.stores.pixels import build_pixels
        from linnaeus.stores.pixelstore import readable

        table, same = self.table(source)
        self._check_classes(source, table.classes)
        parts = [part or "all" for part in table.counts()]
        split = split or next((part for part in ("test", "valid") if part in parts), "all")
        indices = np.arange(len(table)) if split == "all" else table.where(split)
        if not len(indices):
            raise UserError(f"{source}: has no split {split!r}; choose from {', '.join({*parts, 'all'})}")
        rows = build_pixels(table, indices, self.preprocessing.row_spec, cache=default_cache())
        good = readable(rows)
        left_out = [(table.sample_id(int(indices[row])), reason) for row, reason in sorted(rows.failed.items())]
        if not len(good):
            raise UserError(
                f"{source}: none of the {len(indices)} pictures can be read, such as {': '.join(left_out[0])}"
            )
        indices = indices[good]
        labels = np.array([self.classes.index(name) for name in table.classes])[table.labels[indices]]
        seen = table.split[indices] if same else np.array([])
        fitted = self.calibration is not None and bool((seen == self.calibration.split).any())
        return Pictures(
            split, Subset(rows, good), labels, left_out, int((seen == "train").sum()), fitted, table, indices
        )

    def outputs(self, pictures: Pictures) -> Outputs:
        """What the network answers to pictures, uncalibrated."""
        return answer_pixels(
            self.network, self.preprocessing, pictures.rows, pictures.labels, batch=BATCH, device=self.device
        )

    def _check_classes(self, source: str | Path, classes: tuple[str, ...]) -> None:
        """Raise UserError unless the model knows every class; some of its own may be missing."""
        unknown = [name for name in classes if name not in self.classes]
        if not unknown:
            return
        near = did_you_mean(unknown[0], self.classes)
        unmet = [name for name in self.classes if name not in classes]
        only = f"; it knows {listed(unmet, 20)}, not in the source" if unmet else ""
        raise UserError(
            f"{source}: the model does not know {listed(unknown, 20)}{near}{only}; rename what is the same, "
            "and leave out the rest"
        )

    def table(self, source: str | Path) -> tuple[Table, bool]:
        """The source's table, and whether it is the one that this model was trained on; it is then split as it was."""
        from linnaeus.data.sources import open_source
        from linnaeus.data.table import split_table

        data = self.about.recipe.get("data", {})
        lists = {key: data.get(key) for key in ("train", "valid", "test")}
        on_test = lists["valid"] == "test"
        share = data.get("split")
        groups = (share or {}).get("groups")
        named = (lists | {"valid": None} if on_test else lists) if Path(source).is_dir() else {}
        column = None if groups == NEAR_DUPLICATES else groups
        try:
            table = open_source(source, **named, group=column)
        except UserError:
            if column is None:
                raise
            table = open_source(source, **named)  # another source has no such column
        if groups == NEAR_DUPLICATES and (table.split == "").any() and len(table) >= sum(self._counts):
            raise UserError(
                f"{source}: the model was trained on a split that keeps copies together, which is not drawn again "
                f"here; give the run's own: {self.path.parent / 'split.csv'}"
            )
        if share is None or not (table.where("train").size or table.where("").size):
            return table, False
        try:
            again = split_table(
                table, valid=share["valid"], test=share["test"], seed=share["seed"], valid_is_test=on_test
            )
        except (UserError, KeyError, TypeError):  # another source than that of the training
            return table, False
        same = again.fingerprint() == self.about.data.get("fingerprint")
        return (again, True) if same else (table, False)

    @property
    def _counts(self) -> list[int]:
        """Pictures of each split that the model was trained and judged on."""
        return [int(n) for n in self.about.data.get("counts", {}).values()]

    def evaluate(self, source: str | Path, split: str | None = None) -> Figures:
        """The figures on `split` of a source, calibrated; `pictures` says which that is where none is named."""
        return figures(self.outputs(self.pictures(source, split)).at(self.temperature))

    def true_class(self, path: str) -> int | None:
        """The class that the picture's folder tells, where the folder is named like one."""
        parent = class_name(Path(path).absolute().parent.name)
        return self.classes.index(parent) if parent in self.classes else None


def load(path: str | Path, *, device: str = "auto", model: nn.Module | None = None) -> Classifier:
    """Load a run folder or a model file. `model` is for a network of your own, whose code no model file holds.

    Raises UserError, naming the file, where it is no model file, cut short, altered, or of an unknown format.
    """
    return Classifier(model_path(path), device, model)


def expand(images: Iterable[str], lines: Iterable[str] = ()) -> Iterator[str]:
    """Files, folders (all pictures below, in natural order), globs, and `-` for `lines` -> paths of pictures.

    Raises UserError for a folder without pictures and a glob that fits nothing. A single file that is not there comes
    out all the same: it is reported as unreadable in its place and does not stop the rest.
    """
    for image in images:
        if image == "-":
            yield from (line.rstrip("\r\n") for line in lines if line.strip())
        elif Path(image).is_dir():
            found = False
            for path in _walk(Path(image)):
                found = True
                yield path
            if not found:
                raise UserError(
                    f"{image}: no pictures in this folder; pictures end in {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
        elif glob.has_magic(image) and not Path(image).exists():
            matches = sorted(glob.glob(image, recursive=True), key=natural_key)  # noqa: PTH207 - takes absolute patterns too
            if not matches:
                raise UserError(f"{image}: no file fits this pattern")
            yield from (match for match in matches if not Path(match).is_dir())
        else:
            yield image


def _walk(folder: Path) -> Iterator[str]:
    """Pictures below `folder`, folder by folder, in natural order; hidden ones are passed over."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: natural_key(e.name))
    for entry in visible:
        if entry.is_file() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield entry.path
    for entry in visible:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
