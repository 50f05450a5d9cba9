"""Jobs side by side on this machine, by joblib: threads, each of which waits for a process of its own."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence

from adamwprune.errors import ConfigError
from adamwprune.launchers.base import Command, Launcher, argument_list, exit_code
from adamwprune.launchers.slots import Slots, visible_devices


class Joblib(Launcher):
    """Up to `n_jobs` at a time, each on CUDA devices of its own.

    Args:
        n_jobs: as joblib counts: -1 is one a core, -2 one less.
    """

    package = "joblib"

    def __init__(self, *, n_jobs: int) -> None:
        if n_jobs == 0:
            raise ConfigError("hydra.launcher.n_jobs=0: must be > 0, or -1 for one job a core")
        self._n_jobs = n_jobs
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # the signal handler may come while its thread holds it
        self._is_stopped = False

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, int]]:
        """As places and devices become free; their output goes to their files."""
        from joblib import Parallel, delayed

        slots = Slots(visible_devices(commands), commands, self._n_jobs)
        parallel = Parallel(n_jobs=slots.count, backend="threading", return_as="generator_unordered")
        for command, code in parallel(delayed(self._run_one)(c, slots, on_start) for c in commands):
            if code is not None:
                yield command, code

    def _run_one(
        self, command: Command, slots: Slots, on_start: Callable[[Command], None]
    ) -> tuple[Command, int | None]:
        """Body of a thread: its exit code, or None where the sweep was stopped before."""
        with slots.taken(command) as environment, command.console.open("wb") as output:
            with self._lock:
                if self._is_stopped:
                    return command, None
                on_start(command)
                process = subprocess.Popen(
                    argument_list(slots.arguments(command)),
                    env={**os.environ, **environment},
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        return command, exit_code(code)

    def stop(self, number: int) -> None:
        """To all that run."""
        self._is_stopped = True
        with self._lock:
            for process in self._running:
                process.send_signal(number)
