"""What a fault is: something done to real runs many times, what must hold, and a control that must fail.

A module of this package is one kind of fault. Its `run(tier, seed, scratch)` does the trials and returns an
`Outcome`; `scratch` is an empty folder of its own. Random choices come from the seed alone.
"""

import dataclasses
import importlib
import json
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Tier = Literal["short", "long"]


@dataclass
class Control:
    """The same look at something that must not pass it: without it, no failure proves nothing.

    Args:
        what: what was done, such as "checkpoint written in place".
        trials: how often.
        noticed: how often the harness saw it.
        least: the smallest share of trials that must be noticed.
    """

    what: str
    trials: int
    noticed: int
    least: float = 1.0

    def __post_init__(self) -> None:
        self.noticed = int(self.noticed)

    @property
    def holds(self) -> bool:
        """Whether the harness can see what it looks for."""
        return self.trials > 0 and self.noticed >= self.least * self.trials


@dataclass
class Outcome:
    """What came of one kind of fault.

    Args:
        fault: what was done to what, one line: "SIGKILL at a random moment, 4 models x 3 optimizers".
        promise: what must hold in every trial: "newest valid checkpoint loads, continued run bitwise equal".
        trials: how many.
        failures: one line a broken promise, with what is needed to repeat it.
        figures: measured numbers by name with unit: {"most steps lost": 4, "p95, s": 0.81}.
        goals: name of a figure -> the largest value that is good enough (the issue, or reliability.md).
        controls: each must hold.
        peer: the figure of a trusted framework beside it, with its source; "" where none is known.
        skipped: why the fault could not be done here; "" where it was.
    """

    fault: str
    promise: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    peer: str = ""
    skipped: str = ""

    @property
    def missed(self) -> list[str]:
        """Figures over their goal, as lines."""
        over = [name for name, most in self.goals.items() if float(self.figures[name]) > most]
        return [f"{name}: {self.figures[name]}, goal {self.goals[name]:g}" for name in over]

    @property
    def holds(self) -> bool:
        """Whether the promise was kept, by a harness that can see it broken."""
        tried = self.trials > 0 and bool(self.controls)
        return bool(self.skipped) or (
            tried and not self.failures and all(control.holds for control in self.controls)
        )


def to_json(outcome: Outcome, name: str, tier: Tier, seed: int, seconds: float) -> dict[str, Any]:
    """One entry of the results."""
    return {
        "name": name,
        "tier": tier,
        "seed": seed,
        "holds": outcome.holds,
        "missed": outcome.missed,
        "seconds": round(seconds, 1),
        **dataclasses.asdict(outcome),
    }


def run_one(name: str, tier: Tier, seed: int, scratch: Path) -> dict[str, Any]:
    """Run the fault that a module describes; an exception of the harness itself is a failure too."""
    started = time.monotonic()
    try:
        outcome = importlib.import_module(f"tests.faults.{name}").run(tier, seed, scratch)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(name, "the harness runs", failures=[f"it failed: {type(error).__name__}: {error}"])
    return to_json(outcome, name, tier, seed, time.monotonic() - started)


def write(file: Path, results: dict[str, Any]) -> None:
    """Results as indented JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
