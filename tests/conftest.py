"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Several test processes share the cores: one thread each, set before torch or numpy start their pools.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures beside the checkout; tests that need it are skipped, by name, without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real pictures in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache folder of its own, so none depends on what ran before."""
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path_factory.mktemp("cache")))
