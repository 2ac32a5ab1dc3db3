"""Stores: decoded images and the activations of frozen stages, computed once and kept on disk."""

from __future__ import annotations

import os

from linnaeus.environment import cache_dir
from linnaeus.errors import UserError
from linnaeus.stores.cache import Cache

BUDGET_GB = 50.0


def default_cache() -> Cache:
    """The user's cache: below LINNAEUS_CACHE or the system's folder for caches, at most LINNAEUS_CACHE_GB (50)."""
    text = os.environ.get("LINNAEUS_CACHE_GB", str(BUDGET_GB))
    try:
        budget = float(text)
        if not 0 <= budget < 1e9:
            raise ValueError
    except ValueError:
        raise UserError(f"LINNAEUS_CACHE_GB={text}: expected a number of gigabytes, 0 or more, such as 50") from None
    return Cache(cache_dir() / "stores", int(budget * 1e9))
