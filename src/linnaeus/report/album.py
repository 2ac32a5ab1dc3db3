"""The images of a report: found in the source again, decoded as the network sees them, packed into the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.data.decode import RowSpec, UnreadableError, fit_row
from linnaeus.data.encode import data_uri, to_pillow
from linnaeus.data.known_sources import known_sources, open_known
from linnaeus.data.table import Table
from linnaeus.device import available_cores
from linnaeus.errors import UserError
from linnaeus.inference.source import open_for_recipe
from linnaeus.preprocess import Preprocessing
from linnaeus.runs.reader import RunContents
from linnaeus.stores.decoding import Decoding

Heat = Callable[[int], np.ndarray | None]
"""Index of an image in the table -> (side, side, 3) uint8, a heat map over what the network saw; None without one."""

SMALL, LARGE = 128, 224  # pixels of a side: a sample, and an image that is looked at
QUALITY = 74
TINY = 48  # below this side an image is enlarged by the browser, pixel by pixel, and kept without loss


@dataclass(frozen=True)
class Shown:
    """An image in the page."""

    data: str
    """A data: address."""
    side: int
    pixelated: bool

    @classmethod
    def of(cls, pixels: np.ndarray, side: int) -> Shown:
        """(h, h, C) uint8 -> at most `side` pixels a side."""
        square = pixels[:, :, None] if pixels.ndim == 2 else pixels
        small = square.shape[0] < TINY
        if square.shape[0] > side:
            square = fit_row(square, RowSpec(side, "squash", "bilinear", square.shape[2]))
        image = to_pillow(square)
        data = data_uri(image, "PNG" if small else "JPEG", quality=QUALITY, optimize=True)
        return cls(data, image.width, small)


@dataclass(eq=False)
class Album:
    """The images of a run's source, by index in its table. Without a table there are none, and `missing` says why."""

    preprocessing: Preprocessing
    table: Table | None
    heat: Heat | None = None
    missing: str = ""
    _seen: dict[int, np.ndarray | None] = field(default_factory=dict)
    _index: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.table is not None:
            self._index = {self.table.sample_id(i): i for i in range(len(self.table))}

    def find(self, sample: str) -> int | None:
        """The index of an image by its id."""
        return self._index.get(sample)

    def decode(self, indices: Iterable[int]) -> None:
        """Decode many images at once, by threads; `image` has them afterwards."""
        wanted = sorted({i for i in indices if i not in self._seen})
        if self.table is None or not wanted:
            return
        rows = Decoding(self.table, np.array(wanted, np.int64), self.preprocessing.row_spec, available_cores(), None)
        for i, row in zip(wanted, rows.rows(), strict=True):
            self._seen[i] = None if isinstance(row, UnreadableError) else self._crop(row)

    def image(self, i: int | None, side: int = SMALL) -> Shown | None:
        """What the network sees of image i; None where it cannot be shown."""
        if i is None:
            return None
        self.decode([i])
        pixels = self._seen.get(i)
        return None if pixels is None else Shown.of(pixels, side)

    def heat_map(self, i: int | None, side: int = LARGE) -> Shown | None:
        """The heat map over image i; None without one."""
        if i is None or self.heat is None or self.table is None:
            return None
        pixels = self.heat(i)
        return None if pixels is None else Shown.of(pixels, side)

    def _crop(self, row: np.ndarray) -> np.ndarray:
        row = np.require(row, requirements="W")  # torch warns of what it may not write
        return self.preprocessing.crop(torch.from_numpy(row)[None], np.array([row.shape[:2]]))[0].numpy()


def open_album(
    run: RunContents, table: Table | None, source: str | None, heat: Callable[[Table], Heat] | None
) -> Album:
    """The images of a run: from `table` where it is at hand, else from where they were, or from `source`.

    `heat` makes the heat maps of a table's images. Raises UserError only for a `source` that the caller named.
    """
    preprocessing = run.model.preprocessing
    if table is None:
        try:
            table = _reopen(run, source)
        except UserError as error:
            if source is not None:
                raise
            return Album(preprocessing, None, missing=str(error))
    return Album(preprocessing, table, None if heat is None else heat(table))


def _reopen(run: RunContents, given: str | None) -> Table:
    """The table of a run's source, its images in the order of the run's split.csv. Raises UserError."""
    noted = run.metrics.get("source") or {}
    source = given or noted.get("path")
    if not source:
        raise UserError("the run does not say where its images were; give the place with --source")
    table = _open(source, run.model.recipe.get("data", {}), known=given is None)
    names = {name: i for i, name in enumerate(run.model.classes)}
    labels = np.array([names.get(name, -1) for name in table.classes], np.int64)[table.labels]
    if not np.array_equal(labels, run.labels):
        raise UserError(f"{source}: holds other images than when the run was made ({len(labels)}, {len(run.labels)})")
    return table


def _open(source: str, data: dict[str, Any], *, known: bool) -> Table:
    """The table of a source. `known`: a bare name is that of a known source, whatever lies in this folder."""
    found = next((each for each in known_sources() if each.name == source), None)
    if found is not None and (known or not Path(source).exists()):
        if not found.present:  # a report fetches nothing
            raise UserError(f"{source}: is not at hand; linnaeus data pull {source}")
        return open_known(source)
    return open_for_recipe(source, data, lenient=True)
