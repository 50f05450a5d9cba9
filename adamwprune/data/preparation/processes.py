"""A function over many items in several processes, results in the order of the items."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from adamwprune.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that a process finds waiting when it has done one.
AHEAD = 2


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """`function` of each item, in order; one process is this one. Close it if not all is taken.

    Raises:
        RunError: a process died.
    """
    if processes == 1:
        yield from map(function, items)
        return
    # Spawned: a fork would copy locks that other threads may hold.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin_process)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= (1 + AHEAD) * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise RunError(
            f"data.num_processes={processes}: one of them was killed, perhaps for want of memory; use fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """Ctrl-C is for the parent, and a parent that was killed leaves nobody behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=die_with_it, daemon=True).start()
