"""Build one activation store with several processes: each computes its share of every batch, and rank 0 writes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.distributed.group import ProcessGroup
from linnaeus.errors import UserError
from linnaeus.stores.activations import RowSource, StoreSpec, build_activations

Progress = Callable[[int, int], None]


def build_with_group(group: ProcessGroup, source: RowSource, spec: StoreSpec, cache: Cache, progress: Progress) -> None:
    """Build the store with all processes of `group`, each of which calls this with the same arguments.

    Several machines have a cache each: there one process of each machine builds alone.
    Raises in all processes what `build_activations` raises in one of them.
    """
    if group.world_size == 1:
        build_activations(source, spec, cache, progress)
        return
    if group.nodes > 1:
        errors = group.all_gather(group.local_main_first(lambda: _try_build(source, spec, cache, progress)))
        error = next((error for error in errors if error is not None), None)
    elif group.is_main:
        error = _lead(_GatheredRows(group, source), spec, cache, progress)
    else:
        error = _follow(group, source)
    if error is not None:
        raise error


def _try_build(source: RowSource, spec: StoreSpec, cache: Cache, progress: Progress) -> OverBudgetError | None:
    """Build the store. An OverBudgetError is returned, since the group passes on only a UserError."""
    try:
        build_activations(source, spec, cache, progress)
    except OverBudgetError as error:
        return error
    return None


@dataclass(frozen=True)
class _GatheredRows:
    """Rows that all processes of a group compute, gathered on rank 0 while the others run `_follow`."""

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


def _lead(source: _GatheredRows, spec: StoreSpec, cache: Cache, progress: Progress) -> OverBudgetError | None:
    """Rank 0: build from the gathered rows, then tell the others that nothing more is to be computed, and any error."""
    over_budget: OverBudgetError | None = None
    user_error: UserError | None = None
    try:
        over_budget = _try_build(source, spec, cache, progress)
    except UserError as error:
        user_error = error
    source.group.broadcast(lambda: None)
    return source.group.broadcast(lambda: _raise_or_return(user_error, over_budget))


def _follow(group: ProcessGroup, source: RowSource) -> OverBudgetError | None:
    """The other ranks: compute shares from the row that rank 0 names, each time it starts over, until it is done."""
    receive: Callable[[], None] = lambda: None  # only rank 0's value is broadcast
    while (start := group.broadcast(receive)) is not None:
        shares = source.batches(start, group.rank, group.world_size)
        while group.broadcast(receive):
            group.gather(next(shares).cpu())
        shares.close()
    return group.broadcast(receive)


def _raise_or_return(user_error: UserError | None, over_budget: OverBudgetError | None) -> OverBudgetError | None:
    if user_error is not None:
        raise user_error
    return over_budget
