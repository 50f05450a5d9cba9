"""Whether two stores hold the same series: by step and metric, the last value counts, NaN equals NaN."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from adamwprune.callbacks.base import Row

# (step, metric) -> value
Series = dict[tuple[int, str], Any]

# What trackers get beside the series, at the end of a run.
NO_SERIES = ("final/", "best/", "run/")


class Parity(NamedTuple):
    """How a store compares with the truth: counts of values, and the first that is not equal."""

    steps: int
    values: int
    missing: int
    extra: int
    different: int
    first: str | None  # `step 10 train/loss: 2.3, stored 2.4`

    @property
    def is_equal(self) -> bool:
        """Whether nothing is missing, too much or different."""
        return not (self.missing or self.extra or self.different)

    def __str__(self) -> str:
        """One line for a person."""
        if self.is_equal:
            return f"{self.values} values at {self.steps} steps, all equal"
        counts = {"missing": self.missing, "too many": self.extra, "different": self.different}
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"of {self.values} values {said}; first: {self.first}"


def series(rows: Iterable[tuple[int, Row]]) -> Series:
    """The values of rows by step and metric; a metric that a step has twice keeps the last."""
    return {
        (step, key): value
        for step, row in rows
        for key, value in row.items()
        if not key.startswith(NO_SERIES)
    }


def compare(truth: Mapping[tuple[int, str], Any], stored: Mapping[tuple[int, str], Any]) -> Parity:
    """Compare a store with the truth, value by value."""
    missing = truth.keys() - stored.keys()
    extra = stored.keys() - truth.keys()
    different = {at for at in truth.keys() & stored.keys() if not is_same(truth[at], stored[at])}
    first = min(missing | extra | different, default=None)
    return Parity(
        steps=len({step for step, _ in truth}),
        values=len(truth),
        missing=len(missing),
        extra=len(extra),
        different=len(different),
        first=first and f"step {first[0]} {first[1]}: {_shown(truth, first)}, stored {_shown(stored, first)}",
    )


def is_same(left: Any, right: Any) -> bool:
    """Equal to the bit, as far as JSON tells: 1 and 1.0 are equal, so are two NaN."""
    return left == right or (_is_nan(left) and _is_nan(right))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(values: Mapping[tuple[int, str], Any], at: tuple[int, str]) -> str:
    return repr(values[at]) if at in values else "nothing"
