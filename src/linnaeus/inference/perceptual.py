"""Altered copies of the images of a run: recognized by perceptual hashes in the model file, wherever the images are.

A copy that was scaled, encoded again, mirrored, turned, brightened, cropped or padded has another content hash. The
model file holds difference hashes of each training and validation image that may have such copies, and its color: 194
bytes an image with all windows, and 18 bytes with the whole image alone, which finds no crops. The latter are used if
the former would take more than `BUDGET`; if these do as well, none are kept. Images that are too small or flat for such
hashes have one of their pixels, 6 bytes, which finds those that were saved again without loss, in any format.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.console import counted
from linnaeus.data.images.content import UNKNOWN, hashes_from_text, hashes_to_text, pixel_hash
from linnaeus.data.images.hashing import ALL_WINDOWS, CROWDED, MIN_SIDE, hamming_neighbors
from linnaeus.data.images.pixel_statistics import STATISTICS, hashable, same_tint
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import UserError
from linnaeus.inference.membership import NONE, Membership
from linnaeus.inference.source import LabeledImages
from linnaeus.metrics.multilabel import Headline
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.stores.image_statistics import ImageStatistics, compute_statistics

HASH = "difference/128"
BUDGET = 2_000_000  # bytes of all hashes, as of the references for unknown images
ARRAYS = ("cifar", "idx", "digits")  # kinds of sources of which the content hashes are those of the pixels
MOST_IN_SHARDS = 100_000  # images that are decoded once more to find copies: minutes, where an epoch takes as long
LOOKED_AT = 64  # images at a time, of a model without hashes
RADIUS = 10
"""Largest distance of a copy, of 128 bits. Of 150 copies of each of 11 kinds, all are within it; of 1,330 flowers, four
pairs are, and these show the same flower; of 520 photos of food, none."""


@dataclass(frozen=True, eq=False)
class PerceptualHashes:
    """The hashes of m images."""

    windows: np.ndarray  # (m, k, 2) uint64, by columns and by rows; the first of k windows is the whole image
    tint: np.ndarray  # (m, 2) uint8: the shares of red and green, of 255

    @classmethod
    def of(cls, statistics: ImageStatistics, samples: np.ndarray, windows: int = ALL_WINDOWS) -> PerceptualHashes:
        """Of the images `samples` (m,)."""
        tint = statistics.rows["tint"][samples, :2]
        return cls(statistics.hashes("windows", samples, np.s_[:, :windows]), np.rint(255 * tint).astype(np.uint8))

    @property
    def colors(self) -> np.ndarray:
        """(m, 3) float: the shares of red, green and blue."""
        two = self.tint / 255
        return np.concatenate([two, 1 - two.sum(1, keepdims=True)], 1)

    def to_text(self) -> str:
        """For a model file."""
        hashes = np.ascontiguousarray(self.windows, ">u8").view(np.uint8).reshape(-1, 16 * self.windows.shape[1])
        return base64.b64encode(np.concatenate([hashes, self.tint], 1).tobytes()).decode()

    @classmethod
    def from_text(cls, text: str, windows: int) -> PerceptualHashes:
        """The inverse. Raises ValueError for anything else."""
        raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, 16 * windows + 2)
        hashes = np.ascontiguousarray(raw[:, :-2]).view(">u8").astype(np.uint64)
        return cls(hashes.reshape(-1, windows, 2), raw[:, -2:])


@dataclass(frozen=True, eq=False)
class RunHashes:
    """The hashes of the images of a run that trained or chose its model."""

    splits: Mapping[str, PerceptualHashes]  # by split, train and valid
    windows: int  # of each image; 0 where there are too many images, and none is kept
    # By split, (k,) uint64 in ascending order: hashes of the pixels of the images that have no such hash.
    pixels: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, statistics: ImageStatistics, splits: np.ndarray) -> RunHashes:
        """From the statistics and the split (n,) of each image, as many windows as fit the budget."""
        rows = statistics.rows
        chosen = {split: np.flatnonzero((splits == split) & hashable(rows)) for split in SPLITS[:2]}
        pixels = {s: np.unique(rows["pixels"][(splits == s) & (rows["pixels"] != UNKNOWN)]) for s in SPLITS[:2]}
        n = sum(map(len, chosen.values()))
        windows = next((k for k in (ALL_WINDOWS, 1) if n * (16 * k + 2) <= BUDGET), 0)
        hashes = {s: PerceptualHashes.of(statistics, kept, windows) for s, kept in chosen.items()} if windows else {}
        return cls(hashes, windows, pixels if 6 * sum(map(len, pixels.values())) <= BUDGET else {})

    def to_dict(self) -> dict[str, Any]:
        """The entry `perceptual` in the `data` of a model file."""
        texts = {split: hashes.to_text() for split, hashes in self.splits.items()}
        pixels = {split: hashes_to_text(hashes) for split, hashes in self.pixels.items() if len(hashes)}
        return {"hash": HASH, "windows": self.windows} | texts | ({"pixels": pixels} if pixels else {})

    @classmethod
    def from_dict(cls, values: Any, path: Path) -> RunHashes | None:
        """The inverse; None where there is nothing, or another kind of hash. Raises UserError if it is damaged."""
        if not isinstance(values, dict) or values.get("hash") != HASH:
            return None
        windows = values.get("windows")
        try:
            if not isinstance(windows, int) or not 0 <= windows <= ALL_WINDOWS:
                raise ValueError(f"{windows!r} windows")
            splits = {s: PerceptualHashes.from_text(values[s], windows) for s in SPLITS[:2] if windows}
            texts = dict(values.get("pixels", {}))
            pixels = {s: hashes_from_text(texts[s]) for s in SPLITS[:2] if s in texts}
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(f"{path}: its perceptual hashes are damaged ({error}); get a fresh copy") from None
        return cls(splits, windows, pixels)

    def copies(
        self,
        statistics: ImageStatistics,
        split: str,
        contents: Mapping[str, np.ndarray] | None = None,
        among: np.ndarray | None = None,
    ) -> np.ndarray:
        """(n,) bool: the images, of all or `among` (k,), that look like a copy of one in a split before `split`.

        `contents` has more hashes by split, (k,) uint64: those of a run whose source held arrays are of pixels.
        """
        among = np.arange(len(statistics)) if among is None else among
        rows = statistics.rows[among]
        found = np.zeros(len(statistics), bool)
        samples = among[hashable(rows)]
        for earlier in SPLITS[: SPLITS.index(split)]:
            known = [hashes[earlier] for hashes in (self.pixels, contents or {}) if earlier in hashes]
            found[among] |= np.isin(rows["pixels"], np.concatenate([*known, NONE])) & (rows["pixels"] != UNKNOWN)
            if earlier in self.splits and len(samples):
                found[samples] |= _like_any(self.splits[earlier], statistics, samples)
        return found


def _like_any(known: PerceptualHashes, statistics: ImageStatistics, samples: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each of the images `samples` (n,) is within RADIUS of one of the images `known`."""
    n, colors, k = len(samples), statistics.rows["tint"][samples], known.windows.shape[1]
    whole = statistics.hashes("turned", samples).transpose(1, 0, 2).reshape(-1, 2)
    query, entry = _close(known.windows.reshape(-1, 2), whole)
    one = query % n, entry // k  # the image, turned or mirrored, is a part of a known one
    query, entry = _close(known.windows[:, 0], statistics.hashes("windows", samples).reshape(-1, 2))
    other = query // ALL_WINDOWS, entry  # or a known one is a part of the image
    found = np.zeros(n, bool)
    for image, of in (one, other):
        found[image[same_tint(colors[image], known.colors[of])]] = True
    return found


def _close(database: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(query, entry) of the pairs (m, 2) and (q, 2) uint64 within RADIUS bits of 128; some may occur twice."""
    # Within RADIUS bits together, one of the two hashes differs in at most half of them.
    halves = [hamming_neighbors(database[:, axis], queries[:, axis], RADIUS // 2, CROWDED)[:2] for axis in range(2)]
    query, entry = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    near = np.bitwise_count(queries[query] ^ database[entry]).sum(1) <= RADIUS
    return query[near], entry[near]


def comparable(table: Table) -> bool:
    """Whether images are compared by their pixels: files, also in shards on this machine unless there are very many."""
    members = table.members
    return table.images is None and (members is None or (members.local and len(members) <= MOST_IN_SHARDS))


def why_not_compared(table: Table) -> str:
    """Why images are not compared by their pixels; empty where they are, or are too small for it."""
    members = table.members
    if table.images is not None and min(table.images.shape[1:3]) >= MIN_SIDE:
        return "the source holds arrays"
    if members is None or comparable(table):
        return ""
    if not members.local:
        return "its shards are not on this machine"
    return f"the source is in shards and has more than {MOST_IN_SHARDS:,} images"


def statistics_of_table(table: Table) -> ImageStatistics:
    """The statistics of images, each decoded once and then cached; of small arrays only the hash of the pixels."""
    if table.images is None or min(table.images.shape[1:3]) >= MIN_SIDE:
        return compute_statistics(table, cache=default_cache())
    rows = np.zeros(len(table), STATISTICS)
    rows["pixels"] = [pixel_hash(image) for image in table.images]
    return ImageStatistics(rows, {})


@dataclass(frozen=True, eq=False)
class AlteredCopies:
    """The measured images that look like altered copies of images of the run."""

    found: np.ndarray  # (n,) bool
    note: str  # why copies may have been missed; empty where they were looked for

    @classmethod
    def among(cls, images: LabeledImages, about: ModelFile, path: Path) -> AlteredCopies:
        """Search among those that did not train the model, which their content tells."""
        found = np.zeros(len(images.labels), bool)
        if images.split == "train" or not images.recognized_by:
            return cls(found, "")
        known = RunHashes.from_dict(about.data.get("perceptual"), path)
        membership = Membership.of_model(about, path)
        measured = images.table.select(images.indices)
        if known is not None or about.data.get("kind") in ARRAYS:
            statistics, hashes = statistics_of_table(measured), known or RunHashes({}, 0)
            # Validation images of the run look like themselves; only training images count as earlier than they.
            for part in np.unique(images.of_run):
                rank = part if part in SPLITS[1:] else images.split if images.split in SPLITS else "test"
                which = np.flatnonzero((images.of_run == part) & (part != "train"))
                found |= hashes.copies(statistics, rank, {} if membership is None else membership.hashes, which)
            if hashes.windows or not hashable(statistics.rows).any():
                return cls(found, _too_small(statistics.rows))
        # The note needs one image of which copies could be recognized, so most are not decoded for it.
        parts = []
        for start in range(0, len(measured), LOOKED_AT):
            part = np.arange(start, min(start + LOOKED_AT, len(measured)))
            parts.append(statistics_of_table(measured.select(part)).rows)
            if hashable(parts[-1]).any():
                break
        else:
            return cls(found, _too_small(np.concatenate(parts)))
        why = "has no perceptual hashes of" if known is None else "has too many images of training to hold hashes of"
        note = (
            f"the model file {why} its training images: altered copies of them (scaled, encoded again, cropped) "
            "are not recognized and would make these scores optimistic"
        )
        return cls(found, note)

    def warning(self, measure: Callable[[np.ndarray], Headline]) -> str:
        """For figures that count them; `measure` gives those of some of the images, (n,) bool."""
        n = int(self.found.sum())
        if not n:
            return self.note
        without = "no image is left" if self.found.all() else str(measure(~self.found))
        return (
            f"{n:,} of {counted(len(self.found), 'image')} look like altered copies of images of the run: these scores "
            f"are optimistic; without them: {without}"
        )


def _too_small(rows: np.ndarray) -> str:
    """A note where images, by their statistics (n,), are too small for altered copies to be recognized; else empty."""
    if not (n := int((np.minimum(rows["height"], rows["width"]) < MIN_SIDE).sum())):
        return ""
    return (
        f"{n:,} of these {len(rows):,} images are below {MIN_SIDE} pixels: only exact copies of training images were "
        "searched for among them, not altered ones"
    )
