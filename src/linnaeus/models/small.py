"""Networks for small images: the CIFAR ResNets, their plain counterparts, and two small residual ones for digits.

He et al. 2015, arXiv:1512.03385, section 4.2 (CIFAR), for all but the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.network import Network, check_choice, classifier, initialize, pooled
from linnaeus.models.resnet import BasicBlock, conv, zero_last_batchnorm

CIFAR_RESNETS = {f"resnet{6 * n + 2}": n for n in (3, 5, 7, 9, 18)}
"""resnet20, 32, 44, 56 and 110 -> n, the number of blocks in each of the three layers: 6n + 2 weighted layers."""

PLAIN_NETS = {f"plain{6 * n + 2}": n for n in (3, 5, 7, 9)}


class Subsample(nn.Module):
    """The shortcut without parameters: every second position, and zeros for the new channels (option A).

    (N, c_in, H, W) -> (N, c_out, H/2, W/2), rounded up
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.new_channels = c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class PlainBlock(nn.Module):
    """A basic block with its shortcut left out: nothing but the two convolutions.

    (N, c_in, H, W) -> (N, width, H/stride, W/stride)
    """

    def __init__(self, c_in: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv(c_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class CifarNet(Network):
    """Shared body of the CIFAR ResNets and plain nets; `blocks` holds the three layers.

    (N, channels, H, W) -> (N, classes) logits; at 32:

        stem     (N, 16, 32, 32)   3x3 convolution
        layer1   (N, 16, 32, 32)   n blocks each
        layer2   (N, 32, 16, 16)
        layer3   (N, 64, 8, 8)
        head     (N, classes)      global average pooling, linear
    """

    parts: ClassVar = {
        "stem": ("conv1", "bn1"),
        "layer1": ("layer1",),
        "layer2": ("layer2",),
        "layer3": ("layer3",),
        "head": ("fc",),
    }
    head_input = 64
    usual_size = 32

    def __init__(self, classes: int, channels: int, blocks: Sequence[nn.Sequential]):
        super().__init__()
        self.conv1 = conv(channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = blocks
        initialize(self)
        self.fc = classifier(64, classes)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(pooled(x))


SHAPES = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
"""Channels in, channels out and stride of layer1, layer2 and layer3 (section 4.2)."""


def cifar_resnet(
    name: str, classes: int, channels: int = 3, *, shortcut: str = "A", zero_init: bool = False
) -> CifarNet:
    """ResNet-20, 32, 44, 56 or 110 (section 4.2, table 6): from 0.27 to 1.7 million parameters.

    `shortcut="A"` pads with zeros, so that the network has exactly the parameters of its plain counterpart and the
    comparison is fair: the paper's choice here. `"B"` projects, as the large networks do.
    """
    check_choice(name, "shortcut", shortcut, ("A", "B"))
    layers = []
    for c_in, c_out, stride in SHAPES:
        first = BasicBlock(c_in, c_out, stride)
        if shortcut == "A" and stride > 1:
            first.downsample = Subsample(c_in, c_out)
        rest = (BasicBlock(c_out, c_out) for _ in range(CIFAR_RESNETS[name] - 1))
        layers.append(nn.Sequential(first, *rest))
    network = CifarNet(classes, channels, layers)
    if zero_init:
        zero_last_batchnorm(network)
    arguments = {"shortcut": shortcut, "zero_init": zero_init}
    network.arch = {"name": name, "classes": classes, "channels": channels, "arguments": arguments}
    return network


def plain_net(name: str, classes: int, channels: int = 3) -> CifarNet:
    """plain20 to plain56: a CIFAR ResNet without its shortcuts, to show degradation (fig. 6, left).

    Trained alike, plain56 ends with a higher *training* error than plain20, while resnet56 ends with a lower one than
    resnet20: the shortcuts, and not the depth, make the difference.
    """
    layers = []
    for c_in, c_out, stride in SHAPES:
        rest = (PlainBlock(c_out, c_out) for _ in range(PLAIN_NETS[name] - 1))
        layers.append(nn.Sequential(PlainBlock(c_in, c_out, stride), *rest))
    network = CifarNet(classes, channels, layers)
    network.arch = {"name": name, "classes": classes, "channels": channels, "arguments": {}}
    return network


def arch_of(name: str, classes: int, channels: int, widths: Sequence[int]) -> dict[str, Any]:
    """What makes a network of three widths again. Raises UserError where they are not three."""
    if len(widths) != 3 or not all(isinstance(width, int) and width > 0 for width in widths):
        raise UserError(f"{name}: widths = {widths!r} is not three numbers above 0, such as [32, 64, 128]")
    return {"name": name, "classes": classes, "channels": channels, "arguments": {"widths": list(widths)}}


class MiniBlock(nn.Module):
    """5x5 to 30 channels, 3x3 back, around an identity shortcut; no BatchNorm, so the convolutions have biases.

    (N, width, H, W) -> (N, width, H, W)
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, 30, 5, padding=2)
        self.conv2 = nn.Conv2d(30, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        return F.relu(self.conv2(y) + x)


class MiniStage(nn.Module):
    """An unpadded convolution, 2x2 max-pool, ReLU, and a residual block.

    (N, c_in, H, W) -> (N, c_out, (H - kernel + 1) // 2, (W - kernel + 1) // 2)

    Pooling comes before ReLU: the result is the same, since ReLU is monotone, for a quarter of the work.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel)
        self.pool = nn.MaxPool2d(2)
        self.block = MiniBlock(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.pool(self.conv(x))))


class MiniResNet(Network):
    """A small residual network for 28x28 gray digits: over 99 % on MNIST within a few epochs.

    (N, channels, H, W) -> (N, classes) logits; H and W at least 28. At 28, with the default widths:

        block1   (N, 32, 12, 12)   5x5 convolution
        block2   (N, 64, 5, 5)     3x3 convolution
        block3   (N, 128, 1, 1)    3x3 convolution
        head     (N, classes)      global average pooling (the identity at 28), linear

    An earlier form has the widths 20, 30 and 50.
    """

    parts: ClassVar = {"block1": ("block1",), "block2": ("block2",), "block3": ("block3",), "head": ("fc",)}
    usual_size = 28

    def __init__(self, classes: int, channels: int = 3, *, widths: Sequence[int] = (32, 64, 128)):
        super().__init__()
        self.arch = arch_of("mini_resnet", classes, channels, widths)
        self.head_input = widths[2]
        self.block1 = MiniStage(channels, widths[0], kernel=5)
        self.block2 = MiniStage(widths[0], widths[1], kernel=3)
        self.block3 = MiniStage(widths[1], widths[2], kernel=3)
        initialize(self)
        self.fc = classifier(widths[2], classes)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(pooled(x))


class DigitStage(nn.Module):
    """An unpadded convolution, BatchNorm and ReLU, with 2x2 max-pooling and a basic block where it is not the last.

    (N, c_in, H, W) -> (N, c_out, (H - kernel + 1) // 2, (W - kernel + 1) // 2), or H - kernel + 1 for the last

    Pooling comes before BatchNorm, whose scale may be negative: not the same as after it, and a quarter of the work.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, last: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, bias=False)
        self.pool = nn.Identity() if last else nn.MaxPool2d(2)
        self.bn = nn.BatchNorm2d(c_out)
        self.block = nn.Identity() if last else BasicBlock(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.bn(self.pool(self.conv(x)))))


class DigitResNet(Network):
    """A residual network for 28x28 gray digits that trains in minutes on two cores: 0.1 million parameters.

    (N, channels, H, W) -> (N, classes) logits; H and W at least 20. At 28, with the default widths:

        block1   (N, 24, 12, 12)   5x5 convolution, basic block
        block2   (N, 48, 5, 5)     3x3 convolution, basic block
        block3   (N, 96, 3, 3)     3x3 convolution
        head     (N, classes)      global average pooling, linear

    Against `mini_resnet`: BatchNorm, so that a learning rate of 0.1 is borne; two fifths of the multiply-adds, as the
    only 5x5 is where it is cheap, on one channel; and a last map of nine positions, averaged, rather than one.
    """

    parts: ClassVar = {"block1": ("block1",), "block2": ("block2",), "block3": ("block3",), "head": ("fc",)}
    usual_size = 28

    def __init__(self, classes: int, channels: int = 3, *, widths: Sequence[int] = (24, 48, 96)):
        super().__init__()
        self.arch = arch_of("digit_resnet", classes, channels, widths)
        self.head_input = widths[2]
        self.block1 = DigitStage(channels, widths[0], kernel=5)
        self.block2 = DigitStage(widths[0], widths[1], kernel=3)
        self.block3 = DigitStage(widths[1], widths[2], kernel=3, last=True)
        initialize(self)
        self.fc = classifier(widths[2], classes)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(pooled(x))
