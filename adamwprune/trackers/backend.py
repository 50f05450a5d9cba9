"""What a tracker is: the base class of all, and what they send beside the rows.

A new tracker is one module with a subclass of `Backend`, a function that returns
`Mirror(backend, ...)`, and the constant `PACKAGES`; and one file in conf/tracker/.
"""

import ast
import importlib.util
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import Row, RunInfo
from adamwprune.run_directory import read_json
from adamwprune.trackers.parity import Series
from adamwprune.trackers.rows import AlertEntry, Entry, from_json

# Folder of a run in which each tracker's state is kept: trackers/<name>.json.
STATES = "trackers"


class Backend:
    """One tracker. All methods run in one thread of their own and may block or raise."""

    name: str
    # Whether log() and finish() may be called again with what they were given before, and store it
    # once. Such a backend gets rows in batches and, on resume, the whole ledger; any other gets one
    # row at a time. Read after open().
    idempotent: bool = False
    # For a backend that is not idempotent, read after open(): the last step that it has, -1 for
    # nothing; later rows are sent. None: it cannot tell, so it gets the rows of this session only.
    last_step: int | None = None
    # Whether somebody pressed the tracker's stop button.
    is_stop_requested: bool = False

    def __init__(self) -> None:
        # Plain values for summary.json, e.g. path and mode; "sync" is the command that uploads
        # what is only here.
        self.facts: dict[str, Any] = {}

    def open(self, run: RunInfo) -> None:
        """Import the package and start the run, or go on with it."""
        raise NotImplementedError

    def log(self, entries: list[Entry]) -> None:
        """Store all of `entries`, or raise."""
        raise NotImplementedError

    def finish(self, exit_code: int, finals: Row) -> None:
        """Store `finals`, which are no part of any series, and end the run with `exit_code`."""
        raise NotImplementedError

    def alert(self, entry: AlertEntry) -> None:
        """Show an alert, unless it was shown before; the default is a tracker that has none."""

    def forget(self, lines: Collection[int]) -> None:
        """Remove rows by their line numbers, which a rewind took back.

        The default is for a tracker that cannot: it starts a run `RunInfo.tracker_id` instead.
        """

    def takes(self, value: Any) -> bool:
        """Whether the tracker keeps a value of this type; others are no difference."""
        return True

    def read_back(self, run: RunInfo) -> Series | None:
        """All series of the run as the tracker's own store holds them; None if that cannot be read.

        May be called without open(), for a run of an earlier process.
        """
        return None


def is_exact_number(value: Any) -> bool:
    """What trackers of float64 series keep: floats, and integers and booleans that float64 holds."""
    return isinstance(value, float) or (isinstance(value, int) and float(value) == value)


def state_file(directory: Path, name: str) -> Path:
    """Where the state of a tracker of the run in `directory` is kept."""
    return directory / STATES / f"{name}.json"


def recorded_facts(run: RunInfo, name: str) -> dict[str, Any]:
    """What an earlier process recorded of a tracker of the run, such as its path."""
    return read_json(state_file(run.directory, name))


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as trackers take it: `_target_` becomes `target`, other values plain.

    Trackio refuses keys with a leading underscore, W&B hides them.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key).strip("_") or str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return plain(config)


def finals(summary: Mapping[str, Any], exit_code: int) -> Row:
    """summary.json as one flat row: `final/<metric>`, `best/<metric>`, `best/<metric>/step`, `run/...`.

    The prefixes keep them out of the series: `final/val/loss` is never a point of `val/loss`.
    """
    metrics = summary.get("metrics", {})
    row = {f"final/{name}": value for name, value in metrics.get("final", {}).items()}
    if achieved := summary.get("sparsity"):
        row["final/sparsity/global"] = achieved["achieved"]
    for name, best in metrics.get("best", {}).items():
        row[f"best/{name}"] = best["value"]
        row[f"best/{name}/step"] = best["step"]
    row |= {f"run/{name}": summary[name] for name in ("status", "steps", "seconds") if name in summary}
    return {**{name: from_json(value) for name, value in row.items()}, "run/exit_code": exit_code}


def first_line(error: BaseException) -> str:
    """What an error says, in one line of a log."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set (or with None unset) environment variables for a block, and put the old values back."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# ---- before a run ----------------------------------------------------------------------------


def missing_packages(nodes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Trackers of the configuration whose packages are not installed, with the line that installs them.

    Looks packages up without importing them; what a tracker needs is the constant PACKAGES of
    its module, `{import name: requirement}`, read from the source text.

    Args:
        nodes: the `tracker` node of the configuration, `{name: {"_target_": ..., ...}}`.
    """
    found = []
    for name, node in nodes.items():
        packages = _required_packages(node["_target_"].rpartition(".")[0])
        missing = [text for package, text in packages.items() if importlib.util.find_spec(package) is None]
        if missing:
            found.append((name, f"pip install {' '.join(map(shlex.quote, missing))}"))
    return found


def _required_packages(module: str) -> dict[str, str]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PACKAGES":
            return ast.literal_eval(statement.value)
    return {}
