"""Named places at which a test may have the process killed; to a run they are nothing.

    ADAMWPRUNE_FAULT=after_rename      SIGKILL when the place is reached
    ADAMWPRUNE_FAULT=after_rename:3    the third time

`python -m tests.faults` kills a training at each of them and looks at what is left.
"""

import os
import signal
from collections import Counter

# In the order in which saving one checkpoint passes them (training/checkpoint.py).
SAVE_POINTS = (
    "before_tmp",
    "write_25",
    "write_50",
    "write_75",
    "before_fsync",
    "after_fsync",
    "after_rename",
    "before_delete",
    "mid_delete",
)
_passed: Counter[str] = Counter()


def reached(name: str) -> None:
    """Die here by SIGKILL if ADAMWPRUNE_FAULT says so."""
    wanted, _, time = os.environ.get("ADAMWPRUNE_FAULT", "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(time or 1):
        os.kill(os.getpid(), signal.SIGKILL)
