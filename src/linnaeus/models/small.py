"""Networks for small images: ResNets for CIFAR, plain networks to compare them with, and two ResNets for digits.

The networks for CIFAR are from section 4.2 of K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image
Recognition", 2015, arXiv:1512.03385. `MiniResNet` and `DigitResNet` apply the same idea to smaller images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.network import Network, check_choice, classifier, initialize
from linnaeus.models.resnet import BasicBlock, conv, zero_last_batchnorm

CIFAR_RESNETS = {f"resnet{6 * n + 2}": n for n in (3, 5, 7, 9, 18)}
"""resnet20, 32, 44, 56 and 110 -> n, the number of blocks in each of the three layers.

A network has 6n + 2 layers with weights: 3 layers of n blocks with 2 convolutions, the stem and the head.
"""

PLAIN_NETS = {f"plain{6 * n + 2}": n for n in (3, 5, 7, 9)}  # plain20, 32, 44 and 56 -> n, as in CIFAR_RESNETS

LAYER_SHAPES = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
"""(input channels, output channels, stride) of layer1, layer2 and layer3 (section 4.2)."""


class Subsample(nn.Module):
    """A shortcut without parameters: every second position, and zeros in the new channels (section 3.3, option A).

    (N, c_in, H, W) -> (N, c_out, H / 2, W / 2), rounded up

    The new channels follow the old ones; with `centered`, half of them precede the old ones.
    """

    def __init__(self, c_in: int, c_out: int, centered: bool = False):
        super().__init__()
        self.before = (c_out - c_in) // 2 if centered else 0
        self.after = c_out - c_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        # The padding is listed from the last dimension: two widths, two heights, then the channels (before, after).
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class PlainBlock(nn.Module):
    """A basic block without its shortcut: two 3x3 convolutions.

    (N, c_in, H, W) -> (N, width, H / stride, W / stride)
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
    """The common structure of the CIFAR ResNets and plain networks; `blocks` are the three layers.

    (N, channels, H, W) -> (N, classes) logits. At 32 x 32:

        stem     (N, 16, 32, 32)   3x3 convolution
        layer1   (N, 16, 32, 32)   n blocks, as in layer2 and layer3
        layer2   (N, 32, 16, 16)
        layer3   (N, 64, 8, 8)
        head     (N, classes)      global average pooling, linear

    Unlike the stem for ImageNet, this one keeps the size: images of 32 pixels have none to spare.
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
        return self.fc(self.head_features(x))


def cifar_resnet(
    name: str, classes: int, channels: int = 3, *, shortcut: str = "A", zero_init: bool = False
) -> CifarNet:
    """ResNet-20, 32, 44, 56 or 110, with 0.27 to 1.7 million parameters (section 4.2, table 6).

    Arguments:
        shortcut: "A", "A-centered" or "B", the shortcut where channels and size change. "A" pads with zeros, so the
            network has exactly as many parameters as its plain counterpart and the comparison is fair: this is the
            paper's choice for CIFAR. "A-centered" puts half of the zeros before the channels, as many public
            checkpoints do; the tensors have the same shapes, but weights trained with one setting are useless with the
            other. "B" projects with a 1x1 convolution, as in the networks for ImageNet.
        zero_init: start every block as the identity; see `zero_last_batchnorm`.
    """
    check_choice(name, "shortcut", shortcut, ("A", "A-centered", "B"))
    layers = []
    for c_in, c_out, stride in LAYER_SHAPES:
        first = BasicBlock(c_in, c_out, stride)
        if shortcut != "B" and stride > 1:
            first.downsample = Subsample(c_in, c_out, centered=shortcut == "A-centered")  # replaces the projection
        rest = (BasicBlock(c_out, c_out) for _ in range(CIFAR_RESNETS[name] - 1))
        layers.append(nn.Sequential(first, *rest))
    network = CifarNet(classes, channels, layers)
    if zero_init:
        zero_last_batchnorm(network)
    arguments = {"shortcut": shortcut, "zero_init": zero_init}
    network.arch = {"name": name, "classes": classes, "channels": channels, "arguments": arguments}
    return network


def plain_net(name: str, classes: int, channels: int = 3) -> CifarNet:
    """plain20 to plain56: a CIFAR ResNet without its shortcuts, to demonstrate degradation (figure 6, left).

    Trained in the same way, plain56 ends with a higher *training* error than plain20, while resnet56 ends with a lower
    one than resnet20. It is the shortcuts that make depth useful.
    """
    layers = []
    for c_in, c_out, stride in LAYER_SHAPES:
        rest = (PlainBlock(c_out, c_out) for _ in range(PLAIN_NETS[name] - 1))
        layers.append(nn.Sequential(PlainBlock(c_in, c_out, stride), *rest))
    network = CifarNet(classes, channels, layers)
    network.arch = {"name": name, "classes": classes, "channels": channels, "arguments": {}}
    return network


def arch_with_widths(name: str, classes: int, channels: int, widths: Sequence[int]) -> dict[str, Any]:
    """The `arch` of a network with the argument `widths`. Raises UserError unless they are three integers above 0."""
    if len(widths) != 3 or not all(isinstance(width, int) and width > 0 for width in widths):
        raise UserError(f"{name}: widths = {widths!r} must be three integers above 0, such as [32, 64, 128]")
    return {"name": name, "classes": classes, "channels": channels, "arguments": {"widths": list(widths)}}


class MiniBlock(nn.Module):
    """A 5x5 convolution to 30 channels, a 3x3 convolution back to `width`, and an identity shortcut.

    (N, width, H, W) -> (N, width, H, W)

    There is no BatchNorm, so the convolutions have biases.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, 30, 5, padding=2)
        self.conv2 = nn.Conv2d(30, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        return F.relu(self.conv2(y) + x)


class MiniStage(nn.Module):
    """An unpadded convolution, 2x2 max-pooling, ReLU, and a residual block.

    (N, c_in, H, W) -> (N, c_out, (H - kernel + 1) // 2, (W - kernel + 1) // 2)

    The ReLU follows the pooling: the result is the same, because ReLU is monotonic, at a quarter of the cost.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel)
        self.pool = nn.MaxPool2d(2)
        self.block = MiniBlock(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.pool(self.conv(x))))


class MiniResNet(Network):
    """A small residual network for gray digits of 28 x 28 pixels; over 99 % accuracy on MNIST within a few epochs.

    (N, channels, H, W) -> (N, classes) logits, for H and W of at least 28. At 28 x 28, with the default widths:

        block1   (N, 32, 12, 12)   5x5 convolution
        block2   (N, 64, 5, 5)     3x3 convolution
        block3   (N, 128, 1, 1)    3x3 convolution
        head     (N, classes)      global average pooling (of one position at 28 x 28), linear

    `widths` are the output channels of the three blocks. An earlier version had 20, 30 and 50.
    """

    parts: ClassVar = {"block1": ("block1",), "block2": ("block2",), "block3": ("block3",), "head": ("fc",)}
    usual_size = 28

    def __init__(self, classes: int, channels: int = 3, *, widths: Sequence[int] = (32, 64, 128)):
        super().__init__()
        self.arch = arch_with_widths("mini_resnet", classes, channels, widths)
        self.head_input = widths[2]
        self.block1 = MiniStage(channels, widths[0], kernel=5)
        self.block2 = MiniStage(widths[0], widths[1], kernel=3)
        self.block3 = MiniStage(widths[1], widths[2], kernel=3)
        initialize(self)
        self.fc = classifier(widths[2], classes)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.head_features(x))


class DigitStage(nn.Module):
    """An unpadded convolution, 2x2 max-pooling, BatchNorm, ReLU, and a basic block.

    (N, c_in, H, W) -> (N, c_out, (H - kernel + 1) // 2, (W - kernel + 1) // 2)

    The last stage has neither pooling nor block: (N, c_in, H, W) -> (N, c_out, H - kernel + 1, W - kernel + 1).
    BatchNorm follows the pooling at a quarter of the cost. The result differs from the usual order, because its scale
    may be negative.
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
    """A residual network with 0.1 million parameters for gray digits of 28 x 28 pixels; trains in minutes on two cores.

    (N, channels, H, W) -> (N, classes) logits, for H and W of at least 20. At 28 x 28, with the default widths:

        block1   (N, 24, 12, 12)   5x5 convolution, basic block
        block2   (N, 48, 5, 5)     3x3 convolution, basic block
        block3   (N, 96, 3, 3)     3x3 convolution
        head     (N, classes)      global average pooling, linear

    `widths` are the output channels of the three blocks. Compared with `MiniResNet`, it has BatchNorm, which allows a
    learning rate of 0.1; two fifths of the multiply-adds, because the only 5x5 convolution is on the input channel,
    where it is cheap; and a last feature map of nine positions, which are averaged, instead of one.
    """

    parts: ClassVar = {"block1": ("block1",), "block2": ("block2",), "block3": ("block3",), "head": ("fc",)}
    usual_size = 28

    def __init__(self, classes: int, channels: int = 3, *, widths: Sequence[int] = (24, 48, 96)):
        super().__init__()
        self.arch = arch_with_widths("digit_resnet", classes, channels, widths)
        self.head_input = widths[2]
        self.block1 = DigitStage(channels, widths[0], kernel=5)
        self.block2 = DigitStage(widths[0], widths[1], kernel=3)
        self.block3 = DigitStage(widths[1], widths[2], kernel=3, last=True)
        initialize(self)
        self.fc = classifier(widths[2], classes)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.head_features(x))
