"""Stores: decoded images and the activations of frozen stages, computed once and kept on disk."""

from __future__ import annotations

from linnaeus.cache import default_cache

__all__ = ["default_cache"]
