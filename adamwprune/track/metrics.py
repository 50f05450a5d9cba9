"""The last value of each metric of a run, from metrics.jsonl alone."""

from pathlib import Path

from rich.table import Table

from adamwprune.callbacks.console import Terminal, format_number
from adamwprune.run_directory import METRICS
from adamwprune.track.recorded import run_info, run_state
from adamwprune.trackers.parity import NO_SERIES
from adamwprune.trackers.rows import AlertEntry, Entry, read_entries, voided


def print_metrics(directory: Path) -> None:
    """Print a table of metrics, grouped by the part before `/`, and the alerts of the run."""
    run = run_info(directory)
    entries = list(read_entries(run.directory / METRICS, void=voided(run.directory / METRICS)))
    rows = [entry for entry in entries if isinstance(entry, Entry)]
    terminal = Terminal()
    head = f"{run.name}: {run_state(run.directory)}, "
    terminal.print(head + (f"step {rows[-1].step:,} of {run.total_steps:,}" if rows else "no row yet"))
    if rows:
        terminal.print(metrics_table(rows))
    for entry in entries:
        if isinstance(entry, AlertEntry):
            alert = entry.alert
            terminal.print(
                f"step {entry.step} {alert.level}: {alert.title}: {alert.text}", markup=False, highlight=False
            )


def metrics_table(rows: list[Entry]) -> Table:
    """Name, last value and its step; a rule between groups."""
    last = {name: (value, entry.step) for entry in rows for name, value in entry.row.items()}
    table = Table(title_justify="left")
    table.add_column("metric", overflow="fold")
    table.add_column("last value", justify="right", overflow="fold")
    table.add_column("step", justify="right")
    group = None
    for name in sorted(name for name in last if not name.startswith(NO_SERIES)):
        value, step = last[name]
        if group not in (None, name.partition("/")[0]):
            table.add_section()
        group = name.partition("/")[0]
        table.add_row(name, format_number(name, value), str(step))
    return table
