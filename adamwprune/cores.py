"""How many CPU cores this process may use: the measure of threads, processes and jobs."""

import os


def usable_cores() -> int:
    """Those that the system lets it use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
