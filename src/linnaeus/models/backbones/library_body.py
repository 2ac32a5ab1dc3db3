"""Code shared by the backbones of other libraries: stages, pooling of tokens and maps, and failed imports."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linnaeus.errors import UserError, first_line

Layout = Mapping[str, tuple[str, ...]]  # stage -> the parts of the body that it calls, in order


def stage_calling(layout: Layout, name: str) -> str | None:
    """The stage of the parameter `name`: `head`, or the one that calls its part of the body; None if none does."""
    if name.split(".", 1)[0] == "fc":
        return "head"
    path = name.removeprefix("body.")
    for stage, calls in layout.items():
        if any(path == call or path.startswith(f"{call}.") for call in calls):
            return stage
    return None


def without_prefix(tensors: dict[str, Tensor], body: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """`tensors` without a prefix that all their names share, such as `model.` or `vit.`, unless the body has that part.

    Checkpoints with a head keep the backbone below a prefix. The body is built only if there is one.
    """
    prefixes = {key.partition(".")[0] for key in tensors}
    if len(prefixes) != 1 or not all("." in key for key in tensors) or hasattr(body(), *prefixes):
        return tensors
    return {key.partition(".")[2]: tensor for key, tensor in tensors.items()}


def pool_tokens(x: Tensor, pool: str, prefix: int = 0) -> Tensor:
    """Tokens (N, T, C) -> features: `cls` the first token, `mean` of those after `prefix`, `cls+mean` both."""
    parts = {"cls": x[:, 0], "mean": x[:, prefix:].mean(1)}
    return torch.cat([parts[part] for part in pool.split("+")], 1)


def token_map(x: Tensor, prefix: int = 0) -> Tensor | None:
    """Tokens (N, T, C) after `prefix` as a square map (N, C, H, W); None if they are no square."""
    side = math.isqrt(x.shape[1] - prefix)
    if side * side != x.shape[1] - prefix:
        return None
    return x[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Chain:
    """Calls functions one after the other."""

    functions: Sequence[Callable[[Tensor], Tensor]]

    def __call__(self, x: Tensor) -> Tensor:
        for function in self.functions:
            x = function(x)
        return x


@contextmanager
def import_errors(prefix: str, library: str, install: str) -> Iterator[None]:
    """Turn an import of `library` that fails into one line: the command that installs it, or what fits torch."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise UserError(f"model.name = {prefix}…: needs the package {error.name}: {install}") from None
        cause: BaseException = error
        while cause.__cause__ is not None:  # transformers wraps "operator torchvision::nms does not exist"
            cause = cause.__cause__
        raise UserError(f"model.name = {prefix}…: {library} cannot be imported {_fitting_torchvision(cause)}") from None


def _fitting_torchvision(error: BaseException) -> str:
    """What to install after an import that failed in torchvision, with the reason in parentheses."""
    minor = re.match(r"2\.(\d+)", torch.__version__)
    fits = f"torchvision 0.{int(minor[1]) + 15}" if minor else "the torchvision"
    return (
        f"({first_line(error)}): install {fits} that is built for torch {torch.__version__}, from the package "
        "index that torch came from"
    )
