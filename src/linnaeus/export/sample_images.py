"""Real images for an export: a sample to compare it with the original on, and another to calibrate int8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from linnaeus.data.images.decode import decode, fit_row
from linnaeus.errors import UserError
from linnaeus.inference.source import LabeledImages, known_images, load_labeled_images
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.parsing import recorded_source

MAX_IMAGES = 1000  # an agreement of 99 % then has a confidence interval of about one percentage point
BATCH = 32


@dataclass(frozen=True)
class SampleImages:
    """Sample of the images of one split, preprocessed for a model."""

    about: ModelFile
    path: Path  # path of the model file
    source: str
    images: LabeledImages
    positions: np.ndarray  # (n,) positions in `images`

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels[self.positions]

    def squares(self, batch: int = BATCH) -> Iterator[torch.Tensor]:
        """Yield the network's view of the images in batches, (N, size, size, C) uint8."""
        for start in range(0, len(self), batch):
            rows, shapes = self.images.rows.gather(self.positions[start : start + batch])
            yield self.about.preprocessing.crop(torch.from_numpy(rows), shapes)

    def raw(self, i: int) -> np.ndarray:
        """Image i at its full size, as another program would read it: (H, W, C) uint8."""
        image = self.images.table.image(int(self.images.indices[self.positions[i]]))
        if isinstance(image, np.ndarray):
            return image if image.ndim == 3 else image[:, :, None]
        return decode(image)

    def square_of(self, raw: np.ndarray) -> torch.Tensor:
        """The network's view of an image of full size, resized by Pillow: (1, size, size, C) uint8."""
        preprocessing = self.about.preprocessing
        row = np.require(fit_row(raw, preprocessing.row_spec), requirements="W")  # torch warns about read-only arrays
        return preprocessing.crop(torch.from_numpy(row)[None], np.array([row.shape[:2]]))

    def part(self, selected: np.ndarray) -> SampleImages:
        return replace(self, positions=self.positions[selected])


def collect_samples(about: ModelFile, path: Path, data: str | None, split: str | None) -> SampleImages:
    """Up to `MAX_IMAGES` images spread over a split, by default validation, else test, else all images.

    Raises UserError, with the option to give, where no images are available.
    """
    source = data or run_source(path)
    if split is None:
        split = _default_split(about, path, source)
    images = load_labeled_images(about, path, source, split)
    return SampleImages(about, path, source, images, spread(len(images.labels), MAX_IMAGES))


def split_calibration(samples: SampleImages, most: int) -> tuple[SampleImages, SampleImages]:
    """Disjoint (images that calibrate the ranges of int8, images to compare on).

    The first are training images if the source has any that are not among `samples`; otherwise both halves come from
    `samples`.
    """
    images = samples.images
    if images.split not in ("train", "all") and len(images.table.where("train")):
        training = load_labeled_images(samples.about, samples.path, samples.source, "train")
        return replace(samples, images=training, positions=spread(len(training.labels), most)), samples
    if len(samples) < 2:
        raise UserError(f"{samples.source}: has one image; int8 needs images to calibrate on and others to compare on")
    order = np.arange(len(samples))
    return samples.part(order[::2][:most]), samples.part(order[1::2])


def run_source(path: Path) -> str:
    """Source of the run that `path` belongs to. Raises UserError if it is unknown or no longer exists."""
    source = recorded_source(path.parent) or ""
    split = path.parent / SPLIT
    if source and (Path(source).exists() or not Path(source).is_absolute()):
        return source
    if not source and split.is_file():
        return str(split)
    reason = f"its training images are no longer in {source}" if source else "it does not record its training images"
    raise UserError(
        f"{path}: {reason}, and an export is compared with its original on real images: give --data SOURCE, a folder "
        "of class folders or any other source that `linnaeus train` takes"
    )


def _default_split(about: ModelFile, path: Path, source: str) -> str:
    """The default split for the comparison: valid, else test, else all images."""
    known = known_images(about, path, source)
    splits = known.table.split if (known.table.split != "").any() else known.all()
    return next((split for split in ("valid", "test") if (splits == split).any()), "all")


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n positions, evenly spaced, so that every class of a source sorted by class is included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
