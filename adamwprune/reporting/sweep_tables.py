"""The tables at the end of a sweep: every job, and means over seeds where several were run.

One column a swept key, by its last part (`target_sparsity`) unless two keys end alike.
"""

import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from adamwprune.callbacks.console import format_number

# Letters of a job's reason in the table.
_REASON = 60
# The score of a job: the first of these that it has.
_SCORES = ("test/accuracy", "test/perplexity", "val/accuracy", "val/perplexity")

Result = Mapping[str, Any]


def job_table(results: Sequence[Result], title: str) -> Table:
    """One line a job: its choices, score and achieved sparsity, how it ended and why, seconds."""
    columns = _columns(results)
    score = _score_name(results)
    table = _table(title, ("job", *columns.values(), score, "sparsity", "outcome", "seconds"))
    for result in results:
        table.add_row(
            str(result["job"]),
            *_choices(result, columns),
            format_number(score, result["metrics"][score]) if score in result["metrics"] else "",
            "" if result["sparsity"] is None else format_number("sparsity", result["sparsity"]),
            _outcome(result),
            f"{result['seconds']:.0f}",
        )
    return table


def seed_table(results: Sequence[Result]) -> Table | None:
    """One line for jobs that differ in their seed alone: number, mean and standard deviation of the score.

    Jobs that did not finish are left out and counted. None where no two jobs share their other choices.
    """
    columns = {key: name for key, name in _columns(results).items() if key != "seed"}
    arms: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        arms.setdefault(_choices(result, columns), []).append(result)
    if max(map(len, arms.values()), default=0) < 2:
        return None
    score = _score_name(results)
    table = _table("means over seeds", (*columns.values(), score, "s.d.", "seeds", "missing", "sparsity"))
    for choices, jobs in arms.items():
        finished = [job for job in jobs if job["exit_code"] == 0 and score in job["metrics"]]
        scores = [job["metrics"][score] for job in finished]
        table.add_row(
            *choices,
            format_number(score, statistics.fmean(scores)) if scores else "",
            format_number(score, statistics.stdev(scores)) if len(scores) > 1 else "",
            str(len(scores)),
            str(len(jobs) - len(finished)),
            ", ".join(sorted({format_number("sparsity", job["sparsity"]) for job in finished})),
        )
    return table


def _outcome(result: Result) -> str:
    """How a job ended, with the beginning of the reason; sweep.jsonl has all of it."""
    if result["exit_code"] == 0:
        return "finished"
    reason = textwrap.shorten(result["reason"], _REASON, placeholder=" ...")
    return escape(f"{result['status']}, exit code {result['exit_code']}: {reason}")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _columns(results: Sequence[Result]) -> dict[str, str]:
    """Swept keys, in the order in which they appear, and what their columns are called."""
    keys = dict.fromkeys(choice.partition("=")[0] for result in results for choice in result["swept"])
    lasts = {key: re.split(r"[./]", key)[-1] for key in keys}
    count = Counter(lasts.values())
    return {key: last if count[last] == 1 else key for key, last in lasts.items()}


def _choices(result: Result, columns: Mapping[str, str]) -> tuple[str, ...]:
    """A job's value of each column; empty where it has none, as a dense arm has no target."""
    values = dict(choice.split("=", 1) for choice in result["swept"])
    return tuple(values.get(key, "") for key in columns)


def _score_name(results: Sequence[Result]) -> str:
    """The score that the first job with any has; jobs of another kind of data have none to compare."""
    names = (name for result in results for name in _SCORES if name in result["metrics"])
    return next(names, "score")
