"""Detector of unknown images, fitted at the end of a run: references from training images, thresholds on validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from linnaeus.console import counted
from linnaeus.data.batches import Rows, Subset
from linnaeus.inference.forward import answer, local_batches
from linnaeus.inference.runners import thumbnails_of
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.ood import Thresholds, choose_thresholds
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.reference_vectors import MOST_BYTES, reference_vectors
from linnaeus.metrics.thumbnails import LARGEST_SIZE, Thumbnails, choose_thumbnails
from linnaeus.modelfile.unknown import OPTIMISTIC, UnknownDetector
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.text import percent, percent_range
from linnaeus.training.finish.cross_validated import cross_validated_thresholds
from linnaeus.training.finish.leave_class_out import LeftOut, leave_classes_out, mean_interval
from linnaeus.training.setup.prepare import Prepared
from linnaeus.training.streams import Streams

SAMPLE = 2048  # training images whose features are used, the same number of each class where there are enough
SAMPLE_BYTES = 256 << 20
"""Size of these features in float32: of more than 32,768 features an image, fewer images are used."""
BATCH = 32  # more at once take more memory and more time an image


@dataclass(frozen=True, eq=False)
class TrainingFeatures:
    """What the head of the final network sees of a sample of the training images."""

    values: np.ndarray  # (n, features) float32
    labels: np.ndarray  # (n,) int64
    trained: bool  # whether the stages that compute them were trained on these images, in this run or before
    images: np.ndarray  # (n,): the images, as indices of the training samples
    groups: np.ndarray | None  # (n,): images of a group belong together; None where each stands alone


def training_features(prepared: Prepared, network: Network, streams: Streams) -> TrainingFeatures | None:
    """Features of a sample of the training images, from the stores where they are; all ranks get the same.

    None for a network of one piece, which has no features below a head, and for one with too many features.
    """
    if not network.has_features:
        return None
    engine, samples, preprocessing = prepared.engine, prepared.samples["train"], prepared.preprocessing
    stored = streams.head_features()
    if not all(engine.all_gather(stored is not None)):
        stored = None

    def of_rows(indices: np.ndarray) -> np.ndarray:
        assert stored is not None
        rows, _ = stored.gather(indices)
        return network.features(torch.from_numpy(np.asarray(rows)).float()).numpy()

    network.eval()
    width = _width(network, preprocessing, engine.device) if stored is None else of_rows(np.arange(1)).shape[1]
    if not (most := sample_size(width)):
        return None
    chosen = balanced_sample(samples.labels, most)
    labels = samples.labels[chosen]
    groups = None if samples.folds is None else samples.folds[chosen]
    trained = streams.body_has_seen(len(streams.phases))
    if stored is not None:
        values = of_rows(chosen * (len(stored) // len(samples)))  # the first view of each image
        return TrainingFeatures(values, labels, trained, chosen, groups)
    batches = local_batches(Subset(samples.rows, chosen), labels, BATCH, engine.device, engine)
    features = answer(network.pooled_features, batches, preprocessing.of_batch, engine, engine.autocast)
    return TrainingFeatures(features.logits, labels, trained, chosen, groups)


def sample_size(width: int) -> int:
    """Training images whose features, `width` each, are used; 0 where not one reference of them fits."""
    return 0 if 2 * width > MOST_BYTES else min(SAMPLE, SAMPLE_BYTES // (4 * width))


@torch.inference_mode()
def _width(network: Network, preprocessing: Preprocessing, device: torch.device) -> int:
    """Number of features of an image, below the head."""
    images = torch.zeros(1, preprocessing.channels, preprocessing.size, preprocessing.size, device=device)
    return network.pooled_features(images).shape[1]


def balanced_sample(labels: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` images, ascending: one image of each class, then a second one of each, and so on."""
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
    return np.sort(by_class[np.argsort(position, kind="stable")[:most]])


@dataclass(frozen=True, eq=False)
class FittedDetector:
    """How the model recognizes unknown images, and what was measured of it."""

    detector: UnknownDetector
    left_out: LeftOut | None
    trained_features: bool
    accepted: dict[str, tuple[np.ndarray, np.ndarray | None]]
    """Split -> which of its n images are accepted, (n,) bool, and their groups; validation chose the thresholds."""
    classes: tuple[str, ...]  # the classes of the model

    @property
    def thresholds(self) -> Thresholds:
        return self.detector.thresholds

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        splits = {
            split: {
                "n": len(known),
                "accepted": int(known.sum()),
                "share": float(known.mean()),
                "share_ci95": list(proportion_interval(known, groups)),
                **({} if groups is None else {"groups": len(np.unique(groups))}),
            }
            for split, (known, groups) in self.accepted.items()
        }
        return {
            **{key: value for key, value in self.detector.to_dict().items() if key != "measured"},
            "known": splits,
            "left_out_classes": None if self.left_out is None else self.left_out.to_dict(self.classes),
            "trained_features": self.trained_features,
        }

    def line(self) -> str:
        """A line for the terminal; the report has the thresholds and the figures of each class."""
        limits = self.thresholds
        text = f"{limits.accepted:,} of {limits.n:,} {limits.chosen_on} are accepted as known"
        target, groups = percent(limits.target, 0), self.accepted["valid"][1]
        if groups is not None:
            n = len(np.unique(groups))
            text += f" (validation: {counted(n, 'group')} of images; fewer than {target} of those of new groups may be)"
        elif limits.few:
            assured = percent(limits.assured, 0)
            text += f" (too few to guarantee {target} of new images; {assured} are sure)"
        if self.left_out is not None:
            accepted = self.left_out.accepted
            text += f"; of a class that was left out of training, {percent(accepted.mean(), 0)} of the images are"
            text += f" accepted too ({percent_range(mean_interval(accepted), 0)}"
            text += f"{OPTIMISTIC if self.trained_features else ''})"
        return text


def references_of(features: TrainingFeatures | None) -> np.ndarray | None:
    """The compact references of the training images; None without features."""
    return None if features is None else reference_vectors(features.values, features.labels)


def with_thumbnails(
    prepared: Prepared, features: TrainingFeatures | None, outputs: dict[str, Outputs]
) -> tuple[Thumbnails | None, dict[str, Outputs]]:
    """Thumbnails of the training images, where they are small and tell the classes, and the outputs by split with
    distances that count them; all ranks get the same. `outputs` have the distances of the features, if any."""
    near = outputs["valid"].distances
    if features is None or near is None or prepared.preprocessing.size > LARGEST_SIZE:
        return None, outputs
    engine, preprocessing = prepared.engine, prepared.preprocessing

    def small(rows: Rows, labels: np.ndarray) -> np.ndarray:
        batches = local_batches(rows, labels, BATCH, engine.device, engine)
        return answer(thumbnails_of, batches, preprocessing.of_batch, engine).logits

    train = small(Subset(prepared.samples["train"].rows, features.images), features.labels)
    splits = {split: small(prepared.samples[split].rows, out.labels) for split, out in outputs.items()}
    unseen = np.flatnonzero(prepared.unseen.get("valid", np.ones(len(near), bool)))
    chosen = unseen[balanced_sample(outputs["valid"].labels[unseen], SAMPLE)]
    valid, labels = splits["valid"][chosen], outputs["valid"].labels[chosen]
    thumbnails = choose_thumbnails(train, features.labels, valid, labels, near[chosen])
    if thumbnails is None:
        return None, outputs
    counted = {
        split: replace(out, distances=thumbnails.farther(out.distances, splits[split]))
        for split, out in outputs.items()
        if out.distances is not None
    }
    return thumbnails, outputs | counted


def fit_detector(
    features: TrainingFeatures | None,
    references: np.ndarray | None,
    thumbnails: Thumbnails | None,
    calibrated: dict[str, Outputs],
    temperature: float,
    classes: tuple[str, ...],
    unseen: Mapping[str, np.ndarray],
) -> FittedDetector:
    """Thresholds, and what they accept of each split; classes are left out in turn.

    Validation chooses the thresholds. Where it has too few images, and the features were not trained on the training
    images, cross-validated training images choose as well. `unseen`, (n,) bool by split, are the images that count,
    where not all do.
    """
    calibrated = {split: out.take(unseen[split]) if split in unseen else out for split, out in calibrated.items()}
    valid = calibrated["valid"]
    thresholds = choose_thresholds(valid.distances, valid.confidence)
    if thresholds.few and thumbnails is None and features is not None and not features.trained:
        thresholds = cross_validated_thresholds(features.values, features.labels, features.groups, temperature, valid)
    accepted = {
        split: (~thresholds.unknown(outputs.distances, outputs.confidence), outputs.groups)
        for split, outputs in calibrated.items()
    }
    left_out = None if features is None else leave_classes_out(features.values, features.labels, features.groups)
    trained = features is not None and features.trained
    measured: dict[str, Any] = {}
    if left_out is not None:
        measured["left_out_classes"] = left_out.to_dict(classes) | {"trained_features": trained}
    detector = UnknownDetector(thresholds, references, measured, thumbnails)
    return FittedDetector(detector, left_out, trained, accepted, classes)
