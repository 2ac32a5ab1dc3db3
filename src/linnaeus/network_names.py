"""Names of the networks, for checks that must not wait for torch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from linnaeus.errors import UnknownNameError, did_you_mean

NETWORKS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152, 20, 32, 44, 56, 110)),
    *(f"plain{depth}" for depth in (20, 32, 44, 56)),
    *("mini_resnet", "digit_resnet", "inception_v1"),
)
"""Ours; a test compares them with `models.MODELS`."""
LIBRARIES = ("timm", "hf", "onnx")  # what stands before the slash in the name of another network


def unknown_network(name: str) -> UnknownNameError:
    """The error for a network that is neither ours nor written as one of a library."""
    return UnknownNameError(
        f"unknown model {name!r}{did_you_mean_network(name, NETWORKS)}: `linnaeus models` lists ours; timm/NAME takes "
        "any network of timm, hf/OWNER/NAME one of the Hugging Face hub, onnx/FILE an ONNX graph, net.py:build your own"
    )


def did_you_mean_network(name: str, known: Iterable[str]) -> str:
    """As `did_you_mean`, for a network or its weights: the prefix of the library is often missing, or has a colon."""
    library, colon, rest = name.partition(":")
    if colon and rest and library.lower() in LIBRARIES:
        return f" (did you mean {library.lower()}/{rest}?)"
    owner, slash, rest = name.partition("/")
    if slash and owner and rest and owner.lower() not in LIBRARIES:
        return f" (did you mean hf/{name}?)"
    # Without the tag of the weights, as in `resnet18.a1_in1k`.
    if name.partition(".")[0] in _networks_of_timm():
        return f" (did you mean timm/{name}?)"
    return did_you_mean(name, known)


def _networks_of_timm() -> set[str]:
    """Names of timm's networks, read from its source: importing it takes seconds. Empty where it is not installed."""
    names: set[str] = set()
    package = importlib.util.find_spec("timm")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for file in Path(folder, "models").glob("*.py"):
            with suppress(OSError, UnicodeDecodeError):
                names.update(re.findall(r"^@register_model\ndef (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    return names
