"""Everything that can end a run, one class per exit code.

A message is one line that names the key, the value, what is allowed and the fix.
The process ends with the code of the class; docs/exit-codes.md is the user's view.
"""

import signal


class RunError(Exception):
    """Base class: a run that cannot start or cannot go on.

    Args:
        problems: one line each.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = tuple(_one_line(problem) for problem in problems)

    def __str__(self) -> str:
        return "; ".join(self.problems)


def _one_line(text: str) -> str:
    """The text as a terminal can show it in a line, whatever was typed or read from a file."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class SparsityError(RunError):
    """The sparsity counted from the weights is not the planned one."""

    exit_code = 1


class ConfigError(RunError):
    """A key, a value or a combination of them is wrong; nothing has been created."""

    exit_code = 2


class DataError(RunError):
    """The data set is missing, damaged, or not what the configuration says."""

    exit_code = 3


class HardwareError(RunError):
    """The machine lacks what the configuration asks for; nothing has been created."""

    exit_code = 4


class CheckpointError(RunError):
    """A run cannot be resumed: no valid checkpoint, other configuration, or in use."""

    exit_code = 5


class TrackerError(RunError):
    """The package of a chosen tracker is missing."""

    exit_code = 6


class DivergedError(RunError):
    """The loss or the gradient norm is not finite; the weights are those before the step."""

    exit_code = 7


class OutOfMemoryError(RunError):
    """The device's memory does not hold the micro batch."""

    exit_code = 8


class DiskError(RunError):
    """The file system is full, read-only or failing."""

    exit_code = 9


class Preempted(RunError):
    """SIGTERM, SIGUSR1 or a budget stopped the run; a checkpoint was saved."""

    exit_code = 75


class Interrupted(RunError):
    """Ctrl-C stopped the run; a checkpoint was saved."""

    exit_code = 130


class Stopped(KeyboardInterrupt):
    """A signal ended the command where there was nothing to save; what Ctrl-C stops, this stops.

    Args:
        number: of the signal; Ctrl-C keeps its own exit code.
    """

    exit_code = 143

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: stopped before there was anything to save")
        if number == signal.SIGINT:
            self.exit_code = Interrupted.exit_code


def exit_code_of(error: BaseException) -> int:
    """The code of the process that this error ends: its own, 130 for Ctrl-C, else 1."""
    if isinstance(error, RunError | Stopped):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
