"""What jobs that run side by side share of one machine: places, CUDA devices, cores.

A job gets devices of its own by CUDA_VISIBLE_DEVICES, and its share of the cores by
hardware.threads, unless the configuration says how many. A job that finds too few devices free
waits for them.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from adamwprune.cores import usable_cores
from adamwprune.launchers.base import Command, wants_cuda


class Slots:
    """The places for jobs of one sweep.

    Args:
        devices: names of the CUDA devices to give away, as CUDA_VISIBLE_DEVICES takes them.
        commands: all jobs.
        most: jobs at a time, as joblib counts: -1 is one a core, -2 one less.
    """

    def __init__(self, devices: Sequence[str], commands: Sequence[Command], most: int) -> None:
        self._devices = list(devices)
        self._free = list(devices)
        self._changed = threading.Condition()
        self.count = self._places(commands, most if most > 0 else max(1, usable_cores() + 1 + most))

    def _places(self, commands: Sequence[Command], most: int) -> int:
        """No more than there are jobs, or than the devices are enough for."""
        needed = [self._needed(command) for command in commands]
        fitting = len(self._devices) // min(needed) if needed and min(needed) else len(commands)
        return max(1, min(most, len(commands), fitting))

    def _needed(self, command: Command) -> int:
        """CUDA devices that a job takes."""
        uses_them = wants_cuda(command.hardware, len(self._devices))
        return command.hardware.num_devices if uses_them else 0

    def take(self, command: Command) -> dict[str, str] | None:
        """The environment of a job that has its devices now; None where too few are free.

        Raises:
            ValueError: there are not as many.
        """
        needed = self._needed(command)
        if needed > len(self._devices):
            raise ValueError(f"{needed} devices for job {command.number}, found {len(self._devices)}")
        if not needed:
            return {}
        with self._changed:
            if needed > len(self._free):
                return None
            taken, self._free = self._free[:needed], self._free[needed:]
        return {"CUDA_VISIBLE_DEVICES": ",".join(taken)}

    def give_back(self, environment: dict[str, str]) -> None:
        """Free the devices that `take` gave."""
        with self._changed:
            taken = environment.get("CUDA_VISIBLE_DEVICES")
            self._free = sorted([*self._free, *(taken.split(",") if taken else ())], key=self._devices.index)
            self._changed.notify_all()

    @contextmanager
    def taken(self, command: Command) -> Iterator[dict[str, str]]:
        """Wait for the job's devices, and keep them within the context."""
        with self._changed:
            while (environment := self.take(command)) is None:
                self._changed.wait()
        try:
            yield environment
        finally:
            self.give_back(environment)

    def arguments(self, command: Command) -> tuple[str, ...]:
        """The job's command line, with its share of the cores where jobs run side by side."""
        if self.count == 1 or command.is_continued or command.hardware.threads is not None:
            return command.arguments
        threads = max(1, usable_cores() // (self.count * command.hardware.num_devices))
        return (*command.arguments, f"hardware.threads={threads}")


def visible_devices(commands: Iterable[Command]) -> list[str]:
    """The CUDA devices that this process may use, if any of the jobs might take one."""
    if not any(wants_cuda(command.hardware, 1) for command in commands):
        return []
    import torch  # only where a device has to be looked for

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]
