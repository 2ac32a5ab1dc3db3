"""Sources of empty files, and the check of how a source is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from linnaeus.data.sources import open_source
from linnaeus.errors import UserError


def lay(root: Path, *files: str) -> Path:
    """Create empty `files` below `root`, and return it."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def refused(path: Path, *said: str, **more: Any) -> None:
    """Check that opening the source fails with one line that names `path` and contains the texts `said`."""
    with pytest.raises(UserError) as error:
        open_source(path, **more)
    line = str(error.value)
    assert "\n" not in line
    for text in (str(path), *said):
        assert text in line, line
