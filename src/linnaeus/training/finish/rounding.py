"""How far the metrics of a saved model may differ from those during training by rounding alone.

Training validates in its own precision, on stored activations; the saved model is evaluated in float32 on pixels, as
`evaluate` and `predict` compute.
"""

from __future__ import annotations

import numpy as np

from linnaeus.distributed.precision import MIXED
from linnaeus.metrics.multilabel import label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.training.setup.prepare import Prepared

FLOAT32, MIXED_16, INT8 = 2.0**-9, 2.0**-6, 2.0**-3
"""Errors of logits, as fractions of the largest: of stored activations, which are float16, of bfloat16, and of int8.

ResNet-20 on CIFAR-10 in bfloat16: 0.0019 in the median, 0.0098 for 99 % of 2,000 images.
"""
DRAWS = 8  # random errors that are tried where the effect on a metric has no simple bound


def rounding_error(prepared: Prepared) -> float:
    """The relative error of the logits during training, by its precisions and the executors of its frozen stages."""
    tuned = prepared.identity.tuned
    executors = {*tuned.executors.values()}
    if "int8" in executors:
        return INT8
    mixed = MIXED.keys() & {prepared.engine.precision, *tuned.precisions.values()}
    return MIXED_16 if mixed or "bf16" in executors else FLOAT32


def decided_by_rounding(outputs: Outputs, error: float) -> int:
    """Number of images whose two largest logits are so close that the relative `error` may swap them."""
    second, first = np.partition(outputs.logits, -2, axis=1)[:, -2:].T
    return int((first - second <= error * np.abs(outputs.logits).max(1)).sum())


def map_within_rounding(outputs: Outputs, error: float) -> float:
    """The largest change of the mean average precision under random errors of the logits of the size `error`."""
    generator = np.random.default_rng(0)
    size = error * np.abs(outputs.logits).max(1, keepdims=True)
    exact = label_figures(outputs).map
    changed = (
        label_figures(Outputs(outputs.labels, outputs.logits + size * generator.standard_normal(outputs.logits.shape)))
        for _ in range(DRAWS)
    )
    return max(abs(figures.map - exact) for figures in changed)
