"""The processes that run one command together, and the few verbs by which they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from linnaeus.distributed.environment import Processes
from linnaeus.errors import UserError

TIMEOUT = timedelta(hours=2)
"""How long one process waits for another: as long as the first may take to build a store. That one is dead is found by
who started them, and by gloo, at once."""

T = TypeVar("T")


class Peers:
    """This process among those of its command, which call the same verbs in the same order. It may be alone."""

    def __init__(self, here: Processes, words: Any = None):
        """`words`: the torch group through which objects are told; None is the default group."""
        self.processes, self._words = here, words

    @property
    def rank(self) -> int:
        return self.processes.rank

    @property
    def world(self) -> int:
        return self.processes.world

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, writes and prints."""
        return self.processes.first

    @property
    def machines(self) -> int:
        return self.processes.nodes

    @property
    def neighbors(self) -> int:
        """Processes that share this machine, this one included."""
        return self.processes.local_world

    def decide(self, what: Callable[[], T]) -> T:
        """What the first process finds, on all of them. Where it raises a UserError, all do."""
        if self.world == 1:
            return what()
        found: T | None = None
        failed: UserError | None = None
        if self.first:
            try:
                found = what()
            except UserError as error:
                failed = error
        told = [(found, failed)]
        torch.distributed.broadcast_object_list(told, 0, group=self._words)
        found, failed = told[0]
        if failed is not None:
            failed.told = not self.first
            raise failed
        return found  # type: ignore[return-value]

    def collect(self, mine: T) -> list[T]:
        """What every process has, in their order, on all of them."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine, group=self._words)
        return found

    def gather(self, mine: T) -> list[T]:
        """What every process has, in their order, in the first; nothing in the others."""
        if self.world == 1:
            return [mine]
        found: list[Any] | None = [None] * self.world if self.first else None
        torch.distributed.gather_object(mine, found, 0, group=self._words)
        return found or []

    def any_of(self, number: int | None) -> int | None:
        """The largest of the processes' numbers above 0; None where no process has one."""
        if self.world == 1:
            return number
        most = torch.tensor(number or 0)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=self._words)
        return int(most) or None

    def once_a_machine(self, what: Callable[[], T]) -> T:
        """`what`, first in one process of every machine, which fetches or builds; then in the others, which find it."""
        if self.world == 1:
            return what()
        found: list[T] = []
        for turn in (True, False):
            with self.together():
                if (self.processes.local_rank == 0) == turn:
                    found.append(what())
        return found[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where one of the processes raises a UserError in this block, all raise it at its end."""
        failed: UserError | None = None
        try:
            yield
        except UserError as error:
            failed = error
        errors = self.collect(failed)
        first = next((i for i, error in enumerate(errors) if error is not None), None)
        if failed is None and first is not None:
            failed = errors[first]
            assert failed is not None
            if self.world > 1 and first:
                failed = type(failed)(f"process {first}: {failed}")
        if failed is not None:
            failed.told = not self.first
            raise failed


ALONE = Peers(Processes())
"""One process, with nobody to agree with."""


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone, in the words of gloo or NCCL."""
    words = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "nccl", "tcpstore")
    kinds = (torch.distributed.DistError,) if torch.distributed.is_available() else ()
    return isinstance(error, kinds) or any(word in str(error).lower() for word in words)
