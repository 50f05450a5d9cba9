"""MLflow: a local SQLite database, or a server. No account; no network unless a server is named.

The run's project is the experiment. Rows are metrics at their own steps and times (milliseconds), the
configuration is parameters, final values are metrics and tags with names of their own, alerts are
tags `alert/<step>/<rule>`. MLflow cannot take rows back: after a rewind there is a new run.

Its databases keep a metric of the same step, time and value once, so rows may be sent again. They have
no infinity: the largest float64 stands for it. Behaviour measured with MLflow 3.17.2 and SQLite.
"""

import fcntl
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.config import flatten
from adamwprune.ranges import Positive
from adamwprune.run_directory import METRICS
from adamwprune.trackers.backend import (
    Backend,
    environment,
    first_line,
    is_exact_number,
    public_config,
    recorded_facts,
)
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.parity import Series, series
from adamwprune.trackers.rows import BEGINNING, AlertEntry, Entry, read_rows

# alembic brings SQLAlchemy: mlflow-skinny alone has no database.
PACKAGES = {"mlflow": "mlflow-skinny>=3.17,<4", "alembic": "alembic>=1.13,<2"}

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
# The tag by which a run is found again.
RUN_ID = "adamwprune.run_id"


def mlflow(
    *, tracking_uri: str | None = None, finish_timeout: Positive = 30.0, required: bool = False
) -> Callback:
    """The tracker `mlflow`.

    Args:
        tracking_uri: `sqlite:///FILE` or the address of a server; None is MLFLOW_TRACKING_URI, else
            mlflow.db in the working directory.
        finish_timeout: seconds that the end of a run waits for MLflow.
        required: whether the run ends with exit code 6 if a row is missing at its end.
    """
    return Mirror(MLflow(tracking_uri=tracking_uri), finish_timeout=finish_timeout, required=required)


class MLflow(Backend):
    """The backend: one run of an MlflowClient, never the package's active run."""

    name = "mlflow"
    idempotent = True

    def __init__(self, *, tracking_uri: str | None):
        super().__init__()
        self.tracking_uri = tracking_uri
        self._client: Any
        self._run_id: str
        self._last: tuple[int, int]  # step and time (ms) of the last row
        self._end = BEGINNING  # of the rows that were given
        self._stored: dict[str, int] = {}  # metric -> the last of its steps that MLflow had before

    def open(self, run: RunInfo) -> None:
        """Start the run, or go on with it."""
        uri = self._choose_uri(run)
        first = next(read_rows(run.directory / METRICS), None)
        self._last = run.first_step, round(1000 * (first.time if first else time.time()))
        with _alone(uri):
            self._client = _client(uri)
            found = _find(self._client, run) or _create(self._client, run, start_time=self._last[1])
        self._run_id = found.info.run_id
        # Only this form of a run tells the steps of its latest metrics.
        self._stored = {metric.key: metric.step for metric in found.to_proto().data.metrics}
        self._client.update_run(self._run_id, status="RUNNING")
        self._describe(uri, found.info)
        self._send_parameters(public_config(run.config), known=found.data.params)

    def log(self, entries: list[Entry]) -> None:
        """Send what MLflow lacks; all of it where rows are given a second time."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        if entries[0].end <= self._end:
            self._stored = {}
        metrics = [
            Metric(name, float(value), round(1000 * entry.time), entry.step)
            for entry in entries
            for name, value in entry.row.items()
            if self.takes(value) and entry.step > self._stored.get(name, -1)
        ]
        try:
            self._client.log_batch(self._run_id, metrics)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise ValueError(first_line(error)) from error  # the row's own fault
            raise
        self._last, self._end = (entries[-1].step, round(1000 * entries[-1].time)), entries[-1].end

    def alert(self, entry: AlertEntry) -> None:
        """Set a tag."""
        rule, *words = entry.alert
        self._client.set_tag(self._run_id, f"alert/{entry.step}/{rule}", ": ".join(words))

    def finish(self, exit_code: int, finals: Row) -> None:
        """Store the final values at the last row's step, and end the run at its time."""
        from mlflow.entities import Metric, RunTag

        step, moment = self._last
        numbers = {name: value for name, value in finals.items() if self.takes(value)}
        metrics = [Metric(name, float(value), moment, step) for name, value in numbers.items()]
        tags = [RunTag(name, str(value)) for name, value in finals.items() if name not in numbers]
        self._client.log_batch(self._run_id, metrics, tags=tags)
        status = "FINISHED" if exit_code == 0 else "FAILED" if exit_code < 64 else "KILLED"
        with environment(MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true"):
            self._client.set_terminated(self._run_id, status, end_time=moment)

    def takes(self, value: Any) -> bool:
        """Numbers that float64 holds."""
        return is_exact_number(value)

    def read_back(self, run: RunInfo) -> Series:
        """All metrics of the run."""
        uri = self._choose_uri(run)
        if uri.startswith(SQLITE) and not _file(uri).exists():
            return {}  # MLflow would make an empty one
        client = _client(uri)
        found = _find(client, run)
        names = found.data.metrics if found else {}
        metrics = (metric for name in names for metric in client.get_metric_history(found.info.run_id, name))
        return series((metric.step, {metric.key: _restored(metric.value)}) for metric in metrics)

    def _choose_uri(self, run: RunInfo) -> str:
        recorded = recorded_facts(run, self.name).get("tracking_uri")
        uri = self.tracking_uri or recorded or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
        if not uri.startswith(SQLITE):
            return uri
        file, *options = uri.removeprefix(SQLITE).partition("?")
        return "".join([SQLITE, str(Path(file).resolve()), *options])

    def _describe(self, uri: str, info: Any) -> None:
        address = urlsplit(uri)
        if uri.startswith(SQLITE):
            show = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
            self.facts.update(tracking_uri=uri, path=str(_file(uri)), show=show)
        elif "@" in address.netloc:  # a password belongs in no record
            self.facts.update(url=address._replace(netloc=address.netloc.rpartition("@")[2]).geturl())
        else:
            page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
            self.facts.update(tracking_uri=uri, url=page)

    def _send_parameters(self, config: dict[str, Any], known: dict[str, str]) -> None:
        """Send those that MLflow lacks: it changes none. Rows do not wait for what it refuses."""
        from mlflow.entities import Param

        parameters = [Param(key, str(value)) for key, value in flatten(config) if key not in known]
        try:
            self._client.log_batch(self._run_id, params=parameters)
        except Exception as error:
            logger.warning("tracker mlflow: parameters: %s", first_line(error))


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold the lock of the database's folder: processes that make the tables at the same time break them."""
    if not uri.startswith(SQLITE):
        yield
        return
    folder = os.open(_file(uri).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _client(uri: str) -> Any:
    """A client; MLflow is imported without its telemetry, which would ask a server of its own."""
    level = os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING")
    with environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_LOGGING_LEVEL=level):
        from mlflow import MlflowClient
    return MlflowClient(tracking_uri=uri)


def _find(client: Any, run: RunInfo) -> Any:
    """MLflow's run with the tracker's id of `run`, or None."""
    experiment = client.get_experiment_by_name(run.project)
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`{RUN_ID}` = '{run.tracker_id}'")
    return found[0] if found else None


def _create(client: Any, run: RunInfo, start_time: int) -> Any:
    tags = {
        **dict.fromkeys(run.tags, "true"),
        RUN_ID: run.tracker_id,
        "group": run.group,
        "mlflow.note.content": run.notes,
    }
    given = {name: text for name, text in tags.items() if text}
    return client.create_run(_experiment(client, run.project), start_time, given, run.name)


def _experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    try:
        return found.experiment_id if found else client.create_experiment(name)
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another job of a sweep may have been quicker
        if found is None:
            raise
        return found.experiment_id


def _file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _restored(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
