"""Forks of the process that runs the tests, which has torch in memory already and so starts fast."""

from __future__ import annotations

import os

import torch


def fork() -> int:
    """As os.fork(); the child sees no GPU.

    CUDA that the parent has initialized cannot be used in a fork, and another test of the session may have initialized
    it: `device = "auto"` would take the GPU and fail.
    """
    pid = os.fork()
    if pid == 0:
        torch.cuda.is_available = lambda: False
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the commands that it starts
    return pid
