"""The images of a report: read from the source again, cropped as the network sees them, embedded in the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.console import counted
from linnaeus.data.images.decode import RowSpec, UnreadableError, fit_row
from linnaeus.data.images.encode import data_uri, to_pillow
from linnaeus.data.readers.known_sources import known_sources, open_known
from linnaeus.data.table import Table
from linnaeus.device import available_cores
from linnaeus.errors import UserError
from linnaeus.inference.source import open_for_recipe
from linnaeus.preprocess import Preprocessing
from linnaeus.report.heat_maps import HeatMaps
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.reader import RunContents, recorded_contents
from linnaeus.stores.contents import HashedImages
from linnaeus.stores.decoding import Decoding

SMALL, LARGE = 128, 224  # pixels per side: one of many examples, and an image to study
QUALITY = 74
TINY = 48  # an image below this side is stored without loss, and the browser enlarges it pixel by pixel


StoredRow = Callable[[int], np.ndarray | None]
"""Index of an image in its table -> its decoded row (h, w, C) uint8; None where there is none."""


@dataclass(frozen=True)
class Thumbnail:
    """An image in the page."""

    data: str  # a data: address
    side: int
    pixelated: bool

    @classmethod
    def of(cls, pixels: np.ndarray, side: int) -> Thumbnail:
        """(h, h) or (h, h, C) uint8 -> at most `side` pixels per side."""
        square = pixels[:, :, None] if pixels.ndim == 2 else pixels
        small = square.shape[0] < TINY
        if square.shape[0] > side:
            square = fit_row(square, RowSpec(side, "squash", "bilinear", square.shape[2]))
        image = to_pillow(square)
        data = data_uri(image, "PNG" if small else "JPEG", quality=QUALITY, optimize=True)
        return cls(data, image.width, small)


@dataclass(eq=False)
class Thumbnails:
    """The images of a run's source, by index in its table. Without a table there are none; `missing` says why."""

    preprocessing: Preprocessing
    table: Table | None
    draw_heat: HeatMaps | None = None
    stored: StoredRow | None = None
    missing: str = ""
    # (n,) uint64: the content hashes of the images in the run; others of the same names are not shown.
    contents: np.ndarray | None = None
    changed: int = 0  # images that would have been shown so far, but are others than in the run
    _decoded: dict[int, np.ndarray | None] = field(default_factory=dict)

    @cached_property
    def _name_hashes(self) -> np.ndarray:
        """(n,) int64: the hashes of the names of all images, since the names themselves may take 100 bytes each."""
        names = () if self.table is None else map(self.table.sample_id, range(len(self.table)))
        return np.fromiter(map(hash, names), np.int64)

    def find(self, sample: str) -> int | None:
        """The index of an image by its name."""
        same = np.flatnonzero(self._name_hashes == hash(sample)).tolist()
        return next((i for i in same if self.table is not None and self.table.sample_id(i) == sample), None)

    def decode(self, indices: Iterable[int]) -> None:
        """Read many images at once, so that `image` has them: from the store, or decoded by several threads."""
        new = sorted({i for i in indices if i not in self._decoded})
        if (stored := self.stored) is not None:
            for i in new:
                if (kept := stored(i)) is not None:
                    self._decoded[i] = self._crop(kept)
        missing = np.array([i for i in new if i not in self._decoded], np.int64)
        if self.table is None or not len(missing):
            return
        hashed = None if self.contents is None else HashedImages(self.table, None)
        rows = Decoding(hashed or self.table, missing, self.preprocessing.row_spec, available_cores(), None)
        for i, row in zip(missing.tolist(), rows.rows(), strict=True):
            self._decoded[i] = None if isinstance(row, UnreadableError) else self._crop(row)
        if hashed is not None and self.contents is not None:
            changed = hashed.changed(missing, self.contents[missing]).tolist()
            self._decoded |= dict.fromkeys(changed)
            self.changed += len(changed)

    @property
    def note(self) -> str:
        """What a reader must know about the images so far; empty if all are those of the run."""
        if self.missing:
            return f"No images are shown: {self.missing}"
        some = f"{self.changed:,} of {counted(len(self._decoded), 'image')}"
        return f"{some} for this page changed since the run and cannot be shown." if self.changed else ""

    def image(self, i: int | None, side: int = SMALL) -> Thumbnail | None:
        """Image i as the network sees it; None if it cannot be read."""
        if i is None:
            return None
        self.decode([i])
        pixels = self._decoded.get(i)
        return None if pixels is None else Thumbnail.of(pixels, side)

    def heat_maps(self, targets: Mapping[int, int]) -> dict[int, Thumbnail]:
        """Index of an image -> the heat map over it for the class in `targets`; without images that cannot be read."""
        if self.draw_heat is None or self.table is None:
            return {}
        self.decode(targets)
        pixels = {i: image for i in targets if (image := self._decoded[i]) is not None}
        if not pixels:
            return {}
        drawn = self.draw_heat(np.stack([*pixels.values()]), np.array([targets[i] for i in pixels]))
        return {i: Thumbnail.of(heat, LARGE) for i, heat in zip(pixels, drawn, strict=True)}

    def _crop(self, row: np.ndarray) -> np.ndarray:
        row = np.require(row, requirements="W")  # torch warns about arrays that are read-only
        return self.preprocessing.crop(torch.from_numpy(row)[None], np.array([row.shape[:2]]))[0].numpy()


def open_thumbnails(
    run: RunContents,
    table: Table | None,
    source: str | None,
    heat: HeatMaps | None = None,
    stored: StoredRow | None = None,
) -> Thumbnails:
    """The images of a run from `table`, from `source`, or from where the run found them, in this order.

    `heat` draws heat maps, and `stored` has decoded images of `table`. Raises UserError only if `source` is given and
    does not fit.
    """
    preprocessing = run.model.preprocessing
    contents = None
    if table is None:
        try:
            table = _reopen(run, source)
            contents = recorded_contents(run.path / SPLIT)
        except UserError as error:
            if source is not None:
                raise
            return Thumbnails(preprocessing, None, missing=str(error))
    return Thumbnails(preprocessing, table, heat, stored, contents=contents)


def _reopen(run: RunContents, source: str | None) -> Table:
    """The table of a run's source, with its images in the order of split.csv. Raises UserError."""
    place = source or (run.metrics.get("source") or {}).get("path")
    if not place:
        raise UserError("the run does not record where its images were; give their place with --source")
    table = _open(place, run.model.recipe.get("data", {}), recorded=source is None)
    # Class names may have another order in the source than in the model.
    index = np.array([run.class_index.get(name, -1) for name in table.classes], np.int64)
    labels = _label_sets(table, index, len(run.names)) if table.several else index[table.labels]
    if not np.array_equal(labels, run.labels):
        raise UserError(
            f"{place}: its images differ from those of the run ({len(labels)} here, {len(run.labels)} in the run); "
            "give the right place with --source"
        )
    return table


def _label_sets(table: Table, index: np.ndarray, count: int) -> np.ndarray:
    """(n, count) bool: the labels of each image in the order of the model's classes."""
    labels = np.zeros((len(table), count), bool)
    labels[:, index[index >= 0]] = table.labels[:, index >= 0]
    return labels


def _open(source: str, data: dict[str, Any], *, recorded: bool) -> Table:
    """The table of a source. A recorded name of a known source means that source, not a folder of the same name."""
    known = next((candidate for candidate in known_sources() if candidate.name == source), None)
    if known is not None and (recorded or not Path(source).exists()):
        if not known.present:  # a report never downloads
            raise UserError(f"{source}: is not downloaded; run linnaeus data pull {source}")
        return open_known(source)
    return open_for_recipe(source, data, lenient=True)
