"""A W&B server on 127.0.0.1: the few requests that runs need, kept for a look, and faults on demand.

    UpsertBucket                starts a run, and updates its name, configuration, tags, ...
    RunResumeStatus             where a run that goes on has got to
    file_stream                 takes rows, summary and exit code; its answer may carry the stop button
    NotifyScriptableRunAlert    takes an alert

All else is answered 404, which W&B 0.31 lives with. `wandb sync` runs against it unchanged.

    with WandbServer() as server:
        wandb.init(settings=wandb.Settings(base_url=server.url))    # and WANDB_API_KEY, any 40 characters
        server.run.rows

Any key is good, and nothing outlives the process: for tests, and `python -m adamwprune.track test wandb`.
"""

import base64
import gzip
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

# Seconds between two looks at whether the server is to end.
POLL = 0.02
# What a run gets that does not say whose it is.
ENTITY, PROJECT = "someone", "uncategorized"


class ServedAlert(NamedTuple):
    """An alert that the server would send on."""

    level: str  # INFO, WARN or ERROR
    title: str
    text: str


@dataclass
class ServedRun:
    """One run, as the server has it."""

    run_id: str
    entity: str
    project: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # in order, with W&B's own `_` keys
    summary: dict[str, Any] = field(default_factory=dict)
    alerts: list[ServedAlert] = field(default_factory=list)
    alerted: dict[str, float] = field(default_factory=dict)  # title -> when, by the monotonic clock
    exit_code: int | None = None  # None: it runs, or its process was killed
    is_preempting: bool = False
    is_stopped: bool = False  # set it to press the stop button of the run's page

    @property
    def path(self) -> str:
        """What tells it from all other runs."""
        return f"{self.entity}/{self.project}/{self.run_id}"

    def describe(self) -> dict[str, Any]:
        """The run in the answer to UpsertBucket."""
        return {
            "id": _encoded(self.path),
            "name": self.run_id,
            "displayName": self.name or self.run_id,
            "config": json.dumps(self.config),
            "sweepName": None,
            "historyLineCount": len(self.rows),
            "project": {
                "id": _encoded(self.project),
                "name": self.project,
                "entity": {"id": _encoded(self.entity), "name": self.entity},
            },
        }

    def position(self) -> dict[str, Any]:
        """The run in the answer to RunResumeStatus."""
        return {
            **self.describe(),
            "summaryMetrics": json.dumps(self.summary),
            "wandbConfig": json.dumps({"t": 1}),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in self.rows[-1:]]),
            "eventsTail": "[]",
            "tags": self.tags,
        }

    def update(self, variables: dict[str, Any]) -> None:
        """Take what UpsertBucket says; what it leaves out stays."""
        names = {"displayName": "name", "groupName": "group", "jobType": "job_type"}
        for key in ("displayName", "groupName", "jobType", "notes", "tags"):
            if variables.get(key) is not None:
                setattr(self, names.get(key, key), variables[key])
        self.config = json.loads(variables.get("config") or "{}") or self.config
        self.summary = json.loads(variables.get("summaryMetrics") or "{}") or self.summary

    def notify(self, variables: dict[str, Any]) -> None:
        """Send an alert on, unless one of its title came less than `waitDuration` ms ago."""
        title, now = variables["title"], time.monotonic()
        if now - self.alerted.get(title, -math.inf) >= variables["waitDuration"] / 1000:
            self.alerts.append(ServedAlert(variables["severity"], title, variables["text"]))
            self.alerted[title] = now

    def take(self, body: dict[str, Any]) -> None:
        """Take rows at their offset, the summary and the end of the run."""
        files = body.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            del self.rows[history["offset"] :]
            self.rows += [json.loads(line) for line in history["content"]]
        if summary := files.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])
        if body.get("preempting"):
            self.is_preempting = True
        if body.get("complete"):
            self.exit_code = body["exitcode"]


class WandbServer(ThreadingHTTPServer):
    """The server; use it as a context manager. Its state may be read, and changed, at any time.

    `fail` is asked before each request, by the operation's name: it may return a status to answer
    with, sleep, or be `hang`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.RLock()
        self.runs: dict[str, ServedRun] = {}  # by entity/project/id
        self.operations: list[str] = []  # all requests in their order
        self.fail: Callable[[str], int | None] = lambda operation: None
        self._is_over = threading.Event()

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.serve_forever, args=(POLL,), name="wandb-server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that has gone away, while its request was held up, is none."""

    @property
    def run(self) -> ServedRun:
        """The run, where there is one only."""
        (run,) = self.runs.values()
        return run

    def __getitem__(self, run_id: str) -> ServedRun:
        """The only run with this id."""
        (run,) = (run for run in self.runs.values() if run.run_id == run_id)
        return run

    def hang(self, operation: str) -> None:
        """Never answer: as a value of `fail`, or for some operations only."""
        self._is_over.wait()

    def answer(self, operation: str, body: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
        """The answer to a request; None for one that this server does not know."""
        variables = body.get("variables") or {}
        with self.lock:
            match operation:
                case "UpsertBucket":
                    return {"data": {"upsertBucket": self._upsert(variables)}}
                case "RunResumeStatus":
                    run = self.runs.get(_path(variables))
                    return {"data": {"model": {"bucket": run and run.position()}}}
                case "NotifyScriptableRunAlert":
                    run = self.runs["/".join(variables[f"{key}Name"] for key in ("entity", "project", "run"))]
                    run.notify(variables)
                    return {"data": {"notifyScriptableRunAlert": {"success": True}}}
                case "file_stream":
                    run = self.runs["/".join(path[-4:-1])]
                    run.take(body)
                    return {"exitcode": None, "limits": {}, **({"stopped": True} if run.is_stopped else {})}
        return None

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        path = base64.b64decode(variables["id"]).decode() if variables.get("id") else _path(variables)
        is_new = path not in self.runs
        if is_new:
            entity, project, run_id = path.split("/")
            self.runs[path] = ServedRun(run_id, entity, project)
        self.runs[path].update(variables)
        return {"inserted": is_new, "bucket": self.runs[path].describe()}


class _Handler(BaseHTTPRequestHandler):
    """HTTP around it."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        """Answer one request."""
        body, path = self._body(), self.path.split("/")
        operation = _operation(body.get("query", "")) if path[-1] == "graphql" else path[-1]
        self.server.operations.append(operation)
        if status := self.server.fail(operation):
            return self._answer(status, {"error": "fault"})
        answer = self.server.answer(operation, body, path)
        return self._answer(404, {}) if answer is None else self._answer(200, answer)

    def do_GET(self) -> None:
        """Nothing is to be had."""
        self._answer(404, {})

    def do_PUT(self) -> None:
        """Take files without keeping them."""
        self._body()
        self._answer(404, {})

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def _body(self) -> dict[str, Any]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        try:
            body = json.loads(data)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _operation(query: str) -> str:
    """The name of a GraphQL request: the word after `query` or `mutation`."""
    words = query.replace("(", " ").replace("{", " ").split()
    return words[1] if len(words) > 1 else "graphql"


def _path(variables: dict[str, Any]) -> str:
    entity, project = variables.get("entity") or ENTITY, variables.get("project") or PROJECT
    return f"{entity}/{project}/{variables['name']}"


def _encoded(name: str) -> str:
    return base64.b64encode(name.encode()).decode()
