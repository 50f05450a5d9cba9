"""A run as its folder and its trackers show it, made in milliseconds: real records, no training."""

import functools
import math
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from adamwprune import run_directory
from adamwprune.callbacks.base import Alert, RunInfo
from adamwprune.run_directory import RECORD, SUMMARY, write_json
from adamwprune.track.recorded import build_trackers
from adamwprune.track.replay import compose_options
from adamwprune.training.ledger import Ledger
from adamwprune.training.records import Records

PROJECT = "lenet5-d12f4"


@functools.cache
def _options(*names: str) -> dict[str, dict[str, Any]]:
    return compose_options(names, [], project=PROJECT) if names else {}


def row(step: int, seed: int = 1) -> dict[str, Any]:
    """A row with numbers of full precision, one that is not finite, and measured ones."""
    return {
        "train/loss": math.sin(seed + step) / 3,
        "train/lr": 1e-3 / step,
        "sparsity/layer/conv1.weight": step / 7,
        "val/perplexity": math.inf if step == 3 else math.exp(1 / step),
        "perf/step_time_ms": time.perf_counter(),
    }


class Made:
    """A run that has begun: its trackers follow until `end`, as those of a real one."""

    def __init__(self, directory: Path, *trackers: str, seed: int = 1, **config: Any) -> None:
        config = {"seed": seed, "tracker": _options(*trackers), "project": PROJECT, **config}
        self.seed = seed
        self.directory = run_directory.claim(directory.resolve())
        names = {"name": f"run-{directory.name}", "project": config["project"], "group": "g1"}
        record = run_directory.new_record(config, [], names) | {"total_steps": 30}
        # Long ago, or it could be that the run is still on its way to its lock.
        record["sessions"][-1]["started"] = "2026-11-24T12:00:00+0000"
        write_json(self.directory / RECORD, record)
        self.trackers = build_trackers(config["tracker"], ())
        self.run = RunInfo(
            **{key: record[key] for key in ("run_id", "name", "project", "group", "config")},
            directory=self.directory,
            total_steps=30,
        )
        self._records = Records(Ledger(self.directory / "metrics.jsonl"), list(self.trackers.values()))
        self._records.start(self.run)

    def log(self, steps: range) -> "Made":
        """Write rows."""
        for step in steps:
            self._records.log(step, row(step, self.seed))
        return self

    def alert(self, step: int) -> "Made":
        """Write an alert."""
        self._records.alert(step, Alert("loss_spike", "warn", "loss spike", "train/loss is 7"))
        return self

    def wait(self, name: str, steps: int) -> None:
        """Wait until a tracker has so many steps."""
        stored: set[int] = set()
        while len(stored) < steps:
            time.sleep(0.01)
            with suppress(OSError, sqlite3.Error):  # nothing there yet
                stored = {step for step, _ in self.trackers[name].backend.read_back(self.run) or {}}

    def end(self, status: str = "finished", code: int = 0) -> Path:
        """Close the trackers and write the summary; the run's folder."""
        summary = {
            "status": status,
            "exit_code": code,
            "steps": 30,
            "seconds": 1.5,
            "metrics": {"final": {"val/loss": 0.25} if code == 0 else {}, "best": {}},
        }
        if code == 0:
            self._records.finished(summary)
        summary["trackers"] = self._records.close(code)
        write_json(self.directory / SUMMARY, summary)
        return self.directory
