"""Inception v1, also known as GoogLeNet, with BatchNorm.

C. Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv:1409.4842. BatchNorm after every convolution is from
S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167; the original network had none and trains far more slowly without it.

The structure that matters in an image may be small or large. Each Inception module therefore applies several kernel
sizes to the same input and concatenates the results, and the next module chooses among them. Large kernels on many
channels are expensive, so a 1x1 convolution reduces the channels first (section 4, figure 2b). This is why 22 layers
have 7 million parameters, while the 16 layers of VGG have 138 million.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.models.network import Network, check_choice, classifier, initialize


class ConvBN(nn.Module):
    """Convolution, BatchNorm, ReLU: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride), rounded up."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)  # the published weights were trained with this eps

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


@dataclass(frozen=True)
class Widths:
    """Output channels of the convolutions of one Inception module: the columns of table 1, in its order."""

    conv1x1: int
    reduce3x3: int  # channels to which a 1x1 convolution reduces the input of the 3x3 convolution
    conv3x3: int
    reduce5x5: int  # channels to which a 1x1 convolution reduces the input of the 5x5 convolution
    conv5x5: int
    pool_proj: int  # channels of the 1x1 convolution after the pooling

    @property
    def total(self) -> int:
        """Output channels of the module."""
        return self.conv1x1 + self.conv3x3 + self.conv5x5 + self.pool_proj


TABLE_1 = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
"""Columns: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""


class Inception(nn.Module):
    """Four parallel branches on the same input: 1x1, 3x3 and 5x5 convolutions and 3x3 max-pooling (figure 2b).

    (N, c_in, H, W) -> (N, widths.total, H, W)

    Pooling keeps the number of channels, so its 1x1 convolution follows it. Without this reduction, each module would
    be wider than the previous one by all of its input.

    `kernel5x5` is the kernel size of the third branch: 5 in the paper, 3 in torchvision's published weights (a mistake
    in the port that they came from, kept for compatibility).
    """

    def __init__(self, c_in: int, widths: Widths, kernel5x5: int = 5):
        super().__init__()
        w = widths
        self.branch1 = ConvBN(c_in, w.conv1x1, 1)
        self.branch2 = nn.Sequential(ConvBN(c_in, w.reduce3x3, 1), ConvBN(w.reduce3x3, w.conv3x3, 3))
        self.branch3 = nn.Sequential(ConvBN(c_in, w.reduce5x5, 1), ConvBN(w.reduce5x5, w.conv5x5, kernel5x5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBN(c_in, w.pool_proj, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier on a middle layer, which gives the layers below it a short path to the loss (section 5).

    (N, c_in, H, W) -> (N, classes) logits. Its loss has weight 0.3 in training; it is not used in evaluation.
    """

    def __init__(self, c_in: int, classes: int):
        super().__init__()
        self.conv = ConvBN(c_in, 128, 1)
        self.fc1 = nn.Linear(4 * 4 * 128, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        # The paper averages 5x5 windows with stride 3, which gives 4x4 positions for images of 224 pixels. Adaptive
        # pooling gives 4x4 for every size.
        x = self.conv(F.adaptive_avg_pool2d(x, (4, 4)))  # (N, 128, 4, 4)
        x = F.relu(self.fc1(x.flatten(1)))  # (N, 1024)
        return self.fc2(self.dropout(x))


class InceptionV1(Network):
    """GoogLeNet (table 1).

    (N, channels, H, W) -> (N, classes) logits. At 224 x 224:

        stem         (N, 192, 28, 28)   7x7 convolution with stride 2, pooling, 1x1 and 3x3 convolutions, pooling
        inception3   (N, 480, 14, 14)   modules 3a and 3b, pooling
        inception4   (N, 832, 7, 7)     modules 4a to 4e, pooling; auxiliary heads after 4a and 4d
        inception5   (N, 1024, 7, 7)    modules 5a and 5b
        head         (N, classes)       global average pooling, dropout, linear

    Arguments:
        branch5x5: kernel of the third branch of each module, "5x5" as in the paper or "3x3"; see `Inception`.
        aux: add auxiliary heads. While inception4 is in training mode, a run through it to the end then returns
            `(logits, [logits of aux1, logits of aux2])`, otherwise the logits alone.
        dropout: fraction of the pooled features that is dropped in training.

    The parameter names are those of torchvision, so its weights load unconverted; they need `branch5x5="3x3"`.
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
        kernel = 5 if branch5x5 == "5x5" else 3

        self.conv1 = ConvBN(channels, 64, 7, stride=2)
        self.maxpool1 = halving_pool(3)
        self.conv2 = ConvBN(64, 64, 1)
        self.conv3 = ConvBN(64, 192, 3)
        self.maxpool2 = halving_pool(3)
        # The first argument is the number of channels that the previous module gives.
        self.inception3a = Inception(192, TABLE_1["3a"], kernel)
        self.inception3b = Inception(256, TABLE_1["3b"], kernel)
        self.maxpool3 = halving_pool(3)
        self.inception4a = Inception(480, TABLE_1["4a"], kernel)
        self.inception4b = Inception(512, TABLE_1["4b"], kernel)
        self.inception4c = Inception(512, TABLE_1["4c"], kernel)
        self.inception4d = Inception(512, TABLE_1["4d"], kernel)
        self.inception4e = Inception(528, TABLE_1["4e"], kernel)
        self.maxpool4 = halving_pool(2)  # 3x3 in the paper; the published weights were trained with 2x2
        self.inception5a = Inception(832, TABLE_1["5a"], kernel)
        self.inception5b = Inception(832, TABLE_1["5b"], kernel)
        if aux:
            self.aux1 = AuxiliaryHead(512, classes)
            self.aux2 = AuxiliaryHead(528, classes)
        initialize(self)
        # Classifiers come after `initialize`, which would make their weights too large.
        if aux:
            self.aux1.fc2 = classifier(1024, classes)
            self.aux2.fc2 = classifier(1024, classes)
        self.dropout = nn.Dropout(dropout)
        self.fc = classifier(1024, classes)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Any:
        """As `Network.run`. With auxiliary heads in training: `(logits, [logits of aux1, logits of aux2])`."""
        aux: list[Tensor] = []
        x = self._run(x, start, stop, {"inception4": partial(self.inception4, aux=aux)})
        return (x, aux) if aux and stop is None else x

    def stem(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))  # (N, 64, H / 4, W / 4)
        return self.maxpool2(self.conv3(self.conv2(x)))  # (N, 192, H / 8, W / 8)

    def inception3(self, x: Tensor) -> Tensor:
        return self.maxpool3(self.inception3b(self.inception3a(x)))

    def inception4(self, x: Tensor, aux: list[Tensor] | None = None) -> Tensor:
        """Modules 4a to 4e. The logits of the auxiliary heads are appended to `aux` if the heads exist and train."""
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
        return self.fc(self.dropout(self.head_features(x)))


def halving_pool(kernel: int) -> nn.MaxPool2d:
    """Max-pooling with stride 2 that rounds sizes up: 112 -> 56 -> 28 -> 14 -> 7 without padding."""
    return nn.MaxPool2d(kernel, stride=2, ceil_mode=True)
