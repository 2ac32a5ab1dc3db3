"""Runners compute the logits of cropped images: with the torch network, or with an ONNX file."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.modelfile.agreement import Agreement
from linnaeus.modelfile.onnx import INPUT, LOGITS
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing

NOT_FINITE = "the network computes values that are not finite, so there is no answer; train the model again"


class Runner(Protocol):
    """Cropped images (N, size, size, C) uint8 -> uncalibrated logits (N, classes) float32, not necessarily finite."""

    kind: str
    """`torch`, `onnx` or `onnx-int8`."""
    device: torch.device
    """The device that images are best on; others are copied there."""

    def __call__(self, images: Tensor) -> np.ndarray: ...


class TorchRunner:
    """A network in evaluation mode, on a device."""

    kind = "torch"

    def __init__(self, network: Network, preprocessing: Preprocessing, device: torch.device):
        self.network, self.preprocessing, self.device = network.to(device), preprocessing, device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> np.ndarray:
        return self.network(self.preprocessing.normalise(images.to(self.device))).float().cpu().numpy()


class OnnxRunner:
    """An ONNX Runtime session of a file that `export` wrote.

    The graph resizes and crops its input. A cropped image is therefore put into the middle of a black square of side
    `resize`: the graph does not resize that, and its center crop is the image again, the same pixels as in torch.
    """

    device = torch.device("cpu")

    def __init__(self, session: Any, preprocessing: Preprocessing, kind: str, agreement: Agreement | None = None):
        self.session, self.kind, self.agreement = session, kind, agreement
        self.side, self.size = preprocessing.resize, preprocessing.size
        self.start = round((self.side - self.size) / 2)

    def __call__(self, images: Tensor) -> np.ndarray:
        n, *_, channels = images.shape
        padded = np.zeros((n, self.side, self.side, channels), np.uint8)
        inner = slice(self.start, self.start + self.size)
        padded[:, inner, inner] = images.cpu().numpy()
        return self.session.run([LOGITS], {INPUT: padded})[0]

    def raw(self, image: np.ndarray, output: str = LOGITS) -> np.ndarray:
        """Logits (classes,) of an image of any size, (H, W) or (H, W, C) uint8; the graph does the preprocessing."""
        image = image if image.ndim == 3 else image[:, :, None]
        return self.session.run([output], {INPUT: np.ascontiguousarray(image)[None]})[0][0]


def finite(run: Runner, images: Tensor) -> np.ndarray:
    """The logits of `run`. Raises UserError where one is not finite: a figure must not count it as an answer."""
    logits = run(images)
    broken = int((~np.isfinite(logits).all(1)).sum())
    if broken:
        raise UserError(f"{broken} of {len(logits)} images: {NOT_FINITE}")
    return logits
