"""`verify`: a run against its trackers' stores; `diff`: a run against another."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from adamwprune.callbacks.base import RunInfo
from adamwprune.config import changed_keys
from adamwprune.run_directory import METRICS, shown_path
from adamwprune.track.recorded import RUNNING, is_unsent, run_info, run_state, trackers_of
from adamwprune.trackers.backend import first_line, public_config, recorded_facts
from adamwprune.trackers.mirror import Mirror, parity
from adamwprune.trackers.parity import Parity, Series, is_same, series
from adamwprune.trackers.rows import Entry, read_rows, voided
from adamwprune.training.ledger import VOLATILE

# What tells two runs apart, and says nothing of what they compute.
IDENTITY = ("project", "run_name", "group")


class Check(NamedTuple):
    """What a tracker's own store was found to hold."""

    parity: Parity | None
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every value is there; a store that cannot be read is not."""
        return self.parity is not None and self.parity.is_equal

    def __str__(self) -> str:
        """One line for a person."""
        return self.error or (str(self.parity) if self.parity else "its store cannot be read from here")


def check(tracker: Mirror, run: RunInfo) -> Check:
    """Read a tracker's store and compare it with metrics.jsonl."""
    try:
        return Check(parity(tracker.backend, run))
    except Exception as error:  # whatever the tracker's package raises
        return Check(None, f"{type(error).__name__}: {first_line(error)}")


def verify(directory: Path, allowed: Collection[str] = ()) -> bool:
    """Print how each tracker of a run compares with metrics.jsonl; whether all are equal."""
    run = run_info(directory)
    checks = {name: check(tracker, run) for name, tracker in trackers_of(run, allowed).items()}
    for name, found in checks.items():
        print(f"{name}: {found}{_remark(run, name)}")
    is_whole = all(found.is_whole for found in checks.values())
    if not checks:
        print(f"{shown_path(run.directory)}: has no tracker; {METRICS} has {_count(run)} rows")
    elif not is_whole and run_state(directory) == RUNNING:
        print("the run is running: its trackers follow within seconds")
    elif not is_whole:
        print(f"repair: {sync_command(run.directory)}")
    return is_whole


def _remark(run: RunInfo, name: str) -> str:
    """What the comparison does not say: of a run on a server, the folder's copy is read."""
    if is_unsent(run.directory, name):
        return "; only here, not uploaded"
    facts = recorded_facts(run, name)
    if facts.get("mode") != "online":
        return ""
    return f" in the copy in the run's folder; upload {facts.get('upload')}, the server was not asked now"


def sync_command(directory: Path) -> str:
    """The command that sends what the trackers of the run in `directory` lack."""
    return f"python -m adamwprune.track sync {shown_path(directory)}"


def _count(run: RunInfo) -> int:
    ledger = run.directory / METRICS
    return sum(1 for _ in read_rows(ledger, void=voided(ledger)))


# ------------------------------------------------------------------------------------------- diff


class Source(NamedTuple):
    """What `diff` compares of a run."""

    config: dict[str, Any]
    series: Series


def diff(left: Path, right: Path, *, with_measured: bool = False) -> bool:
    """Print how two runs differ; whether their series are equal.

    Args:
        left: folder of a run, or a .wandb file.
        right: the same.
        with_measured: also compare times, `perf/...` and `memory/...`.
    """
    first, second = _read(left), _read(right)
    for line in changed_keys(first.config, second.config, IDENTITY):
        print(f"configuration: {line}")
    compared = {
        at
        for at in first.series.keys() | second.series.keys()
        if with_measured or not at[1].startswith(VOLATILE)
    }
    differing = sorted(at for at in compared if not _is_same(first.series, second.series, at))
    if not differing:
        print(f"{len(compared)} values at {len({step for step, _ in compared})} steps, all equal")
        return True
    step, name = differing[0]
    steps = len({step for step, _ in differing})
    print(f"{len(differing)} of {len(compared)} values differ, at {steps} steps, from step {step} on:")
    print(f"  {name}: {_shown(first.series, (step, name))} and {_shown(second.series, (step, name))}")
    print(f"  metrics: {', '.join(sorted({name for _, name in differing}))}")
    return False


def _read(path: Path) -> Source:
    if path.suffix == ".wandb" and path.is_file():
        from adamwprune.track.import_wandb import read_wandb

        imported = read_wandb(path)
        return Source(imported.config, _series(imported.rows))
    run, ledger = run_info(path), path / METRICS
    return Source(public_config(run.config), _series(read_rows(ledger, void=voided(ledger))))


def _series(rows: Iterable[Entry]) -> Series:
    """By step and name; the time of a step is one of its values."""
    return series((row.step, {**row.row, "time": row.time}) for row in rows)


def _is_same(left: Series, right: Series, at: tuple[int, str]) -> bool:
    return at in left and at in right and is_same(left[at], right[at])


def _shown(values: Series, at: tuple[int, str]) -> str:
    return repr(values[at]) if at in values else "nothing"
