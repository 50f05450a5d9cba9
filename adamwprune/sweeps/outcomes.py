"""How a job ended, for people and for sweep.jsonl: from its exit code, its summary.json and its console."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adamwprune import run_directory
from adamwprune.errors import CheckpointError, Interrupted, Preempted
from adamwprune.launchers.base import TRAIN, Command, Ending
from adamwprune.sweeps.expansion import Job

# Exit codes of a job that was asked to stop: with a checkpoint, or before there was anything to save.
STOPPED = (Preempted.exit_code, Interrupted.exit_code, 128 + signal.SIGTERM)
# What the signals mean that end a job by themselves.
_DEATHS = {signal.SIGABRT: "abort", signal.SIGKILL: "killed", signal.SIGSEGV: "segmentation fault"}
# Seconds in which the records and trackers of a job that was killed must be closed.
_CLOSING = 120


def outcome(job: Job, command: Command, folder: Path, ending: Ending, seconds: float) -> dict[str, Any]:
    """One line of sweep.jsonl, from what the job left in its folder."""
    if (folder / run_directory.RECORD).exists() and not (folder / run_directory.SUMMARY).exists():
        _close_killed(folder, ending.exit_code)
    summary = _summary(folder)
    code = ending.exit_code
    # A job that was killed at its start has left the summary of the time before.
    status = summary["status"] if summary.get("exit_code") == code else _status(code)
    return {
        "job": command.number,
        "identity": job.identity,
        "swept": list(job.swept),
        "overrides": list(job.overrides),
        "exit_code": code,
        "status": status,
        "reason": _overdue(code, command) if ending.is_overdue else reason(code, summary, command.console),
        "seconds": seconds,
        "metrics": summary.get("metrics", {}).get("final", {}),
        "sparsity": summary.get("sparsity", {}).get("achieved"),
        "directory": str(folder),
    }


def is_complete(folder: Path) -> bool:
    """Whether the run in this folder has come to its end."""
    return bool(_summary(folder).get("status") == "finished")


def found(job: Job, command: Command, folder: Path) -> dict[str, Any]:
    """The line of a job that came to its end when no sweep was there to write it."""
    summary = _summary(folder)
    return outcome(job, command, folder, Ending(summary["exit_code"]), summary["seconds"])


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return run_directory.read_json(folder / run_directory.SUMMARY)
    except CheckpointError:
        return {}  # not readable: the exit code is all there is


def _status(code: int) -> str:
    return "killed" if code > 128 else "failed"


def reason(code: int, summary: Mapping[str, Any], console: Path) -> str:
    """Why a job ended with this code, in a line: the signal, or what the job said last."""
    if code == 0:
        return ""
    if code in STOPPED:
        return "stopped" if code == 128 + signal.SIGTERM else "stopped and saved"
    if code > 128 and code - 128 in set(signal.Signals):
        number = signal.Signals(code - 128)
        return f"{_DEATHS[number]} ({number.name})" if number in _DEATHS else number.name
    lines = [line for line in _read(console).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith(f"error[{code}]")), None)
    return told or summary.get("error") or (lines[-1] if lines else f"exit code {code}, without a word")


def _overdue(code: int, command: Command) -> str:
    limits = command.limits
    how = "saved" if code == Preempted.exit_code else "it could save nothing"
    if code == 128 + signal.SIGKILL:
        how = f"killed (SIGKILL) as it did not leave within sweep.kill_after={limits.kill_after:g} s"
    return f"longer than sweep.job_timeout={limits.job_timeout:g} s; {how}"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _close_killed(folder: Path, code: int) -> None:
    """Say in the records and trackers of a job that could not do so itself that it has ended."""
    command = [sys.executable, "-m", "adamwprune.track", "close", str(folder), f"--exit-code={code}"]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=TRAIN.parent, start_new_session=True, timeout=_CLOSING, check=False)
