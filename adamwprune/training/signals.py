"""Signals ask for a stop; the loop finishes its step, saves and leaves.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 only set a flag. A second Ctrl-C, a second or more after
the first (one key press may reach a process twice), leaves at once.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adamwprune.config import TrainerConfig
from adamwprune.distributed import Ranks
from adamwprune.errors import Interrupted, Preempted, RunError
from adamwprune.signal_handlers import STOP_SIGNALS, handling
from adamwprune.training.loop_state import LoopState

SECOND_SIGNAL_AFTER = 1.0  # seconds
# Stand for trainer.max_time and for a tracker's stop button among the signals that ranks compare.
_OUT_OF_TIME = signal.SIGALRM
_BUTTON = signal.SIGUSR2


class StopRequest:
    """Whether and by what the run was asked to stop."""

    def __init__(self) -> None:
        self._received = 0
        self._time = 0.0
        self._started = time.monotonic()

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """The handler: remember the first signal; leave on a second Ctrl-C."""
        now = time.monotonic()
        if self._received == signal.SIGINT == number and now - self._time >= SECOND_SIGNAL_AFTER:
            os._exit(Interrupted.exit_code)
        if not self._received:
            self._received, self._time = number, now

    def press_button(self) -> None:
        """Stop after this step, as after a signal: somebody asked for it in a tracker."""
        self._received = self._received or _BUTTON

    def agreed(self, ranks: Ranks, trainer: TrainerConfig, state: LoopState) -> RunError | None:
        """The error that ends the run after this step, the same on every rank; None to go on."""
        is_late = trainer.max_time is not None and time.monotonic() - self._started > trainer.max_time
        number = ranks.largest(self._received or (_OUT_OF_TIME if is_late else 0))
        if number == signal.SIGINT:
            return Interrupted(f"Ctrl-C: stopped and saved at step {state.step}")
        if number == _BUTTON:
            return Preempted(f"a tracker's stop button: stopped and saved at step {state.step}")
        if number == _OUT_OF_TIME:
            return Preempted(f"trainer.max_time={trainer.max_time}: stopped and saved at step {state.step}")
        if number:
            return Preempted(f"{signal.Signals(number).name}: stopped and saved at step {state.step}")
        if trainer.stop_step is not None and state.step >= trainer.stop_step:
            return Preempted(f"trainer.stop_step={trainer.stop_step}: stopped and saved at step {state.step}")
        return None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take the stop signals within the context."""
    request = StopRequest()
    with handling(request.on_signal, *STOP_SIGNALS):
        yield request
