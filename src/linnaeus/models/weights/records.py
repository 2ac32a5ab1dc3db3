"""The local folder of pretrained weights, and what is recorded about its files: checksum, size, license, repository."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linnaeus.environment import cache_dir
from linnaeus.files import read_object, write_text


def weights_dir() -> Path:
    """The folder of the weights: `weights` in the cache, which is `LINNAEUS_CACHE` or the system's cache folder."""
    return cache_dir() / "weights"


def key_of(name: str) -> str:
    """The name of weights without slashes, for files: "hf/facebook/dinov2-small" -> "hf--facebook--dinov2-small"."""
    return name.replace("/", "--")


def read_record(key: str) -> dict[str, Any]:
    """What NAME.json says; empty if there is none or it cannot be read."""
    return read_object(weights_dir() / f"{key}.json")


def write_record(key: str, entries: Mapping[str, Any]) -> None:
    """Add entries to NAME.json."""
    write_text(weights_dir() / f"{key}.json", json.dumps(read_record(key) | dict(entries)))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Trust on first use: where only a part of the checksum is published


def _first_use(file: str) -> Path:
    return weights_dir().with_name("checksums") / f"{file}.json"


def remember(path: Path, checksum: str) -> None:
    """Record the whole checksum and the size of a published file, of whose checksum only a part is published."""
    write_text(_first_use(path.name), json.dumps({"sha256": checksum, "size": path.stat().st_size}))


def remembered(file: str) -> tuple[str, int] | None:
    """(SHA-256, size in bytes) of a published file when it was first used here; None before."""
    content = read_object(_first_use(file))
    try:
        return str(content["sha256"]), int(content["size"])
    except (ValueError, KeyError, TypeError):
        return None
