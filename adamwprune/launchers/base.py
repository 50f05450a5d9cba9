"""What a launcher is: it starts commands, each a process of its own, and says how each ended.

`hydra/launcher=NAME` chooses one; its keys are those of conf/hydra/launcher/NAME.yaml.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from adamwprune.config import Device, HardwareConfig
from adamwprune.errors import ConfigError

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


@dataclass(frozen=True)
class Limits:
    """Seconds that a job may take (None: any), and that it has to leave when it is asked to stop."""

    job_timeout: float | None = None
    kill_after: float = 120.0


@dataclass(frozen=True)
class Command:
    """One job: `python train.py ARGUMENTS`, and the hardware that it wants."""

    number: int
    arguments: tuple[str, ...]
    hardware: HardwareConfig
    console: Path  # where its output goes if other jobs run beside it
    limits: Limits = Limits()
    is_continued: bool = False  # a run goes on, with as many threads as it has had so far


@dataclass(frozen=True)
class Ending:
    """How a job ended: with its exit code (128 + n after signal n); whether its time was over."""

    exit_code: int
    is_overdue: bool = False


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
    ) -> Iterator[tuple[Command, Ending]]:
        """Each command that was started with its ending, as they end."""
        raise NotImplementedError

    def stop(self, number: int) -> None:
        """Pass the signal on to all that runs, and start no more."""
        raise NotImplementedError


def exit_code(code: int) -> int:
    """As a shell gives it: 128 + n after signal n."""
    return code if code >= 0 else 128 - code


def wants_cuda(hardware: HardwareConfig, found: int) -> bool:
    """Whether a job takes CUDA devices where `found` are visible."""
    return hardware.device is Device.cuda or (hardware.device is Device.auto and found > 0)
