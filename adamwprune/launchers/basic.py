"""One job after the other, on this terminal."""

import subprocess
from collections.abc import Callable, Iterator, Sequence

from adamwprune.launchers.base import Command, Launcher, argument_list, exit_code


class Basic(Launcher):
    """What a sweep uses if nothing else is chosen."""

    shows_output = True

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, int]]:
        """In their order; each in a session of its own, which no key press reaches."""
        for command in commands:
            if self._is_stopped:
                return
            on_start(command)
            self._running = subprocess.Popen(argument_list(command.arguments), start_new_session=True)
            code = self._running.wait()
            self._running = None
            yield command, exit_code(code)

    def stop(self, number: int) -> None:
        """To the one that runs."""
        self._is_stopped = True
        if self._running is not None:
            self._running.send_signal(number)
