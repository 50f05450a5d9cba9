"""What may watch a run: hooks that rank 0 calls, in the order of a run's life.

A callback never changes training: same bits with any set of them. Rows are plain Python
values, sanitised once by adamwprune/training/metrics.py before anyone sees them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, float | int | str | None]


class Alert(NamedTuple):
    """Something that a person should look at."""

    rule: str  # what raised it, such as loss_spike; alerts of one rule are throttled together
    level: str  # info, warn or error
    title: str
    text: str


@dataclass(frozen=True)
class RunInfo:
    """Who the run is: made once by the launcher, kept in run.json, the same for every tracker."""

    run_id: str  # 12 hex digits
    name: str  # {model}_{optimizer}_{timestamp}
    project: str  # {model}-{checksum}
    group: str | None  # the sweep's name; None outside a sweep
    directory: Path
    config: dict[str, Any] = field(repr=False)  # resolved, plain values
    total_steps: int = 0  # optimizer steps of the whole run
    first_step: int = 0  # optimizer steps already done: 0, or where a resumed run goes on
    is_continued: bool = False  # whether an earlier session may have left rows in the trackers
    rewinds: int = 0  # how often a resume that is not exact took rows back
    tags: tuple[str, ...] = ()
    notes: str | None = None

    @property
    def tracker_id(self) -> str:
        """The id for a tracker that cannot take rows back: a new one, `<run id>-r1`, after each rewind."""
        return f"{self.run_id}-r{self.rewinds}" if self.rewinds else self.run_id


class Callback:
    """Base class: every hook does nothing."""

    # Whether a person asked from outside, by a tracker's stop button, that the run saves and stops.
    is_stop_requested = False

    def on_train_start(self, run: RunInfo) -> None:
        """Called once, before the first step and after the model exists."""

    def on_step_end(self, step: int) -> None:
        """Called after each optimizer step; must return within microseconds."""

    def on_log(self, step: int, time: float, row: Row) -> None:
        """Called with each row of metrics.jsonl; `time` is in seconds since the epoch."""

    def on_checkpoint_saved(self, step: int, directory: Path) -> None:
        """Called after a checkpoint has been verified on disk."""

    def on_train_end(self, summary: dict[str, Any]) -> None:
        """Called with the content of summary.json when training ended without an error."""

    def on_exception(self, error: BaseException) -> None:
        """Called when the run ends with an error, a signal or a budget."""

    def finish(self, exit_code: int) -> None:
        """Called on every path out before the first close(): start what close() waits for, return at once."""

    def close(self, exit_code: int) -> None:
        """Called last, on every path out of the run; returns within the callback's deadline."""

    def status(self) -> dict[str, Any]:
        """What summary.json keeps of this callback under `trackers`; empty for others."""
        return {}
