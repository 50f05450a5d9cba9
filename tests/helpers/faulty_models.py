"""Models of a user that end their job in every way a job can end."""

import os
import signal
import sys

from torch import nn


def _net(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.ReLU(), nn.Linear(16, num_classes))


def good(*, num_classes: int, in_channels: int, image_size: int, weights: None) -> nn.Module:
    """A small network that trains."""
    return _net(num_classes)


def raises(*, num_classes: int, in_channels: int, image_size: int, weights: None) -> nn.Module:
    """An exception."""
    raise RuntimeError("a bug in the user's model")


def exits(*, num_classes: int, in_channels: int, image_size: int, weights: None) -> nn.Module:
    """sys.exit with a code of its own."""
    sys.exit(3)


def killed(*, num_classes: int, in_channels: int, image_size: int, weights: None) -> nn.Module:
    """What the kernel does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return _net(num_classes)
