"""The thread that copies metrics.jsonl to a tracker: what arrives, what a broken tracker costs."""

import configparser
import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.callbacks.base import Alert, Row, RunInfo
from adamwprune.trackers import backend as backend_module
from adamwprune.trackers import mirror as mirror_module
from adamwprune.trackers.backend import Backend, environment, finals, missing_packages, public_config
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.parity import Series, series
from adamwprune.trackers.rows import AlertEntry, Entry, Position, read_rows
from adamwprune.training.ledger import Ledger

ROOT = Path(__file__).parents[2]
SUMMARY = {
    "status": "finished",
    "exit_code": 0,
    "steps": 30,
    "seconds": 2.5,
    "sparsity": {"target": 0.9, "achieved": 0.9},
    "metrics": {
        "final": {"val/loss": 0.5, "test/accuracy": 0.99, "val/perplexity": "Infinity"},
        "best": {"val/loss": {"value": 0.4, "step": 20}},
    },
}


class Fake(Backend):
    """A tracker in memory, which fails or hangs where it is told to."""

    def __init__(self, *, idempotent: bool = True, name: str = "fake"):
        super().__init__()
        self.name = name
        self.idempotent = idempotent
        self.facts["path"] = "memory"
        self.stored: dict[int, Entry] = {}
        self.calls: list[int] = []
        self.ended: tuple[int, Row] | None = None
        self.failures: dict[str, list[BaseException]] = {}  # per phase, one for each call to come
        self.hangs: str | None = None
        self.is_free = threading.Event()

    def open(self, run: RunInfo) -> None:
        self._pass("open")

    def log(self, entries: list[Entry]) -> None:
        self._pass("log")
        for entry in entries:
            if entry.row.get("poison"):
                raise TypeError("a value that this tracker cannot hold")
        self.calls.append(len(entries))
        self.stored.update({entry.end.line: entry for entry in entries})

    def finish(self, exit_code: int, finals: Row) -> None:
        self._pass("finish")
        self.ended = (exit_code, finals)

    def _pass(self, phase: str) -> None:
        if self.hangs == phase:
            self.is_free.wait()
        if self.failures.get(phase):
            raise self.failures[phase].pop(0)

    @property
    def steps(self) -> list[int]:
        return [entry.step for entry in self.stored.values()]


@pytest.fixture
def fake() -> Iterator[Fake]:
    """Make a tracker whose thread is let go at the end."""
    made = Fake()
    yield made
    made.is_free.set()


def mirror(backend: Fake, **keys: Any) -> Mirror:
    return Mirror(backend, **{"finish_timeout": 20.0, **keys})


def close_all(callbacks: list[Mirror], exit_code: int) -> None:
    for callback in callbacks:
        callback.finish(exit_code)
    for callback in callbacks:
        callback.close(exit_code)


def state_of(callback: Mirror) -> dict[str, Any]:
    (state,) = callback.status().values()
    return state


# ---- rows


def test_rows_arrive_as_logged(fake: Fake, run: RunInfo, log_rows: Callable[..., None]) -> None:
    """Bit-equal values at the same steps and times: JSON writes a float's shortest exact form."""
    callback = mirror(fake)
    callback.on_train_start(run)
    log_rows(
        run, range(30), note="x", none=None, flag=True, nan=math.nan, up=math.inf, down=-math.inf, big=2**62
    )
    callback.close(0)
    assert fake.steps == list(range(30))
    for entry in fake.stored.values():
        assert entry.time == 1764000000 + entry.step / 3
        assert math.isnan(entry.row.pop("nan"))
        assert entry.row == {
            "train/loss": 1 / (entry.step + 3),
            "train/lr": 0.1 + entry.step,
            "sparsity/layer/conv1.weight": entry.step / 7,
            **{"note": "x", "none": None, "flag": True, "up": math.inf, "down": -math.inf, "big": 2**62},
        }
        assert isinstance(entry.row["flag"], bool)
    assert state_of(callback) == {
        **{
            "state": "closed",
            "required": False,
            "sent": 30,
            "dropped": 0,
            "parity": None,
            "errors": {},
            "path": "memory",
        }
    }


def test_tensors_never_arrive(fake: Fake, run: RunInfo, log_rows: Callable[..., None]) -> None:
    """Values come out of a JSON file; the control: the tensor was in the row that was logged."""
    torch = pytest.importorskip("torch")
    callback = mirror(fake)
    callback.on_train_start(run)
    log_rows(run, range(3), scalar=torch.tensor(0.5), matrix=torch.ones(2, 2))
    callback.close(0)
    assert [entry.row["scalar"] for entry in fake.stored.values()] == [0.5] * 3
    assert all(type(entry.row["scalar"]) is float for entry in fake.stored.values())
    assert all("matrix" not in entry.row for entry in fake.stored.values())


def test_backlog_of_a_slow_start_arrives_whole(
    fake: Fake, run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """The ledger is the queue: no row is kept in memory, none is lost, in batches and in order."""
    fake.hangs = "open"
    callback = mirror(fake)
    callback.on_train_start(run)
    log_rows(run, range(12_000))
    assert not fake.stored
    fake.is_free.set()
    callback.close(0)
    assert fake.steps == list(range(12_000))
    assert max(fake.calls) == mirror_module.BATCH
    assert state_of(callback)["state"] == "closed"


def test_resume_fills_a_tracker_that_stores_once(
    run: RunInfo, make_run: Callable[..., RunInfo], log_rows: Callable[..., None]
) -> None:
    """Killed after 15 steps, resumed from 10: the second process sends all 20 rows, with the numbers
    that the first one gave them, so that what the first had not sent is repaired."""
    first, second = Fake(), Fake()
    callback = mirror(first)
    callback.on_train_start(run)
    log_rows(run, range(15))
    callback.close(75)
    callback = mirror(second)
    callback.on_train_start(make_run(first_step=10))
    log_rows(run, range(10, 20))
    callback.close(0)
    assert second.steps == list(range(20))
    assert first.stored.items() <= second.stored.items()


def test_resume_sends_others_only_new_rows(
    run: RunInfo, make_run: Callable[..., RunInfo], log_rows: Callable[..., None]
) -> None:
    """One row at a time, none that was in the ledger before, none twice; also after a torn line."""
    log_rows(run, range(15))
    ledger = run.directory / "metrics.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"step": 15, "time"')
    backend = Fake(idempotent=False)
    callback = mirror(backend)
    callback.on_train_start(make_run(first_step=10))
    log_rows(run, range(10, 20))
    callback.close(0)
    assert backend.steps == list(range(15, 20))
    assert list(backend.stored) == list(range(16, 21))
    assert backend.calls == [1] * 5
    assert state_of(callback)["dropped"] == 0


ROWS = b"".join(
    json.dumps({"step": step, "time": 0.5, "event" if step == 3 else "loss": step}).encode() + b"\n"
    for step in range(6)
)


@given(cut=st.integers(0, len(ROWS)))
def test_reader_resumes_at_any_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A file cut anywhere yields whole rows only; reading on from there yields the others, once."""
    file = tmp_path_factory.getbasetemp() / "cut.jsonl"
    file.write_bytes(ROWS[:cut])
    first = list(read_rows(file))
    file.write_bytes(ROWS)
    rest = list(read_rows(file, first[-1].end if first else Position()))
    assert [entry.step for entry in first + rest] == [0, 1, 2, 4, 5]
    assert [entry.end.line for entry in first + rest] == [1, 2, 3, 5, 6]
    assert rest[-1].end.offset == len(ROWS) if rest else True


def test_reader_passes_over_what_is_no_row(tmp_path: Path) -> None:
    """Garbage, a list, a row without a step: skipped and counted as lines; no file: no rows."""
    file = tmp_path / "metrics.jsonl"
    assert list(read_rows(file)) == []
    file.write_text('nonsense\n[1]\n{"loss": 1}\n{"step": "4"}\n{"step": 7, "loss": 1}\n')
    assert [(entry.step, entry.end.line) for entry in read_rows(file)] == [(7, 5)]


# ---- trackers that break

ERRORS = [RuntimeError("no"), OSError(28, "disk full"), SystemExit(3), KeyboardInterrupt()]


@pytest.mark.parametrize("phase", ["open", "log", "finish"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_raising_tracker_costs_the_run_nothing(
    phase: str,
    error: BaseException,
    run: RunInfo,
    log_rows: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No hook raises, the other tracker is complete, the state tells, and the log once per kind."""
    broken, other = Fake(), Fake(name="other")
    broken.failures = {phase: [error] * 100}
    callbacks = [mirror(broken), mirror(other)]
    for callback in callbacks:
        callback.on_train_start(run)
    log_rows(run, range(30))
    for callback in callbacks:
        callback.on_train_end(SUMMARY)
    close_all(callbacks, 0)
    assert other.steps == list(range(30))
    assert state_of(callbacks[1])["state"] == "closed"
    state = state_of(callbacks[0])
    assert state["state"] == ("failed" if phase == "open" else "degraded")
    assert state["dropped"] == (0 if phase == "finish" else 30)
    assert state["sent"] + state["dropped"] == 30
    kind = f"{phase} {type(error).__name__}"
    assert list(state["errors"]) == [kind]
    assert state["errors"][kind]["first"] == (str(error) or type(error).__name__)
    assert len([r for r in caplog.records if kind in r.getMessage()]) == 1
    json.dumps(callbacks[0].status())


@pytest.mark.parametrize("phase", ["open", "log", "finish"])
def test_a_hanging_tracker_costs_its_deadline(
    phase: str, fake: Fake, run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """close() returns after finish_timeout (10 s of grace for a busy machine); the other is complete."""
    fake.hangs = phase
    other = Fake(name="other")
    callbacks = [mirror(fake, finish_timeout=0.3), mirror(other)]
    for callback in callbacks:
        callback.on_train_start(run)
    log_rows(run, range(30))
    started = time.monotonic()
    close_all(callbacks, 0)
    assert 0.3 <= time.monotonic() - started < 10
    assert other.steps == list(range(30))
    state = state_of(callbacks[0])
    assert state["state"] == ("failed" if phase == "open" else "degraded")
    assert state["dropped"] == (0 if phase == "finish" else 30)
    assert state["errors"] == {"finish TimeoutError": {"count": 1, "first": "gave up after 0.3 s"}}
    fake.is_free.set()
    callbacks[0]._thread.join(10)
    assert state_of(callbacks[0]) == state, "summary.json has been written: the state is final"


def test_trackers_share_one_deadline(run: RunInfo) -> None:
    """Four that hang for 1 s each are given up after 1 s, not after 4."""
    fakes = [Fake() for _ in range(4)]
    callbacks = [mirror(fake, finish_timeout=1.0) for fake in fakes]
    for fake, callback in zip(fakes, callbacks, strict=True):
        fake.hangs = "finish"
        callback.on_train_start(run)
    started = time.monotonic()
    close_all(callbacks, 0)
    assert time.monotonic() - started < 3
    for fake in fakes:
        fake.is_free.set()


def test_refused_rows_are_sent_again(fake: Fake, run: RunInfo, log_rows: Callable[..., None]) -> None:
    """A database that was locked for a while has every row in the end, once; errors stay counted."""
    fake.failures["log"] = [OSError("locked")] * 2
    callback = mirror(fake)
    callback.on_train_start(run)
    log_rows(run, range(30))
    callback.close(0)
    assert fake.steps == list(range(30))
    assert state_of(callback)["state"] == "closed"
    assert state_of(callback)["errors"] == {"log OSError": {"count": 2, "first": "locked"}}


def test_rows_refused_until_the_end_are_sent_then(run: RunInfo, log_rows: Callable[..., None]) -> None:
    """However often a tracker refused before, the end has attempts of its own."""

    class Locked(Fake):
        def log(self, entries: list[Entry]) -> None:
            self.calls.append(callback._ending.is_set())
            if sum(self.calls) < mirror_module.LAST_ATTEMPTS:
                raise OSError("locked")
            self.stored.update({entry.end.line: entry for entry in entries})

    backend = Locked()
    callback = mirror(backend)
    log_rows(run, range(30))
    callback.on_train_start(run)
    while len(backend.calls) < 4:
        time.sleep(0.001)
    callback.close(0)
    assert backend.steps == list(range(30))
    assert state_of(callback)["state"] == "closed"


def test_unreadable_ledger_is_an_error_of_the_tracker(fake: Fake, run: RunInfo) -> None:
    """A directory where the file should be: a state, and no exception in the loop."""
    (run.directory / "metrics.jsonl").mkdir()
    callback = mirror(fake)
    callback.on_train_start(run)
    callback.close(0)
    assert state_of(callback)["state"] in ("degraded", "failed")
    assert "read IsADirectoryError" in state_of(callback)["errors"]


def test_one_bad_row_does_not_take_others_with_it(
    fake: Fake, run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """Only the row that the tracker cannot hold is dropped, and counted."""
    log_rows(run, range(10))
    log_rows(run, range(10, 11), poison=True)
    log_rows(run, range(11, 30))
    callback = mirror(fake)
    callback.on_train_start(run)
    callback.close(0)
    assert fake.steps == [*range(10), *range(11, 30)]
    assert (state_of(callback)["sent"], state_of(callback)["dropped"]) == (29, 1)
    assert state_of(callback)["state"] == "degraded"


def test_states_before_the_end(fake: Fake, run: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting, late, open; a run that ends before it began has a state too."""
    fake.hangs = "open"
    callback = mirror(fake, required=True)
    assert state_of(callback)["state"] == "starting"
    callback.close(2)
    callback = mirror(fake)
    callback.on_train_start(run)
    assert state_of(callback)["state"] == "starting"
    monkeypatch.setattr(mirror_module, "LATE", 0.0)
    assert state_of(callback)["state"] == "late"
    fake.is_free.set()
    while state_of(callback)["state"] == "late":
        time.sleep(0.001)
    assert state_of(callback)["state"] == "open"
    callback.close(0)
    callback.close(0)
    assert state_of(callback)["state"] == "closed"


def test_state_while_rows_are_refused(fake: Fake, run: RunInfo, log_rows: Callable[..., None]) -> None:
    """Degraded while it lasts, open again after."""
    fake.failures["log"] = [OSError("locked")] * 3
    log_rows(run, range(3))
    callback = mirror(fake)
    callback.on_train_start(run)
    seen = set()
    while not fake.stored:
        seen.add(state_of(callback)["state"])
        time.sleep(0.001)
    callback.close(0)
    assert "degraded" in seen
    assert state_of(callback)["state"] == "closed"


# ---- the end of a run


@pytest.mark.parametrize("exit_code", [0, 1, 7, 75, 130, 143])
def test_exit_code_and_finals_reach_the_tracker(exit_code: int, fake: Fake, run: RunInfo) -> None:
    """Final values under names of their own, so that no series gets a point more."""
    callback = mirror(fake)
    callback.on_train_start(run)
    if exit_code == 0:
        callback.on_train_end(SUMMARY)
    callback.close(exit_code)
    expected: Row = {"run/exit_code": exit_code}
    if exit_code == 0:
        expected |= {"final/val/perplexity": math.inf, "final/sparsity/global": 0.9}
        expected |= {"final/val/loss": 0.5, "final/test/accuracy": 0.99, "run/status": "finished"}
        expected |= {"best/val/loss": 0.4, "best/val/loss/step": 20, "run/steps": 30, "run/seconds": 2.5}
    assert fake.ended == (exit_code, expected)


def test_finals_of_an_empty_summary() -> None:
    """A run that failed before it had a summary has an exit code all the same."""
    assert finals({}, 9) == {"run/exit_code": 9}


def test_public_config_is_plain() -> None:
    """No key with a leading underscore at any depth, no object; the given mapping is left alone."""
    config = {
        "model": {"_target_": "a.B", "sizes": (1, 2), "path": Path("x")},
        "lr": 0.1,
        "none": None,
        "on": True,
    }
    assert public_config(config) == {
        "model": {"target": "a.B", "sizes": [1, 2], "path": "x"},
        **{"lr": 0.1, "none": None, "on": True},
    }
    assert "_target_" in config["model"]


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set, unset and untouched variables are what they were, also after an error."""
    monkeypatch.setenv("TRACKER_TEST_SET", "1")
    before = dict(os.environ)
    with environment(TRACKER_TEST_SET=None, TRACKER_TEST_NEW="2"):
        assert "TRACKER_TEST_SET" not in os.environ
        assert os.environ["TRACKER_TEST_NEW"] == "2"
    assert dict(os.environ) == before
    with contextlib.suppress(RuntimeError), environment(TRACKER_TEST_SET=None):
        raise RuntimeError
    assert dict(os.environ) == before


# ---- packages


def test_missing_packages_are_found_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tracker whose package is absent, with the line that installs it; nothing is imported."""
    (tmp_path / "my_tracker.py").write_text(
        'PACKAGES = {"no_such_pkg": "no-such-pkg>=1"}\nraise SystemExit\n'
    )
    (tmp_path / "my_other.py").write_text('PACKAGES = {"json": "json"}\nraise SystemExit\n')
    (tmp_path / "my_plain.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    nodes = {
        "mine": {"_target_": "my_tracker.make"},
        "other": {"_target_": "my_other.make"},
        "plain": {"_target_": "my_plain.make"},
    }
    assert missing_packages(nodes) == [("mine", "pip install 'no-such-pkg>=1'")]
    assert missing_packages({}) == []
    assert not {"my_tracker", "my_other", "my_plain"} & sys.modules.keys()


@pytest.mark.parametrize("name", ["trackio", "wandb", "tensorboard", "mlflow"])
def test_declared_packages_are_the_extras(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that a user is told to type installs what setup.cfg lists under the tracker's name."""
    util = backend_module.importlib.util
    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda module: find_spec(module) if "." in module else None)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"][name].strip().splitlines()
    node = {"_target_": f"adamwprune.trackers.{name}.{name}"}
    assert missing_packages({name: node}) == [(name, " ".join(["pip install", *(f"'{p}'" for p in extra)]))]


def test_importing_trackers_imports_no_package() -> None:
    """A tracker costs nothing until it is chosen, and `--help` nothing at all."""
    modules = ["mirror", "trackio", "wandb", "tensorboard", "mlflow"]
    code = "; ".join(f"import adamwprune.trackers.{module}" for module in modules)
    packages = {"torch", "trackio", "wandb", "tensorboard", "mlflow", "numpy"}
    code += f"; import sys; print(sorted({packages} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# ---- what is checked at the end, and what a later process fills


class Store(Fake):
    """A tracker whose store can be read back; it may lose or change what it was given."""

    def __init__(self, *, idempotent: bool = True, name: str = "store"):
        super().__init__(idempotent=idempotent, name=name)
        self.alerts: list[AlertEntry] = []
        self.loses: set[int] = set()  # steps, once each
        self.changes: set[int] = set()  # steps, always

    def log(self, entries: list[Entry]) -> None:
        super().log(entries)
        for entry in entries:
            if entry.step in self.loses:
                self.loses.remove(entry.step)
                del self.stored[entry.end.line]

    def alert(self, entry: AlertEntry) -> None:
        self._pass("alert")
        self.alerts.append(entry)

    def forget(self, lines: Collection[int]) -> None:
        for line in lines:
            self.stored.pop(line, None)

    def read_back(self, run: RunInfo) -> Series:
        self._pass("verify")
        wrong = {"train/lr": -1.0}
        return series(
            (step, {**row, **(wrong if step in self.changes else {})})
            for _, step, _, row in self.stored.values()
        )


def copy(backend: Backend, run: RunInfo, code: int = 0) -> dict[str, Any]:
    """Send a finished ledger, as a later process does; the tracker's state."""
    callback = mirror(backend)
    callback.on_train_start(run)
    callback.close(code)
    return state_of(callback)


def test_a_whole_store_is_said_to_be_equal(run: RunInfo, log_rows: Callable[..., None]) -> None:
    """One line, with what was compared; the state of the run's folder says the same."""
    log_rows(run, range(7), nan=math.nan)
    state = copy(Store(), run)
    assert state["state"] == "closed"
    assert state["parity"] == "28 values at 7 steps, all equal"
    assert "repair" not in state
    assert json.loads((run.directory / "trackers" / "store.json").read_text()) == state


def test_rows_that_a_store_lost_are_sent_again(run: RunInfo, log_rows: Callable[..., None]) -> None:
    """Trackio drops whole batches without an error: reading back finds it, and fills the holes."""
    log_rows(run, range(7))
    store = Store()
    store.loses = {2, 5}
    state = copy(store, run)
    assert state["state"] == "closed"
    assert state["parity"] == "21 values at 7 steps, all equal"
    assert sorted(store.steps) == list(range(7))


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_store_that_differs_is_degraded_and_says_what_repairs_it(
    run: RunInfo, log_rows: Callable[..., None], idempotent: bool
) -> None:
    """A changed value, or rows lost for good by a tracker that cannot be sent a row twice."""
    log_rows(run, range(7))
    store = Store(idempotent=idempotent)
    store.last_step = -1
    store.changes = {3}
    state = copy(store, run)
    assert state["state"] == "degraded"
    assert state["parity"] == "of 21 values 1 different; first: step 3 train/lr: 3.1, stored -1.0"
    assert state["repair"] == f"python -m adamwprune.track sync {run.directory}"


def test_a_store_that_cannot_be_read_back_is_degraded_only_by_an_error(
    run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """None means that there is nothing to read; an error while reading is one line of the state."""
    log_rows(run, range(3))
    assert copy(Fake(), run)["parity"] is None
    store = Store()
    store.failures["verify"] = [OSError("gone")]
    state = copy(store, run)
    assert (state["state"], state["parity"]) == ("degraded", None)
    assert state["errors"]["verify OSError"]["count"] == 1


def test_a_very_long_run_is_not_read_back_at_its_end(
    run: RunInfo, log_rows: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold up the end of the run; nothing is claimed about it."""
    log_rows(run, range(7))
    monkeypatch.setattr(mirror_module, "MOST_READ_BACK", 100)
    state = copy(Store(), run)
    assert (state["state"], state["parity"]) == ("closed", None)


def test_values_that_a_tracker_does_not_take_are_no_difference(
    run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """A tracker of numbers has no text; the control: without saying so it would be degraded."""

    class Numbers(Store):
        def log(self, entries: list[Entry]) -> None:
            super().log(
                [e._replace(row={k: v for k, v in e.row.items() if not isinstance(v, str)}) for e in entries]
            )

    class Told(Numbers):
        def takes(self, value: Any) -> bool:
            return not isinstance(value, str)

    log_rows(run, range(3), note="x")
    assert copy(Told(), run)["state"] == "closed"
    assert copy(Numbers(), run)["state"] == "degraded"


def test_a_tracker_that_knows_its_last_step_is_filled_from_there(
    run: RunInfo, make_run: Callable[..., RunInfo], log_rows: Callable[..., None]
) -> None:
    """Killed with 12 rows of 20 on record: a later process sends the other 8, one by one, none twice."""
    log_rows(run, range(20))
    store = Store(idempotent=False)
    store.last_step = 11
    copy(store, make_run(is_continued=True))
    assert store.steps == list(range(12, 20))
    empty = Store(idempotent=False)
    empty.last_step = -1
    assert copy(empty, make_run(is_continued=True))["state"] == "closed"
    assert empty.steps == list(range(20))


def test_an_alert_after_the_last_row_reaches_a_tracker_that_has_all_rows(
    run: RunInfo, make_run: Callable[..., RunInfo], log_rows: Callable[..., None]
) -> None:
    """The end of a killed run, which another process writes; a tracker that had the other shows it once."""
    log_rows(run, range(4))
    ledger = Ledger(run.directory / "metrics.jsonl", 3)
    for step in (2, 3):
        ledger.alert(step, 5.0, Alert("end", "error", "killed, exit code 137", f"at step {step}"))
    ledger.close()
    store = Store(idempotent=False)
    store.last_step = 3
    copy(store, make_run(is_continued=True))
    assert [entry.step for entry in store.alerts] == [2, 3]
    assert store.steps == []


def test_an_alert_that_a_tracker_refuses_for_good_is_no_closed_run(
    run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """Tried again to the end, then degraded with the line that repairs it; all rows are there."""
    log_rows(run, range(3))
    ledger = Ledger(run.directory / "metrics.jsonl", 2)
    ledger.alert(2, 5.0, Alert("end", "error", "ended with exit code 75", "SIGTERM"))
    ledger.close()
    store = Store()
    store.failures["alert"] = [OSError("locked")] * 100
    state = copy(store, run)
    assert (state["state"], store.alerts) == ("degraded", [])
    assert "track sync" in state["repair"]
    assert store.steps == list(range(3))


def test_alerts_reach_a_tracker_and_a_failing_one_holds_up_no_row(
    run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """An error is counted, the alert comes again, rows do not wait for it."""
    log_rows(run, range(3))
    ledger = Ledger(run.directory / "metrics.jsonl", 2)
    for step in (1, 2):
        ledger.alert(step, 5.0, Alert("loss_spike", "warn", "loss spike", "much"))
    ledger.close()
    log_rows(run, range(3, 5))
    store = Store()
    store.failures["alert"] = [OSError("no")]
    state = copy(store, run)
    assert sorted(entry.step for entry in store.alerts) == [1, 2]
    assert state["errors"]["alert OSError"]["count"] == 1
    assert state["state"] == "closed"
    assert store.steps == list(range(5))


def test_rows_that_a_rewind_took_back_are_forgotten(
    run: RunInfo, make_run: Callable[..., RunInfo], log_rows: Callable[..., None]
) -> None:
    """The store had steps 0 to 9; the run went on, not exactly, from step 4."""
    log_rows(run, range(10))
    store = Store()
    copy(store, run)
    ledger = Ledger(run.directory / "metrics.jsonl", 4, exact=False)
    for step in range(5, 8):
        ledger.write(step, 9.0, {"train/loss": 100.0 + step})
    ledger.close()
    state = copy(store, make_run(is_continued=True, rewinds=1))
    assert state["state"] == "closed"
    assert sorted(store.steps) == list(range(8))
    assert {entry.row["train/loss"] for entry in store.stored.values() if entry.step > 4} == {105, 106, 107}


def test_a_run_that_was_killed_has_left_its_trackers_state(
    run: RunInfo, log_rows: Callable[..., None]
) -> None:
    """Written when the tracker opens, for `track status`: where it is and that it never closed."""
    callback = mirror(Store())
    callback.on_train_start(run)
    log_rows(run, range(3))
    file = run.directory / "trackers" / "store.json"
    deadline = time.monotonic() + 10
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads(file.read_text())["state"] == "open"
    callback.close(0)
    assert json.loads(file.read_text())["state"] == "closed"
