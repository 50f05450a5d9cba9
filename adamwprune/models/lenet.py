"""LeNet-5, in the two variants that the pruning literature calls by this name.

`LeNet5` is the network of LeCun et al., "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86 (1998), section II.B. It differs from the paper where
everybody does: ReLU for the scaled tanh, max-pooling for trained subsampling, a second
convolution that sees all 6 maps, a linear classifier for the RBF units.

`LeNet5Caffe` is Caffe's (BVLC/caffe, examples/mnist/lenet.prototxt): seven times the weights,
nine tenths of them in one layer, which is why it prunes so well. A result for "LeNet-5" says
nothing until it says which.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from adamwprune.errors import ConfigError
from adamwprune.models.weights import load_file_
from adamwprune.ranges import PositiveInt


class LeNet5(nn.Module):
    """LeNet-5 of 1998: 61,706 parameters for 10 classes and 1 channel.

    `weights` is a file with the initial weights, see weights.py.

    Raises ConfigError where `image_size` is neither 28 nor 32 pixels, CheckpointError where `weights` do
    not fit.
    """

    def __init__(
        self,
        *,
        num_classes: PositiveInt,
        in_channels: PositiveInt,
        image_size: Literal[28, 32],
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if image_size not in (28, 32):
            raise ConfigError(f"data.image_size={image_size}: LeNet5 takes 28 or 32; use model=resnet18")
        # The paper pads 28 pixel digits to 32, so that the ends of strokes, too, can lie at the
        # centre of a receptive field.
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=(32 - image_size) // 2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        if weights is not None:
            load_file_(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of `images` (N, in_channels, image_size, image_size)."""
        # ReLU and max commute: after the pool it has a quarter of the values to visit.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # (N, 6, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 16, 5, 5)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class LeNet5Caffe(nn.Module):
    """LeNet-5 of Caffe: 431,080 parameters for 10 classes and 1 channel.

    `weights` is a file with the initial weights, see weights.py.

    Raises ConfigError where `image_size` is not 28 pixels, CheckpointError where `weights` do not fit.
    """

    def __init__(
        self,
        *,
        num_classes: PositiveInt,
        in_channels: PositiveInt,
        image_size: Literal[28],
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if image_size != 28:
            raise ConfigError(f"data.image_size={image_size}: LeNet5Caffe takes 28; use model=resnet18")
        self.conv1 = nn.Conv2d(in_channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        if weights is not None:
            load_file_(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of `images` (N, in_channels, 28, 28)."""
        # As in Caffe's file, the pools are the only nonlinearity of the convolutions.
        x = F.max_pool2d(self.conv1(images), 2)  # (N, 20, 12, 12)
        x = F.max_pool2d(self.conv2(x), 2)  # (N, 50, 4, 4)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)
