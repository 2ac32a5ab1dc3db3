"""Masked arrays of NumPy, whose masks most functions drop without a word."""

from __future__ import annotations

from typing import Any

import numpy as np

from linnaeus.errors import UserError


def refuse_masked(values: Any, name: str) -> None:
    """Raise UserError for an array of which some values are masked: they would count as if they were not."""
    if np.ma.is_masked(values):
        raise UserError(
            f"{name}: a masked array, {int(np.ma.getmaskarray(values).sum()):,} of whose values are masked; fill them, "
            "as array.filled(0) does, or leave these images out"
        )
