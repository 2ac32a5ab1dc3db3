"""torchvision as a reference to compare with, where it is installed; it is no dependency.

`pip install --no-deps torchvision==0.28.0` is the version that matches torch 2.13. Beside a CPU-only torch its wheel
fails at import, because its compiled operators are for the CUDA build, do not load, and leave their names undeclared.
No network compared here calls one of them, so declaring the names is enough.
"""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

OPERATORS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


library = torch.library.Library("torchvision", "FRAGMENT")  # what is declared through it is gone when it is


def torchvision() -> ModuleType:
    """The torchvision package, with `models` and `transforms`; skips the calling test, by name, where it is absent."""
    if find_spec("torchvision") is None:
        pytest.skip("needs the reference: pip install --no-deps torchvision==0.28.0")
    return _import()


@functools.cache
def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:  # operator torchvision::nms does not exist
        if "torchvision::" not in str(error):
            raise
    _declare_operators()
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    """Declare the operators' names, with schemas that nobody reads."""
    for name in OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
        library.define(f"_{name}_backward(Tensor x) -> Tensor")
