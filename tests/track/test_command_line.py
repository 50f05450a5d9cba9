"""The command line: help without torch, one line and the exit code for what is wrong, a view of metrics."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamwprune.callbacks.console import Terminal
from adamwprune.errors import ConfigError
from adamwprune.track import metrics as metrics_module
from adamwprune.track.__main__ import TRACKERS, main, parser
from adamwprune.track.dashboard import choose_port

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *("status", "verify", "diff", "sync", "replay", "import-wandb"),
    *("close", "test", "dashboard", "metrics"),
]
Make = Callable[..., Any]
Out = pytest.CaptureFixture[str]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adamwprune.track", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_all_commands_and_imports_no_torch() -> None:
    code = (
        "import runpy, sys; sys.modules.update(torch=None, trackio=None, wandb=None); "
        "sys.argv = ['track', '--help']; runpy.run_module('adamwprune.track', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^    (\S+)", done.stdout, re.MULTILINE) == COMMANDS
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        parser().parse_args([name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m adamwprune.track {name}")
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "nowhere"], 5, "error[5]: nowhere: there is no such folder; give the folder of a run"),
        (["verify"], 2, "error[2]: the following arguments are required: RUN"),
        (["replay", "x", "--to", "wnadb"], 2, "invalid choice: 'wnadb'"),
        (["dashboard", "--port", "99999"], 2, "error[2]: --port 99999: must be an integer from 1 to 65535"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(arguments: list[str], code: int, words: str) -> None:
    done = command(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_reader_that_leaves_is_no_error(make: Make) -> None:
    """`status | head -1`, with more lines than a pipe holds."""
    for number in range(3):
        make("x" * 200 + str(number)).end()
    line = f"{sys.executable} -m adamwprune.track status {'outputs ' * 400}| head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_trackers_are_the_options_that_are_one() -> None:
    assert {"trackio", "wandb"} <= set(TRACKERS)
    assert not {"none", "both"} & set(TRACKERS)


# ---- dashboard


@pytest.mark.parametrize(
    ("flag", "environment", "expected"),
    [(None, None, 7860), (None, "8080", 8080), ("8081", "8080", 8081), ("65535", "nonsense", 65535)],
)
def test_the_port_is_the_flags_then_the_environments(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, environment: str | None, expected: int
) -> None:
    if environment is not None:
        monkeypatch.setenv("TRACKIO_PORT", environment)
    assert choose_port(flag) == expected


@pytest.mark.parametrize("text", ["0", "65536", "-1", "80.0", "x", " 80"])
def test_what_is_no_port_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Flag and environment alike, before Trackio is imported."""
    with pytest.raises(ConfigError, match=r"--port .*: must be an integer from 1 to 65535"):
        choose_port(text)
    monkeypatch.setenv("TRACKIO_PORT", text)
    with pytest.raises(ConfigError, match=f"TRACKIO_PORT={text}: must be"):
        main(["dashboard"])


def test_the_dashboard_is_asked_for_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    module = type(sys)("adamwprune.trackers.dashboard")
    module.serve = lambda *given: asked.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "adamwprune.trackers.dashboard", module)
    assert main(["dashboard", "--project", "p", "--port", "8080", "--dir", "d"]) == 0
    assert asked == [("p", 8080, Path("d"))]


# ---- metrics


def test_metrics_shows_the_last_value_of_each(
    make: Make, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a tracker; a metric that only an early row has, with that step; the alerts below; and no
    line wider than 80."""
    monkeypatch.setattr(metrics_module, "Terminal", lambda: Terminal(width=80))
    made = make("a").log(range(1, 4))
    made._records.log(4, {"train/loss": 2.0, "val/accuracy": 0.5})
    made.alert(4)
    assert main(["metrics", str(made.end("failed", 7))]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == "run-a: failed, step 4 of 30"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert ["train/loss", "2", "4"] in cells
    assert ["train/lr", "0.0003333", "3"] in cells
    assert ["val/perplexity", "inf", "3"] in cells
    assert [name for name, *_ in cells] == sorted(name for name, *_ in cells)
    assert lines[-1] == "step 4 warn: loss spike: train/loss is 7"
    assert max(map(len, lines)) <= 80


def test_metrics_of_a_run_without_a_row(make: Make, capsys: Out) -> None:
    assert main(["metrics", str(make("a").end("failed", 1))]) == 0
    assert capsys.readouterr().out == "run-a: failed, no row yet\n"
