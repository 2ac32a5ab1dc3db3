"""Forks of the process that runs the tests, which has torch in memory already and so starts fast."""

from __future__ import annotations

import os

import pytest
import torch


def fork() -> int:
    """As os.fork(). Skips the test where the tests may use a GPU: neither CUDA nor autograd, once it has computed
    gradients there, works in a fork."""
    if torch.cuda.is_available():
        pytest.skip("forks, which CUDA does not survive: run it without LINNAEUS_TEST_GPU")
    return os.fork()
