"""TrivialAugment: one random operation of random strength per image (Müller and Hutter 2021, arXiv:2103.10158)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnaeus.augment.random import uniforms

STREAM = 40
BINS = 31
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
STRENGTHS = {  # the "wide" space of the paper's table 1: the value of each of the 31 bins
    "shear_x": np.linspace(0.0, 0.99, BINS),
    "shear_y": np.linspace(0.0, 0.99, BINS),
    "translate_x": np.linspace(0.0, 32.0, BINS).astype(int).astype(float),  # whole pixels
    "translate_y": np.linspace(0.0, 32.0, BINS).astype(int).astype(float),
    "rotate": np.linspace(0.0, 135.0, BINS),
    "brightness": np.linspace(0.0, 0.99, BINS),
    "saturation": np.linspace(0.0, 0.99, BINS),
    "contrast": np.linspace(0.0, 0.99, BINS),
    "sharpness": np.linspace(0.0, 0.99, BINS),
    "posterize": 8 - np.round(np.arange(BINS) / ((BINS - 1) / 6)),
    "solarize": np.linspace(255.0, 0.0, BINS),
}
UNSIGNED = frozenset({"posterize", "solarize"})


@dataclass(frozen=True)
class Trivial:
    """The operation and strength that TrivialAugment drew for each of N samples."""

    operation: np.ndarray  # (N,) int64, an index into OPERATIONS
    strength: np.ndarray  # (N,) float64, signed; 0 if the operation has no strength

    def of(self, name: str) -> np.ndarray:
        """(N,) bool: the samples that drew this operation."""
        return self.operation == OPERATIONS.index(name)

    def pick(self, name: str, otherwise: float) -> np.ndarray:
        """(N,) float64: the strength for samples that drew `name`, otherwise `otherwise`."""
        return np.where(self.of(name), self.strength, otherwise)


def draw_trivial(seed: int, epoch: int, indices: np.ndarray) -> Trivial:
    """Draw one of 14 operations, one of 31 bins, and a sign if the operation has one, all uniformly."""
    u = uniforms(seed, epoch, indices, 3, STREAM)
    operation = (u[:, 0] * len(OPERATIONS)).astype(np.int64)
    bins = (u[:, 1] * BINS).astype(np.int64)
    sign = np.where(u[:, 2] < 0.5, 1.0, -1.0)
    strength = np.zeros(len(operation))
    for name, values in STRENGTHS.items():
        chosen = operation == OPERATIONS.index(name)
        strength[chosen] = values[bins[chosen]] * (1.0 if name in UNSIGNED else sign[chosen])
    return Trivial(operation, strength)
