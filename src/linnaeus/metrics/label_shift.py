"""Label shift: whether the classes of images have other shares than in the images that calibrated a model.

Probabilities and the share of wrong answers hold for one mix of classes. Of two kinds of flowers at 50 to 50, 4 % of
the answers that the model was sure of were wrong. At 95 to 5 the share was the same, but of the answers that named the
rarer kind 32 and 41 % were wrong, depending on which one it was (EfficientNet-Lite0, linear probe, 40 splits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2_contingency

from linnaeus.text import percent

SMALLEST_P = 0.001
SMALLEST_DIFFERENCE = 0.1
"""Share of images that would have to change their class: smaller differences change little, however certain."""
FEWEST = 5  # images of a class for the approximation of the test; smaller classes are tested as one


def label_shift(calibrated: np.ndarray, measured: np.ndarray, names: Sequence[str], units: float | None = None) -> str:
    """What to say where the classes have other shares, by their numbers of images, (classes,) each; else empty.

    `units`: number of independent groups of the measured images; None where each image stands alone.
    """
    before, here = calibrated / max(calibrated.sum(), 1), measured / max(measured.sum(), 1)
    if not calibrated.sum() or np.abs(before - here).sum() / 2 < SMALLEST_DIFFERENCE:
        return ""
    table = np.stack([calibrated.astype(float), here * (measured.sum() if units is None else units)])
    rare = table.sum(0) < FEWEST
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or chi2_contingency(table).pvalue > SMALLEST_P:
        return ""
    rarer = int((before - here).argmax())
    return (
        f"{names[rarer]} is {percent(here[rarer])} of these images, and was {percent(before[rarer])} of those that "
        "calibrated the model: probabilities and the limit for wrong answers hold for the shares of then, and more of "
        f"the answers {names[rarer]} are wrong than they promise"
    )
