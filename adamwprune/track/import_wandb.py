"""`import-wandb`: an offline W&B run, of this or any other program, into another tracker.

Its rows become a metrics.jsonl in a temporary folder, and from there on it is a replay. Rows are at
`trainer/step` where the run has that, else at W&B's own `_step`.
"""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adamwprune.callbacks.base import Row, RunInfo
from adamwprune.errors import CheckpointError, TrackerError
from adamwprune.run_directory import METRICS
from adamwprune.track.fill import patient_trackers
from adamwprune.track.replay import compose_options
from adamwprune.track.sync import make_whole
from adamwprune.trackers.parity import NO_SERIES
from adamwprune.trackers.rows import Entry, Position
from adamwprune.trackers.wandb_files import STEP, WandbRun, fragments, parse_run
from adamwprune.training.metrics import json_row, sanitise

# Exit code of a run that never ended, as W&B itself uploads it.
UNENDED = 1


class Imported(NamedTuple):
    """An offline run, as far as other trackers can hold it."""

    run_id: str
    name: str
    project: str
    group: str | None
    config: dict[str, Any]
    rows: list[Entry]  # one a step, in the order in which the steps first appeared
    finals: Row  # what only the run's summary has
    exit_code: int


def import_wandb(directory: Path, tracker: str, overrides: Sequence[str] = ()) -> int:
    """Bring an offline run into a tracker; 0 if it is whole there, else 6.

    Args:
        directory: an `offline-run-...` folder, one above it that holds no other run, or a .wandb file;
            the run's other sessions beside it are read too.
        tracker: an option of conf/tracker, one that keeps runs elsewhere than in their folders.
        overrides: `tracker.NAME.KEY=VALUE` on top of that.
    """
    found = read_wandb(directory)
    options = compose_options([tracker], overrides, project=found.project)
    summary = {
        "status": "finished" if found.exit_code == 0 else "failed",
        "exit_code": found.exit_code,
        "metrics": {"final": json_row(found.finals)},
    }
    with tempfile.TemporaryDirectory(prefix="adamwprune-import-") as folder:
        _write_ledger(Path(folder) / METRICS, found.rows)
        run = RunInfo(
            run_id=found.run_id,
            name=found.name,
            project=found.project,
            group=found.group,
            directory=Path(folder),
            config=found.config,
            first_step=max((row.step for row in found.rows), default=0),
            is_continued=True,
        )
        print(f"{found.project}/{found.name}: {len(found.rows)} rows, exit code {found.exit_code}")
        return 0 if make_whole(patient_trackers(options, run), run, summary) else TrackerError.exit_code


def read_wandb(path: Path) -> Imported:
    """The run in a .wandb file, or in a folder; several files of one run are its sessions, in order.

    Raises:
        CheckpointError: there is none, or more than one run.
    """
    try:
        files = _sessions(path)
        parts = [part for part in map(parse_run, files) if part.run is not None]
    except ValueError as error:
        raise CheckpointError(f"{error}; give an offline-run-... folder of W&B") from None
    ids = sorted({part.run.run_id for part in parts})
    if len(ids) != 1:
        what = f"holds the runs {', '.join(ids)}" if ids else "no W&B run there"
        raise CheckpointError(f"{path}: {what}; give one offline-run-... folder of W&B")
    rows = _merged(row for part in parts for row in part.rows)
    config = {key: value for part in parts for key, value in part.config.items() if key[0] != "_"}
    return Imported(
        run_id=ids[0],
        name=parts[-1].run.display_name or ids[0],
        project=parts[-1].run.project or "wandb",
        group=parts[-1].run.run_group or None,
        config=config,
        rows=rows,
        finals=_finals(parts, rows),
        exit_code=UNENDED if parts[-1].exit_code is None else parts[-1].exit_code,
    )


def _sessions(path: Path) -> list[Path]:
    """The .wandb files of the run at `path`, those of its other sessions beside it included."""
    own = [path] if path.is_file() else sorted(path.glob("*.wandb"))
    if not own:
        return fragments(path.parent if path.name == "wandb" else path)
    beside = own[0].resolve().parent.parent
    found = parse_run(own[0]).run
    if beside.name != "wandb" or found is None:
        return own
    return fragments(beside.parent, found.run_id) or own


def _merged(rows: Iterable[dict[str, Any]]) -> list[Entry]:
    """One row a step: a step that comes again, after a resume, adds to it and replaces values."""
    steps: dict[int, tuple[float, Row]] = {}
    for row in rows:
        step = int(row.get(STEP, row["_step"]))
        time, values = steps.get(step, (row["_timestamp"], {}))
        steps[step] = time, values | _values(row)
    return [
        Entry(Position(line=line), step, time, values)
        for line, (step, (time, values)) in enumerate(steps.items(), start=1)
    ]


def _values(row: dict[str, Any]) -> Row:
    """Numbers and texts under names of the program: no keys of W&B's own, no images or histograms."""
    own = {key for key in row if any(part.startswith("_") for part in key.split("."))}
    return sanitise({key: value for key, value in row.items() if key not in own and key != STEP})


def _finals(parts: list[WandbRun], rows: list[Entry]) -> Row:
    summary = _values({key: value for part in parts for key, value in part.summary.items()})
    known = {name for row in rows for name in row.row}
    finals = {name.removeprefix("final/"): value for name, value in summary.items() if name not in known}
    return {name: value for name, value in finals.items() if not name.startswith(NO_SERIES)}


def _write_ledger(file: Path, rows: list[Entry]) -> None:
    lines = [json.dumps({"step": row.step, "time": row.time, **json_row(row.row)}) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
