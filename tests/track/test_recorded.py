"""What a folder says of a run: who it is, and whether it runs, was killed, or has ended."""

import fcntl
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamwprune import run_directory
from adamwprune.errors import CheckpointError
from adamwprune.track.recorded import find_runs, is_locked, is_unsent, run_info, run_state
from adamwprune.trackers.wandb_files import fragments, mark_synced

Make = Callable[..., Any]


def test_the_run_is_the_one_that_its_trackers_were_told_of(make: Make) -> None:
    """Field by field but for what another session knows: that it is not the first, and where it goes on."""
    made = make("a", tags=["x", "y"], notes="why").log(range(1, 6))
    made.end()
    told, read = made.run, run_info(made.directory)
    for field in ("run_id", "name", "project", "group", "directory", "config", "total_steps", "tracker_id"):
        assert getattr(read, field) == getattr(told, field)
    assert (read.is_continued, read.first_step, read.tags, read.notes) == (True, 5, ("x", "y"), "why")


def test_a_rewind_makes_the_id_that_training_would_use(make: Make) -> None:
    """Rows that were taken back count neither for the step nor for anything else."""
    made = make("a").log(range(1, 6))
    directory = made.end()
    with (directory / "metrics.jsonl").open("a") as ledger:
        ledger.write(json.dumps({"step": 2, "time": 1.0, "event": "rewind"}) + "\n")
    read = run_info(directory)
    assert (read.first_step, read.tracker_id) == (2, f"{made.run.run_id}-r1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such folder"),
        ({}, "run.json is missing"),
        ({"name": "x"}, "is not of this program, it has no run_id"),
    ],
)
def test_what_is_no_run_is_refused_with_what_is_missing(
    tmp_path: Path, content: dict[str, str] | None, words: str
) -> None:
    directory = tmp_path / "x"
    if content is not None:
        directory.mkdir()
    if content:
        run_directory.write_json(directory / "run.json", content)
    with pytest.raises(CheckpointError, match=words):
        run_info(directory)


# ---- finding


def test_runs_are_found_wherever_they_are_and_nothing_else_is(make: Make, tmp_path: Path) -> None:
    """Also jobs of a sweep; a folder within a run is no run, even with a run.json; order is that of paths."""
    first, second = make("b").end(), make("a").end()
    (first / "trackers").mkdir()
    job = make("../../multirun/d/t/0").end()
    inner = second / "checkpoints" / "x"
    inner.mkdir(parents=True)
    (inner / "run.json").write_text("{}")
    assert find_runs([]) == [second, first, job]
    assert find_runs([first]) == [first]
    assert find_runs([Path("multirun"), job]) == [job]
    with pytest.raises(CheckpointError, match="no run there"):
        find_runs([tmp_path / "outputs", first / "trackers"])


# ---- state


def set_start(directory: Path, seconds_ago: float) -> None:
    record = run_directory.read_json(directory / "run.json")
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds_ago))
    record["sessions"][-1]["started"] = started
    run_directory.write_json(directory / "run.json", record)


def test_states_of_a_run_without_a_summary(make: Make) -> None:
    """Locked: running, also beside a summary of an earlier session. Young, and its ledger not opened:
    starting. Else nobody is at it any more."""
    made = make("a")
    ledger = made.directory / "metrics.jsonl"
    set_start(made.directory, seconds_ago=10)
    ledger.rename(ledger.with_suffix(".later"))
    assert run_state(made.directory) == "starting"
    with run_directory.locked(made.directory):
        assert run_state(made.directory) == "running"
    set_start(made.directory, seconds_ago=120)
    assert run_state(made.directory) == "killed"
    set_start(made.directory, seconds_ago=10)
    ledger.with_suffix(".later").rename(ledger)
    assert run_state(made.directory) == "killed"
    made.end("preempted", 75)
    assert run_state(made.directory) == "preempted"
    with run_directory.locked(made.directory):
        assert run_state(made.directory) == "running"


def test_looking_at_the_lock_leaves_it_free(make: Make) -> None:
    """A run may take its lock right after; two looks at once do not see each other."""
    directory = make("a").end()
    assert not is_locked(directory)
    with run_directory.locked(directory):
        assert is_locked(directory)
    with (directory / "run.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not is_locked(directory)
    with run_directory.locked(directory):
        pass


def test_looking_at_a_run_keeps_nobody_from_starting_it(make: Make) -> None:
    """`status` asks for the lock while another process takes it; the control: a held lock is refused."""
    directory = make("a").log(range(1, 3)).end()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            is_locked(directory)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            with run_directory.locked(directory):
                pass
    finally:
        is_over.set()
        looking.join()
    refused = pytest.raises(CheckpointError, match="in use")
    with run_directory.locked(directory), refused, run_directory.locked(directory):
        pass


def test_an_upload_is_known_wherever_the_folder_lies(make: Make, tmp_path: Path) -> None:
    """Marked as sent, then moved: still sent; and a moved run that was not sent is still unsent."""
    pytest.importorskip("wandb")
    directory = make("a", "wandb").log(range(1, 3)).end()
    moved = directory.rename(tmp_path / "moved")
    assert is_unsent(moved, "wandb")
    for file in fragments(moved):
        mark_synced(file)
    assert not is_unsent(moved, "wandb")
