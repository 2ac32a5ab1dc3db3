"""Residual networks for ImageNet-sized images: ResNet-18, 34, 50, 101 and 152.

K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385.

A deeper network could always copy a shallower one and let the extra layers do nothing, so depth should never hurt.
Trained plainly it does: beyond some twenty layers even the *training* error rises (section 1, fig. 1: "degradation"),
because stacked nonlinear layers find it hard to do nothing. A residual block makes doing nothing the easy case: it
adds its output to its input, and weights near zero leave the input as it was.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.network import Network, check_choice, classifier, initialize, pooled


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width (divided by the stride). No bias: a BatchNorm follows and has one."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module | None:
    """What carries a block's input around it: nothing at all (None) where the shapes agree, else a projection.

    The identity adds no parameters and lets the gradient through untouched; only where channels or size change is a
    1x1 convolution needed (section 3.3, option B).
    """
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (fig. 5, left). The block of ResNet-18 and 34.

    (N, c_in, H, W) -> (N, width, H/stride, W/stride)
    """

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv(c_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(c_in, width, stride)  # None when the shapes agree

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1x1 down to `width`, 3x3, 1x1 up to 4 * width, around a shortcut (fig. 5, right). ResNet-50, 101 and 152.

    (N, c_in, H, W) -> (N, 4 * width, H/stride, W/stride)

    The costly 3x3 sees a quarter of the channels, so a block of three layers costs what a basic block of two does:
    that is what makes 152 layers affordable.

    `stride_in` says which convolution of a downsampling block takes the stride. The paper does not (table 1 names the
    block alone); its authors' own models have it in the first "1x1", which throws three quarters of the positions away
    unseen, and torchvision in the "3x3", which looks at all of them. The tensors have the same shapes either way, so
    weights trained for the one load into the other without an error and lose 10 points of accuracy: the choice belongs
    to the weights.
    """

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int = 1, stride_in: str = "3x3"):
        super().__init__()
        c_out = self.expansion * width
        self.conv1 = conv(c_in, width, 1, stride if stride_in == "1x1" else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride if stride_in == "3x3" else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, c_out, 1)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Name -> the block, and how many of them layer1 to layer4 have (table 1). Each name counts its weighted layers."""


class ResNet(Network):
    """ResNet-18 to 152 (He et al. 2015, table 1).

    (N, channels, H, W) -> (N, classes) logits; H and W of any size. At 224, with E = 1 for 18 and 34, else 4:

        stem     (N, 64, 56, 56)      7x7 convolution and 3x3 max-pool, each with stride 2
        layer1   (N, 64 E, 56, 56)
        layer2   (N, 128 E, 28, 28)   from here on each layer halves the size and doubles the channels,
        layer3   (N, 256 E, 14, 14)   so every block of the network costs about the same
        layer4   (N, 512 E, 7, 7)
        head     (N, classes)         global average pooling, linear

    `stem="small"` is for images of about 32 pixels: a 3x3 convolution with stride 1 and no pooling, where the usual
    stem would leave a single position for layer4.
    `stride_in` is a matter of the bottleneck, which see.
    `zero_init` starts the last BatchNorm of each block at zero, so every block begins as the identity
    (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Parameter names are torchvision's, so its weights load unconverted.
    """

    parts: ClassVar = {
        "stem": ("conv1", "bn1", "maxpool"),
        "layer1": ("layer1",),
        "layer2": ("layer2",),
        "layer3": ("layer3",),
        "layer4": ("layer4",),
        "head": ("fc",),
    }

    def __init__(
        self,
        name: str,
        classes: int,
        channels: int = 3,
        *,
        stem: str = "imagenet",
        stride_in: str = "3x3",
        zero_init: bool = False,
    ):
        super().__init__()
        check_choice(name, "stem", stem, ("imagenet", "small"))
        check_choice(name, "stride_in", stride_in, ("3x3", "1x1"))
        block, depths = RESNETS[name]
        if block is BasicBlock and stride_in == "1x1":
            raise UserError(f"{name}: stride_in = '1x1' needs a network of bottlenecks; {name} has no 1x1 to put it in")
        arguments = {"stem": stem, "stride_in": stride_in, "zero_init": zero_init}
        self.arch = {"name": name, "classes": classes, "channels": channels, "arguments": arguments}
        self.head_input = 512 * block.expansion

        if stem == "imagenet":
            self.conv1 = conv(channels, 64, 7, stride=2)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.usual_size = 32
            self.conv1 = conv(channels, 64, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = layer(block, 64, 64, depths[0], 1, stride_in)
        self.layer2 = layer(block, 64 * block.expansion, 128, depths[1], 2, stride_in)
        self.layer3 = layer(block, 128 * block.expansion, 256, depths[2], 2, stride_in)
        self.layer4 = layer(block, 256 * block.expansion, 512, depths[3], 2, stride_in)
        initialize(self)
        if zero_init:
            zero_last_batchnorm(self)
        self.fc = classifier(self.head_input, classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(pooled(x))


def layer(
    block: type[BasicBlock] | type[Bottleneck], c_in: int, width: int, depth: int, stride: int, stride_in: str
) -> nn.Sequential:
    """`depth` blocks in a row, of which the first takes the stride and the change of channels."""
    c_out = width * block.expansion
    shapes = [(c_in, stride)] + [(c_out, 1)] * (depth - 1)
    if block is Bottleneck:
        return nn.Sequential(*(Bottleneck(c, width, s, stride_in) for c, s in shapes))
    return nn.Sequential(*(BasicBlock(c, width, s) for c, s in shapes))


def zero_last_batchnorm(network: nn.Module) -> None:
    """Start every residual block as the identity: the scale of the BatchNorm before its addition becomes zero."""
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
