"""Whole commands as a user starts them, and what is left of them: all descendants bear a mark.

command = Command(folder, "train.py", *overrides)
command.send(signal.SIGTERM)
code = command.wait()              as a shell gives it: 143 where SIGTERM ended it
command.left()                     processes that are still there, whatever session they made
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from adamwprune.launchers.base import exit_code

ROOT = Path(__file__).resolve().parents[2]
# Seconds within which any of these commands has ended on a crowded machine.
PATIENCE = 120.0
# Seconds that a process has to disappear after the command that it belongs to.
LINGERING = 3.0
_MARK = "FAULT_TRIAL"


class Command:
    """A Python program of this project in a session of its own, its output in `console.txt`.

    Args:
        folder: where it runs, created.
        arguments: of the interpreter; train.py is found wherever it runs.
    """

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._mark = folder, secrets.token_hex(8)
        own = [str(ROOT / argument) if argument == "train.py" else argument for argument in arguments]
        self._console = folder / "console.txt"
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, *own],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """A signal to the command alone."""
        self._process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code; 124 where it had to be killed."""
        try:
            return exit_code(self._process.wait(timeout))
        except subprocess.TimeoutExpired:
            self.end()
            return 124

    def members(self) -> list[int]:
        """Ids of all processes that it started, however deep, and of itself."""
        needle = f"{_MARK}={self._mark}".encode()
        return [pid for pid in _pids() if needle in _environment(pid)]

    def left(self, seconds: float = LINGERING) -> list[int]:
        """Those that are still there so many seconds after its end."""
        deadline = time.monotonic() + seconds
        while (found := self.members()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def end(self) -> None:
        """SIGKILL to whatever there is of it."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def console(self) -> str:
        """What all of them have printed."""
        return self._console.read_text(encoding="utf-8", errors="replace")


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> bytes:
    """What the process was started with; nothing of one that has ended, or that is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
