"""ResNet-18 and ResNet-50 for ImageNet-sized and for small images.

He et al., arXiv:1512.03385: table 1 for the ImageNet networks, section 4.2 for the 3x3 stem that
keeps the resolution of small images. Bottlenecks stride in their 3x3 convolution, which does not
skip three of four inputs as a strided 1x1 does (Goyal et al., arXiv:1706.02677, section 5.1).
Initialisation: He et al., arXiv:1502.01852, fan-out. With the ImageNet stem the names and shapes
in `state_dict()` are torchvision's, so its weights load.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from adamwprune.errors import ConfigError
from adamwprune.models.weights import load_file_
from adamwprune.ranges import PositiveInt


def resnet18(
    *,
    num_classes: PositiveInt,
    in_channels: PositiveInt,
    image_size: PositiveInt,
    stem: Literal["cifar", "imagenet"],
    width: PositiveInt = 64,
    zero_init_residual: bool = False,
    weights: str | None = None,
) -> "ResNet":
    """ResNet-18: 11,689,512 parameters for ImageNet, 11,173,962 for CIFAR-10; arguments as in ResNet."""
    return ResNet(
        BasicBlock,
        depths=(2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        stem=stem,
        width=width,
        zero_init_residual=zero_init_residual,
        weights=weights,
    )


def resnet50(
    *,
    num_classes: PositiveInt,
    in_channels: PositiveInt,
    image_size: PositiveInt,
    stem: Literal["cifar", "imagenet"],
    width: PositiveInt = 64,
    zero_init_residual: bool = False,
    weights: str | None = None,
) -> "ResNet":
    """ResNet-50: 25,557,032 parameters for ImageNet, 23,520,842 for CIFAR-10; arguments as in ResNet."""
    return ResNet(
        Bottleneck,
        depths=(3, 4, 6, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        stem=stem,
        width=width,
        zero_init_residual=zero_init_residual,
        weights=weights,
    )


class BasicBlock(nn.Module):
    """y = relu(x + bn(conv3x3(relu(bn(conv3x3(x)))))), `width` channels out."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm whose scale is the scale of the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """y = relu(x + f(x)) with f a 1x1, a 3x3 and a 1x1 convolution, 4 x `width` channels out."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm whose scale is the scale of the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global average, linear classifier.

    Stage i = 0..3 has `depths[i]` blocks of width `width` * 2**i; stages 1 to 3 halve the
    resolution. The stem `imagenet` is a 7x7 convolution and a pool, stride 4 together; `cifar` is
    a 3x3 convolution, stride 1. `zero_init_residual` starts every block as the identity
    (arXiv:1706.02677, section 5.1). `weights` is a file with the initial weights, see weights.py:
    torchvision's or ours.

    Raises ConfigError where an image has fewer pixels than the network's total stride, CheckpointError
    where `weights` do not fit.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        *,
        depths: tuple[int, int, int, int],
        num_classes: PositiveInt,
        in_channels: PositiveInt,
        image_size: PositiveInt,
        stem: Literal["cifar", "imagenet"],
        width: PositiveInt = 64,
        zero_init_residual: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        _check_image_size(image_size, stem)
        conv1, maxpool = _stem(stem, in_channels, width)
        self.conv1 = conv1
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = maxpool
        expanded = block.expansion * width
        self.layer1 = _stage(block, depths[0], width, width, stride=1)
        self.layer2 = _stage(block, depths[1], expanded, 2 * width, stride=2)
        self.layer3 = _stage(block, depths[2], 2 * expanded, 4 * width, stride=2)
        self.layer4 = _stage(block, depths[3], 4 * expanded, 8 * width, stride=2)
        self.fc = nn.Linear(8 * expanded, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)
        if weights is not None:
            load_file_(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of `images` (N, in_channels, H, W)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def _check_image_size(image_size: int, stem: str) -> None:
    least = {"cifar": 8, "imagenet": 32}  # total strides
    if stem not in least:
        raise ConfigError(f"model.stem={stem}: must be one of cifar, imagenet")
    if image_size < least[stem]:
        fix = "use model.stem=cifar" if image_size >= least["cifar"] else "choose data with larger images"
        raise ConfigError(f"data.image_size={image_size}: stem {stem} needs {least[stem]} or more; {fix}")


def _stem(stem: str, in_channels: int, width: int) -> tuple[nn.Conv2d, nn.Module]:
    if stem == "cifar":
        return _conv3x3(in_channels, width), nn.Identity()
    conv1 = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    return conv1, nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], depth: int, in_channels: int, width: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(depth - 1)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
