"""F5: SIGTERM, SIGUSR1, SIGHUP, Ctrl-C once and twice, at every moment and in every phase of a run.

Most runs are forked, so that a trial costs tenths of a second; some are whole `python train.py`, whose start
is where nothing has been saved yet. A phase is made long enough to be hit: the run dwells in it once. For
a second Ctrl-C it dwells in C code, where Python runs no handler.
"""

import hashlib
import importlib.util
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adamwprune.run_directory import RECORD, SUMMARY, read_json
from adamwprune.training import evaluation, loop, saver
from adamwprune.training import run as run_module
from adamwprune.training.checkpoint import find_problem, steps_on_disk
from adamwprune.training.records import Records
from adamwprune.training.signals import StopRequest
from tests.faults.fork_server import Before, Child, continue_, home_of, spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.processes import Command
from tests.faults.tiny_runs import STEPS, overrides_of
from tests.helpers.same_run import differences

# Trials, and how many of them are whole commands.
TRIALS = {"short": 24, "long": 200}
WHOLE = {"short": 3, "long": 30}
SIGNALS = {
    "SIGTERM": signal.SIGTERM,
    "SIGUSR1": signal.SIGUSR1,
    "SIGHUP": signal.SIGHUP,
    "Ctrl-C": signal.SIGINT,
    "Ctrl-C twice": signal.SIGINT,
}
TWICE = "Ctrl-C twice"
# Seconds between the two.
BETWEEN = 0.6
# Seconds that a run dwells in a phase.
DWELL = 0.3
OVERRIDES = (*overrides_of("lenet5_caffe", "adamw", "state"), "checkpoint.every=20", "hardware.threads=1")
# As a command line takes them, which refuses a key that is given twice.
ARGUMENTS = tuple({override.partition("=")[0]: override for override in OVERRIDES}.values())
# Where a phase begins: the function that the run dwells before.
PHASES: dict[str, tuple[Any, str]] = {
    "data": (run_module, "build_training"),
    "tracker start": (run_module, "_open_records"),
    "first step": (loop, "take_step"),
    "evaluation": (evaluation, "cross_entropy"),
    "save": (saver, "save"),
    "test": (run_module, "evaluate_split"),
    "closing": (Records, "close"),
}
ANY = "any step"


@dataclass
class Trial:
    """One signal, and what became of the run."""

    case: str
    kind: str
    phase: str
    directory: Path
    code: int = 0
    steps: int = 0  # done when it left
    seconds: float = 0.0  # from the last signal to the end
    left: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lost: int = 0  # steps that were done and are in no checkpoint

    @property
    def expected(self) -> tuple[int, ...]:
        """Exit codes as docs/exit-codes.md has them."""
        if self.kind == TWICE:
            return (130,)
        if self.phase == "closing":
            return (0,)
        if self.kind == "Ctrl-C":
            return (130,)
        return (143,) if self.phase == "data" else (75,)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Each signal in each phase in turn, then moments at random; then all runs are continued and compared."""
    unbroken = scratch / "unbroken"
    if code := spawn(unbroken, *OVERRIDES).wait():
        raise RuntimeError(f"the unbroken run ended with {code}")
    trials = [*_forked(TRIALS[tier] - WHOLE[tier], seed, scratch), *_whole(WHOLE[tier], seed, scratch)]
    trials += _hanging_tracker(scratch)
    mismatches = []
    for trial in trials:
        trial.lost = trial.steps - newest_step(trial.directory)
        trial.failures += judge(trial)
        mismatches += [f"{trial.case}: {line}" for line in _continued(trial, unbroken)]
        shutil.rmtree(trial.directory, ignore_errors=True)
    once = [trial for trial in trials if trial.kind != TWICE]
    twice = [trial for trial in trials if trial.kind == TWICE]
    return Outcome(
        fault="SIGTERM, SIGUSR1, SIGHUP, Ctrl-C once and twice, in 7 phases and at random moments",
        promise="documented exit code, a summary.json that says so, no step lost, nothing left running; "
        "the continued run equals the unbroken one to the bit",
        trials=len(trials),
        failures=[f"{trial.case}: {line}" for trial in trials for line in trial.failures] + mismatches,
        figures={
            "wrong exit codes": sum(trial.code not in trial.expected for trial in trials),
            "most steps lost": max(trial.lost for trial in once),
            "slowest to leave, s": round(max(trial.seconds for trial in once), 2),
            "slowest after a second Ctrl-C, s": round(max(trial.seconds for trial in twice), 2),
            "processes left": sum(len(trial.left) for trial in trials),
            "bit differences": len(mismatches),
        },
        goals={
            "wrong exit codes": 0,
            "most steps lost": 0,
            "slowest after a second Ctrl-C, s": 2,
            "processes left": 0,
            "bit differences": 0,
        },
        controls=[_without_handlers(scratch)],
        peer="Lightning sends SIGTERM at 16 places of a run; the steps that are lost are not promised "
        "(tests_pytorch/core/test_auto_restart.py)",
    )


def judge(trial: Trial) -> list[str]:
    """What is wrong with the end of a run, as far as it can be seen without continuing it."""
    summary = read_json(trial.directory / SUMMARY)
    found = []
    if trial.code not in trial.expected:
        found.append(f"exit code {trial.code}, expected {trial.expected[0]}")
    if (trial.directory / RECORD).exists() and summary.get("exit_code") != trial.code:
        found.append(f"summary.json says {summary.get('exit_code')}, the process {trial.code}")
    if trial.kind != TWICE and trial.lost:
        found.append(f"{trial.lost} steps lost")
    if trial.left:
        found.append(f"{len(trial.left)} processes left")
    return found


def newest_step(directory: Path) -> int:
    """Step of the newest valid checkpoint; 0 where there is none."""
    found = steps_on_disk(directory / "checkpoints")
    return next((step for step, path in found if find_problem(path) is None), 0)


def _continued(trial: Trial, unbroken: Path) -> list[str]:
    """What differs from the unbroken run when the run has been continued to its end."""
    if not (trial.directory / RECORD).exists():
        return []
    if read_json(trial.directory / SUMMARY).get("status") != "finished":
        child = continue_(trial.directory, "tracker=none")
        if code := child.wait():
            return [f"continued, it ended with {code}: {child.console[-300:]!r}"]
    return differences(trial.directory, unbroken)[:3]


# ------------------------------------------------------------------------------------- forked runs


def _forked(count: int, seed: int, scratch: Path) -> Iterator[Trial]:
    """All phases with all signals as far as they go, beginning at a place that the seed chooses."""
    rng = random.Random(seed)
    cases = [(phase, kind) for phase in (*PHASES, ANY, ANY) for kind in SIGNALS]
    rng.shuffle(cases)
    for number in range(count):
        phase, kind = cases[number % len(cases)]
        directory = scratch / f"signal-{number}"
        trial = Trial(f"--seed {seed}, trial {number}, {kind} in {phase}", kind, phase, directory)
        _send_to_fork(trial, rng)
        yield trial


def _send_to_fork(trial: Trial, rng: random.Random) -> None:
    """Start the run, wait for the moment, send the signal or two, wait for the end."""
    reached = trial.directory.with_suffix(".reached")
    if trial.phase == ANY:
        child = spawn(trial.directory, *OVERRIDES)
        child.reached(rng.randint(1, STEPS - 10))
        time.sleep(rng.uniform(0, 0.02))
    else:
        wait = in_c if trial.kind == TWICE else in_python
        child = spawn(trial.directory, *OVERRIDES, before=dwelling(*PHASES[trial.phase], reached, wait))
        while not reached.exists() and child.is_alive:
            time.sleep(0.002)
        time.sleep(DWELL / 10)
    child.kill(SIGNALS[trial.kind])
    if trial.kind == TWICE:
        time.sleep(BETWEEN)
        if trial.phase == ANY and not child.is_alive:
            trial.kind = "Ctrl-C"  # it had saved and left before the second
        child.kill(signal.SIGINT)
    _await(trial, child)


def _await(trial: Trial, child: Child) -> None:
    began = time.monotonic()
    try:
        trial.code = child.wait(60)
    except TimeoutError:
        trial.code = 124
    trial.seconds = time.monotonic() - began
    trial.steps = child.step


def dwelling(owner: Any, name: str, reached: Path, wait: Callable[[], object]) -> Before:
    """Let the run stay for a while at the first call of a function, and say that it is there."""

    def patch() -> None:
        real = getattr(owner, name)

        def slow(*arguments: Any, **options: Any) -> Any:
            if not reached.exists():
                reached.touch()
                wait()
            return real(*arguments, **options)

        setattr(owner, name, slow)

    return patch


def in_python() -> None:
    """Where a handler runs at once."""
    deadline = time.monotonic() + DWELL
    while time.monotonic() < deadline:
        time.sleep(0.01)


def in_c() -> None:
    """One call of a library, of half a minute, in which no handler runs."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)


# ---------------------------------------------------------------------------------- whole commands


def _whole(count: int, seed: int, scratch: Path) -> Iterator[Trial]:
    """`python train.py`, signalled at any time of its start or its run."""
    rng = random.Random(f"{seed} whole")
    kinds = [kind for kind in SIGNALS if kind != TWICE]
    began = time.monotonic()
    whole = Command(scratch / "whole", "train.py", *ARGUMENTS, "hydra.run.dir=run")
    if code := whole.wait():
        raise RuntimeError(f"the whole run ended with {code}: {whole.console()[-300:]}")
    length = time.monotonic() - began
    for number in range(count):
        kind, folder = rng.choice(kinds), scratch / f"whole-{number}"
        delay = length * (number + rng.random()) / count
        command = Command(folder, "train.py", *ARGUMENTS, "hydra.run.dir=run")
        time.sleep(delay)
        case = f"--seed {seed}, whole command {number}, {kind} after {delay:.2f} of {length:.2f} s"
        trial = Trial(case, kind, "whole", folder / "run")
        if command.is_alive:
            command.send(SIGNALS[kind])
        began = time.monotonic()
        trial.code, trial.left = command.wait(), command.left()
        trial.seconds = time.monotonic() - began
        trial.phase = _phase_reached(trial)
        trial.steps = newest_step(trial.directory)
        yield trial


def _phase_reached(trial: Trial) -> str:
    """The phase that explains the exit code, if one does: where nothing was saved there is no checkpoint."""
    if trial.code == 0:
        return "closing" if read_json(trial.directory / SUMMARY).get("status") == "finished" else ANY
    is_default = trial.kind == "SIGUSR1" and trial.code == 128 + signal.SIGUSR1
    if is_default and not trial.directory.exists():
        trial.code = 143  # in the first tenths of a second a signal has its default effect
    return ANY if newest_step(trial.directory) else "data"


# ------------------------------------------------------------------------------- a tracker that hangs


def _hanging_tracker(scratch: Path) -> Iterator[Trial]:
    """W&B with a server that takes connections and says nothing: Ctrl-C, then again while it is closed."""
    if importlib.util.find_spec("wandb") is None:
        return
    with _silent_server() as address:
        directory = scratch / "hanging"
        home_of(directory).mkdir(parents=True)
        folder = Command(
            scratch / "hanging",
            "train.py",
            *(*ARGUMENTS, "hydra.run.dir=run", "tracker=wandb"),
            WANDB_API_KEY="0" * 40,
            WANDB_BASE_URL=address,
            WANDB_MODE="online",
        )
        trial = Trial("Ctrl-C twice, W&B's server hangs", TWICE, "closing", folder.folder / "run")
        while folder.is_alive and newest_step(trial.directory) < STEPS:
            time.sleep(0.05)
        folder.send(signal.SIGINT)
        time.sleep(BETWEEN)
        folder.send(signal.SIGINT)
        began = time.monotonic()
        trial.code = folder.wait()
        trial.seconds = time.monotonic() - began
        trial.left, trial.steps = folder.left(), STEPS
        folder.end()
        yield trial


@contextmanager
def _silent_server() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# ---------------------------------------------------------------------------------------- control


def _without_handlers(scratch: Path) -> Control:
    """A run that does not take SIGTERM: killed by it, without a summary and without its last steps."""

    @contextmanager
    def default(directory: Path) -> Iterator[StopRequest]:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        yield StopRequest(directory)

    def patch() -> None:
        run_module.stop_requests = default

    trial = Trial("control", "SIGTERM", ANY, scratch / "control")
    child = spawn(trial.directory, *OVERRIDES, before=patch)
    child.reached(25)
    child.kill(signal.SIGTERM)
    _await(trial, child)
    trial.lost = trial.steps - newest_step(trial.directory)
    return Control("a run that leaves SIGTERM to the system", 1, int(len(judge(trial)) == 3))
