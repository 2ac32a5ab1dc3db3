"""Residual networks for ImageNet-sized images: ResNet-18, 34, 50, 101 and 152.

K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385.

In theory a deeper network cannot be worse than a shallower one: it could copy the shallower one and let the additional
layers be identities. In practice plain networks beyond about twenty layers have a higher *training* error (section 1,
figure 1), because it is hard to learn an identity with a stack of nonlinear layers. The paper calls this degradation.

A residual block computes F(x) + x instead of F(x) (section 3.1, equation 1). The identity then only requires F = 0,
which a solver reaches easily by shrinking weights, and the gradient has a direct path past every block.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.network import Network, check_choice, classifier, initialize


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """(N, c_in, H, W) -> (N, c_out, H / stride, W / stride), rounded up. The kernel size is odd."""
    # No bias: the BatchNorm after each convolution subtracts the mean, which would remove it, and adds a shift.
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module | None:
    """The path around a block: None for the identity if the shapes agree, otherwise a projection.

    (N, c_in, H, W) -> (N, c_out, H / stride, W / stride)

    The identity has no parameters and passes the gradient unchanged, so it is used wherever possible. A 1x1 convolution
    with the stride of the block changes the channels and the size (section 3.3, option B, equation 2). Option A, which
    needs no parameters, is in `small.py`. Option C, a projection in every block, gains little for its cost (table 3).
    """
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34 (figure 5, left).

    (N, c_in, H, W) -> (N, width, H / stride, W / stride)
    """

    expansion = 1  # output channels per unit of `width`

    def __init__(self, c_in: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv(c_in, width, 3, stride)  # the first convolution downsamples, so the second is cheaper
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))  # (N, width, H / stride, W / stride)
        # The last ReLU follows the addition: F(x) may be negative, so a block can also decrease its input.
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: the block of ResNet-50, 101 and 152 (figure 5, right).

    (N, c_in, H, W) -> (N, 4 * width, H / stride, W / stride)

    The first 1x1 convolution reduces the channels to `width`, the last one expands them to four times as many. The
    expensive 3x3 convolution then sees a quarter of the channels, and the block costs as much as a basic block with a
    quarter of the output channels: this makes 152 layers affordable.

    `stride_in` is the convolution that downsamples, "1x1" or "3x3". The paper does not say which; the models that its
    authors published use the first 1x1, which discards three quarters of the positions unseen, and torchvision uses the
    3x3, whose windows cover all positions. The tensors have the same shapes, so weights trained with one setting load
    with the other and lose about ten points of accuracy without an error: always use the setting of the weights.
    """

    expansion = 4  # output channels per unit of `width`

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
        y = F.relu(self.bn1(self.conv1(x)))  # (N, width, H, W); with stride_in "1x1" already downsampled
        y = F.relu(self.bn2(self.conv2(y)))  # (N, width, H / stride, W / stride)
        return F.relu(self.bn3(self.conv3(y)) + shortcut)  # (N, 4 * width, H / stride, W / stride)


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Name -> (block, number of blocks in layer1 to layer4), as in table 1.

The number in a name counts the layers with weights on the main path: 50 = 1 + 3 * (3 + 4 + 6 + 3) + 1.
"""


class ResNet(Network):
    """ResNet-18 to 152 (table 1).

    (N, channels, H, W) -> (N, classes) logits, for any H and W. At 224 x 224, with E = 1 for ResNet-18 and 34, else 4:

        stem     (N, 64, 56, 56)       7x7 convolution and 3x3 max-pooling, both with stride 2
        layer1   (N, 64 E, 56, 56)
        layer2   (N, 128 E, 28, 28)
        layer3   (N, 256 E, 14, 14)
        layer4   (N, 512 E, 7, 7)
        head     (N, classes)          global average pooling, linear

    From layer2 on, each layer halves the size and doubles the channels, so that all blocks cost about the same
    (section 3.3). The stem takes the size down early, because convolutions at full resolution would dominate the cost.

    Arguments:
        stem: "imagenet", or "small" for images of about 32 pixels: a 3x3 convolution with stride 1 and no pooling. The
            ImageNet stem would leave a single position for layer4.
        stride_in: the convolution of a bottleneck that downsamples, "3x3" or "1x1"; see `Bottleneck`.
        zero_init: start every block as the identity; see `zero_last_batchnorm`.

    The parameter names are those of torchvision, so its weights load unconverted.
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
            raise UserError(f"{name}: stride_in = '1x1' needs bottleneck blocks, but {name} has no 1x1 convolutions")
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
        self.layer1 = make_layer(block, 64, 64, depths[0], 1, stride_in)  # the stem has downsampled already
        self.layer2 = make_layer(block, 64 * block.expansion, 128, depths[1], 2, stride_in)
        self.layer3 = make_layer(block, 128 * block.expansion, 256, depths[2], 2, stride_in)
        self.layer4 = make_layer(block, 256 * block.expansion, 512, depths[3], 2, stride_in)
        initialize(self)
        if zero_init:
            zero_last_batchnorm(self)
        self.fc = classifier(self.head_input, classes)  # after `initialize`, which would make its weights too large

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.head_features(x))


def make_layer(
    block: type[BasicBlock] | type[Bottleneck], c_in: int, width: int, depth: int, stride: int, stride_in: str
) -> nn.Sequential:
    """`depth` blocks in sequence: (N, c_in, H, W) -> (N, width * expansion, H / stride, W / stride).

    The first block changes the channels and the size; all others have identity shortcuts.
    """
    c_out = width * block.expansion
    shapes = [(c_in, stride)] + [(c_out, 1)] * (depth - 1)
    if block is Bottleneck:
        return nn.Sequential(*(Bottleneck(c, width, s, stride_in) for c, s in shapes))
    return nn.Sequential(*(BasicBlock(c, width, s) for c, s in shapes))


def zero_last_batchnorm(network: nn.Module) -> None:
    """Set the scale of each block's last BatchNorm to zero, so that F(x) = 0 and every block starts as the identity.

    The gradient then first flows through the shortcuts alone, as in a shallow network. This eases the start of training
    with large batches and learning rates (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
