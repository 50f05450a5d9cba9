"""Jobs side by side on this machine, by joblib: threads, each of which waits for a process of its own."""

import threading
from collections.abc import Callable, Iterator, Sequence

from adamwprune.errors import ConfigError
from adamwprune.launchers.base import Command, Ending, Launcher
from adamwprune.launchers.process import Process
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
        self._running: set[Process] = set()
        self._lock = threading.RLock()  # the signal handler may come while its thread holds it
        self._is_stopped = False

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, Ending]]:
        """As places and devices become free; their output goes to their files."""
        from joblib import Parallel, delayed

        slots = Slots(visible_devices(commands), commands, self._n_jobs)
        parallel = Parallel(n_jobs=slots.count, backend="threading", return_as="generator_unordered")
        for command, ending in parallel(delayed(self._run_one)(c, slots, on_start) for c in commands):
            if ending is not None:
                yield command, ending

    def _run_one(
        self, command: Command, slots: Slots, on_start: Callable[[Command], None]
    ) -> tuple[Command, Ending | None]:
        """Body of a thread: how the job ended, or None where the sweep was stopped before."""
        with slots.taken(command) as environment, command.console.open("ab") as output:
            with self._lock:
                if self._is_stopped:
                    return command, None
                on_start(command)
                process = Process(
                    slots.arguments(command), command.limits, output=output, environment=environment
                )
                self._running.add(process)
            ending = process.wait()
            with self._lock:
                self._running.discard(process)
        return command, ending

    def stop(self, number: int) -> None:
        """To all that run."""
        self._is_stopped = True
        with self._lock:
            for process in self._running:
                process.ask(number)
