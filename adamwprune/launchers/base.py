"""What a launcher is: it starts commands, each a process of its own, and says how each ended.

`hydra/launcher=NAME` chooses one; its keys are those of conf/hydra/launcher/NAME.yaml.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from adamwprune.config import Device, HardwareConfig
from adamwprune.errors import ConfigError
from adamwprune.signal_handlers import STOP_SIGNALS, handling

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


@dataclass(frozen=True)
class Command:
    """One job: `python train.py ARGUMENTS`, and the hardware that it wants."""

    number: int
    arguments: tuple[str, ...]
    hardware: HardwareConfig
    console: Path  # where its output goes if other jobs run beside it


class Launcher:
    """Starts commands. A stop signal is passed on to those that run, and no other is started."""

    is_here: ClassVar[bool] = True  # whether jobs run on this machine
    shows_output: ClassVar[bool] = False  # whether jobs write to this terminal
    package: ClassVar[str | None] = None  # what has to be installed

    def check(self) -> None:
        """Raise ConfigError where the launcher cannot start anything here."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"hydra/launcher: its package is not installed; pip install {self.package}, or leave out "
                "hydra/launcher to run the jobs one after the other"
            )

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, int]]:
        """Each command that was started with its exit code (128 + n after signal n), as they end."""
        raise NotImplementedError

    def stop(self, number: int) -> None:
        """Pass the signal on to all that runs, and start no more."""
        raise NotImplementedError


def argument_list(arguments: Sequence[str]) -> list[str]:
    """The command line of a job."""
    return [sys.executable, str(TRAIN), *arguments]


def exit_code(code: int) -> int:
    """As a shell gives it: 128 + n after signal n."""
    return code if code >= 0 else 128 - code


def wants_cuda(hardware: HardwareConfig, found: int) -> bool:
    """Whether a job takes CUDA devices where `found` are visible."""
    return hardware.device is Device.cuda or (hardware.device is Device.auto and found > 0)


def execute(arguments: Sequence[str], console: Path, environment: Mapping[str, str]) -> int:
    """Run one job from a process that a cluster has started for it; its exit code.

    The signals by which a cluster announces the end of a job reach it as SIGUSR1: save and stop.
    """
    with console.open("ab") as output:
        process = subprocess.Popen(
            argument_list(arguments), env={**os.environ, **environment}, stdout=output, stderr=output
        )
        with handling(lambda number, _: process.send_signal(_meaning(number)), *STOP_SIGNALS, signal.SIGUSR2):
            return exit_code(process.wait())


def _meaning(number: int) -> int:
    return signal.SIGINT if number == signal.SIGINT else signal.SIGUSR1
