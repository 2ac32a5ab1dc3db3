"""Classifiers: a model file loaded for prediction, with the preprocessing of validation, in constant memory."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
import torch
from PIL.Image import Image as PillowImage
from torch import nn

from linnaeus.data.batches import Batches
from linnaeus.data.class_names import class_name
from linnaeus.data.images.decode import UnreadableError
from linnaeus.data.images.discarded_color import DiscardedColor
from linnaeus.device import choose_device, steady_heap
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.errors import UserError
from linnaeus.inference.decoding_ahead import decoded_batches
from linnaeus.inference.feature_batches import outputs_of
from linnaeus.inference.forward import local_batches
from linnaeus.inference.in_memory import expanded, is_folder, is_several
from linnaeus.inference.measured_images import MeasuredFigures
from linnaeus.inference.membership import KnownImages
from linnaeus.inference.perceptual import AlteredCopies
from linnaeus.inference.prediction import Answer, Prediction, Predictions
from linnaeus.inference.runners import NOT_FINITE, OnnxRunner, Runner, TorchRunner
from linnaeus.inference.source import LabeledImages, known_images, load_labeled_images, stopped
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.classification import figures
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.metrics.multilabel import Headline, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.agreement import Agreement
from linnaeus.modelfile.onnx import read_onnx
from linnaeus.modelfile.safetensors import ModelFile, describe, model_path, read_header, read_model
from linnaeus.modelfile.schema import read_calibration
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.models import Network, wrap
from linnaeus.stores.samples import Samples

BATCH = 32
UNCALIBRATED = (
    'the model is not calibrated, so its probabilities are unchecked and it never answers "unsure"; linnaeus train RUN '
    "--resume calibrates the model of an unfinished run"
)
Image = str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor | PillowImage | BinaryIO
"""An image file, its bytes, the file opened, a Pillow image of any mode, an array (H, W[, C]) or a tensor ([C, ]H, W),
both uint8 or float in 0..1."""


class Classifier:
    """A trained image classifier, returned by `load`: `predict` classifies images, `evaluate` measures its accuracy."""

    def __init__(self, path: Path, about: ModelFile, run: Runner):
        self.path, self.about, self.run, self.device = path, about, run, run.device
        self.classes, self.names, self.preprocessing = about.classes, about.names, about.preprocessing
        self.color = DiscardedColor(about.preprocessing.load)
        self.several = about.task == "multi-label"  # an image may have several labels, or none
        stored = None if about.calibration is None else read_calibration(describe(about), str(path))
        self.calibration = stored if isinstance(stored, Calibration) else None
        self.label_calibration = stored if isinstance(stored, LabelCalibration) else None
        self.detector = UnknownDetector.read(about.unknown, about.unknown_tensors)

    def __repr__(self) -> str:
        return f"Classifier({str(self.path)!r}, {self.about.arch['name']}, {len(self.classes)} classes)"

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the network, but of an ONNX file, whose session cannot be pickled, only the path."""
        parts = (self.path, self.about, self.run)
        return (load, (self.path.absolute(),)) if isinstance(self.run, OnnxRunner) else (Classifier, parts)

    @property
    def network(self) -> Network:
        """The network as a torch module. Raises UserError for an ONNX file, which contains none."""
        if isinstance(self.run, TorchRunner):
            return self.run.network
        raise UserError(
            f"{self.path}: an ONNX file can only predict; explanations and similar images need the network: give the "
            "run folder or its model.safetensors"
        )

    def on_cpu(self) -> Classifier:
        """This classifier if it runs on the CPU, else a copy that does. The original keeps its device."""
        if self.device.type == "cpu":
            return self
        runner = TorchRunner.of(self.about, copy.deepcopy(self.network), torch.device("cpu"))
        return Classifier(self.path, self.about, runner)

    @property
    def temperature(self) -> float:
        """Divides the logits (temperature scaling); 1 if the model is not calibrated."""
        assert not self.several, "labels are calibrated one by one"
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def threshold(self) -> float:
        """Probability of the most likely class below which the model is unsure; 0 if it never is."""
        return 0.0 if self.calibration is None else self.calibration.rule.threshold

    @property
    def notice(self) -> str:
        """A warning to show before the first answer, such as that the model is not calibrated; else empty."""
        if self.calibration is None:
            return "" if self.label_calibration is not None else UNCALIBRATED
        return self.calibration.rule.notice or (self.detector.notice(self.run.has_distance) if self.detector else "")

    @overload
    def predict(self, images: Image) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[Image]) -> Predictions: ...

    def predict(self, images: Image | Iterable[Image]) -> Prediction | Predictions:
        """Classify one image, or several: a list, a folder, an array (N, H, W, C) or a tensor (N, C, H, W).

        Returns a Prediction for one image, else a list. A folder, also in a list, stands for the images in it and in
        its subfolders. A single image that cannot be read raises UserError; among several, its prediction has an
        `error`. Anything that is not an image raises UserError with its type and position.
        """
        several = is_several(images)
        sequence = cast(Iterable[Image], images) if several else [cast(Image, images)]
        one = not several and not is_folder(images)
        self.color.take_line()  # of a call that failed
        predictions = Predictions(self.stream(sequence if one else expanded(sequence)))
        if line := self.color.take_line():
            warnings.warn(line, stacklevel=2)
        if one:
            predictions[0].readable()
        return predictions[0] if one else predictions

    def stream(self, images: Iterable[Image], batch: int = BATCH) -> Iterator[Prediction]:
        """Classify a stream of images of any length, in their order, with only a few batches in memory.

        Threads decode the next images while the network computes the current ones.
        """
        batches = decoded_batches(images, self.color.load, self.preprocessing.bits, batch)
        with steady_heap(), closing(batches):
            for tasks in batches:
                yield from self._predict_batch(tasks)

    def _predict_batch(self, tasks: list[tuple[str, Future[np.ndarray]]]) -> Iterator[Prediction]:
        """Predictions for the (name, decoded image) of each task."""
        images: list[np.ndarray] = []
        errors: list[str | None] = []
        # Images that cannot be read keep their place in the results.
        for _, future in tasks:
            try:
                images.append(future.result())
                errors.append(None)
            except UnreadableError as error:
                errors.append(error.reason)
        readable = iter(zip(images, self.answers(np.stack(images)) if images else [], strict=True))
        for (path, _), reason in zip(tasks, errors, strict=True):
            if reason is None:
                yield self.prediction(path, *next(readable))
            else:
                yield Prediction(path, self.classes, self.names, None, error=reason)

    def answers(self, images: np.ndarray) -> list[Answer]:
        """Probabilities and distances of cropped images (N, size, size, channels) uint8."""
        scores = self.run.scores(torch.from_numpy(images))
        probabilities = self.calibrated_logits(scores.logits).probabilities
        distances = [None] * len(images) if scores.distances is None else scores.distances.tolist()
        return [Answer(p, d) for p, d in zip(probabilities, distances, strict=True)]

    def prediction(self, path: str, image: np.ndarray, answer: Answer) -> Prediction:
        """The prediction for a cropped image (size, size, channels) uint8.

        If a probability is not finite, the prediction has an `error`.
        """
        if not np.isfinite(answer.probabilities).all():
            return Prediction(path, self.classes, self.names, None, error=NOT_FINITE)
        return Prediction(
            path,
            self.classes,
            self.names,
            answer.probabilities,
            image=image,
            threshold=self.threshold,
            distance=answer.distance,
            limits=None if self.detector is None else self.detector.thresholds,
            thresholds=self.thresholds,
        )

    def calibrated(self, outputs: Outputs) -> Outputs:
        """The outputs with the model's calibrated probabilities."""
        if self.several:
            return outputs if self.label_calibration is None else self.label_calibration.apply(outputs)
        return outputs.at(self.temperature)

    def calibrated_logits(self, logits: np.ndarray) -> Outputs:
        """Calibrated outputs of images whose labels are unknown, by their logits (N, classes)."""
        labels = np.zeros(logits.shape, bool) if self.several else np.zeros(len(logits), np.int64)
        return self.calibrated(Outputs(labels, logits))

    @property
    def thresholds(self) -> np.ndarray | None:
        """(classes,) smallest probability at which each label is assigned; None if every image has one label."""
        stored = self.label_calibration or LabelCalibration.none(len(self.classes))
        return stored.thresholds if self.several else None

    def figures(self, outputs: Outputs) -> Headline:
        """Headline metrics of uncalibrated `outputs`, with the model's calibration and thresholds."""
        calibrated = self.calibrated(outputs)
        if self.several:
            return label_figures(calibrated, calibrated.probabilities >= self.thresholds)
        return figures(calibrated)

    def require_one_label(self, purpose: str) -> None:
        """Raise UserError, naming the `purpose`, for a model with several labels per image."""
        if self.several:
            raise UserError(
                f"{self.path}: gives images several labels (task multi-label), which {purpose} does not support; "
                "docs/howto/several-labels.md lists what does"
            )

    def images(self, source: Any, split: str | None = None) -> LabeledImages:
        """The images of a split of a source, a path or a DataFrame, with their labels in the model's classes.

        `split` None means test if the source has one, else valid, else all. Images that the model was trained on are
        left out, unless `split` is train; those that selected the model are returned separately, as `validation`.
        """
        return load_labeled_images(self.about, self.path, source, split)

    def color_line(self, images: LabeledImages) -> str:
        """A warning if some of the images are in color and the model sees only gray; else empty.

        The decoded images may come from a store, in which they are gray, so some are decoded again.
        """
        if self.preprocessing.channels != 1 or images.table.channels == 1 or not len(images.indices):
            return ""
        self.color.sample(len(images.indices), lambda k: images.table.image(int(images.indices[k])))
        return self.color.take_line()

    def known_images(self, source: Any) -> KnownImages:
        """The images of a source, and which of them the model was trained on."""
        return known_images(self.about, self.path, source)

    def outputs(self, images: LabeledImages, group: ProcessGroup = SINGLE_PROCESS) -> Outputs:
        """Uncalibrated outputs for the images. Each process of `group` computes a share; all receive the result."""
        samples = Samples(images.rows, images.labels)
        outputs = outputs_of(self.run, self.preprocessing, samples, self.batches(images, group), group)
        return replace(outputs, groups=images.groups)

    def batches(self, images: LabeledImages, group: ProcessGroup = SINGLE_PROCESS) -> Batches:
        """This process's share of the images in batches, as `outputs` uses them."""
        return local_batches(images.rows, images.labels, BATCH, self.device, group)

    def evaluate(self, source: Any, split: str | None = None) -> MeasuredFigures:
        """Metrics with calibrated probabilities, and the confusion matrix, on a split of a source.

        `source` and `split` are those of `images`. With several labels per image, the result is `LabelFigures`, which
        has no confusion matrix. Warns if training images are left out and if the metrics are optimistic.
        """
        images = self.images(source, split)
        altered, outputs = AlteredCopies.among(images, self.about, self.path), self.outputs(images)
        lines = altered.warning(lambda kept: self.figures(outputs.take(kept))), self.color_line(images)
        for line in filter(None, (stopped(self.about), *images.notes(), *lines)):
            warnings.warn(f"{images.source}: {line}", stacklevel=2)
        if self.several:
            return self.figures(outputs)  # type: ignore[return-value]
        limits = None if self.detector is None else self.detector.thresholds
        return MeasuredFigures(images, self.calibrated(outputs), self.names, self.threshold, limits, altered.found)

    def true_class(self, path: str) -> int | None:
        """Index of the class named like the folder of the image; None if there is none."""
        parent = class_name(Path(path).absolute().parent.name)
        return self.classes.index(parent) if parent in self.classes else None


def load(path: str | Path, *, device: str = "auto", model: nn.Module | None = None) -> Classifier:
    """Load a run folder or a model file: a model.safetensors, or an ONNX file that `linnaeus export` wrote.

    `model` is the module of a custom network, whose code a model file does not hold.
    Raises UserError, naming the file, if it is not a model file, is damaged, or has an unknown format.
    """
    path = model_path(path)
    if path.suffix.lower() == ".onnx":
        if device not in ("auto", "cpu"):
            raise UserError(f"--device {device}: {path} runs on CPU only; give the run folder or its model.safetensors")
        if model is not None:
            raise UserError(f"{path}: an ONNX file contains its network; leave out --model, or model=")
        session, about, export = read_onnx(path)
        runner = OnnxRunner(session, about.preprocessing, str(export["kind"]), Agreement.of_record(export))
        return Classifier(path, about, runner)
    chosen = choose_device(device)
    # A custom network is wrapped with the sizes of the file, so that a mismatch is reported by name.
    arch = {} if model is None else read_header(path).arch
    custom = None if model is None else wrap(model, int(arch["classes"]), int(arch["channels"]))
    network, about = read_model(path, custom)
    return Classifier(path, about, TorchRunner.of(about, network, chosen))
