"""From one process to the run's processes: here, under torchrun, or started by torch's launcher.

With one device the run happens in this process, so that a debugger works. With several, torch's
elastic launcher starts one process (rank) a device and they meet on a free port. Under torchrun,
which may have started others on other machines, this process is a rank already.

A rank is told to stop when its launcher dies. One that we started is a session of its own, which no
key press reaches; the launcher passes SIGINT and SIGUSR1 on, once to each, and torch SIGTERM.
"""

import ctypes
import logging.config
import multiprocessing
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adamwprune.config import Config
from adamwprune.errors import Interrupted, RunError
from adamwprune.preflight import is_rank
from adamwprune.rank_errors import speaker
from adamwprune.run_directory import SUMMARY, read_json
from adamwprune.signal_handlers import handling
from adamwprune.training.run import train

# Seconds that a rank has to finish its step and save after a stop; then it is killed.
SHUTDOWN_TIMEOUT = 120
_PR_SET_PDEATHSIG = 1


def launch(config: Config, directory: Path, job_logging: Mapping[str, Any]) -> float:
    """Run `train` on as many processes as the configuration has devices; rank 0's validation loss.

    Raises:
        RunError: what ended the run.
        SystemExit: with the exit code of a rank that failed and has said why.
    """
    if is_rank():
        _be_a_rank()
        return train(config, directory)
    if config.hardware.num_devices == 1:
        return train(config, directory)
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.hardware.num_devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    pass_on = _PassOn()
    try:
        with handling(pass_on, signal.SIGINT, signal.SIGUSR1):
            results = elastic_launch(launcher, _rank_main)(config, directory, dict(job_logging), os.getpid())
    except ChildFailedError as error:
        raise SystemExit(_exit_code(error) or _recorded_code(directory) or pass_on.code() or 1) from None
    except SignalException:
        # Nothing was saved where no rank has said how it ended.
        raise SystemExit(_recorded_code(directory) or 143) from None
    return float(results[0])


def _rank_main(config: Config, directory: Path, job_logging: dict[str, Any], launcher: int) -> float:
    """Body of a spawned rank; its exit code is that of what went wrong."""
    os.setsid()
    _be_a_rank()
    if os.getppid() != launcher:
        sys.exit(143)  # the launcher died before the line above
    rank = os.environ["RANK"]
    if rank == "0":
        logging.config.dictConfig(job_logging)
    else:
        logging.basicConfig(level=logging.ERROR)
    try:
        return train(config, directory)
    except RunError as error:
        if (where := speaker(error)) is not None:
            print(f"error[{error.exit_code}]{where}: {error}", file=sys.stderr)
        logging.shutdown()
        # Everything is closed; torch's own threads may abort an ordinary exit and hide the code.
        sys.stderr.flush()
        os._exit(error.exit_code)


def _be_a_rank() -> None:
    """Stop when the launcher dies, and leave out what torch says to each rank."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A compiled convolution may return its gradient in another layout; DDP copies it and says so.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # FSDP warns of in-place operations on a model's output, which nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _recorded_code(directory: Path) -> int:
    """What rank 0 says of how the run ended; 0 where it says nothing bad."""
    return int(read_json(directory / SUMMARY).get("exit_code", 0))


def _exit_code(error: ChildFailedError) -> int:
    """The first code of ours that a rank ended with; 0 where all were killed."""
    codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
    return next((code for code in codes if code > 0), 0)


class _PassOn:
    """A stop asked of the launcher is passed on to each rank, once; a second Ctrl-C ends everything."""

    def __init__(self) -> None:
        self._asked = 0

    def code(self) -> int:
        """How a run ends that was stopped before it could save; 0 where nobody asked."""
        return {0: 0, signal.SIGINT: Interrupted.exit_code}.get(self._asked, 143)

    def __call__(self, number: int, _: FrameType | None) -> None:
        ranks = multiprocessing.active_children()
        if self._asked and number == signal.SIGINT:
            for rank in ranks:
                rank.kill()
            os._exit(Interrupted.exit_code)
        if not self._asked:
            self._asked = number
            for rank in ranks:
                os.kill(rank.pid or 0, number)
