"""A W&B server on 127.0.0.1: the two requests that a run needs, and faults on demand.

`UpsertBucket` starts a run and updates its configuration, `file_stream` takes rows, summary and exit
code; `RunResumeStatus` lets a run go on. All else may be answered 404 (W&B 0.31).
"""

import base64
import gzip
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "UHJvamVjdA==", "name": "p", "entity": {"id": "RW50aXR5", "name": "someone"}}


class WandbServer(ThreadingHTTPServer):
    """One run's worth of state; use as a context manager.

    `fault(operation)` may return a status to answer with, or block until `is_over` is set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.operations: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.variables: dict[str, Any] = {}  # of the last UpsertBucket
        self.fault: Callable[[str], int | None] = lambda operation: None
        self.is_over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.shutdown()
        self.server_close()

    def upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Start or update the run; the answer describes it."""
        self.variables = variables
        self.config = json.loads(variables.get("config") or "{}") or self.config
        if variables.get("summaryMetrics"):
            self.summary = json.loads(variables["summaryMetrics"])
        return {"upsertBucket": {"inserted": True, "bucket": self.bucket(variables)}}

    def bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The run as the server describes it."""
        name = variables.get("name") or base64.b64decode(variables["id"]).decode().split("/")[-1]
        return {
            "id": base64.b64encode(f"someone/p/{name}".encode()).decode(),
            "name": name,
            "displayName": name,
            "config": "{}",
            "sweepName": None,
            "historyLineCount": len(self.rows),
            "project": PROJECT,
        }

    def resume(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Where a run that goes on has got to; `bucket` is null for a run that does not exist."""
        if not self.variables:
            return {"model": {**PROJECT, "bucket": None}}
        state = {
            **self.bucket(variables),
            "summaryMetrics": json.dumps(self.summary),
            "wandbConfig": '{"t": 1}',
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in self.rows[-1:]]),
            "eventsTail": "[]",
        }
        return {"model": {**PROJECT, "bucket": state}}

    def stream(self, body: dict[str, Any]) -> None:
        """Take rows at their offset, the summary and the exit code."""
        files = body.get("files", {})
        if history := files.get("wandb-history.jsonl"):
            del self.rows[history["offset"] :]
            self.rows += [json.loads(line) for line in history["content"]]
        if summary := files.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])
        if body.get("complete"):
            self.exit_code = body["exitcode"]


class Handler(BaseHTTPRequestHandler):
    """HTTP around it."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        """Answer one request."""
        body = self._body()
        operation = self.path.rpartition("/")[2]
        if operation == "graphql":
            words = body.get("query", "").replace("(", " ").replace("{", " ").split()
            operation = words[1] if len(words) > 1 else "graphql"
        self.server.operations.append(operation)
        if status := self.server.fault(operation):
            return self._answer(status, {"error": "fault"})
        match operation:
            case "UpsertBucket":
                return self._answer(200, {"data": self.server.upsert(body["variables"])})
            case "RunResumeStatus":
                return self._answer(200, {"data": self.server.resume(body["variables"])})
            case "file_stream":
                self.server.stream(body)
                return self._answer(200, {"exitcode": None, "limits": {}})
        return self._answer(404, {})

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
            return json.loads(data)
        except ValueError:
            return {}

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
