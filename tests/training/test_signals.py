"""Signals at every phase of a run's process: what they raise, what they wait for, what they leave behind."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from adamwprune import run_directory, signal_handlers
from adamwprune.distributed import Ranks
from adamwprune.errors import Preempted, RunError, Stopped, exit_code_of
from adamwprune.last_words import told
from adamwprune.signal_handlers import (
    STOP_SIGNALS,
    SecondInterrupt,
    handling,
    ignore_stops,
    stopping_at_once,
)
from adamwprune.training.loop_state import LoopState
from adamwprune.training.signals import stop_requests
from tests.helpers.runs import IMAGES, configure, start, summary


def send(number):
    """To this process; its handler has run when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0)


def is_free(directory):
    """Whether another process could take the run."""
    with run_directory.locked(directory):
        return True


@pytest.fixture(autouse=True)
def _in_a_terminal():
    """Under nohup, which ignores SIGHUP, these tests are about a terminal all the same."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)],
)
def test_before_the_first_step_a_signal_ends_the_run_there(number, code):
    """Nothing to save: an exception that libraries treat as Ctrl-C, with the documented code."""
    with stop_requests(), pytest.raises(Stopped) as caught:
        send(number)
    assert exit_code_of(caught.value) == code
    assert isinstance(caught.value, KeyboardInterrupt)


def test_from_the_first_step_on_a_signal_waits_for_the_end_of_the_step():
    """And only the first one says how the run ends."""
    config = configure(*IMAGES)
    with stop_requests() as stop:
        stop.defer()
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        error = stop.agreed(_alone(), config.trainer, _state(step=3))
    assert isinstance(error, Preempted)
    assert str(error) == "SIGUSR1: stopped and saved at step 3"


def _alone():
    import torch

    return Ranks(0, 0, 1, torch.device("cpu"))


def _state(step):
    state = LoopState.__new__(LoopState)
    state.step = step
    return state


def test_a_stop_that_unwinds_is_not_broken_by_the_next_one():
    """Launchers repeat SIGTERM while a process cleans up."""
    cleaned = []

    def work():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Stopped), stopping_at_once():
        work()
    assert cleaned == [True]


def test_one_key_press_that_arrives_twice_is_one(monkeypatch):
    """A second Ctrl-C comes half a second later or more; other signals are none."""
    now = [10.0]
    monkeypatch.setattr(signal_handlers.time, "monotonic", lambda: now[0])
    is_second = SecondInterrupt()
    assert not is_second(signal.SIGTERM)
    assert not is_second(signal.SIGINT)
    now[0] += 0.4
    assert not is_second(signal.SIGINT)
    now[0] += 0.2
    assert not is_second(signal.SIGTERM)
    assert is_second(signal.SIGINT)


def test_under_nohup_a_closed_terminal_is_ignored():
    """And outside of it the handler is called (control)."""
    calls = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(lambda *_: calls.append("ignored"), signal.SIGHUP):
            send(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with handling(lambda *_: calls.append("heard"), signal.SIGHUP):
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert calls == ["heard"]


def test_what_ends_a_run_outside_of_training_is_in_its_summary(tmp_path):
    """Where there is none yet; with the code of the process, and the run is free again."""
    _, directory = start(tmp_path / "run", *IMAGES)
    with pytest.raises(Stopped), told(directory):
        raise Stopped(signal.SIGTERM)
    report = summary(directory)
    assert (report["status"], report["exit_code"], report["steps"]) == ("killed", 143, 0)
    assert is_free(directory)
    with pytest.raises(RunError), told(directory):
        raise RunError("later")
    assert summary(directory) == report


def test_a_run_of_another_process_gets_no_summary(tmp_path):
    """Whoever is refused because the run is in use says nothing in its folder."""
    _, directory = start(tmp_path / "run", *IMAGES)
    with run_directory.locked(directory), pytest.raises(RunError), told(directory):
        raise RunError("in use")
    assert not (directory / run_directory.SUMMARY).exists()


SECOND_INTERRUPT = """
import hashlib, os, signal, sys, threading, time
from pathlib import Path
from adamwprune.training.signals import stop_requests

def press():
    for pause in (0.2, 0.7):
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)

with stop_requests(Path(sys.argv[1])) as stop:
    stop.defer()
    threading.Thread(target=press, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""


@pytest.mark.slow
def test_a_second_interrupt_leaves_a_long_call_of_a_library_and_a_summary(tmp_path):
    """Of a minute in C, where no handler runs."""
    _, directory = start(tmp_path / "run", *IMAGES)
    done = subprocess.run([sys.executable, "-c", SECOND_INTERRUPT, str(directory)], timeout=40, check=False)
    assert done.returncode == 130
    report = json.loads((directory / "summary.json").read_text())
    assert (report["status"], report["exit_code"]) == ("interrupted", 130)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_closed_terminal_saves_the_run(tmp_path):
    """The terminal hangs up; what is printed has nowhere to go, the code is 75 all the same."""
    train = run_directory.__file__.replace("adamwprune/run_directory.py", "train.py")
    limits = ("trainer.max_steps=1000000", "trainer.eval_every=500000", "hydra.run.dir=run")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, train, *IMAGES, *limits])
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 90
    os.set_blocking(terminal, False)
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)  # a terminal shows what is written
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    report = summary(tmp_path / "run")
    assert (report["status"], report["exit_code"]) == ("preempted", 75)
    assert report["steps"] > 0


def test_handlers_come_back_but_for_a_process_that_is_at_its_end():
    """What was ignored for a while comes back; after `ignore_stops` nothing does: a finished run is 0."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with handling(signal.SIG_IGN, signal.SIGINT):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
        with handling(lambda *_: None, *STOP_SIGNALS):
            ignore_stops()
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
