"""A process that saves one checkpoint after the other for ever, and says which it has saved."""

import mmap
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# Seconds after which a saver that has not saved at all is taken for broken.
PATIENCE = 60.0


class Saver:
    """Forked from here; `saved` is the last step whose save has returned.

    Args:
        save: of a root and a step.
        root: the folder that it saves to.
        before: called in the process before the first save; what it patches there stays there.
    """

    def __init__(
        self, save: Callable[[Path, int], object], root: Path, before: Callable[[], object] = lambda: None
    ) -> None:
        self._saved = mmap.mmap(-1, 8)  # shared with the process
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=self._save_for_ever, args=(save, root, before), daemon=True)
        self._process.start()
        self._status = psutil.Process(self._process.pid)

    def _save_for_ever(
        self, save: Callable[[Path, int], object], root: Path, before: Callable[[], object]
    ) -> None:
        before()
        step = 0
        while True:
            step += 1
            save(root, step)
            self._saved[:8] = step.to_bytes(8, "little")

    @property
    def saved(self) -> int:
        """0 before the first one."""
        return int.from_bytes(self._saved[:8], "little")

    def wait_for(self, step: int) -> None:
        """Until that step is saved.

        Raises:
            RuntimeError: the process has ended, or saves nothing.
        """
        deadline = time.monotonic() + PATIENCE
        while self.saved < step:
            if not self._process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the saver has come to step {self.saved}, exit code {self._process.exitcode}"
                )
            time.sleep(0.001)

    def stop(self) -> None:
        """SIGSTOP; returns when it stands still, with no system call under way."""
        self._status.suspend()
        while self._status.status() != psutil.STATUS_STOPPED:
            time.sleep(0.0005)

    def go_on(self) -> None:
        """After stop()."""
        self._status.resume()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.join()
