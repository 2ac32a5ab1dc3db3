"""The real images on which an export is compared with its original, and those that show int8 its ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from linnaeus.data.decode import decode, fit_row
from linnaeus.errors import UserError
from linnaeus.inference.source import LabeledImages, load_labeled_images
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.parsing import recorded_source

MOST = 1000  # images of a comparison: an agreement of 99 % has then an interval of about a percent
BATCH = 32


@dataclass(frozen=True)
class Material:
    """LabeledImages of one split, and what a model makes of them before its network."""

    about: ModelFile
    path: Path
    """Path of the model file."""
    source: str
    images: LabeledImages
    chosen: np.ndarray
    """(n,) positions in `images`."""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels[self.chosen]

    def squares(self, batch: int = BATCH) -> Iterator[torch.Tensor]:
        """What the network sees of them, (N, size, size, C) uint8, batch by batch."""
        for start in range(0, len(self), batch):
            rows, shapes = self.images.rows.gather(self.chosen[start : start + batch])
            yield self.about.preprocessing.crop(torch.from_numpy(rows), shapes)

    def raw(self, i: int) -> np.ndarray:
        """Image i as another program reads it, at its full size: (H, W, C) uint8."""
        image = self.images.table.image(int(self.images.indices[self.chosen[i]]))
        if isinstance(image, np.ndarray):
            return image if image.ndim == 3 else image[:, :, None]
        return decode(image)

    def square_of(self, raw: np.ndarray) -> torch.Tensor:
        """What the network sees of an image of full size, resized by Pillow: (1, size, size, C) uint8."""
        preprocessing = self.about.preprocessing
        row = np.require(fit_row(raw, preprocessing.row_spec), requirements="W")  # torch warns of what it may not write
        return preprocessing.crop(torch.from_numpy(row)[None], np.array([row.shape[:2]]))

    def part(self, chosen: np.ndarray) -> Material:
        return replace(self, chosen=self.chosen[chosen])


def collect(about: ModelFile, path: Path, data: str | None, split: str | None, most: int = MOST) -> Material:
    """LabeledImages to compare on, `most` of them spread over the split: by default validation, else what there is.

    Raises UserError, with what to give, where no images are at hand.
    """
    source = data or run_source(path)
    if split is None:
        split = _usual(about, path, source)
    found = load_labeled_images(about, path, source, split)
    return Material(about, path, source, found, spread(len(found.labels), most))


def with_shown(material: Material, most: int) -> tuple[Material, Material]:
    """(images that show int8 its ranges, images to compare on), none of them in both.

    The first are training images where the source has any other than those to compare on; else both share these.
    """
    images = material.images
    if images.split not in ("train", "all") and len(images.table.where("train")):
        found = load_labeled_images(material.about, material.path, material.source, "train")
        return replace(material, images=found, chosen=spread(len(found.labels), most)), material
    if len(material) < 2:
        raise UserError(f"{material.source}: one image is not enough; int8 needs some to see and others to compare on")
    order = np.arange(len(material))
    return material.part(order[::2][:most]), material.part(order[1::2])


def run_source(path: Path) -> str:
    """Where the images of the model's run are. Raises UserError where they are gone, or nobody says."""
    noted = recorded_source(path.parent) or ""
    split = path.parent / SPLIT
    if noted and (Path(noted).exists() or not Path(noted).is_absolute()):
        return noted
    if not noted and split.is_file():
        return str(split)
    where = f"the images of its training are no longer in {noted}" if noted else "it does not say where images are"
    raise UserError(
        f"{path}: {where}, and an export is compared with its original on real ones: give --data SOURCE, a folder of "
        "class folders or whatever else `linnaeus train` takes"
    )


def _usual(about: ModelFile, path: Path, source: str) -> str:
    """The default split for the comparison: valid, else test, else all images."""
    from linnaeus.inference.source import reopen_source

    parts = reopen_source(about, path, source)[0].counts()
    return next((part for part in ("valid", "test") if part in parts), "all")


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n positions, evenly spread: class folders follow each other, and all should be seen."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
