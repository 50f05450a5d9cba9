"""Signals ask for a stop; the loop finishes its step, saves and leaves.

Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal (SIGHUP) are remembered and acted on where the ranks
have agreed. Before the first step nothing has to be saved: the first signal ends the run there and
then. A second Ctrl-C leaves at once, wherever the run is.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from adamwprune import last_words
from adamwprune.config import TrainerConfig
from adamwprune.distributed import Ranks
from adamwprune.errors import Interrupted, Preempted, RunError, Stopped
from adamwprune.signal_handlers import (
    STOP_SIGNALS,
    SecondInterrupt,
    handling,
    leave,
    leave_lost_terminal,
    telling,
)
from adamwprune.training.loop_state import LoopState

# Seconds for the main thread to hear of a signal before the first step; a library may hold it for minutes.
HEARING = 3.0
# Stand for trainer.max_time and for a tracker's stop button among the signals that ranks compare.
_OUT_OF_TIME = signal.SIGALRM
_BUTTON = signal.SIGUSR2


class StopRequest:
    """Whether and by what the run was asked to stop.

    Args:
        directory: the run's folder; what ends the run without a word is noted there.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._received = 0
        self._is_deferred = False
        self._heard = threading.Event()
        self._is_second = SecondInterrupt()
        self._started = time.monotonic()

    def defer(self, ranks: Ranks | None = None) -> None:
        """From here on a signal waits for the end of the step; with `ranks`, on all of them."""
        if ranks is not None:
            ranks.largest(0)  # which none leaves before all have come
        self._is_deferred = True

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """The handler: remember the first signal, or raise it where there is nothing to save.

        Raises:
            Stopped: before `defer`.
        """
        self._heard.set()
        if number == signal.SIGHUP:
            leave_lost_terminal()
        is_first, self._received = not self._received, self._received or number
        if is_first and not self._is_deferred:
            raise Stopped(number)

    def watch(self, number: int) -> None:
        """In a thread of its own: leave on a second Ctrl-C, or if the main thread cannot be reached."""
        if self._is_second(number):
            self._leave(Interrupted.exit_code, "Ctrl-C twice: left at once, without a new checkpoint")
        if not self._is_deferred and number in STOP_SIGNALS:
            timer = threading.Timer(HEARING, self._leave_unheard, [number])
            timer.daemon = True
            timer.start()

    def _leave_unheard(self, number: int) -> None:
        if not self._heard.is_set():
            stopped = Stopped(number)
            self._leave(stopped.exit_code, str(stopped))

    def _leave(self, exit_code: int, text: str) -> None:
        directory = self._directory if os.environ.get("RANK", "0") == "0" else None
        leave(exit_code, lambda: directory and last_words.say(directory, exit_code, text))

    def press_button(self) -> None:
        """Stop after this step, as after a signal: somebody asked for it in a tracker."""
        self._received = self._received or _BUTTON

    def number_agreed(self, ranks: Ranks) -> int:
        """What asks for a stop, the same on every rank at the same point; 0 to go on."""
        return ranks.largest(self._received)

    def agreed(self, ranks: Ranks, trainer: TrainerConfig, state: LoopState) -> RunError | None:
        """The error that ends the run after this step, the same on every rank; None to go on."""
        if error := self.asked(ranks, trainer, state):
            return error
        if trainer.stop_step is not None and state.step >= trainer.stop_step:
            return Preempted(f"trainer.stop_step={trainer.stop_step}: stopped and saved at step {state.step}")
        return None

    def asked(self, ranks: Ranks, trainer: TrainerConfig, state: LoopState) -> RunError | None:
        """The error of a signal, a button or the time, inside a long evaluation too; None to go on."""
        if trainer.max_time is not None and time.monotonic() - self._started > trainer.max_time:
            self._received = self._received or _OUT_OF_TIME
        number = self.number_agreed(ranks)
        if number == signal.SIGINT:
            return Interrupted(f"Ctrl-C: stopped and saved at step {state.step}")
        if number == _BUTTON:
            return Preempted(f"a tracker's stop button: stopped and saved at step {state.step}")
        if number == _OUT_OF_TIME:
            return Preempted(f"trainer.max_time={trainer.max_time}: stopped and saved at step {state.step}")
        if number:
            return Preempted(f"{signal.Signals(number).name}: stopped and saved at step {state.step}")
        return None


@contextmanager
def stop_requests(directory: Path | None = None) -> Iterator[StopRequest]:
    """Take the stop signals within the context."""
    request = StopRequest(directory)
    with handling(request.on_signal, *STOP_SIGNALS), telling(request.watch):
        yield request
