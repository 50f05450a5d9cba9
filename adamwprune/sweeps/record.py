"""What a sweep's folder says of its jobs; enough to go on after any end of the sweep's process.

    sweep.json     written before the first job: command line, group, and each job's number, identity and
                   swept values
    sweep.jsonl    one line a job that ended, one write each; of a job that went on the last one counts
    run.lock       held by the process that runs the sweep

What is read here is data: no command line in it can trust other code or give a cluster commands.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adamwprune.errors import CheckpointError, DiskError
from adamwprune.run_directory import read_json, write_json
from adamwprune.sweeps.expansion import COMMANDS

RECORD = "sweep.json"
ENDINGS = "sweep.jsonl"
FORMAT = "adamwprune-sweep-1"
_IDENTITY, _NAME = re.compile(r"[0-9a-f]{16}"), re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Keys that are not repeated when the sweep is continued: trust, which has to be typed ...
TRUST = ("allow_targets", "resume_allow", *(f"hydra.launcher.{key}" for key in COMMANDS))
# ... and what belongs to one session, or has been decided.
_PASSING = ("sweep.resume", "trainer.stop_step", "trainer.max_time", "hydra.sweep.dir", "hydra.mode")
# What every line of ENDINGS has.
_KEYS = {"job", "identity", "swept", "exit_code", "status", "reason", "seconds", "metrics", "sparsity"}


@dataclass(frozen=True)
class Planned:
    """One job of a sweep: the number is that of its folder."""

    number: int
    identity: str
    swept: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """sweep.json."""

    overrides: tuple[str, ...]
    group: str
    jobs: tuple[Planned, ...]

    def number_of(self, identity: str) -> int | None:
        """The job's folder; None for a job that the sweep has not."""
        return next((job.number for job in self.jobs if job.identity == identity), None)


def repeated(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that a continued sweep takes over."""
    return tuple(override for override in overrides if key_of(override) not in (*TRUST, *_PASSING))


def merged(stored: Sequence[str], today: Sequence[str]) -> list[str]:
    """The sweep's own overrides, less the keys given today, then today's."""
    given = {key_of(override) for override in today}
    return [*(override for override in stored if key_of(override) not in given), *today]


def key_of(override: str) -> str:
    """What an override gives a value."""
    return override.partition("=")[0].lstrip("+~")


def write_record(directory: Path, record: Record) -> None:
    """Replace sweep.json, atomically.

    Raises:
        DiskError: the file system refuses.
    """
    write_json(directory / RECORD, {"format": FORMAT, **asdict(record)})


def read_record(directory: Path) -> Record:
    """sweep.json as this program writes it.

    Raises:
        CheckpointError: there is no sweep, or its folder is not as one leaves it.
    """
    content = read_json(directory / RECORD) if directory.is_dir() else {}
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"sweep.resume={directory}: no sweep there ({RECORD} is missing or not ours); give the folder of "
            "a sweep, such as multirun/DATE/TIME"
        )
    if link := next((entry.path for entry in os.scandir(directory) if entry.is_symlink()), None):
        raise CheckpointError(
            f"sweep.resume={directory}: {link} is a link, which no sweep makes; put there what it leads to"
        )
    try:
        jobs = tuple(
            Planned(int(job["number"]), str(job["identity"]), tuple(map(str, job["swept"])))
            for job in content["jobs"]
        )
        record = Record(repeated(list(map(str, content["overrides"]))), str(content["group"]), jobs)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(_strange(directory, "its keys are not those of a sweep")) from None
    if not _NAME.fullmatch(record.group):
        raise CheckpointError(_strange(directory, "group must be of A-Z a-z 0-9 . _ -"))
    numbers = {job.number for job in jobs}
    if min(numbers, default=0) < 0 or len(numbers) < len(jobs):
        raise CheckpointError(_strange(directory, "each job must have a number of its own"))
    if not all(_IDENTITY.fullmatch(job.identity) for job in jobs):
        raise CheckpointError(_strange(directory, "identities must be 16 hex digits"))
    return record


def _strange(directory: Path, what: str) -> str:
    return f"sweep.resume={directory}: {RECORD} is not as this program writes it: {what}"


# ----------------------------------------------------------------------------------- sweep.jsonl


class Endings:
    """sweep.jsonl, open for appending; what a kill left of a line is cut off."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / ENDINGS
        try:
            if self._file.exists():
                with self._file.open("rb+") as stream:
                    stream.truncate(stream.read().rfind(b"\n") + 1)
            self._descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise DiskError(f"{self._file}: {error.strerror}") from None

    def append(self, result: Mapping[str, Any]) -> None:
        """Add a line and make it durable.

        Raises:
            DiskError: the file system refuses; earlier lines are whole.
        """
        data = json.dumps(result).encode() + b"\n"
        try:
            written = os.write(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            raise DiskError(f"{self._file}: {error.strerror}; earlier lines are kept") from None
        if written < len(data):
            raise DiskError(f"{self._file}: disk full; earlier lines are kept")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_endings(directory: Path, record: Record) -> dict[int, dict[str, Any]]:
    """The last ending of each of the sweep's jobs, by number; lines that are no such thing do not count."""
    file = directory / ENDINGS
    if not file.exists():
        return {}
    identities = {job.number: job.identity for job in record.jobs}
    endings = {}
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if _is_ending(line) and identities.get(line["job"]) == line["identity"]:
            endings[line["job"]] = line
    return endings


def _is_ending(line: Any) -> bool:
    return isinstance(line, dict) and line.keys() >= _KEYS and isinstance(line["job"], int)
