"""Environment variables that concern files and the network."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

import platformdirs

from linnaeus.errors import UserError

BUDGET_GB = 50.0


def cache_dir() -> Path:
    """The folder of downloaded and computed files: `LINNAEUS_CACHE`, or the system's folder for caches."""
    path = os.environ.get("LINNAEUS_CACHE")
    return Path(path).expanduser().absolute() if path else Path(platformdirs.user_cache_dir("linnaeus"))


def cache_budget() -> int:
    """Bytes that the cache may hold: `LINNAEUS_CACHE_GB`, or 50 GB."""
    text = os.environ.get("LINNAEUS_CACHE_GB", str(BUDGET_GB))
    try:
        budget = float(text)
        if not 0 <= budget < 1e9:
            raise ValueError
    except ValueError:
        raise UserError(f"LINNAEUS_CACHE_GB={text}: expected a number of gigabytes, 0 or more, such as 50") from None
    return int(budget * 1e9)


def offline() -> bool:
    """Whether `LINNAEUS_OFFLINE` forbids the network."""
    return os.environ.get("LINNAEUS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def mirror() -> str:
    """The address of a copy of the cache folder, without a slash at its end: `LINNAEUS_MIRROR`, or ""."""
    return os.environ.get("LINNAEUS_MIRROR", "").strip().rstrip("/")


def mirrored(path: Path) -> list[str]:
    """The address of a file of the cache folder on the user's mirror, if there is one."""
    if not mirror():
        return []
    name = path.relative_to(cache_dir()).as_posix() if path.is_relative_to(cache_dir()) else path.name
    return [f"{mirror()}/{urllib.parse.quote(name)}"]
