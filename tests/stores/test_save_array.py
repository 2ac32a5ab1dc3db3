"""Arrays on a full disk."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from killing import in_child

from linnaeus.stores.rows import save_array


def test_an_array_is_written_as_numpy_does(tmp_path: Path):
    for array in (np.arange(6).reshape(2, 3), np.zeros(0), np.zeros(3, [("a", "<i4"), ("b", "<u8")])):
        save_array(tmp_path / "ours.npy", array)
        np.save(tmp_path / "theirs.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_a_full_disk_is_not_ignored(tmp_path: Path):
    """numpy alone writes the header and nothing else, and reports success."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match="File too large"):
            save_array(tmp_path / "a.npy", np.zeros(500))

    assert in_child(work) == 0
