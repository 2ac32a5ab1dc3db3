"""Predicting with a model file: the same preprocessing as validation, in constant memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from linnaeus.data.batches import Batch, Batches
from linnaeus.data.class_names import class_name
from linnaeus.data.decode import UnreadableError
from linnaeus.data.table import Table
from linnaeus.device import choose_device
from linnaeus.distributed.environment import process_info
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.distributed.launch import threads_per_process
from linnaeus.errors import UserError
from linnaeus.inference.forward import answer, local_batches
from linnaeus.inference.runners import OnnxRunner, Runner, TorchRunner
from linnaeus.inference.source import LabeledImages, load_labeled_images, reopen_source
from linnaeus.malloc import steady_heap
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.classification import Figures, figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.onnx import read_onnx
from linnaeus.modelfile.safetensors import ModelFile, model_path, read_header, read_model
from linnaeus.models import Network, wrap

BATCH = 32
Image = str | Path | bytes | np.ndarray
"""A file, its bytes, or its pixels (H, W) or (H, W, 3) uint8."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image."""

    path: str
    """As it was given; `image N` for what has no path."""
    classes: tuple[str, ...]
    """Class names in index order."""
    names: tuple[str, ...]
    """How to show them."""
    probabilities: np.ndarray | None
    """(classes,) float64, summing to 1; None where the image cannot be read."""
    error: str | None = None
    """Why the image cannot be read."""
    image: np.ndarray | None = None
    """(size, size, channels) uint8: what the network saw."""
    threshold: float = 0.0
    """The probability from which on the model answers; below it, it is unsure."""

    @property
    def index(self) -> int:
        """The most likely class. Raises UserError where the image could not be read."""
        return int(self._known().argmax())

    @property
    def name(self) -> str:
        """The most likely class, as it is shown."""
        return self.names[self.index]

    @property
    def probability(self) -> float:
        """Of the most likely class, calibrated."""
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


class Classifier:
    """A trained network, in whatever runs it, with its classes and its preprocessing; made by `load`."""

    def __init__(self, path: Path, about: ModelFile, run: Runner):
        self.path, self.about, self.run = path, about, run
        self.device = run.device
        self.classes, self.names = about.classes, about.names
        self.preprocessing = about.preprocessing
        stored = about.calibration
        self.calibration = None if stored is None else Calibration.from_dict(stored, str(path))

    @property
    def network(self) -> Network:
        """The torch network, for those who look inside. Raises UserError where an ONNX file runs, which has none."""
        if isinstance(self.run, TorchRunner):
            return self.run.network
        raise UserError(
            f"{self.path}: an ONNX file gives answers alone; explaining and comparing images need the network: "
            "give the run folder or its model.safetensors"
        )

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
        """Predict one image or several. One that cannot be read raises UserError alone, and has `error` in a list."""
        if isinstance(images, str | Path | bytes | np.ndarray):
            single = next(self.stream([images]))
            single._known()
            return single
        return list(self.stream(images))

    def stream(self, images: Iterable[Image], batch: int = BATCH) -> Iterator[Prediction]:
        """Predictions in the order of the images, however many: only a few batches are in memory at a time.

        Threads decode the next images while the network works on these.
        """
        threads = threads_per_process(process_info().local_world_size)
        with steady_heap(), ThreadPoolExecutor(threads, "linnaeus-decode") as pool:
            waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
            source = enumerate(images, start=1)
            try:
                while True:
                    while len(waiting) < 2 * batch and (one := next(source, None)) is not None:
                        number, image = one
                        name = os.fspath(image) if isinstance(image, str | Path) else f"image {number}"
                        waiting.append((name, pool.submit(self.preprocessing.load, image)))
                    if not waiting:
                        return
                    yield from self._batch([waiting.popleft() for _ in range(min(batch, len(waiting)))])
            finally:
                for _, future in waiting:
                    future.cancel()

    def _batch(self, tasks: list[tuple[str, Future[np.ndarray]]]) -> Iterator[Prediction]:
        squares: list[np.ndarray] = []
        errors: list[str | None] = []
        for _, future in tasks:
            try:
                squares.append(future.result())
                errors.append(None)
            except UnreadableError as error:
                errors.append(error.reason)
        probabilities = iter(self.probabilities(np.stack(squares)) if squares else [])
        seen = iter(squares)
        for (path, _), reason in zip(tasks, errors, strict=True):
            if reason is None:
                yield Prediction(
                    path, self.classes, self.names, next(probabilities), image=next(seen), threshold=self.threshold
                )
            else:
                yield Prediction(path, self.classes, self.names, None, error=reason)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(N, size, size, channels) uint8, as `preprocessing.load` gives them -> (N, classes) float64, calibrated."""
        logits = self.run(torch.from_numpy(images))
        return Outputs(np.zeros(len(logits), np.int64), logits).at(self.temperature).probabilities

    def images(self, source: str | Path, split: str | None = None) -> LabeledImages:
        """The images of a split of a source, with their labels in the model's classes.

        Without `split`: test where the source has one, else valid, else all. A source without parts of its own, which
        this model was trained on, is split as it was then; "all" would count what it was trained on.
        """
        return load_labeled_images(self.about, self.path, source, split)

    def table(self, source: str | Path) -> tuple[Table, bool]:
        """The source's table, and whether it is the one that this model was trained on; it is then split as it was."""
        return reopen_source(self.about, self.path, source)

    def outputs(self, images: LabeledImages, group: ProcessGroup = SINGLE_PROCESS) -> Outputs:
        """Uncalibrated outputs for the images. The processes of `group` compute a share each and all get the whole."""

        def crop(batch: Batch) -> torch.Tensor:
            return self.preprocessing.crop(batch.pixels, batch.shapes)

        outputs = answer(self.run, self.batches(images, group), crop, group)
        return replace(outputs, groups=images.table.group_numbers(images.indices))

    def batches(self, images: LabeledImages, group: ProcessGroup = SINGLE_PROCESS) -> Batches:
        """This process's share of the images, as `outputs` answers them."""
        return local_batches(images.rows, images.labels, BATCH, self.device, group)

    def evaluate(self, source: str | Path, split: str | None = None) -> Figures:
        """The figures on `split` of a source, calibrated; `images` says which that is where none is named."""
        return figures(self.outputs(self.images(source, split)).at(self.temperature))

    def true_class(self, path: str) -> int | None:
        """The class that the image's folder tells, where the folder is named like one."""
        parent = class_name(Path(path).absolute().parent.name)
        return self.classes.index(parent) if parent in self.classes else None


def load(path: str | Path, *, device: str = "auto", model: nn.Module | None = None) -> Classifier:
    """Load a run folder or a model file: a model.safetensors, or an ONNX file that `linnaeus export` wrote.

    `model` is for a network of your own, whose code no model file holds.
    Raises UserError, naming the file, where it is no model file, cut short, altered, or of an unknown format.
    """
    path = model_path(path)
    if path.suffix.lower() == ".onnx":
        if device not in ("auto", "cpu"):
            raise UserError(f"--device {device}: {path} runs on CPU; give the run folder or its model.safetensors")
        if model is not None:
            raise UserError(f"{path}: an ONNX file holds its network; leave out the model's code")
        session, about, export = read_onnx(path)
        return Classifier(path, about, OnnxRunner(session, about.preprocessing, str(export["kind"])))
    chosen = choose_device(device)
    own: Network | None = None
    if model is not None:
        arch = read_header(path).arch
        own = wrap(model, int(arch["classes"]), int(arch["channels"]))
    network, about = read_model(path, own)
    return Classifier(path, about, TorchRunner(network, about.preprocessing, chosen))
