"""What a person sees: log lines, a progress bar on a terminal, a summary table at the end."""

import logging
import sys
from pathlib import Path
from typing import Any

from rich import console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.run_directory import shown_path

log = logging.getLogger(__name__)

# Metrics beside the bar (80 columns hold two) and in the log line of an evaluation.
BESIDE_THE_BAR = ("train/loss", "sparsity/global")
SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/perplexity", "sparsity/global")
SHORT = {"val/accuracy": "accuracy", "val/perplexity": "perplexity", "sparsity/global": "sparsity"}


class Terminal(console.Console):
    """A terminal, or a pipe whose reader may leave: that stops no run."""

    def on_broken_pipe(self) -> None:
        """Write no more, go on: train.log and metrics.jsonl have everything."""


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Log lines to whatever sys.stderr is now: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        """The message alone: a traceback is for train.log."""
        return record.getMessage()

    @property
    def stream(self) -> Any:
        """The current standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """Ignored: the stream is looked up at each line."""


class Console(Callback):
    """Progress while training, the summary as a table afterwards."""

    def __init__(self) -> None:
        self._terminal = Terminal(stderr=True)
        self._progress = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=self._terminal,
            disable=not self._terminal.is_terminal,
        )
        self._task = self._progress.add_task("training", total=None, numbers="")
        self._numbers: Row = {}
        self._total_steps = 0

    def on_train_start(self, run: RunInfo) -> None:
        """Say which run starts and where it is kept; start the bar."""
        self._total_steps = run.total_steps
        log.info("run %s in project %s, recorded in %s", run.name, run.project, run.directory)
        self._progress.update(self._task, total=run.total_steps, completed=run.first_step)
        self._progress.start()

    def on_step_end(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def on_log(self, step: int, time: float, row: Row) -> None:
        """Show the newest numbers; without a terminal, one line for each evaluation."""
        self._numbers |= {name: row[name] for name in BESIDE_THE_BAR if name in row}
        self._progress.update(self._task, numbers=_numbers(self._numbers, BESIDE_THE_BAR))
        if "val/loss" in row:
            log.info("step %d/%d: %s", step, self._total_steps, _numbers(row, SHOWN))

    def on_train_end(self, summary: dict[str, Any]) -> None:
        """Leave the bar; the table follows when the trackers have closed."""
        self._progress.stop()

    def on_exception(self, error: BaseException) -> None:
        """Leave the bar where it is."""
        self._progress.stop()


def _numbers(row: Row, names: tuple[str, ...]) -> str:
    shown = ((SHORT.get(name, name), format_number(name, row[name])) for name in names if name in row)
    return "  ".join(f"{name} {number}" for name, number in shown)


def format_number(name: str, value: Any) -> str:
    """A metric as people read it: shares in percent, the rest in four digits."""
    if not isinstance(value, int | float):
        return str(value)
    is_share = name.endswith("accuracy") or name.startswith("sparsity")
    return f"{100 * value:.2f} %" if is_share else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def print_summary(summary: dict[str, Any]) -> None:
    """The summary table of a finished run on standard output."""
    table = Table(title="Run finished", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in summary_rows(summary):
        table.add_row(label, text)
    terminal = Terminal()
    terminal.print(table)
    for name, status in summary["trackers"].items():
        if command := status.get("repair") or status.get("sync") or status.get("show"):
            # Not in the table: a line to copy must not be broken.
            terminal.print(f"{name}: {command}", soft_wrap=True, highlight=False)


def tracker_line(status: dict[str, Any]) -> str:
    """State of a tracker, rows it took and missed, what reading its store back said, and where it is."""
    sent = f"{status['sent']} rows sent" if "sent" in status else None
    dropped = f"{status['dropped']} rows not sent" if status.get("dropped") else None
    read_back = f"read back: {status['parity']}" if status.get("parity") else None
    parts = (status["state"], sent, dropped, read_back, status.get("url"))
    return "; ".join(str(part) for part in parts if part)


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of the summary table."""
    final, sparsity, parameters = summary["metrics"]["final"], summary["sparsity"], summary["parameters"]
    rows = [(name, format_number(name, value)) for name, value in final.items()]
    target = sparsity["target"]
    rows.append(
        (
            "sparsity",
            f"{100 * sparsity['achieved']:.3f} % of the prunable weights"
            + (f", target {100 * target:g} %" if target is not None else ", dense"),
        )
    )
    rows.append(
        (
            "non-zero parameters",
            f"{parameters['nonzero']:,} of {parameters['total']:,} ({parameters['prunable']:,} prunable)",
        )
    )
    rows.append(("time", f"{summary['seconds']:.1f} s for {summary['steps']:,} steps"))
    rows += [(name, tracker_line(status)) for name, status in summary["trackers"].items()]
    rows.append(("run", str(shown_path(Path(summary["paths"]["run"])))))
    rows.append(("files", ", ".join(text for name, text in summary["paths"].items() if name != "run")))
    return rows
