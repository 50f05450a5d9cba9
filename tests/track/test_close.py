"""A run that was killed: told so, closed, filled, and still to be continued."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamwprune import run_directory
from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.track.__main__ import main
from adamwprune.track.close import close
from adamwprune.track.recorded import run_state
from adamwprune.track.status import look
from adamwprune.trackers.loopback import WandbServer
from adamwprune.trackers.wandb_files import parse_run
from adamwprune.training.ledger import read_lines
from tests.helpers import trackio_store
from tests.track.made import row

pytest.importorskip("trackio")
pytest.importorskip("wandb")
ROOT = Path(__file__).parents[2]
Make = Callable[..., Any]

TRAINING = (
    *("data=synthetic_images", "data.num_train=256", "data.num_val=64", "data.num_test=64"),
    *("trainer.global_batch_size=16", "trainer.max_steps=24", "trainer.log_every=3"),
    *("trainer.eval_every=6", "lr_schedule.warmup_steps=3", "optimizer=adamw"),
)
# Both trackers have some rows, the ledger has more, a line is torn, and then the process is gone.
KILLED = """
import os, sys
from pathlib import Path
from adamwprune import run_directory
from tests.track.made import Made
made = Made(Path(sys.argv[1]), "trackio", "wandb")
with run_directory.locked(made.directory):
    made.log(range(1, 11))
    made.wait("trackio", steps=10)
    made.log(range(11, 31))
    with (made.directory / "metrics.jsonl").open("a") as ledger:
        ledger.write('{"step": 31, "ti')
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Make a run whose process was killed."""
    directory = tmp_path / "outputs" / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(directory)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    return directory


def stored(directory: Path) -> tuple[trackio_store.StoredRun, list[Any]]:
    """What the trackers' files hold of a run."""
    record = json.loads((directory / "run.json").read_text())
    database = Path(os.environ["TRACKIO_DIR"]) / f"{record['project']}.db"
    fragments = sorted((directory / "wandb").glob("offline-run-*/*.wandb"))
    return trackio_store.read_run(database, record["run_id"]), [parse_run(file) for file in fragments]


def ledger(directory: Path) -> dict[int, dict[str, Any]]:
    """Values of each step of metrics.jsonl, as JSON has them."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line.pop("step"): line for line in lines if "event" not in line and line.pop("time")}


def changes(directory: Path) -> dict[Path, int]:
    """When each file of a run was last written."""
    return {file: file.stat().st_mtime_ns for file in directory.rglob("*") if file.name != "run.lock"}


def test_a_killed_run_is_whole_in_all_stores_and_has_its_exit_code(
    killed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command closes it, fills what the kill cost, and says what is only here; once there is a
    server, the same command uploads that. Repeated, it does nothing."""
    assert run_state(killed) == "killed"
    before, fragments = stored(killed)
    assert len(before.series) < 30
    assert fragments[-1].exit_code is None

    assert main(["sync", str(killed)]) == 6
    said = capsys.readouterr().out
    assert "outputs/killed: killed, closed with exit code 137" in said
    assert "wandb: 150 values at 30 steps, all equal\n  wandb: not uploaded: no key in WANDB_API_KEY" in said
    trackio, fragments = stored(killed)
    truth = ledger(killed)
    assert list(truth) == list(range(1, 31))
    assert {step: values for step, _, values in trackio.series} == truth
    assert len(trackio.series) == 30
    assert [row["run/exit_code"] for _, row in trackio.ends] == [137]
    assert [(level, step) for _, level, step in trackio.alerts] == [("error", 30)]
    assert sorted(row["trainer/step"] for part in fragments for row in part.rows) == list(truth)
    assert fragments[-1].exit_code == 137
    assert main(["verify", str(killed)]) == 0
    files = changes(killed)
    assert main(["sync", str(killed)]) == 6
    assert changes(killed) == files

    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        assert main(["sync", str(killed)]) == 0
        assert [row["trainer/step"] for row in server.run.rows] == list(truth)
        assert [row["train/loss"] for row in server.run.rows] == [row["train/loss"] for row in truth.values()]
        assert server.run.exit_code == 137
        asked = len(server.operations)
        assert main(["sync", str(killed)]) == 0
        assert len(server.operations) == asked
    assert look(killed).stores[1].state == "closed"


@pytest.mark.slow
def test_a_closed_run_still_goes_on(tmp_path: Path) -> None:
    """Training that SIGKILL ended, closed, resumed: finished, its summary that of an unbroken run."""
    import torch

    from tests.helpers.runs import final_weights, rows, run, summary

    whole = run(tmp_path / "whole", *TRAINING)
    code = (
        "import os, sys; from pathlib import Path; from tests.helpers import runs; "
        "from adamwprune.training import loop; real = loop.accumulate_gradients; steps = []; "
        "loop.accumulate_gradients = lambda *given: "
        "(steps.append(1), os.kill(os.getpid(), 9) if len(steps) == 18 else None, real(*given))[-1]; "
        "runs.run(Path(sys.argv[1]), *sys.argv[2:])"
    )
    directory = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(directory), *TRAINING, "tracker=both"]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert run_state(directory) == "killed"
    close(directory)
    assert run_state(directory) == "killed"

    resumed = [sys.executable, str(ROOT / "train.py"), f"resume={directory}", "hardware.threads=1"]
    done = subprocess.run(resumed, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run_state(directory) == "finished"
    assert rows(directory) == rows(whole)
    weights = final_weights(directory)
    assert all(torch.equal(value, weights[name]) for name, value in final_weights(whole).items())
    assert summary(directory)["metrics"]["best"] == summary(whole)["metrics"]["best"]
    trackio, fragments = stored(directory)
    assert [row["run/exit_code"] for _, row in trackio.ends] == [137, 0]
    assert fragments[-1].exit_code == 0
    assert main(["verify", str(directory)]) == 0


def test_what_close_writes(make: Make) -> None:
    """The summary says what the rows tell and no more; the alert stands at the last step, once."""
    made = make("a", pruning={"criterion": {}, "target_sparsity": 0.5}).log(range(1, 4))
    summary = close(made.directory, 139)
    assert summary == run_directory.read_json(made.directory / "summary.json")
    assert (summary["status"], summary["exit_code"], summary["steps"]) == ("killed", 139, 3)
    assert summary["metrics"]["final"] == {}  # nothing is
    last = row(3)
    assert summary["metrics"]["last"] == {"train/loss": last["train/loss"], "val/perplexity": "Infinity"}
    (alert,) = [line for line in read_lines(made.directory / "metrics.jsonl") if line.get("event") == "alert"]
    assert (alert["step"], alert["rule"], alert["level"], alert["title"]) == (
        *(3, "end", "error"),
        "killed, exit code 139",
    )
    assert not run_directory.is_finished(made.directory)


def test_a_run_that_died_by_itself_has_failed(make: Make) -> None:
    """Exit code 1 and no summary: an import that failed, say."""
    summary = close(make("a").directory, 1)
    assert (summary["status"], summary["steps"], summary["error"]) == ("failed", 0, "ended, exit code 1")


def test_what_has_ended_or_runs_is_not_closed(make: Make) -> None:
    """The control: once nobody is at it, it is."""
    ended, running = make("a").end("failed", 1), make("b").directory
    before = (ended / "summary.json").read_bytes()
    with pytest.raises(CheckpointError, match="has ended already: failed, exit code 1"):
        close(ended)
    assert (ended / "summary.json").read_bytes() == before
    with (
        run_directory.locked(running),
        pytest.raises(CheckpointError, match="running; stop it, or let it end"),
    ):
        close(running)
    assert not (running / "summary.json").exists()
    assert (running / "metrics.jsonl").read_text() == ""
    assert close(running)["exit_code"] == 137


@pytest.mark.parametrize("code", ["0", "256", "-9"])
def test_an_exit_code_is_one_that_a_shell_shows(make: Make, code: str) -> None:
    directory = make("a").directory
    with pytest.raises(ConfigError, match="from 1 to 255"):
        main(["close", str(directory), f"--exit-code={code}"])
    assert not (directory / "summary.json").exists()
