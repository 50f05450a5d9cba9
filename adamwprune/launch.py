"""From one process to the run's processes: here, under torchrun, or started by torch's launcher.

With one device the run happens in this process, so that a debugger works. With several, torch's
elastic launcher starts one process (rank) a device and they meet on a free port. Under torchrun
this process is a rank already.

A rank is its own session and dies with the launcher; the launcher passes a stop on as SIGTERM.
"""

import ctypes
import logging.config
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
from adamwprune.run_directory import SUMMARY, read_json
from adamwprune.training.run import train

log = logging.getLogger(__name__)

# Seconds that a rank has to finish its step and save after a stop; then it is killed.
SHUTDOWN_TIMEOUT = 120
_PR_SET_PDEATHSIG = 1


def launch(config: Config, directory: Path, job_logging: Mapping[str, Any]) -> float:
    """Run `train` on as many processes as the configuration has devices; rank 0's validation loss.

    Raises:
        RunError: what ended the run.
        SystemExit: with the exit code of a rank that failed and has said why.
    """
    if is_rank() or config.hardware.num_devices == 1:
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
    interrupts = _PassInterruptsOn()
    try:
        with interrupts:
            results = elastic_launch(launcher, _rank_main)(config, directory, dict(job_logging), os.getpid())
    except ChildFailedError as error:
        raise SystemExit(_exit_code(error)) from None
    except SignalException:
        code = read_json(directory / SUMMARY).get("exit_code", 143)
        raise SystemExit(Interrupted.exit_code if interrupts.count and code else code) from None
    return results[0]


def _rank_main(config: Config, directory: Path, job_logging: dict[str, Any], launcher: int) -> float:
    """Body of a spawned rank; its exit code is that of what went wrong."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher turns Ctrl-C into one SIGTERM
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:
        sys.exit(143)  # the launcher died before the line above
    if os.environ["RANK"] == "0":
        logging.config.dictConfig(job_logging)
    else:
        logging.basicConfig(level=logging.ERROR)
    # A compiled convolution may return its gradient in another layout; DDP copies it and says so.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        return train(config, directory)
    except RunError as error:
        if os.environ["RANK"] == "0":
            print(f"error[{error.exit_code}]: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _exit_code(error: ChildFailedError) -> int:
    """The first code of ours that a rank ended with; 1 for anything else."""
    codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
    return next((code for code in codes if code > 0), 1)


class _PassInterruptsOn:
    """Ctrl-C while ranks run: the first becomes SIGTERM for all, the second ends everything."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: Any = None

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGINT, self._on_interrupt)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os._exit(Interrupted.exit_code)
