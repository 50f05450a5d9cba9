"""One job after the other, on this terminal."""

from collections.abc import Callable, Iterator, Sequence

from adamwprune.launchers.base import Command, Ending, Launcher
from adamwprune.launchers.process import Process


class Basic(Launcher):
    """What a sweep uses if nothing else is chosen."""

    shows_output = True

    def __init__(self) -> None:
        self._running: Process | None = None
        self._asked: int | None = None  # the signal that stops the sweep

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, Ending]]:
        """In their order."""
        for command in commands:
            if self._asked is not None:
                return
            on_start(command)
            ending = self._start(command).wait()
            self._running = None
            yield command, ending

    def _start(self, command: Command) -> Process:
        self._running = Process(command.arguments, command.limits)
        if self._asked is not None:  # it came while the process was started
            self._running.ask(self._asked)
        return self._running

    def stop(self, number: int) -> None:
        """To the one that runs."""
        self._asked = number
        if self._running is not None:
            self._running.ask(number)
