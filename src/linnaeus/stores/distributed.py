"""Build one activation store with several processes: each computes its share of every batch, and rank 0 writes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linnaeus.cache import Cache
from linnaeus.data.background import Progress
from linnaeus.distributed.group import ProcessGroup
from linnaeus.stores.activations import RowSource, StoreSpec, build_activations


def build_with_group(group: ProcessGroup, source: RowSource, spec: StoreSpec, cache: Cache, progress: Progress) -> None:
    """Build the store with all processes of `group`, each of which calls this with the same arguments.

    Several machines have a cache each: there one process of each machine builds alone.
    Raises in all processes what `build_activations` raises in one of them.
    """

    def build(rows: RowSource) -> None:
        build_activations(rows, spec, cache, progress)

    if group.world_size == 1 or group.nodes > 1:
        group.local_main_first(lambda: build(source))
    elif group.is_main:
        # The result or the error of the build is what `_compute_shares` receives last.
        group.broadcast(lambda: build(_GatheredRows(group, source)))
    else:
        _compute_shares(group, source)


@dataclass(frozen=True)
class _GatheredRows:
    """Rows that all processes of a group compute, gathered on rank 0 while the others run `_compute_shares`."""

    group: ProcessGroup
    source: RowSource

    def batches(self, start: int, rank: int = 0, world_size: int = 1) -> Generator[Tensor, None, None]:
        group = self.group
        group.broadcast(lambda: start)
        try:
            for share in self.source.batches(start, 0, group.world_size):
                group.broadcast(lambda: True)
                yield torch.cat(group.gather(share.cpu()))
        finally:
            group.broadcast(lambda: False)


def _compute_shares(group: ProcessGroup, source: RowSource) -> None:
    """The other ranks: compute shares from the row that rank 0 names, each time it starts over, until it is done."""
    receive: Callable[[], Any] = lambda: None  # only the value of rank 0 is broadcast
    while (start := group.broadcast(receive)) is not None:
        shares = source.batches(start, group.rank, group.world_size)
        while group.broadcast(receive):
            group.gather(next(shares).cpu())
        shares.close()
