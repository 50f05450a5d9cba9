"""Reads a run back from Trackio's database with sqlite3 alone: an oracle that shares no code with Trackio."""

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredRun:
    """What the database holds of one run, in the order of storing."""

    rows: list[tuple[int, str, dict[str, Any]]]  # step, ISO time, metrics as stored (NaN is "NaN")
    log_ids: list[str]
    name: str | None
    config: dict[str, Any]
    alerts: list[tuple[str, str, int]]  # title, level, step
    alert_ids: list[str]

    @property
    def series(self) -> list[tuple[int, str, dict[str, Any]]]:
        """The rows without those that end a run."""
        return [row for row in self.rows if "run/exit_code" not in row[2]]

    @property
    def ends(self) -> list[tuple[int, dict[str, Any]]]:
        """Step and values of the rows that end a run."""
        return [(step, row) for step, _, row in self.rows if "run/exit_code" in row]


def read_run(database: Path, run_id: str) -> StoredRun:
    """The run `run_id` of a project's database; the database is opened read-only."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:

        def select(columns: str, table: str) -> list[tuple[Any, ...]]:
            query = f"SELECT {columns} FROM {table} WHERE run_id = ? ORDER BY id"
            return connection.execute(query, (run_id,)).fetchall()

        stored = select("step, timestamp, metrics, log_id, run_name", "metrics")
        configs = select("config", "configs")
        return StoredRun(
            rows=[(step, time, json.loads(metrics)) for step, time, metrics, _, _ in stored],
            log_ids=[log_id for *_, log_id, _ in stored],
            name=stored[0][-1] if stored else None,
            config=json.loads(configs[0][0]) if configs else {},
            alerts=select("title, level, step", "alerts"),
            alert_ids=[alert_id for (alert_id,) in select("alert_id", "alerts")],
        )
