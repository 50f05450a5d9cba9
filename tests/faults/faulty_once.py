"""A user's model that ends its process in every way a job can end, once: what is armed goes off and is gone.

    model._target_=tests.faults.faulty_once.faulty_once 'allow_targets=[tests.faults.faulty_once.faulty_once]'
    model.fault=segfault model.after=9

A file `armed/FAULT` in the working directory arms it. It goes off in the first pass over a training batch
behind the `after`-th; without the file the model is an ordinary one, so a run that is continued can be
compared with one that nothing happened to.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

ARMED = Path("armed")


def _raise() -> None:
    raise RuntimeError("a bug in the user's model")


def _starve() -> None:
    """Ask for 16 GiB where there is 1 GiB left."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), most))
    torch.zeros(1 << 32)


def _hang() -> None:
    """Wait for ever, deaf to what asks politely."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        time.sleep(60)


FAULTS = {
    "raise": _raise,
    "exit": lambda: sys.exit(3),
    "leave": lambda: os._exit(5),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "starve": _starve,
    "hang": _hang,
}
# The exit code of each.
CODES = {"raise": 1, "exit": 3, "leave": 5, "kill": 137, "segfault": 139, "starve": 8, "hang": 137}


class _FaultyOnce(nn.Module):
    def __init__(self, num_classes: int, fault: str, after: int) -> None:
        super().__init__()
        self._net = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.ReLU(), nn.Linear(16, num_classes))
        self._fault, self._left = fault, after

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not images.is_meta:
            self._left -= 1
            if self._left < 0 and (armed := ARMED / self._fault).exists():
                armed.unlink()
                FAULTS[self._fault]()
        logits: Tensor = self._net(images)
        return logits


def faulty_once(
    *, num_classes: int, in_channels: int, image_size: int, weights: None, fault: str = "", after: int = 0
) -> nn.Module:
    """A small network with a fault, if one is armed."""
    return _FaultyOnce(num_classes, fault, after)
