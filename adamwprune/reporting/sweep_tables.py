"""The tables at the end of a sweep: every job, and means over seeds where several were run."""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from adamwprune.callbacks.console import format_number

# The score of a job: the first of these that it has.
_SCORES = ("test/accuracy", "test/perplexity", "val/accuracy", "val/perplexity")

Result = Mapping[str, Any]


def job_table(results: Sequence[Result], title: str) -> Table:
    """One line a job: its choices, how it ended, its score and achieved sparsity, seconds."""
    names = _short_names(results)
    table = _table(title, ("job", "choices", "outcome", "metric", "sparsity", "seconds"))
    for result in results:
        outcome = (
            "finished" if result["exit_code"] == 0 else f"{result['status']}, exit code {result['exit_code']}"
        )
        name = _score_name(result)
        table.add_row(
            str(result["job"]),
            _shown(result["swept"], names),
            outcome,
            f"{name} {format_number(name, result['metrics'][name])}" if name else "",
            "" if result["sparsity"] is None else format_number("sparsity", result["sparsity"]),
            f"{result['seconds']:.0f}",
        )
    return table


def seed_table(results: Sequence[Result]) -> Table | None:
    """One line for jobs that differ in their seed alone: number, mean and standard deviation of the score.

    Jobs that did not finish are left out and counted. None where no two jobs share their other choices.
    """
    names, arms = _short_names(results), {}
    for result in results:
        choices = [choice for choice in result["swept"] if not choice.startswith("seed=")]
        arms.setdefault(_shown(choices, names), []).append(result)
    if max(map(len, arms.values()), default=0) < 2:
        return None
    table = _table("means over seeds", ("choices", "metric", "mean", "s.d.", "seeds", "missing", "sparsity"))
    for choices, jobs in arms.items():
        finished = [job for job in jobs if job["exit_code"] == 0 and _score_name(job)]
        name = _score_name(finished[0]) if finished else ""
        scores = [job["metrics"][name] for job in finished]
        sparsities = {format_number("sparsity", job["sparsity"]) for job in finished}
        table.add_row(
            choices,
            name,
            format_number(name, statistics.fmean(scores)) if scores else "",
            format_number(name, statistics.stdev(scores)) if len(scores) > 1 else "",
            str(len(scores)),
            str(len(jobs) - len(finished)),
            ", ".join(sorted(sparsities)),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _short_names(results: Sequence[Result]) -> dict[str, str]:
    """Swept keys by their last part, `pruning.target_sparsity` as `target_sparsity`, where it is one's own."""
    keys = {choice.partition("=")[0] for result in results for choice in result["swept"]}
    lasts = {key: re.split(r"[./]", key)[-1] for key in keys}
    count = Counter(lasts.values())
    return {key: last if count[last] == 1 else key for key, last in lasts.items()}


def _shown(choices: Sequence[str], names: Mapping[str, str]) -> str:
    parts = (choice.partition("=") for choice in choices)
    return " ".join(f"{names[key]}={value}" for key, _, value in parts)


def _score_name(result: Result) -> str:
    return next((name for name in _SCORES if name in result["metrics"]), "")
