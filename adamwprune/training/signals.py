"""Signals ask for a stop; the loop finishes its step, saves and leaves.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 only set a flag. A second Ctrl-C, a second or more after
the first (one key press reaches a process of a launcher twice), leaves at once.
"""

import os
import signal
import time
from types import FrameType

from adamwprune.config import TrainerConfig
from adamwprune.distributed import Ranks
from adamwprune.errors import Interrupted, Preempted, RunError
from adamwprune.training.loop_state import LoopState

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECOND_SIGNAL_AFTER = 1.0  # seconds


class StopSignals:
    """Context manager: installs the handlers, puts the old ones back, tells what was asked."""

    def __init__(self) -> None:
        self.received = 0
        self._time = 0.0
        self._entered = time.monotonic()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            # A launcher has its ranks ignore SIGINT: it sends SIGTERM itself.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        is_second = self.received == signal.SIGINT == number and now - self._time >= SECOND_SIGNAL_AFTER
        if is_second:
            os._exit(Interrupted.exit_code)
        if not self.received:
            self.received, self._time = number, now

    def agreed(self, ranks: Ranks, trainer: TrainerConfig, state: LoopState) -> RunError | None:
        """The error that ends the run after this step, the same on every rank; None to go on."""
        is_late = trainer.max_time is not None and time.monotonic() - self._entered > trainer.max_time
        number = ranks.largest(self.received or (signal.SIGALRM if is_late else 0))
        if number == signal.SIGINT:
            return Interrupted(f"Ctrl-C: stopped and saved at step {state.step}")
        if number == signal.SIGALRM:
            return Preempted(f"trainer.max_time={trainer.max_time}: stopped and saved at step {state.step}")
        if number:
            return Preempted(f"{signal.Signals(number).name}: stopped and saved at step {state.step}")
        if trainer.stop_step is not None and state.step >= trainer.stop_step:
            return Preempted(f"trainer.stop_step={trainer.stop_step}: stopped and saved")
        return None
