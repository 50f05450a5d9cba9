"""Signal handlers for a while: installed on entry, the old ones put back on exit.

What Python does with a signal it does between two steps of the main thread's code. Where that thread
is inside a long call of a library no handler runs, so a second thread is told by the interpreter's
wakeup descriptor, which is written to at once (https://docs.python.org/3/library/signal.html).
"""

import ctypes
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from adamwprune.errors import Interrupted, Stopped

# What asks a run, a launcher or a sweep to stop: Ctrl-C, kill, a scheduler's warning, a closed terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# Seconds between two Ctrl-C: programs between the terminal and this one may send one key press twice.
SECOND_AFTER = 0.5
# Seconds for what is still to be written when a second Ctrl-C ends the process.
LAST_WORDS = 1.0
_PR_SET_PDEATHSIG = 1
_END = b"\0"  # no signal has this number


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], Any] | signal.Handlers, *numbers: int
) -> Iterator[None]:
    """Let `handler` take these signals within the context; under nohup SIGHUP stays ignored.

    What `ignore_stops` was called for within stays ignored.
    """
    taken = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in previous.items():
            if handler is signal.SIG_IGN or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, old)


class SecondInterrupt:
    """Tells a second Ctrl-C from one key press that arrives twice."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, number: int) -> bool:
        """Whether this signal is a Ctrl-C that came SECOND_AFTER or later after the first."""
        if number != signal.SIGINT:
            return False
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first >= SECOND_AFTER


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """The first stop signal raises Stopped wherever the process is; after it only a second Ctrl-C counts.

    For whatever has nothing to save, or is written so that a kill at any moment does no harm.
    """
    is_second = SecondInterrupt()
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if is_second(number):
            os._exit(Interrupted.exit_code)
        received.append(number)
        if number == signal.SIGHUP:
            leave_lost_terminal()
        if len(received) == 1:
            raise Stopped(number)

    with handling(stop, *STOP_SIGNALS):
        yield


@contextmanager
def telling(watch: Callable[[int], object]) -> Iterator[None]:
    """Call `watch` with each signal that has a handler, in another thread, whatever the main thread does."""
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    previous = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)

    def listen() -> None:
        while (byte := os.read(receiving, 1)) != _END:
            watch(byte[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.write(sending, _END)
        thread.join()
        os.close(sending)
        os.close(receiving)


def leave(exit_code: int, last_words: Callable[[], object]) -> None:
    """End the process with `last_words`, or without them where they take longer than LAST_WORDS."""
    speaker = threading.Thread(target=last_words, daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS)
    os._exit(exit_code)


def hold_stops() -> None:
    """Keep stop signals waiting until `let_stops_in`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def let_stops_in() -> None:
    """Take those that have waited, and all others."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore_stops() -> None:
    """From here to the end of the process no stop signal is heard."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Get SIGTERM when the process dies that started this one (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def leave_lost_terminal() -> None:
    """Print nowhere where the terminal is gone: each line would be an error; train.log has them."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
