"""Checkpoints written beside the training, so that a step waits for a copy in memory, not for the disk.

    start      copy weights and state (the only time that training waits), then write in a thread
    has_failed the disk refused; every rank learns it with the next save, or at the stop that it causes
    wait       until what was started is on the disk, verified, and older ones are removed

One save is under way at most: the next one, a stop and the end of the run wait for it.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from adamwprune.errors import DiskError
from adamwprune.training.checkpoint import nbytes, remove_old, save

log = logging.getLogger(__name__)

# Share of the free memory that a copy may take; what needs more is written while the training waits.
SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class Snapshot:
    """What one checkpoint is made of.

    Args:
        step: optimizer steps done.
        weights, state: as checkpoint.save takes them, on any device.
        mask_hash: for the manifest.
        best_step: whose checkpoint stays, however old; None where nothing is the best yet.
    """

    step: int
    weights: Mapping[str, Tensor]
    state: Mapping[str, Any]
    mask_hash: str
    best_step: int | None


class Saver:
    """Writes the checkpoints of one run on rank 0.

    Args:
        root: the run's checkpoints/.
        keep: newest ones that stay beside the best.
        identity: what the manifests say of the run.
        sync_records: makes the rows that a checkpoint refers to durable.
    """

    def __init__(
        self, root: Path, *, keep: int, identity: Mapping[str, str], sync_records: Callable[[], None]
    ) -> None:
        self._root, self._keep = root, keep
        self._identity, self._sync_records = identity, sync_records
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[Path] | None = None
        self._step = 0
        self._copy: Any = None  # of the last save: memory that is there already is copied to in half the time

    def start(self, snapshot: Snapshot) -> None:
        """Begin to write a checkpoint; what is given may change as soon as this returns."""
        assert self._under_way is None, "wait() for the save before"
        free = psutil.virtual_memory().available + nbytes(self._copy)
        has_room = nbytes((snapshot.weights, snapshot.state)) < SHARE_OF_MEMORY * free
        if has_room:
            weights, state = self._copy = copied((snapshot.weights, snapshot.state), self._copy)
            snapshot = replace(snapshot, weights=weights, state=state)
        self._step = snapshot.step
        self._under_way = self._pool.submit(self._write, snapshot)
        if not has_room:
            self._under_way.exception()  # waits; training must not change what is being written

    def _write(self, snapshot: Snapshot) -> Path:
        saved = save(
            self._root,
            snapshot.step,
            snapshot.weights,
            snapshot.state,
            identity={**self._identity, "masks": snapshot.mask_hash},
            sync_records=self._sync_records,
        )
        remove_old(self._root, keep=self._keep, best_step=snapshot.best_step)
        return saved

    @property
    def has_failed(self) -> bool:
        """Whether the save that was started last has come to nothing."""
        done = self._under_way is not None and self._under_way.done()
        return done and self._under_way.exception() is not None

    def wait(self) -> tuple[int, Path] | None:
        """Step and folder of the save that was under way; None where there was none.

        Raises:
            DiskError: it was not saved.
        """
        if self._under_way is None:
            return None
        started, self._under_way = self._under_way, None
        try:
            return self._step, started.result()
        except OSError as error:
            raise DiskError(f"{self._root}: {error}") from None

    def close(self) -> None:
        """On every path out: let the save end; a failure that nobody has heard of is logged."""
        try:
            self.wait()
        except DiskError as error:
            log.error("%s", error)
        self._pool.shutdown()


def copied(tree: Any, over: Any = None) -> Any:
    """A copy, on the CPU, of a nest of tensors and plain values; it shares nothing with the original.

    What lies at the same place in `over`, an earlier copy, is written over where it fits.
    """
    if isinstance(tree, Tensor):
        if isinstance(over, Tensor) and (over.shape, over.dtype) == (tree.shape, tree.dtype):
            return over.copy_(tree.detach())
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        old = over if isinstance(over, Mapping) else {}
        return {key: copied(value, old.get(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        olds = over if isinstance(over, list | tuple) and len(over) == len(tree) else [None] * len(tree)
        return type(tree)(map(copied, tree, olds))
    return tree
