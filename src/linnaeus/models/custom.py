"""A user's own network: any module from images to logits, or a function in a local file that makes one."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from linnaeus.errors import UserError
from linnaeus.models.network import Network


class Custom(Network):
    """A user's module with the interface of a `Network`: (N, channels, H, W) -> (N, classes) logits.

    The children of an `nn.Sequential` are its stages, with their names and in their order. Any other module is a single
    stage called "all", because its computation cannot be cut without knowing its code.
    """

    def __init__(self, module: nn.Module, classes: int, channels: int, source: str):
        super().__init__()
        self.arch = {"name": "custom", "classes": classes, "channels": channels, "arguments": {"source": source}}
        self.module = module
        self.children_are_stages = isinstance(module, nn.Sequential) and len(module) > 0
        linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
        self.head_input = linear[-1].in_features if linear else 0  # 0: unknown, there is no linear layer

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.module.named_children()) if self.children_are_stages else ("all",)

    def function_of(self, stage: str) -> nn.Module:
        return self.module.get_submodule(stage) if self.children_are_stages else self.module

    def stage_of(self, name: str) -> str:
        """'module.features.0.weight' -> 'features'."""
        return name.split(".")[1] if self.children_are_stages else "all"


def wrap(module: nn.Module, classes: int, channels: int = 3, source: str = "a module") -> Network:
    """Give a user's module stages and an `arch`. A `Network` is returned unchanged.

    Raises UserError if a `Network` was made for other classes or channels.
    """
    if not isinstance(module, Network):
        return Custom(module, classes, channels, source)
    for quantity, number in (("classes", classes), ("channels", channels)):
        if module.arch[quantity] != number:
            raise UserError(
                f"{module.arch['name']} was made for {module.arch[quantity]} {quantity}, but the data has {number}"
            )
    return module


def load_module(path: str, classes: int, channels: int = 3) -> Network:
    """Import a local file that the user named and call its function: 'nets/mine.py:build'.

    The function takes (classes, channels), or (classes) alone, and returns a module that computes logits, without a
    softmax. This executes the file, so `path` must come from the user, never from a model file.
    Raises UserError if the file or the function is missing or fails.
    """
    file_name, colon, function_name = path.rpartition(":")
    file = Path(file_name)
    if not colon or not function_name.isidentifier():
        raise UserError(f"{path}: name the file and the function in it, such as net.py:build")
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; --model takes FILE.py:FUNCTION")
    # Importing runs the user's code: only for a file that the user has named.
    function = getattr(_import_file(file), function_name, None)
    if not callable(function):
        raise UserError(f"{file}: has no function {function_name!r}")
    if _accepts(function, 2):
        module = function(classes, channels)
    elif _accepts(function, 1):
        module = function(classes)
    else:
        raise UserError(f"{path}: the function must take (classes, channels) or (classes)")
    if not isinstance(module, nn.Module):
        raise UserError(f"{path}: returned {type(module).__name__}, not a torch.nn.Module")
    return wrap(module, classes, channels, source=f"{file.name}:{function_name}")


def _import_file(file: Path) -> ModuleType:
    """Import a file under its own name. Its folder is on `sys.path` meanwhile, so that it can import its neighbors."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: not a Python file; --model takes FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        # Removed again, so that later imports do not find the user's files.
        sys.path.remove(folder)
    return module


def _accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with `count` positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True
