"""Inception v1, known as GoogLeNet, with BatchNorm.

C. Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv:1409.4842. BatchNorm after every convolution is from
S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167; the original had none, and trains far more slowly.

What matters in an image may be small or large, so each module looks with kernels of several sizes at once and lets
the next one choose. Large kernels over many channels would be dear; a 1x1 convolution before each of them reduces the
channels first (section 4, fig. 2b), which is why 22 layers have 7 million parameters where VGG's 16 have 138.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.models.network import Network, check_choice, classifier, initialize, pooled


class ConvBN(nn.Module):
    """Convolution, BatchNorm, ReLU: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)  # eps as the published weights were trained with

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four views of the same input side by side (fig. 2b): 1x1, 3x3, 5x5, and a 3x3 max-pool.

    (N, c_in, H, W) -> (N, c1 + c3 + c5 + pool, H, W)

    `r3` and `r5` are the channels to which a 1x1 convolution reduces the input of the 3x3 and of the 5x5. Pooling
    cannot change the number of channels, so its 1x1 comes after it: without it, every module would be wider than the
    last by all of its input.

    `branch5x5` is the kernel of the third branch: "5x5" is the paper's, "3x3" what torchvision's weights have (a slip
    of the port they came from, kept since for the weights' sake).
    """

    def __init__(self, c_in: int, c1: int, r3: int, c3: int, r5: int, c5: int, pool: int, branch5x5: str):
        super().__init__()
        self.branch1 = ConvBN(c_in, c1, 1)
        self.branch2 = nn.Sequential(ConvBN(c_in, r3, 1), ConvBN(r3, c3, 3))
        self.branch3 = nn.Sequential(ConvBN(c_in, r5, 1), ConvBN(r5, c5, 5 if branch5x5 == "5x5" else 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), ConvBN(c_in, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier on a middle layer, so that the lower ones feel the label from nearby (section 5).

    (N, c_in, H, W) -> (N, classes) logits. Its loss is added with weight 0.3 in training; at evaluation it is unused.
    """

    def __init__(self, c_in: int, classes: int):
        super().__init__()
        self.conv = ConvBN(c_in, 128, 1)
        self.fc1 = nn.Linear(4 * 4 * 128, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        # The paper averages 5x5 windows with stride 3, which is 4x4 positions for a 224 image; this is 4x4 for any.
        x = self.conv(F.adaptive_avg_pool2d(x, (4, 4)))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(self.dropout(x))


class InceptionV1(Network):
    """GoogLeNet (Szegedy et al. 2014, table 1).

    (N, channels, H, W) -> (N, classes) logits; at 224:

        stem         (N, 192, 28, 28)   7x7 with stride 2, pool, 1x1, 3x3, pool
        inception3   (N, 480, 14, 14)   modules 3a, 3b, pool
        inception4   (N, 832, 7, 7)     modules 4a to 4e, pool; auxiliary heads after 4a and 4d
        inception5   (N, 1024, 7, 7)    modules 5a, 5b
        head         (N, classes)       global average pooling, dropout, linear

    With `aux=True`, and as long as inception4 is in training mode, a run that goes through it to the end returns
    `(logits, [logits of aux1, logits of aux2])`. Otherwise it returns the logits alone.

    Parameter names are torchvision's, so its weights load unconverted; they need `branch5x5="3x3"`.
    """

    parts: ClassVar = {
        "stem": ("conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
        "inception3": ("inception3a", "inception3b", "maxpool3"),
        "inception4": (*(f"inception4{letter}" for letter in "abcde"), "aux1", "aux2", "maxpool4"),
        "inception5": ("inception5a", "inception5b"),
        "head": ("dropout", "fc"),
    }
    head_input = 1024

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        branch5x5: str = "5x5",
        aux: bool = False,
        dropout: float = 0.4,
    ):
        super().__init__()
        check_choice("inception_v1", "branch5x5", branch5x5, ("5x5", "3x3"))
        arguments = {"branch5x5": branch5x5, "aux": aux, "dropout": dropout}
        self.arch = {"name": "inception_v1", "classes": classes, "channels": channels, "arguments": arguments}

        self.conv1 = ConvBN(channels, 64, 7, stride=2)
        self.maxpool1 = halve(3)
        self.conv2 = ConvBN(64, 64, 1)
        self.conv3 = ConvBN(64, 192, 3)
        self.maxpool2 = halve(3)

        # Table 1, row by row: channels in, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32, branch5x5)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64, branch5x5)
        self.maxpool3 = halve(3)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64, branch5x5)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64, branch5x5)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64, branch5x5)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64, branch5x5)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128, branch5x5)
        self.maxpool4 = halve(2)  # 3x3 in the paper; 2x2 is what the published weights were trained with
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128, branch5x5)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128, branch5x5)
        if aux:
            self.aux1 = AuxiliaryHead(512, classes)
            self.aux2 = AuxiliaryHead(528, classes)
        initialize(self)
        if aux:
            self.aux1.fc2 = classifier(1024, classes)
            self.aux2.fc2 = classifier(1024, classes)
        self.dropout = nn.Dropout(dropout)
        self.fc = classifier(1024, classes)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Any:
        """As every network's `run`; with auxiliary heads that train, `(logits, [auxiliary logits, …])`."""
        aux: list[Tensor] = []
        x = self._run(x, start, stop, {"inception4": lambda x: self.inception4(x, aux)})
        return (x, aux) if aux and stop is None else x

    def stem(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))
        return self.maxpool2(self.conv3(self.conv2(x)))

    def inception3(self, x: Tensor) -> Tensor:
        return self.maxpool3(self.inception3b(self.inception3a(x)))

    def inception4(self, x: Tensor, aux: list[Tensor] | None = None) -> Tensor:
        """Modules 4a to 4e; what the auxiliary heads say is appended to `aux` where they exist and train."""
        x = self.inception4a(x)
        if aux is not None and hasattr(self, "aux1") and self.aux1.training:
            aux.append(self.aux1(x))
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        if aux is not None and hasattr(self, "aux2") and self.aux2.training:
            aux.append(self.aux2(x))
        return self.maxpool4(self.inception4e(x))

    def inception5(self, x: Tensor) -> Tensor:
        return self.inception5b(self.inception5a(x))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(pooled(x)))


def halve(kernel: int) -> nn.MaxPool2d:
    """A max-pool of stride 2 that rounds sizes up: 224 -> 112 -> 56 -> 28 -> 14 -> 7, with no padding needed."""
    return nn.MaxPool2d(kernel, stride=2, ceil_mode=True)
