"""The matrix of features that a linear head is solved on: in memory, or where memory is short in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import numpy as np
import torch
from torch import Tensor

from linnaeus.device import free_memory
from linnaeus.environment import cache_dir
from linnaeus.files import disk_errors

IN_MEMORY = 0.4  # share of the free memory up to which a matrix is kept there; solving takes up to twice its size

BLOCK = 16 << 20  # bytes of zeros written at once


@contextmanager
def feature_matrix(n: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """(n, width) float32 on the device, not initialized, until the end of the context.

    On a CPU without memory for it, it is a temporary file in the cache folder, mapped into memory. The solver reads the
    rows in order and some at a time, so the operating system keeps those that fit and streams the rest. Raises
    UserError if the disk is too full for the file.
    """
    size = 4 * n * width
    if device.type != "cpu" or size <= IN_MEMORY * free_memory(device):
        yield torch.empty(n, width, device=device)
        return
    folder = cache_dir()
    with ExitStack() as stack:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder, prefix="features-"))
            _allocate(file, size)
        yield torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(n, width)))


def _allocate(file: IO[bytes], size: int) -> None:
    """Fill an open file with zeros: a write to a mapped page that has no place on the disk would end the process."""
    zeros = bytes(BLOCK)
    for start in range(0, size, BLOCK):
        file.write(zeros[: min(BLOCK, size - start)])
    file.flush()
