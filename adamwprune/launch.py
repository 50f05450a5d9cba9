"""From one process to the run's processes: here, under torchrun, or started by torch's launcher.

With one device the run happens in this process, so that a debugger works. With several, torch's
elastic launcher starts one process (rank) a device and they meet on a free port of 127.0.0.1. Under torchrun,
which may have started others on other machines, this process is a rank already.

A rank is told to stop when its launcher dies. One that we started is a session of its own, which no
key press reaches; the launcher passes a stop signal on, once to each.
"""

import logging
import logging.config
import multiprocessing
import os
import signal
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adamwprune import last_words, rendezvous
from adamwprune.command_line import say
from adamwprune.config import Config
from adamwprune.errors import Interrupted, RunError, Stopped
from adamwprune.preflight import is_rank
from adamwprune.rank_errors import speaker
from adamwprune.run_directory import SUMMARY, read_json, shown_path
from adamwprune.signal_handlers import (
    STOP_SIGNALS,
    SecondInterrupt,
    follow_parent,
    handling,
    leave,
    leave_lost_terminal,
    stopping_at_once,
)
from adamwprune.training.run import train

log = logging.getLogger(__name__)

# Seconds that a rank has to finish its step and save after a stop; then it is killed.
SHUTDOWN_TIMEOUT = 120
# Seconds that the others have to end when a rank has failed. Rank 0, which closes trackers, has torch's 30.
GRACE = 2.0


def launch(config: Config, directory: Path, job_logging: Mapping[str, Any]) -> float:
    """Run `train` on as many processes as the configuration has devices; rank 0's validation loss.

    Raises:
        RunError: what ended the run.
        SystemExit: with the exit code of a rank that failed and has said why.
        Stopped: a signal ended it before a rank could say so.
    """
    if is_rank():
        _be_a_rank()
        return train(config, directory)
    if config.hardware.num_devices == 1:
        return train(config, directory)
    return _launch_ranks(config, directory, job_logging)


def _launch_ranks(config: Config, directory: Path, job_logging: Mapping[str, Any]) -> float:
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.hardware.num_devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend=rendezvous.register(),
        max_restarts=0,
        start_method="spawn",
        signals_to_handle="SIGQUIT",  # it wants one; the others are passed on below
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # tracebacks of what is told below
    board = _Board(config.hardware.num_devices)
    before, pass_on = _summary_file(directory), _PassOn(board, directory)
    try:
        with handling(pass_on, *STOP_SIGNALS), board.watched():
            results = elastic_launch(launcher, _rank_main)(
                config, directory, dict(job_logging), os.getpid(), board
            )
    except ChildFailedError as error:
        recorded = 0 if _summary_file(directory) == before else _recorded_code(directory)
        if pass_on.asked:
            raise (SystemExit(recorded) if recorded else Stopped(pass_on.asked)) from None
        raise _ending(error, recorded, directory) from None
    return float(results[0])


def _rank_main(
    config: Config, directory: Path, job_logging: dict[str, Any], launcher: int, board: "_Board"
) -> float:
    """Body of a spawned rank; its exit code is that of what went wrong."""
    os.setsid()
    _be_a_rank()
    if name := rendezvous.interface():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    rank = int(os.environ["RANK"])
    try:
        with stopping_at_once():
            board.enter(rank)
            if os.getppid() != launcher:
                raise Stopped(signal.SIGTERM)  # the launcher died before it was followed
            if rank == 0:
                logging.config.dictConfig(job_logging)
            else:
                logging.basicConfig(level=logging.ERROR)
            return train(config, directory)
    except Stopped as error:
        code = error.exit_code  # of which the launcher speaks
    except RunError as error:
        code = error.exit_code
        if (where := speaker(error)) is not None:
            say(f"error[{code}]{where}: {error}")
    board.leave(rank)
    # Everything is closed; torch's own threads may abort an ordinary exit and hide the code.
    with suppress(OSError):
        logging.shutdown()
    os._exit(code)


def _be_a_rank() -> None:
    """Stop when the launcher dies, and leave out what torch says to each rank."""
    follow_parent()
    # A compiled convolution may return its gradient in another layout; DDP copies it and says so.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # FSDP warns of in-place operations on a model's output, which nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _summary_file(directory: Path) -> tuple[int, int] | None:
    """What tells one summary.json from the next, which replaces it."""
    file = directory / SUMMARY
    return (file.stat().st_ino, file.stat().st_mtime_ns) if file.exists() else None


def _recorded_code(directory: Path) -> int:
    """What rank 0 says of how the run ended; 0 where it says nothing bad."""
    return int(read_json(directory / SUMMARY).get("exit_code", 0))


def _ending(error: ChildFailedError, recorded: int, directory: Path) -> BaseException:
    """How the launcher ends when a rank has failed: with its code, or with what torch knows of it."""
    rank, failure = min(error.failures.items())
    if failure.exitcode < 0:
        return RunError(
            f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}; to go on from the last "
            f"checkpoint: python train.py resume={shown_path(directory)}"
        )
    if not recorded and failure.exitcode == 1:
        log.error("rank %s failed: %s", rank, failure.message)
    return SystemExit(failure.exitcode)


class _Board:
    """Memory that launcher and ranks share: which process a rank is, and whether it is about to leave."""

    def __init__(self, ranks: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pids, self._has_left = context.RawArray("q", ranks), context.RawArray("b", ranks)

    def enter(self, rank: int) -> None:
        """Called by the rank when it takes signals."""
        self._pids[rank] = os.getpid()

    def leave(self, rank: int) -> None:
        """Called by the rank when it has failed, or agreed on a stop, and nothing is left to close."""
        self._has_left[rank] = 1

    def ranks(self) -> list[int] | None:
        """Process ids of all ranks; None while some are still starting."""
        return list(self._pids) if all(self._pids) else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context, see to it that no rank outlives another for long."""
        is_over = threading.Event()

        def watch() -> None:
            while not any(self._has_left):
                if is_over.wait(GRACE / 10):
                    return
            if not is_over.wait(GRACE):
                self._end_others()

        watcher = threading.Thread(target=watch, name="ranks", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()

    def _end_others(self) -> None:
        """Kill those that are left; rank 0 only where it cannot do anything because it is halted."""
        for rank, pid in enumerate(self._pids):
            if pid and not self._has_left[rank]:
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    if rank > 0 or process.status() == psutil.STATUS_STOPPED:
                        process.kill()


class _PassOn:
    """A stop asked of the launcher is passed on to each rank, once; a second Ctrl-C ends everything."""

    def __init__(self, board: _Board, directory: Path) -> None:
        self.asked = 0  # the signal
        self._board, self._directory = board, directory
        self._is_second = SecondInterrupt()

    def __call__(self, number: int, _: FrameType | None) -> None:
        if self._is_second(number):
            _kill_children()
            text = "Ctrl-C twice: left at once, without a new checkpoint"
            leave(Interrupted.exit_code, lambda: last_words.say(self._directory, Interrupted.exit_code, text))
        if number == signal.SIGHUP:
            leave_lost_terminal()
        if self.asked:
            return
        self.asked = number
        if not multiprocessing.active_children():
            raise Stopped(number)
        ranks = self._board.ranks()
        if ranks is None:
            _kill_children()  # no step was taken
        for rank in ranks or ():
            with suppress(ProcessLookupError):
                os.kill(rank, number)


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()
