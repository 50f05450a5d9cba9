"""A run's folder: claimed exclusively, described in run.json, continued by `resume=`.

outputs/<date>/<time>_<model>_<optimizer>/
  run.json        who, when, from which code, on what machine, with which data and groups
  config.yaml     the resolved configuration
  metrics.jsonl   every row, append-only: the truth of the run
  summary.json    how it ended, with its final numbers
  train.log       what was logged;   metrics.png   loss and sparsity
  checkpoints/    step_00000100/{model.safetensors, training_state.pt, manifest.json}
"""

import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from adamwprune.errors import CheckpointError, ConfigError, DiskError

log = logging.getLogger(__name__)

RECORD = "run.json"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
MASK_UPDATES = "mask_updates.jsonl"
SAMPLES = "samples.jsonl"
_RUN_ID, _NAME = re.compile(r"[0-9a-f]{12}"), re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Seconds for which a lock is tried: others look at it for microseconds.
LOCK_PATIENCE = 0.5
# Some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
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


# Names a folder outside the working directory that may hold runs, such as one on a larger disk.
OUTPUTS = "ADAMWPRUNE_OUTPUTS"


def place_for_runs(given: str, key: str) -> Path:
    """The folder that `given` leads to: below the working directory, or below the folder that OUTPUTS names.

    Raises:
        ConfigError: it is elsewhere, by `..`, by its root or by a link.
        DiskError: a link on the way leads to nothing, such as a disk that is not mounted.
    """
    path = Path(given)
    try:
        links = (part for part in (path, *path.parents) if part.is_symlink())
        broken = next((link for link in links if not link.exists()), None)
        folder = path.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, or links in a circle
        problem = getattr(error, "strerror", error)
        raise ConfigError(f"{key}={given}: {problem}; choose another name") from None
    if broken is not None:
        raise DiskError(f"{key}={given}: the link {broken} leads to nothing; make what it leads to")
    roots = [Path.cwd(), *(Path(root).expanduser() for root in filter(None, [os.environ.get(OUTPUTS)]))]
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        raise ConfigError(
            f"{key}={given}: leads to {folder}, which is not below the working directory; give a folder "
            f"below it, or allow this one with {OUTPUTS}={folder.parent}"
        )
    return folder


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
        room = room_for(file, len(text.encode()))
        temporary.unlink(missing_ok=True)
        raise DiskError(
            f"{file}: {error.strerror}; {room}; free some space or choose another hydra.run.dir"
        ) from None


def room_for(file: Path, needed: int) -> str:
    """Needed and free space on the file system of `file`, for a message; needed in bytes."""
    place = next(folder for folder in file.parents if folder.exists())
    return f"{needed / 2**20:,.2f} MiB needed, {shutil.disk_usage(place).free / 2**20:,.2f} MiB free"


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
    except (ValueError, RecursionError, OSError) as error:
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
            f"resume={directory}: a sweep; python train.py -m sweep.resume={directory} runs what is missing, "
            f"resume={directory / '0'} one of its jobs"
        )
    record = read_json(directory / RECORD) if directory.is_dir() else {}
    if not {"overrides", "sessions", "project", "name"} <= record.keys():
        raise CheckpointError(
            f"resume={directory}: no run there ({RECORD} is missing or not ours); give the folder of a run, "
            f"such as {_some_run(directory)}"
        )
    if problem := record_problem(directory, record):
        raise CheckpointError(f"resume={directory}: {problem}")
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


def _some_run(directory: Path) -> str:
    """The run that `directory` lies in, such as one of its checkpoints; else the newest below outputs/."""
    around = [place for place in directory.parents if (place / RECORD).is_file()]
    newest = sorted(Path("outputs").glob(f"*/*/{RECORD}"), key=lambda file: file.stat().st_mtime)
    found = [*around, *(file.parent for file in reversed(newest))]
    return str(shown_path(found[0])) if found else "outputs/DATE/TIME_NAME"


def record_problem(directory: Path, record: Mapping[str, Any]) -> str | None:
    """What of a run's folder was never written by this program; None where nothing is.

    Texts of run.json become names of files and of trackers' runs, and overrides; a file that is a link
    would be written to wherever it leads.
    """
    sessions, overrides = record.get("sessions"), record.get("overrides", [])
    for part in (directory, *(directory / name for name in ("checkpoints", "trackers", "tensorboard"))):
        for entry in os.scandir(part) if part.is_dir() else ():
            if entry.is_symlink():
                return f"{entry.path} is a link, which no run makes; put in its place what it leads to"
    strange = f"{RECORD} is not as this program writes it: "
    if not _RUN_ID.fullmatch(str(record.get("run_id"))):
        return f"{strange}run_id must be 12 hex digits"
    for key in ("name", "project", "group"):
        if record.get(key) is not None and not _NAME.fullmatch(str(record[key])):
            return f"{strange}{key} must be of A-Z a-z 0-9 . _ -"
    if not isinstance(record.get("config"), dict):
        return f"{strange}config must be an object"
    if not (isinstance(sessions, list) and sessions and all(isinstance(one, dict) for one in sessions)):
        return f"{strange}sessions must be a list of objects"
    if not (isinstance(overrides, list) and all(isinstance(one, str) for one in overrides)):
        return f"{strange}overrides must be a list of texts"
    return None


def lasting(overrides: list[str]) -> list[str]:
    """The overrides that a continued run takes over: not what belongs to one session or to its trust."""
    passing = ("resume", "resume_allow", "allow_targets", "trainer.stop_step", "trainer.max_time", "sweep")
    is_own = {o: _key(o) == "hydra.searchpath" or not _key(o).startswith("hydra") for o in overrides}
    return [o for o in overrides if _key(o) not in passing and is_own[o]]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def is_finished(directory: Path) -> bool:
    """Whether the run in `directory` has come to its end."""
    return read_json(directory / SUMMARY).get("status") == "finished"


@contextmanager
def locked(directory: Path, key: str = "resume") -> Iterator[None]:
    """Hold the run, or the sweep, for this process; the lock ends with the process, however that ends.

    Raises:
        CheckpointError: another process is running it; `key` is what asked for it.
    """
    with (directory / "run.lock").open("a+", encoding="utf-8") as lock:
        if not _take(lock):
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise CheckpointError(f"{key}={directory}: in use by process {holder}; wait for it or stop it")
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
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s: no locks on this file system; start no second one on this run", lock.name)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True
