"""A run's folder: claimed exclusively, described in run.json, continued by `resume=`.

outputs/<date>/<time>_<model>_<optimizer>/
  run.json        who, when, from which code, on what machine, with which data and groups
  config.yaml     the resolved configuration
  metrics.jsonl   every row, append-only: the truth of the run
  summary.json    how it ended, with its final numbers
  train.log       what was logged;   metrics.png   loss and sparsity
  checkpoints/    step_00000100/{model.safetensors, training_state.pt, manifest.json}
"""

import fcntl
import importlib.metadata
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from adamwprune.errors import CheckpointError, DiskError

RECORD = "run.json"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
MASK_UPDATES = "mask_updates.jsonl"
SAMPLES = "samples.jsonl"
# Seconds for which a lock is tried: others look at it for microseconds.
LOCK_PATIENCE = 0.5
PACKAGES = (
    "adamwprune",
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "trackio",
    "wandb",
    "tiktoken",
    "datasets",
)


def claim(directory: Path) -> Path:
    """Create `directory` exclusively, or with -2, -3, ... appended where it exists; return it.

    Raises:
        DiskError: the file system refuses.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            candidate = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
            try:
                candidate.mkdir()
            except FileExistsError:
                continue
            return candidate
    except OSError as error:
        raise DiskError(
            f"hydra.run.dir={directory}: {error.strerror}; choose a folder that you can write to"
        ) from None
    raise DiskError(f"hydra.run.dir={directory}: 1,000 runs of that name exist; choose another folder")


def shown_path(path: Path) -> Path:
    """The path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_json(file: Path, content: Any) -> None:
    """Replace `file` by `content` atomically: a reader sees the old or the new one, never a part."""
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Replace `file` by `text` atomically and durably (temporary, fsync, rename, fsync of the folder).

    Raises:
        DiskError: the file system refuses.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        sync_directory(file.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(
            f"{file}: {error.strerror}; free some space or choose another hydra.run.dir"
        ) from None


def sync_directory(directory: Path) -> None:
    """Make a rename within `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; empty where there is no such file.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return content


# ------------------------------------------------------------------------------------- run.json


def new_record(
    config: Mapping[str, Any], overrides: list[str], names: Mapping[str, str | None]
) -> dict[str, Any]:
    """run.json as it is before training: identity, code, versions and this first session."""
    return {
        "run_id": secrets.token_hex(6),
        "name": names["name"],
        "project": names["project"],
        "group": names["group"],
        "overrides": lasting(overrides),
        "config": dict(config),
        "exact": True,
        "sessions": [session(overrides)],
    }


def session(overrides: list[str]) -> dict[str, Any]:
    """One start of the run: when, by which command, with which code, on which machine."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *overrides],
        "overrides": lasting(overrides),
        "code": code_revision(),
        "versions": versions(),
        "python": sys.version.split()[0],
        "host": socket.gethostname().partition(".")[0],
    }


def code_revision() -> dict[str, Any]:
    """Git revision of this source tree and whether it has uncommitted changes; None outside git."""
    source = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    changes = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration for people to read."""
    write_text(directory / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))


# --------------------------------------------------------------------------------------- resume


def resume_overrides(directory: Path, today: list[str]) -> list[str]:
    """The overrides that continue the run in `directory`: its own, less the keys given today, then today's.

    Raises:
        CheckpointError: `directory` holds no run.
    """
    if (directory / "sweep.jsonl").exists():
        raise CheckpointError(
            f"resume={directory}: a sweep; resume its jobs one by one, such as {directory / '0'}"
        )
    record = read_json(directory / RECORD) if directory.is_dir() else {}
    if not {"overrides", "sessions", "project", "name"} <= record.keys():
        raise CheckpointError(
            f"resume={directory}: no run there ({RECORD} is missing or not ours); give the folder of a run, "
            "such as outputs/DATE/TIME_NAME"
        )
    given = {_key(override) for override in today}
    names = [
        f"{key}={record[field]}"
        for key, field in (("project", "project"), ("run_name", "name"))
        if key not in given
    ]
    if record.get("group") and "group" not in given:
        names.append(f"group={record['group']}")
    replaced = given | {"project", "run_name", "group"}
    own = [override for override in lasting(record["overrides"]) if _key(override) not in replaced]
    return [*own, *names, *today]


def lasting(overrides: list[str]) -> list[str]:
    """The overrides that a continued run takes over: not what belongs to one session or to its trust."""
    passing = ("resume", "resume_allow", "allow_targets", "trainer.stop_step", "trainer.max_time", "sweep")
    return [o for o in overrides if _key(o) not in passing and not _key(o).startswith("hydra")]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def is_finished(directory: Path) -> bool:
    """Whether the run in `directory` has come to its end."""
    return read_json(directory / SUMMARY).get("status") == "finished"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run for this process; the lock ends with the process, however that ends.

    Raises:
        CheckpointError: another process is running this run.
    """
    with (directory / "run.lock").open("a+", encoding="utf-8") as lock:
        if not _take(lock):
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise CheckpointError(f"resume={directory}: in use by process {holder}; wait for it or stop it")
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _take(lock: IO[str]) -> bool:
    """Take a lock that `track status` may just be looking at; False if a process holds it."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True
