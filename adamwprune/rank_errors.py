"""Which of several ranks says what went wrong, so that one mistake is one line.

Rank 0 speaks for all of what they agree on, or read from the same command line. What is wrong with a
machine the first rank of that machine says; anything else, the rank that it happened to.
"""

import os
import socket

from adamwprune.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    DivergedError,
    HardwareError,
    Interrupted,
    Preempted,
    RunError,
    SparsityError,
    TrackerError,
)

# Errors that every rank raises at the same point.
AGREED = (Preempted, Interrupted, DivergedError, SparsityError, DiskError)
# What every rank finds at the start: all of them, or all of one machine.
_OF_ALL = (*AGREED, ConfigError)
_OF_A_MACHINE = (HardwareError, DataError, TrackerError, CheckpointError)


def speaker(error: RunError) -> str | None:
    """What to add to the error's code where this rank is to say it, such as ` on rank 3`; None if another is.

    A process alone, and rank 0, say everything and add nothing.
    """
    rank, local_rank = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    if rank == "0":
        return ""
    if isinstance(error, _OF_ALL) or (isinstance(error, _OF_A_MACHINE) and local_rank != "0"):
        return None
    return f" on rank {rank} ({socket.gethostname()})"
