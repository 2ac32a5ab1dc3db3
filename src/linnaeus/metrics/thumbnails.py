"""Distance of small images in their pixels, for what the features of a network cannot tell.

A network that few small images trained keeps of an image only what tells its classes apart: the features of a photo can
be those of a digit. Thumbnails of both differ. Where images are so alike that the nearest thumbnail has the right
class, an image whose thumbnail is far from all of them is something else; other images, such as photos, have no such
distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnaeus.metrics.ood import distances, unit
from linnaeus.metrics.reference_vectors import reference_vectors

SIDE = 8  # pixels a side of a thumbnail
LARGEST_SIZE = 64
"""Input size of the networks whose images are compared: reading larger ones takes long, and they are photos."""
SAME_CLASS = 0.8
"""Share of validation images whose nearest training thumbnail must have their class. It was 98 % on scikit-learn's
digits, 92 % on MNIST, 31 % on CIFAR-10 and 33 % on 16 kinds of flowers."""
MOST = 512  # centers of thumbnails: the model file should hold no images of the training
IMAGES_PER_CENTER = 4
QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Centers of the thumbnails of the training images, and how their distance counts beside that of the features."""

    vectors: np.ndarray  # (k, SIDE * SIDE * channels) float16 of length 1
    scale: float  # factor on the distance that makes it comparable with that of the features

    def farther(self, distance: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
        """The larger of the distance (n,) of features and that of `thumbnails` (n, SIDE * SIDE * channels)."""
        return np.maximum(distance, self.scale * distances(thumbnails, self.vectors))


def area_weights(size: int) -> np.ndarray:
    """(SIDE, size) float32: how much each of `size` pixels counts in each pixel of a thumbnail; a row sums to 1."""
    edges = np.arange(SIDE + 1) * size / SIDE
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.maximum(overlap, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def choose_thumbnails(
    train: np.ndarray, labels: np.ndarray, valid: np.ndarray, valid_labels: np.ndarray, distance: np.ndarray
) -> Thumbnails | None:
    """Thumbnails of training and validation images (n, d) with their labels; None where they do not tell the classes.

    `distance` (n,): that of the features of the validation images. Both distances get the same upper quantile.
    """
    vectors = unit(train)
    nearest = (unit(valid) @ vectors.T).argmax(1)
    if (labels[nearest] == valid_labels).mean() < SAME_CLASS:
        return None
    centers = reference_vectors(train, labels, most=min(MOST, max(1, len(train) // IMAGES_PER_CENTER)))
    usual = float(np.quantile(distances(valid, centers), QUANTILE))
    usual_of_features = float(np.quantile(distance, QUANTILE))  # 0 where a network gives all images the same features
    return Thumbnails(centers, usual_of_features / usual) if min(usual, usual_of_features) > 0 else None
