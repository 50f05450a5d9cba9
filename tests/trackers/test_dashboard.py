"""Trackio's dashboard as `serve` starts it: a real server on a free port, asked over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from adamwprune.callbacks.base import RunInfo
from adamwprune.errors import ConfigError, TrackerError
from adamwprune.trackers import dashboard as module
from adamwprune.trackers.dashboard import serve
from adamwprune.trackers.trackio import trackio

pytest.importorskip("trackio")

ROOT = Path(__file__).parents[2]
PROJECT = "lenet5-d12f4"
SERVE = "import sys; from adamwprune.trackers.dashboard import serve; serve({project!r}, {port}, None)"


@pytest.fixture
def stored(run: RunInfo, log_rows: Callable[..., None]) -> RunInfo:
    """A run of five rows."""
    log_rows(run, range(5))
    callback = trackio()
    callback.on_train_start(run)
    callback.close(0)
    return run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def served(**environment: str) -> Iterator[tuple["subprocess.Popen[str]", int, str]]:
    """The dashboard in a process of its own: the process, its port, and the address that it printed."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", SERVE.format(project="lenet5.d12f4", port=port)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        # A shell that started the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said, _, address = process.stdout.readline().partition(": ")
            assert said == "Trackio's dashboard", said + address + process.stdout.read()
            yield process, port, address.strip()
        finally:
            process.kill()


def ask(port: int, name: str, **arguments: Any) -> Any:
    """One call of the dashboard's API, without a token."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{name}",
        data=json.dumps(arguments).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["data"]


def is_open(host: str, port: int) -> bool:
    with closing(socket.socket()) as client:
        client.settimeout(5)
        return client.connect_ex((host, port)) == 0


def test_it_is_served_to_this_machine_alone_and_shows_the_run(stored: RunInfo) -> None:
    """Whatever GRADIO's variables say. The address opens as printed, without the token, which reading
    does not need and deleting does. Ctrl-C ends it with 0."""
    with served(GRADIO_SERVER_NAME="0.0.0.0", GRADIO_SHARE="true") as (
        process,
        port,
        address,
    ):
        assert address == f"http://127.0.0.1:{port}/?project={PROJECT}"
        with urllib.request.urlopen(address, timeout=10) as page:
            assert "<title>" in page.read().decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=10) as version:
            assert json.load(version)["version"].startswith("0.43.")
        (shown,) = ask(port, "get_runs_for_project", project=PROJECT)
        assert (shown["name"], shown["id"]) == (stored.name, stored.run_id)
        assert ask(port, "get_settings")["plot_order"][0] == "train/loss"
        with pytest.raises(HTTPError):
            ask(port, "delete_run", project=PROJECT, run=stored.name)
        assert ask(port, "get_runs_for_project", project=PROJECT)

        assert is_open("127.0.0.1", port)
        assert not is_open("127.0.0.2", port)
        with socket.create_server(("0.0.0.0", 0)) as everywhere:  # the control
            assert is_open("127.0.0.2", everywhere.getsockname()[1])

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout is not None
        said = process.stdout.read()
    assert said == "Ctrl-C ends it\n"


@pytest.mark.usefixtures("stored")
def test_a_port_in_use_is_named_with_a_free_one() -> None:
    """Also where its server listens everywhere; what is named is free."""
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.create_server((host, 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(ConfigError) as error:
                serve(PROJECT, port, None)
            problem, _, advice = str(error.value).partition("; type ")
            assert problem == f"tracker.trackio.port={port}: in use"
            first, _, second = advice.partition(" or --port ")
            assert first == f"TRACKIO_PORT={second}"
            assert module._problem_with(int(second)) is None


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(ConfigError, match=rf"tracker.trackio.port={port}: must be from 1 to 65535"):
        serve(PROJECT, port, None)


@pytest.mark.usefixtures("stored")
def test_an_unknown_project_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    """In the directory that was looked into; an empty one says so."""
    (tmp_path / "trackio" / "other.db").touch()
    message = f"project=lenet6: not in {tmp_path / 'trackio'}; choose from {PROJECT}, other"
    with pytest.raises(ConfigError, match=message):
        serve("lenet6", 7860, None)
    with pytest.raises(ConfigError, match=f"{tmp_path / 'nothing'}: no project is there"):
        serve(None, 7860, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_projects_of_fragments_are_not_known_beforehand(tmp_path: Path) -> None:
    """Runs on a network file system: the dashboard itself makes their databases."""
    (tmp_path / "inbox" / "writer").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no project is there"):
        module._find_project("my.model", tmp_path)
    (tmp_path / "inbox" / "writer" / "00000000.jsonl").touch()
    assert module._find_project("my.model", tmp_path) == "my-model"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6 and the line that installs it."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrackerError, match=r"pip install 'trackio>=0\.43,<0\.44'"):
        serve(None, 7860, None)


def test_a_database_that_trackio_cannot_open(tmp_path: Path) -> None:
    """One of any project ends Trackio's server: which, and what to do."""

    def show(**_: Any) -> None:
        raise RuntimeError("Could not migrate project 'x' to schema version 2: file is not a database")

    with pytest.raises(TrackerError, match=r"Could not migrate project 'x'.*; if that database is damaged"):
        module._start(show, None, 7860, tmp_path)
