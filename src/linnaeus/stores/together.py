"""One store, built by several processes: each computes its part of every batch, and one of them writes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.stores.activations import ActivationStore, Chunks
from linnaeus.stores.cache import OverBudgetError

T = TypeVar("T")


class Group(Protocol):
    """Processes that do the same; a training engine is one."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def nodes(self) -> int: ...

    def broadcast(self, what: Callable[[], T]) -> T:
        """What the first process finds, on all of them."""
        ...

    def gather(self, mine: T) -> list[T]:
        """What every process has, in the first; nothing in the others."""
        ...

    def all_gather(self, mine: T) -> list[T]:
        """What every process has, on all of them."""
        ...

    def local_main_first(self, what: Callable[[], T]) -> T:
        """`what`, in one process of every machine first, and then in the others."""
        ...


Part = Callable[[int, int, int], Generator[Tensor, None, None]]
"""part(start, rank, world): from row `start` on, what process `rank` of `world` has to compute of each batch."""


def build_together(group: Group, part: Part, build: Callable[[Chunks], ActivationStore]) -> None:
    """Run `build` where the store is written, with chunks to which all processes contribute.

    On several machines, which have a cache each, one process of each builds alone.
    Raises in all processes what `build` raises in one: UserError or OverBudgetError.
    """
    if group.world_size == 1:
        build(lambda start: part(start, 0, 1))
        return
    failed: OverBudgetError | None = None
    if group.nodes > 1:

        def alone() -> OverBudgetError | None:
            try:
                build(lambda start: part(start, 0, 1))
            except OverBudgetError as error:
                return error
            return None

        failed = next((error for error in group.all_gather(group.local_main_first(alone)) if error is not None), None)
    elif group.rank == 0:
        failed = _lead(group, part, build)
    else:
        failed = _follow(group, part)
    if failed is not None:
        raise failed


def _lead(group: Group, part: Part, build: Callable[[Chunks], ActivationStore]) -> OverBudgetError | None:
    """Build, and tell the others what to compute: where to start, as often as `build` starts; then whether to go on."""

    def chunks(start: int) -> Generator[Tensor, None, None]:
        group.broadcast(lambda: start)
        try:
            for mine in part(start, 0, group.world_size):
                group.broadcast(lambda: True)
                yield torch.cat(group.gather(mine.cpu()))
        finally:
            group.broadcast(lambda: False)

    over: OverBudgetError | None = None
    wrong: UserError | None = None
    try:
        build(chunks)
    except OverBudgetError as error:
        over = error
    except UserError as error:
        wrong = error
    group.broadcast(lambda: None)
    return group.broadcast(lambda: _raised(wrong, over))


def _follow(group: Group, part: Part) -> OverBudgetError | None:
    """Compute what the first process asks for."""
    nothing: Callable[[], None] = lambda: None
    while (start := group.broadcast(nothing)) is not None:
        mine = part(start, group.rank, group.world_size)
        while group.broadcast(nothing):
            group.gather(next(mine).cpu())
        mine.close()
    return group.broadcast(nothing)


def _raised(wrong: UserError | None, over: OverBudgetError | None) -> OverBudgetError | None:
    if wrong is not None:
        raise wrong
    return over
