"""What runs a classifier: the torch network, or an ONNX file. Both take what preprocessing cut, and give logits."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.modelfile.onnx import INPUT, LOGITS
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing


class Runner(Protocol):
    """The squares that a network sees, (N, size, size, C) uint8 -> (N, classes) float32 logits, not calibrated."""

    kind: str
    """`torch`, `onnx` or `onnx-int8`."""
    device: torch.device
    """Where images are wanted."""

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

    The graph resizes and cuts what it is given. What is cut already is laid into the middle of a black square of side
    `resize`, where the graph's resizing does nothing and its cut finds it again: it sees the same pixels as torch.
    """

    device = torch.device("cpu")

    def __init__(self, session: Any, preprocessing: Preprocessing, kind: str):
        self.session, self.kind = session, kind
        self.side, self.size = preprocessing.resize, preprocessing.size
        self.start = round((self.side - self.size) / 2)

    def __call__(self, images: Tensor) -> np.ndarray:
        n, *_, channels = images.shape
        laid = np.zeros((n, self.side, self.side, channels), np.uint8)
        inner = slice(self.start, self.start + self.size)
        laid[:, inner, inner] = images.cpu().numpy()
        return self.session.run([LOGITS], {INPUT: laid})[0]

    def raw(self, image: np.ndarray, output: str = LOGITS) -> np.ndarray:
        """A whole image, (H, W) or (H, W, C) uint8 -> (classes,) logits, all of it inside the graph."""
        given = image if image.ndim == 3 else image[:, :, None]
        return self.session.run([output], {INPUT: np.ascontiguousarray(given)[None]})[0][0]
