"""Rules that look at each row of a run, and say when something looks wrong.

    not_finite         a loss is NaN or infinite
    loss_spike         a loss lies far above those before it
    stalled_sparsity   planned mask updates leave the sparsity where it is, below its target
    throughput_drop    training has become slower
    disk_low           little space is left where the run is recorded

They see nothing but rows and the run's disk, and change nothing. What is normal is the median of the
rows before, and the median absolute deviation (MAD) from it: a few odd rows move neither. Of normally
distributed noise one MAD is 0.67 standard deviations.
"""

import math
import shutil
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from adamwprune.callbacks.base import Alert, Row
from adamwprune.config import AlertsConfig

LOSSES = ("train/loss", "val/loss")
RATES = ("perf/images_per_second", "perf/tokens_per_second")
# Rows before that are compared with, and the fewest of them that say what is normal.
WINDOW, FEWEST = 50, 10
# Nats above the median from which a loss can be a spike: 10 % of perplexity. A quiet plateau, or a loss
# near 0, has deviations so small that any of its rows would be many of them away.
LEAST_SPIKE = 0.1
# Rows in a row that are slow, and seconds from the first to the last of them, before it is a drop: a
# start, a compilation, a hiccup, the import of a tracker are over sooner.
SLOW_ROWS = 3
SLOW_SECONDS = 10.0
# Seconds between two looks at the disk.
DISK_EVERY = 30.0


@dataclass(frozen=True)
class MaskPlan:
    """When masks are updated, and how sparse they are then to be."""

    updates: Sequence[int]  # steps in order, as Plan.updates()
    update_every: int
    sparsity: Callable[[int], float]  # by step, with what the scope can do of what the schedule asks for


class Rule:
    """One thing that can go wrong in a run."""

    def check(self, step: int, time: float, row: Row) -> Alert | None:
        """Take one row into account; what is wrong with it, if anything."""
        raise NotImplementedError

    def resume(self) -> None:
        """Rows so far are of an earlier session: what was going on in it is over; its history counts."""


class Watch:
    """The rules that look at each row of a run; one rule speaks at most once in `config.quiet` seconds.

    Args:
        config: limits; a rule whose limit is None is off.
        directory: the run's.
        plan: of the mask updates; None for a dense run.
    """

    def __init__(self, config: AlertsConfig, *, directory: Path, plan: MaskPlan | None) -> None:
        self._quiet = config.quiet
        self._rules = list(_rules(config, directory, plan))
        self._spoke: dict[str, float] = {}

    def learn(self, step: int, time: float, row: Row) -> None:
        """Take a row of an earlier session into account, whose alerts were raised then."""
        for rule in self._rules:
            rule.check(step, time, row)

    def resume(self) -> None:
        """All rows of earlier sessions are learnt; the next is this session's first."""
        for rule in self._rules:
            rule.resume()

    def look(self, step: int, time: float, row: Row) -> list[Alert]:
        """The alerts that a row raises; `time` is in seconds since the epoch."""
        found = [alert for rule in self._rules if (alert := rule.check(step, time, row))]
        return [alert for alert in found if self._may_speak(alert.rule, time)]

    def _may_speak(self, rule: str, time: float) -> bool:
        spoke = self._spoke.get(rule, -math.inf)
        if 0.0 <= time - spoke < self._quiet:  # a clock that was set back silences nobody
            return False
        self._spoke[rule] = time
        return True


def _rules(config: AlertsConfig, directory: Path, plan: MaskPlan | None) -> Iterator[Rule]:
    yield NotFinite()
    if config.loss_spike is not None:
        yield LossSpike(config.loss_spike)
    if config.stalled_updates is not None and plan is not None:
        yield StalledSparsity(config.stalled_updates, plan)
    if config.throughput_drop is not None:
        yield ThroughputDrop(config.throughput_drop)
    if config.disk_free_gib is not None:
        yield DiskLow(config.disk_free_gib, directory)


def number(row: Row, key: str) -> float | None:
    """The finite number under `key`; None where there is none."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


class NotFinite(Rule):
    """A loss is NaN or infinite: as a float, or as the text that metrics.jsonl has for it."""

    def __init__(self) -> None:
        self._last: tuple[str, float, int] | None = None  # loss, value and step that were finite

    def check(self, step: int, time: float, row: Row) -> Alert | None:
        """Name the losses that are not finite, and the last that was."""
        there = [(key, number(row, key)) for key in LOSSES if row.get(key) is not None]
        bad = [f"{key} is {row[key]}" for key, loss in there if loss is None]
        if not bad:
            self._last = next(((key, loss, step) for key, loss in there if loss is not None), self._last)
            return None
        last = "{} was {:.4g} at step {}".format(*self._last) if self._last else "none was finite before"
        return Alert(
            "not_finite",
            "error",
            bad[0],
            f"{', '.join(bad)} at step {step}; {last}; lower optimizer.lr or raise lr_schedule.warmup_steps",
        )


class LossSpike(Rule):
    """A loss lies more than `limit` MAD, and LEAST_SPIKE, above the median of the rows before it."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._before: dict[str, deque[float]] = {key: deque(maxlen=WINDOW) for key in LOSSES}

    def check(self, step: int, time: float, row: Row) -> Alert | None:
        """Compare each loss of the row with its own history."""
        return next(filter(None, [self._compare(key, number(row, key)) for key in LOSSES]), None)

    def _compare(self, key: str, loss: float | None) -> Alert | None:
        if loss is None:
            return None
        before = list(self._before[key])
        self._before[key].append(loss)
        if len(before) < FEWEST or loss - (middle := median(before)) <= LEAST_SPIKE:
            return None
        deviation = median(abs(value - middle) for value in before)
        if loss - middle <= self._limit * deviation:
            return None
        return Alert(
            "loss_spike",
            "warn",
            f"{key} is {loss:.4g} after {middle:.4g}",
            f"{loss - middle:.3g} above the median of the last {len(before)} rows, whose median deviation is "
            f"{deviation:.2g}; if it does not come back, lower optimizer.lr or trainer.grad_clip, "
            "or in a ramp pruning.target_sparsity",
        )


class StalledSparsity(Rule):
    """`limit` planned updates in a row left the sparsity below what they ask for, and did not raise it.

    Time after the last update counts as if updates went on: a run that ends up below its target says so.
    """

    def __init__(self, limit: int, plan: MaskPlan) -> None:
        self._limit = limit
        self._plan = plan
        self._due = self._kept = 0  # updates that were due by the last row; of these, when all was well
        self._planned = 0.0
        self._sparsity = 0.0

    def check(self, step: int, time: float, row: Row) -> Alert | None:
        """Count the updates since the sparsity last rose, or was what was planned."""
        sparsity = number(row, "sparsity/global")
        if sparsity is None:
            return None
        if (due := self._updates_due(step)) != self._due:
            self._due, self._planned = due, self._plan.sparsity(step)
        # Shares of the same weights, computed in two ways, differ in the last digits.
        if sparsity > self._sparsity or sparsity >= self._planned - 1e-12:
            self._kept = due
        self._sparsity = sparsity
        if due - self._kept < self._limit:
            return None
        return Alert(
            "stalled_sparsity",
            "warn",
            f"sparsity stays at {100 * sparsity:.2f} %",
            f"{due - self._kept} planned mask updates did not raise it to the {100 * self._planned:.2f} % of "
            f"step {step}; mask_updates.jsonl has those that were made; updates wait while an optimizer "
            "refills moments that it reset (optimizer.reset_every)",
        )

    def _updates_due(self, step: int) -> int:
        last = self._plan.updates[-1]
        after = (step - last) // self._plan.update_every
        return bisect_right(self._plan.updates, step) + max(0, after)


class ThroughputDrop(Rule):
    """SLOW_ROWS rows in a row, over SLOW_SECONDS, lose more than `limit` of the median throughput before."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._before: deque[float] = deque(maxlen=WINDOW)
        self._slow, self._since = 0, 0.0

    def check(self, step: int, time: float, row: Row) -> Alert | None:
        """Compare the throughput of the row, in whichever unit, with its history."""
        rates = [(key, rate) for key in RATES if (rate := number(row, key)) is not None]
        return self._compare(time, *rates[0]) if rates else None

    def resume(self) -> None:
        """The time between two sessions is not slow training."""
        self._slow = 0

    def _compare(self, time: float, key: str, rate: float) -> Alert | None:
        before = list(self._before)
        self._before.append(rate)
        usual = median(before) if len(before) >= FEWEST else 0.0
        self._slow = self._slow + 1 if 0.0 <= rate < (1.0 - self._limit) * usual else 0
        if self._slow <= 1:
            self._since = time
        if self._slow < SLOW_ROWS or time - self._since < SLOW_SECONDS:
            return None
        unit = key.removeprefix("perf/").replace("_per_", " a ")
        return Alert(
            "throughput_drop",
            "warn",
            f"{_shown(rate)} {unit} after {_shown(usual)}",
            f"{100 * (1.0 - rate / usual):.0f} % below the median of the last {len(before)} rows, for "
            f"{self._slow} rows; see what else the machine does, and perf/ and memory/ for heat and memory",
        )


class DiskLow(Rule):
    """Less than `limit` GiB are free on the disk of the run's directory."""

    def __init__(self, limit: float, directory: Path) -> None:
        self._limit = limit
        self._directory = directory
        self._looked = -math.inf

    def check(self, step: int, time: float, row: Row) -> Alert | None:
        """Look, if the last look was a while ago."""
        if 0.0 <= time - self._looked < DISK_EVERY:
            return None
        self._looked = time
        try:
            free = shutil.disk_usage(self._directory).free / 2**30
        except OSError:
            return None  # whoever writes there next will say why
        if free >= self._limit:
            return None
        return Alert(
            "disk_low",
            "warn",
            f"{free:.2f} GiB free on the run's disk",
            f"less than alerts.disk_free_gib={self._limit:g}; a full disk ends the run with exit code 9: "
            "make room, or stop it and go on with a lower checkpoint.keep",
        )


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000.0 else f"{rate:.3g}"
