"""A job's process: it has its time, is asked to save and stop, is killed where it does not, and is no orphan.

A job gets SIGTERM when the thread dies that started it (prctl(2), PR_SET_PDEATHSIG, Linux): that thread waits
for it here, so it dies only with its whole process. The job asks for that itself, by `follow_starter`: what
runs between fork and exec in a process with threads may wait for ever for a lock that another of them held.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from adamwprune.errors import Stopped
from adamwprune.launchers.base import TRAIN, Ending, Limits, exit_code
from adamwprune.signal_handlers import STOP_SIGNALS, follow_parent, handling

# Seconds between two looks at the clock.
LOOK = 0.2
# Tells a job which process has started it.
STARTER = "ADAMWPRUNE_STARTER"


class Process:
    """`python train.py ARGUMENTS` in a session of its own, which no key press reaches.

    Args:
        arguments: of train.py.
        limits: how long it may take.
        output: where it writes; None is this terminal.
        environment: variables over those of this process.
        leader: a process with whose end the job has to stop too, if that is not this one.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        limits: Limits,
        *,
        output: IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
        leader: int | None = None,
    ) -> None:
        self._limits = limits
        self._leader = None if leader is None else _watched(leader)
        self._popen = subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments],
            env={**os.environ, **(environment or {}), STARTER: str(os.getpid())},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        self._started = time.monotonic()
        self._kill_at: float | None = None
        self._is_overdue = False

    def ask(self, number: int) -> None:
        """Pass on a stop signal: the job saves and ends, or is killed `limits.kill_after` later."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._limits.kill_after
        self._popen.send_signal(number)

    def wait(self) -> Ending:
        """Until it has ended, by itself or by its limits."""
        while True:
            try:
                code = self._popen.wait(LOOK)
            except subprocess.TimeoutExpired:
                self._look_at_the_clock()
            else:
                return Ending(exit_code(code), self._is_overdue)

    def _look_at_the_clock(self) -> None:
        now, longest = time.monotonic(), self._limits.job_timeout
        if self._kill_at is not None:
            if now >= self._kill_at:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(self._popen.pid, signal.SIGKILL)
        elif longest is not None and now - self._started >= longest:
            self._is_overdue = True
            self.ask(signal.SIGTERM)
        elif self._leader is not None and select.select([self._leader], [], [], 0)[0]:
            self.ask(signal.SIGTERM)


def _watched(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends (Linux); None where there is no such thing."""
    return os.pidfd_open(pid) if sys.platform == "linux" else None


def follow_starter() -> None:
    """Called by train.py first: a job of a sweep stops when what started it has died, also before this.

    Raises:
        Stopped: it has died.
    """
    if starter := os.environ.pop(STARTER, None):
        follow_parent()
        if os.getppid() != int(starter):
            raise Stopped(signal.SIGTERM)


def execute(
    arguments: Sequence[str],
    console: Path,
    limits: Limits,
    environment: Mapping[str, str],
    leader: int | None = None,
) -> Ending:
    """Run one job from a process that a cluster has started for it.

    The signals by which a cluster announces the end of a job reach it as SIGUSR1: save and stop.
    """
    with console.open("ab") as output:
        process = Process(arguments, limits, output=output, environment=environment, leader=leader)
        with handling(lambda number, _: process.ask(_meaning(number)), *STOP_SIGNALS, signal.SIGUSR2):
            return process.wait()


def _meaning(number: int) -> int:
    return signal.SIGINT if number == signal.SIGINT else signal.SIGUSR1
