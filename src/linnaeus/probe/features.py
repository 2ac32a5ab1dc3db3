"""The features of a source's images by one backbone, from stores, and what the backbone costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from linnaeus._version import __version__
from linnaeus.cache import OverBudgetError, default_cache
from linnaeus.console import Console
from linnaeus.data.batches import Rows
from linnaeus.data.table import Table
from linnaeus.device import steady_heap
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError
from linnaeus.models import Network
from linnaeus.models.layers import layer_table, totals
from linnaeus.models.record import ChoiceRecord, choice_key, record_key
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.frozen import TRIAL_IMAGES, FrozenStages
from linnaeus.stores.samples import DecodedSplit, Samples, decode_split

CHUNK = 4096  # rows that are read from a store at once


@dataclass(frozen=True)
class Cost:
    """What one image costs, and how large the model is."""

    parameters: int
    multiply_adds: int | None  # of convolutions and linear layers; None where the network cannot be traced
    seconds: float  # measured time of the network for one image on this machine, without decoding
    model_bytes: int  # of the weights in float32, as a model file holds them

    def __add__(self, other: Cost) -> Cost:
        adds = None
        if self.multiply_adds is not None and other.multiply_adds is not None:
            adds = self.multiply_adds + other.multiply_adds
        return Cost(
            self.parameters + other.parameters,
            adds,
            self.seconds + other.seconds,
            self.model_bytes + other.model_bytes,
        )


@dataclass(frozen=True)
class StoredFeatures:
    """The features of the readable images of a table, one store for each of its splits."""

    parts: tuple[Rows, ...]
    indices: np.ndarray  # (n,) int64: the table index of each image, in the order of the parts
    width: int  # features per image
    left_out: list[tuple[str, str]]  # (sample id, reason) of the images that cannot be read

    def read(self, out: Tensor) -> None:
        """Write the features of all images into `out` (n, width) float32."""
        start = 0
        for rows in self.chunks():
            out[start : start + len(rows)] = torch.from_numpy(rows)
            start += len(rows)

    def chunks(self) -> Iterator[np.ndarray]:
        """The features of all images, some rows (N, width) at a time."""
        for part in self.parts:
            for first in range(0, len(part), CHUNK):
                yield part.gather(np.arange(first, min(first + CHUNK, len(part))))[0]


@dataclass(frozen=True)
class FeatureExtractor:
    """Runs the frozen part of networks on a device, once for each image."""

    device: torch.device
    console: Console
    group: ProcessGroup = SINGLE_PROCESS
    engine: Engine | None = None  # the precision of training; None: float32

    def frozen(self, network: Network, preprocessing: Preprocessing) -> FrozenStages:
        """The frozen stages of a network, which is moved to the device."""
        network = network.to(self.device).eval()
        if self.engine is not None:
            return FrozenStages.on_engine(network, preprocessing, self.engine, self.console)
        return FrozenStages(network, preprocessing, self.device, self.console, default_cache(), group=self.group)

    def extract(self, frozen: FrozenStages, table: Table, splits: Sequence[str]) -> StoredFeatures:
        """The features of all readable images of these splits, from the stores where they hold them.

        Raises UserError if no image of a split can be read, or if the features do not fit the cache.
        """
        parts: list[Rows] = []
        kept: list[np.ndarray] = []
        left_out: list[tuple[str, str]] = []
        for split in splits:
            # One process per machine decodes, since all of them share the cache.
            decoded = self.group.local_main_first(partial(self._decode, table, split, frozen.preprocessing))
            samples = Samples(decoded.rows, table.labels[decoded.indices])
            try:
                with steady_heap():
                    label = split or "images"
                    parts.append(frozen.rows(["head"], samples, frozen.preprocessing.of_batch, label, {}))
            except OverBudgetError as error:
                raise UserError(
                    f"{table.source}: the features do not fit the cache ({error}); raise LINNAEUS_CACHE_GB"
                ) from None
            kept.append(decoded.indices)
            left_out += decoded.left_out
        width = int(parts[0].gather(np.arange(1))[0].shape[1])
        return StoredFeatures(tuple(parts), np.concatenate(kept), width, left_out)

    def decode(self, table: Table, split: str, preprocessing: Preprocessing) -> Samples:
        """The readable images of a split."""
        decoded = self._decode(table, split, preprocessing)
        return Samples(decoded.rows, table.labels[decoded.indices])

    def _decode(self, table: Table, split: str, preprocessing: Preprocessing) -> DecodedSplit:
        with self.console.progress(f"decoding {split or 'images'}") as advance:
            return decode_split(table, table.where(split), preprocessing.row_spec, default_cache(), progress=advance)

    def cost(self, frozen: FrozenStages) -> Cost:
        """What an image costs. The time is measured once for each machine and network, and kept in the cache folder."""
        network = frozen.model
        tensors = network.state_dict().values()
        adds = _multiply_adds(network, frozen.preprocessing.size)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        # Floats are saved in 32 bits; what is none, such as the bytes of an ONNX graph, as it is.
        model_bytes = sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors)
        return Cost(parameters, adds, self._seconds(frozen), model_bytes)

    def _seconds(self, frozen: FrozenStages) -> float:
        """Time of the network for an image: the shortest measured here, since other programs add to it."""
        arch = {name: value for name, value in frozen.model.arch.items() if name != "classes"}
        # Keyed by everything that changes the speed; the number of classes hardly does.
        key = choice_key([str(self.device), frozen.precision, arch, frozen.preprocessing.size])
        before = _record().read_number(key)
        if not frozen.executors and before is not None:
            return before
        p = frozen.preprocessing
        sample = torch.zeros(TRIAL_IMAGES, p.channels, p.size, p.size, device=self.device)
        # Where all features came from the cache nothing has been timed yet.
        executor = next(iter(frozen.executors.values()), None) or frozen.executor("head", sample, 0)
        seconds = executor.seconds if before is None else min(executor.seconds, before)
        _record().write(key, seconds)
        return seconds


def _multiply_adds(network: Network, size: int) -> int | None:
    """Of an image of this size; None where the network cannot be traced.

    The number is kept in the cache folder, since tracing takes a second.
    """
    key = record_key("multiply-adds", __version__, network.arch, size)
    known = _record().read_number(key)
    if known is not None:
        return int(known)
    try:
        adds = totals(layer_table(network, size))[1]
    except Exception:  # some networks of libraries cannot run on the meta device
        return None
    _record().write(key, adds)
    return adds


def _record() -> ChoiceRecord:
    """What is known of the cost of networks on this machine."""
    return ChoiceRecord(cache_dir() / "throughput.json")
