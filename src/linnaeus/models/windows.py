"""Labels at several places of an image: one linear layer on windows of the last feature map, joined by a noisy-or.

The average over a whole image mixes the objects that it shows. Here each window shows one of the labels or none, by a
softmax with one more class whose logit is 0, and an image has a label unless all of its windows lack it:

    P(label) = 1 - product over windows (1 - p(label | window))

which is multiple-instance learning: labels are known of images, not of windows.

References
----------
O. Maron and T. Lozano-Perez, A framework for multiple-instance learning, NIPS 1997 (noisy-or, section 2).
P. Viola, J. Platt and C. Zhang, Multiple instance boosting for object detection, NIPS 2005 (section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from linnaeus.errors import UserError

SURE = 1 - 1e-4  # factor on the probability in a window: with 1 the logit of a label could become infinite
SMALL = 0.01  # below, power series take the place of logarithms, which float32 rounds to nothing
LEAST = 1e-12


def cut_windows(x: Tensor, count: int, axes: tuple[int, int] = (2, 3)) -> list[Tensor]:
    """Windows of a feature map, `count` a side, row by row: each has 2 / (count + 1) of a side, half of it shared.

    `axes` are the dimensions of height and width. Raises UserError if the map has fewer positions a side.
    """
    height, width = (x.shape[axis] for axis in axes)
    if min(height, width) < count:
        raise UserError(
            f"model.head.windows = {count}: the last feature map has {height} x {width} positions, so choose at most "
            f"{min(height, width)}, or a larger data.size"
        )
    places = [_places(length, count) for length in (height, width)]
    return [
        x.narrow(axes[0], top, rows).narrow(axes[1], left, columns)
        for top, rows in places[0]
        for left, columns in places[1]
    ]


def _places(length: int, count: int) -> list[tuple[int, int]]:
    """(start, length) of each window along one side."""
    size = max(1, round(2 * length / (count + 1)))
    return [(round(i * (length - size) / max(1, count - 1)), size) for i in range(count)]


def evidence(p: Tensor) -> Tensor:
    """Probabilities (N, windows, ...) of labels in windows -> (N, ...): minus log P(all windows lack the label)."""
    p = SURE * p
    series = p * (1 + p / 2 + p * p / 3)
    return torch.where(p < SMALL, series, -torch.log(1 - p)).sum(1).clamp(min=LEAST)


def label_logits(total: Tensor) -> Tensor:
    """log(exp(total) - 1): the logit of 1 - exp(-total), in which `total` is the `evidence`."""
    # Each branch stays finite where the other one counts, or its gradient would be NaN.
    low, high = total.clamp(max=SMALL), total.clamp(min=SMALL)
    return torch.where(total < SMALL, low.log() + low / 2 + low * low / 24, high + torch.log(1 - torch.exp(-high)))


def window_probabilities(z: Tensor) -> Tensor:
    """Logits (..., labels) of windows -> probabilities of the labels; the rest up to 1 is that of none."""
    return torch.cat([z, torch.zeros_like(z[..., :1])], -1).softmax(-1)[..., :-1]


class WindowClassifier(nn.Linear):
    """(N, windows, features) -> (N, labels) logits of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return label_logits(evidence(window_probabilities(super().forward(x)).float()))
