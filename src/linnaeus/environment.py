"""What the environment variables say that concern files and the network."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The folder of downloaded and computed files: `LINNAEUS_CACHE`, or the system's folder for caches."""
    given = os.environ.get("LINNAEUS_CACHE")
    return Path(given).expanduser().absolute() if given else Path(platformdirs.user_cache_dir("linnaeus"))


def offline() -> bool:
    """Whether `LINNAEUS_OFFLINE` forbids the network."""
    return os.environ.get("LINNAEUS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def mirror() -> str:
    """The address of a copy of the cache folder, without a slash at its end: `LINNAEUS_MIRROR`, or ""."""
    return os.environ.get("LINNAEUS_MIRROR", "").strip().rstrip("/")
