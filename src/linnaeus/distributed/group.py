"""The process group of a command: broadcast, gather and reduce small Python objects, and share errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from linnaeus.distributed.environment import ProcessInfo
from linnaeus.errors import UserError

TIMEOUT = timedelta(hours=2)
"""Longest wait for another process: rank 0 may take this long to build a store. A dead process is detected
immediately, by its launcher or by gloo."""

T = TypeVar("T")


class ProcessGroup:
    """This process among the processes of one command; a group of one needs no communication.

    Every method is a collective: all processes call the same methods in the same order.
    """

    def __init__(self, info: ProcessInfo, object_group: Any = None):
        """`object_group`: the torch process group that carries Python objects; None is the default group."""
        self.info, self._object_group = info, object_group
        self.rank, self.world_size = info.rank, info.world_size
        self.local_world_size, self.nodes = info.local_world_size, info.nodes
        self.is_main = info.is_main  # whether this is rank 0, which decides, writes and prints

    def broadcast(self, compute: Callable[[], T]) -> T:
        """Call `compute` on rank 0 and return its result on all ranks. A UserError of rank 0 is raised on all ranks."""
        if self.world_size == 1:
            return compute()
        result: T | None = None
        error: UserError | None = None
        if self.is_main:
            try:
                result = compute()
            except UserError as user_error:
                # Sent instead of raised here, since the other ranks wait for the message.
                error = user_error
        message = [(result, error)]
        torch.distributed.broadcast_object_list(message, 0, group=self._object_group)
        result, error = message[0]
        if error is not None:
            # The main process reports the error; the others end without repeating it.
            error.told = not self.is_main
            raise error
        return result  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self._object_group)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on rank 0, and an empty list on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        torch.distributed.gather_object(value, values, 0, group=self._object_group)
        return values or []

    def all_reduce_max(self, number: int | None) -> int | None:
        """Return the largest positive number of any rank; None if no rank has one."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number or 0)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self._object_group)
        return int(largest) or None

    def local_main_first(self, compute: Callable[[], T]) -> T:
        """Call `compute` on all ranks, but first on one rank of every machine.

        That rank downloads or builds, and the others then find its files in the cache.
        """
        if self.world_size == 1:
            return compute()
        results: list[T] = []
        for local_main in (True, False):
            with self.propagate_errors():
                if (self.info.local_rank == 0) == local_main:
                    results.append(compute())
        return results[0]

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Raise on all ranks, at the end of the block, the first UserError that any rank raised inside it.

        Without it the other ranks would wait in their next collective for the rank that failed.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as user_error:
            error = user_error
        errors = self.all_gather(error)
        # The first rank with an error speaks for all.
        rank = next((rank for rank, other in enumerate(errors) if other is not None), None)
        if error is None and rank is not None:
            error = errors[rank]
            assert error is not None
            if self.world_size > 1 and rank:
                error = type(error)(f"process {rank}: {error}")
        if error is not None:
            error.told = not self.is_main
            raise error


SINGLE_PROCESS = ProcessGroup(ProcessInfo())  # the group of a command that runs in one process


def is_connection_error(error: RuntimeError) -> bool:
    """Whether `error` reports that another process has ended, as gloo or NCCL word it."""
    words = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "nccl", "tcpstore")
    types = (torch.distributed.DistError,) if torch.distributed.is_available() else ()
    return isinstance(error, types) or any(word in str(error).lower() for word in words)
