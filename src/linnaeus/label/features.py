"""Features of the images of a folder, computed in the background and kept between sessions.

Each image also gets a difference hash, which recognizes near duplicates as `linnaeus check` does.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path

import numpy as np
from PIL import Image

from linnaeus.check.duplicates import COPY_RADIUS
from linnaeus.data import tree
from linnaeus.data.images.decode import UnreadableError
from linnaeus.data.images.hashing import FLAT, difference_hashes
from linnaeus.device import available_cores
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError
from linnaeus.files import acquire
from linnaeus.label.backbone import Backbone

BATCH = 16  # images at once: the first answers arrive soon, and more is not faster on a CPU
SIMILAR = 0.8  # cosine of two centered features below which equal hashes are a coincidence


def spread_order(n: int) -> np.ndarray:
    """(n,) int64: 0..n-1 so that each prefix covers the range evenly (van der Corput's sequence).

    Neighbors in a folder are often shots of the same scene; this order visits them far apart, without reading them.
    """
    bits = max(1, (n - 1).bit_length())
    numbers = np.arange(1 << bits)
    reverse = np.zeros_like(numbers)
    for bit in range(bits):
        reverse |= ((numbers >> bit) & 1) << (bits - 1 - bit)
    return reverse[reverse < n]


@dataclass
class Features:
    """Features of n images; rows appear while `start` runs."""

    folder: Path
    paths: Sequence[str]  # relative to the folder, with forward slashes
    backbone: Backbone
    values: np.ndarray = field(init=False)  # (n, width) float16; only the rows of `ready` are valid
    # (n, 2) uint64: of the image and of its mirror image; 0 where the image is too flat to have one.
    hashes: np.ndarray = field(init=False)
    ready: np.ndarray = field(init=False)  # (n,) bool
    unreadable: dict[int, str] = field(default_factory=dict)  # image -> why it cannot be read
    rate: float = 0.0  # images per second, recently
    failure: str = ""  # why the computation has ended early; empty if it has not
    changed: Callable[[], None] = lambda: None  # called after rows have appeared
    _urgent: list[int] = field(default_factory=list)
    _rest: Iterator[int] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        n = len(self.paths)
        self.values = np.zeros((n, self.backbone.width), np.float16)  # zero pages take no memory until written
        self.hashes = np.zeros((n, 2), np.uint64)
        self.ready = np.zeros(n, bool)
        self._rest = iter(spread_order(n).tolist())

    @property
    def done(self) -> int:
        """Images that need no more work."""
        return int(self.ready.sum()) + len(self.unreadable)

    @property
    def seconds_left(self) -> float | None:
        """None while it cannot be estimated."""
        return (len(self.paths) - self.done) / self.rate if self.rate > 0 else None

    def start(self) -> None:
        """Begin to compute in a thread."""
        self._thread = threading.Thread(target=self._compute, name="features", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def hurry(self, images: Iterable[int]) -> None:
        """Compute these images next."""
        self._urgent += [i for i in images if not self.ready[i] and i not in self.unreadable]

    def near_duplicates(self, i: int) -> np.ndarray:
        """Images that are copies of image i or nearly so, (k,) int64, by the rules of `linnaeus check` for copies."""
        if not self.ready[i] or not self.hashes[i, 0]:
            return np.zeros(0, np.int64)
        hashes, theirs = self.hashes[i], self.hashes[:, 0]
        distance = np.minimum(np.bitwise_count(theirs ^ hashes[0]), np.bitwise_count(theirs ^ hashes[1]))
        close = np.flatnonzero((distance <= COPY_RADIUS) & self.ready & (theirs != 0))
        close = close[close != i]
        return close[self.cosine(i, close) >= SIMILAR] if len(close) else close

    def cosine(self, i: int, others: np.ndarray) -> np.ndarray:
        """(k,) float32: similarity of image i and `others`, all of them ready."""
        x, query = self.values[others].astype(np.float32), self.values[i].astype(np.float32)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(query)
        return x @ query / np.maximum(norms, 1e-12)

    def _compute(self) -> None:
        lock = stream = None
        try:
            with suppress(OSError):  # a cache that cannot be used costs the next session time, nothing else
                file = self._stored_file()
                # One server of several adds to the file; the others compute what is missing for themselves.
                lock = acquire(file.with_suffix(".lock"), wait=False)
                if lock is not None and file.exists():  # a killed process may have left a part of a record
                    os.truncate(file, file.stat().st_size // self._layout().itemsize * self._layout().itemsize)
                self._read_stored(file)
                stream = None if lock is None else file.open("ab", buffering=0)
            self.changed()
            self._compute_rest(stream)
        except Exception as error:  # the page shows it; labelling goes on without predictions
            self.failure = " ".join(f"{error}".split()) or type(error).__name__
        finally:
            if stream is not None:
                stream.close()
            if lock is not None:
                lock.release()

    def _compute_rest(self, stream: RawIOBase | None) -> None:
        with ThreadPoolExecutor(available_cores()) as pool:
            while not self._stop.is_set() and (batch := self._next_batch()):
                started = time.perf_counter()
                record = self._process(batch, pool)
                if stream is not None:
                    with suppress(OSError):
                        end = stream.seek(0, os.SEEK_END)
                        if stream.write(record) != len(record):  # the disk is full
                            stream.truncate(end)
                speed = len(batch) / max(1e-6, time.perf_counter() - started)
                self.rate = 0.8 * self.rate + 0.2 * speed if self.rate else speed
                self.changed()

    def _next_batch(self) -> list[int]:
        """Images without features: urgent ones first, then spread over the folder; none if all have been tried."""
        batch: list[int] = []
        while len(batch) < BATCH:
            i = self._urgent.pop(0) if self._urgent else next(self._rest, None)
            if i is None:
                break
            if not self.ready[i] and i not in self.unreadable and i not in batch:
                batch.append(i)
        return batch

    def _process(self, batch: list[int], pool: ThreadPoolExecutor) -> bytes:
        """Decode and compute a batch. Returns its records for the file."""
        # Before it is decoded: an image that is replaced meanwhile is read again in the next session.
        signatures = {i: self._signature(i) for i in batch}
        good, rows = [], []
        for i, row in zip(batch, pool.map(self._load, batch), strict=True):
            if isinstance(row, str):
                self.unreadable[i] = row
            else:
                good.append(i)
                rows.append(row)
        if not good:
            return b""
        pixels = np.stack(rows)
        remaining = len(self.paths) - self.done
        # float16 halves the file; its range must hold the outliers.
        values = np.clip(self.backbone.features(pixels, remaining), -65504, 65504).astype(np.float16)
        records = np.zeros(len(good), self._layout())
        for k, i in enumerate(good):
            self.values[i], self.hashes[i] = values[k], _hashes(pixels[k])
            self.ready[i] = True
            records[k] = (signatures[i], self.hashes[i], values[k])
        return records.tobytes()

    def _load(self, i: int) -> np.ndarray | str:
        try:
            return self.backbone.preprocessing.load(str(self.folder / self.paths[i]))
        except UnreadableError as error:
            return error.reason
        except UserError as error:
            return str(error)

    def _stored_file(self) -> Path:
        folder = cache_dir() / "label"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{self.folder}\0{self.backbone.key}".encode(errors="surrogateescape")).hexdigest()[:32]
        return folder / f"{name}.features"

    def _read_stored(self, file: Path) -> None:
        """Take over the features of earlier sessions."""
        layout = self._layout()
        if not file.exists() or not file.stat().st_size:
            return
        index = {self._signature(i): i for i in range(len(self.paths))}
        with file.open("rb") as stream:
            while len(data := stream.read(layout.itemsize * 256)) >= layout.itemsize:
                for record in np.frombuffer(data, layout, len(data) // layout.itemsize):
                    i = index.get(int(record["signature"]))
                    if i is not None and np.isfinite(record["values"]).all():
                        self.values[i], self.hashes[i], self.ready[i] = record["values"], record["hashes"], True

    def _layout(self) -> np.dtype:
        return np.dtype(
            [("signature", "<u8"), ("hashes", "<u8", (2,)), ("values", "<f2", (self.backbone.width,))], align=False
        )

    def _signature(self, i: int) -> int:
        """Identifies the image by path and version."""
        try:
            text = f"{self.paths[i]}\0{tree.version(self.folder / self.paths[i])}"
        except OSError:
            text = self.paths[i]
        digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "little")


def _hashes(pixels: np.ndarray) -> tuple[int, int]:
    """Hashes of an image (s, s, C) uint8 and of its mirror image; (0, 0) where it is nearly of one level."""
    gray = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")
    low, high = gray.getextrema()
    if float(high) - float(low) < FLAT:  # type: ignore[arg-type]
        return 0, 0
    turned = difference_hashes(gray)[1]
    return int(turned[0, 0]), int(turned[1, 0])
