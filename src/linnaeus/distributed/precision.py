"""Precisions of training, under the names that a run records."""

from __future__ import annotations

import torch

from linnaeus.errors import UserError

FLOAT32, CHANNELS_LAST, BF16 = "32-true", "32-true channels-last", "bf16-mixed"
"""Precisions of training on a CPU. bfloat16 is computed with channels last, too, where it is fastest."""
MIXED = {"16-mixed": torch.float16, BF16: torch.bfloat16}
"""Mixed precisions: the type of convolutions and products; weights, norms and losses stay float32."""


def full_name(kind: str, precision: str) -> str:
    """The name of the recipe's `precision` on a device of this kind.

    `auto`: mixed on a GPU, else 32 bits; on a CPU `training/tuning/precision.py` may choose another one for a phase.
    """
    if precision == "auto":
        if kind == "cuda":
            return BF16 if torch.cuda.is_bf16_supported() else "16-mixed"
        return FLOAT32
    if precision == "16-mixed" and kind == "cpu":
        raise UserError("precision = 16-mixed: not available on CPU; use 32, bf16-mixed or auto")
    return FLOAT32 if precision == "32" else precision
