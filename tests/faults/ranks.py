"""F11, F12: two ranks on gloo; one is killed, raises, leaves, halts, is slow, has a NaN or gets a signal.

Forked ranks show what ranks do without anybody's help; whole commands, by our launcher and by torchrun,
what is left when a launcher or a rank is killed. Then the run is continued on two ranks and compared.
"""

import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from adamwprune.run_directory import SUMMARY, read_json
from adamwprune.training import loop
from adamwprune.training.batches import TrainingBatches
from adamwprune.training.checkpoint import find_problem, steps_on_disk
from tests.faults.fork_server import Before, Child, console_of, fork
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.processes import Command
from tests.helpers.runs import IMAGES, configure, start
from tests.helpers.same_run import differences

# Faults done to forked ranks and to whole commands; and runs whose ranks are compared.
FORKED = {"short": 8, "long": 40}
WHOLE = {"short": 2, "long": 10}
EQUAL = {"short": 2, "long": 10}
TIMEOUT = 10
# Seconds after its launcher's end from which a rank that is still there is an orphan.
ORPHANED = 20.0
INTERVAL = 20
STEPS = 120
OVERRIDES = (
    *IMAGES,
    "hardware.num_devices=2",
    f"hardware.timeout={TIMEOUT}",
    "hardware.threads=1",
    f"trainer.max_steps={STEPS}",
    "trainer.eval_every=50",
    "trainer.log_every=1",
    f"checkpoint.every={INTERVAL}",
    "pruning=magnitude",
    "pruning.update_every=5",
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")


@dataclass
class Trial:
    """One fault and what became of the ranks."""

    case: str
    directory: Path
    codes: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seconds: float = 0.0  # until all were gone
    is_halted: bool = False  # the others have to wait for the timeout
    orphans: int = 0
    failures: list[str] = field(default_factory=list)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Do the faults, continue each run on two ranks, compare it with the one that nothing happened to."""
    unbroken = scratch / "unbroken"
    if any(codes := _train(unbroken)):
        raise RuntimeError(f"the unbroken run ended with {codes}: {console_of(unbroken).read_text()[-500:]}")
    trials = [*_forked(FORKED[tier], seed, scratch), *_whole(WHOLE[tier], seed, scratch)]
    mismatches = [f"{trial.case}: {line}" for trial in trials for line in _continued(trial, unbroken)]
    compared = [_unequal(scratch / f"equal-{number}", number) for number in range(EQUAL[tier])]
    at_once = [trial.seconds for trial in trials if not trial.is_halted]
    halted = [trial.seconds for trial in trials if trial.is_halted]
    return Outcome(
        fault="2 ranks on gloo: one killed, raising, leaving, halted, slow, with a NaN, signalled; "
        "the launcher killed (ours and torchrun)",
        promise="all ranks end with the documented codes, none is left, one folder, equal masks, disjoint "
        "data; the continued run equals the unbroken one to the bit",
        trials=len(trials) + EQUAL[tier],
        failures=[
            *(f"{trial.case}: {line}" for trial in trials for line in trial.failures),
            *mismatches,
            *(line for lines in compared for line in lines),
        ],
        figures={
            "slowest until all are gone, s": round(max(at_once), 2),
            f"slowest with a halted rank and hardware.timeout={TIMEOUT}, s": round(max(halted), 2),
            "orphans": sum(trial.orphans for trial in trials),
            "bit differences": len(mismatches),
            "runs whose ranks differed": sum(map(bool, compared)),
        },
        goals={
            "slowest until all are gone, s": 1,
            f"slowest with a halted rank and hardware.timeout={TIMEOUT}, s": TIMEOUT + 2,
            "orphans": 0,
            "bit differences": 0,
            "runs whose ranks differed": 0,
        },
        controls=[_orphan(scratch / "orphan"), _same_data(scratch / "same")],
        peer="torchrun: SIGKILL of it leaves 2 of 2 ranks; a halted rank costs the timeout and 30 s "
        "(reliability.md, 4 and 6)",
    )


# -------------------------------------------------------------------------------------- forked ranks


def _ranks(directory: Path, *before: Before | None, overrides: tuple[str, ...] = ()) -> list[Child]:
    """Start or continue the run in `directory` on forked ranks; `before` as of each rank."""
    if directory.exists():
        config = configure(*OVERRIDES, *overrides)
    else:
        config, directory = start(directory, *OVERRIDES, *overrides)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    patches = before or (None, None)
    return [
        fork(config, directory, before=patch, RANK=str(rank), LOCAL_RANK=str(rank), **here)
        for rank, patch in enumerate(patches)
    ]


def _train(directory: Path, **options: Any) -> list[int]:
    """A run to its end; the ranks' exit codes."""
    return [child.wait() for child in _ranks(directory, **options)]


def _continued(trial: Trial, unbroken: Path) -> list[str]:
    """What differs from the unbroken run when this one has come to its end."""
    if not trial.directory.exists():
        return ["there is no run"]
    if read_json(trial.directory / SUMMARY).get("status") != "finished" and any(_train(trial.directory)):
        return [f"cannot be continued: {console_of(trial.directory).read_text()[-300:]!r}"]
    return differences(trial.directory, unbroken)[:3]


def _at_step(step: int, act: Callable[[], object]) -> Before:
    """Let a rank do something before it takes that step."""

    def patch() -> None:
        take_step = loop.take_step

        def acting(session: loop.Session, batches: Any) -> bool:
            if session.state.step == step:
                act()
            return take_step(session, batches)

        loop.take_step = acting

    return patch


def _raise() -> None:
    raise RuntimeError("a fault")


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _halt_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _terminate_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _spoil_loss() -> None:
    cross_entropy = loop.cross_entropy
    loop.cross_entropy = lambda *given, **options: cross_entropy(*given, **options) * float("nan")


# What one rank does, and the codes: its own, the other's.
FAULTS: dict[str, tuple[Callable[[], object], int, int]] = {
    "killed": (_kill_self, -9, 1),
    "raising": (_raise, 1, 1),
    "leaving": (lambda: os._exit(3), 3, 1),
    "halted": (_halt_self, -9, 1),
    "slow": (lambda: time.sleep(2), 0, 0),
    "with a NaN": (_spoil_loss, 7, 7),
    "terminated": (_terminate_self, 75, 75),
    "exiting": (lambda: sys.exit(4), 4, 1),
}


def _forked(count: int, seed: int, scratch: Path) -> Iterator[Trial]:
    """Each fault in turn, to a rank and at a step that the seed chooses."""
    rng = random.Random(seed)
    for number, name in zip(range(count), itertools.cycle(FAULTS), strict=False):
        act, own, others = FAULTS[name]
        victim, step = rng.randrange(2), rng.randint(0, STEPS - 10)
        case = f"--seed {seed}, forked {number}, rank {victim} {name} at step {step}"
        trial = Trial(case, scratch / f"forked-{number}", is_halted=name == "halted")
        reached = scratch / f"forked-{number}.reached"

        def noted(act: Callable[[], object] = act, reached: Path = reached) -> None:
            if not reached.exists():
                reached.touch()
                act()

        patches = [_at_step(step, noted) if rank == victim else None for rank in range(2)]
        ranks = _ranks(trial.directory, *patches)
        trial.codes = _codes(ranks, reached, victim, trial)
        trial.steps = [rank.step for rank in ranks]
        expected = [own if rank == victim else others for rank in range(2)]
        _judge(trial, expected)
        yield trial


def _codes(ranks: list[Child], reached: Path, victim: int, trial: Trial) -> list[int]:
    """Wait for all; a halted rank, which nothing but a launcher ends, when the other has ended."""
    while not reached.exists() and any(rank.is_alive for rank in ranks):
        time.sleep(0.002)
    began = time.monotonic()
    if trial.is_halted:
        ranks[1 - victim].wait()
        ranks[victim].kill()
    codes = [rank.wait() for rank in ranks]
    trial.seconds = time.monotonic() - began
    return codes


def _judge(trial: Trial, expected: list[int]) -> None:
    """Codes, the steps at which ranks that agreed have stopped, and what is lost."""
    if trial.codes != expected:
        console = console_of(trial.directory).read_text()[-300:]
        trial.failures.append(f"exit codes {trial.codes}, expected {expected}: {console!r}")
    if trial.codes[0] == 75 and len({*trial.steps, newest_step(trial.directory)}) > 1:
        trial.failures.append(f"stopped at {trial.steps}, saved {newest_step(trial.directory)}")
    # One save may be under way beside the training: what it holds is not on the disk yet.
    if trial.steps and (lost := max(trial.steps) - newest_step(trial.directory)) > 2 * INTERVAL:
        trial.failures.append(f"{lost} steps lost, checkpoints every {INTERVAL}")


def newest_step(directory: Path) -> int:
    """Step of the newest valid checkpoint; 0 where there is none."""
    found = steps_on_disk(directory / "checkpoints")
    return next((step for step, path in found if find_problem(path) is None), 0)


# ------------------------------------------------------------------------------------ whole commands


def _to_launcher(number: int) -> Callable[[Command, Path], None]:
    return lambda command, _: command.send(number)


def _to_rank(number: int, *, is_main: bool) -> Callable[[Command, Path], None]:
    def send(command: Command, directory: Path) -> None:
        main = int((directory / "run.lock").read_text().split()[0])
        others = [pid for pid in command.members() if pid not in (main, command.pid) and _is_rank(pid)]
        os.kill(main if is_main else others[0], number)

    return send


def _is_rank(pid: int) -> bool:
    """Whether a process trains: it has loaded much more than a helper of Python's."""
    try:
        return psutil.Process(pid).memory_info().rss > 100 * 2**20
    except psutil.Error:
        return False


# Launcher, what is done, exit code of the command, that of the summary.
SCENES: tuple[tuple[str, str, Callable[[Command, Path], None], int, int], ...] = (
    ("ours", "launcher killed", _to_launcher(signal.SIGKILL), 137, 75),
    ("torchrun", "launcher killed", _to_launcher(signal.SIGKILL), 137, 75),
    ("ours", "rank 1 halted", _to_rank(signal.SIGSTOP, is_main=False), 1, 1),
    ("ours", "rank 0 halted", _to_rank(signal.SIGSTOP, is_main=True), 1, 1),
    ("ours", "rank 1 killed", _to_rank(signal.SIGKILL, is_main=False), 1, 1),
    ("ours", "rank 0 killed", _to_rank(signal.SIGKILL, is_main=True), 1, 1),
    ("ours", "SIGTERM to the launcher", _to_launcher(signal.SIGTERM), 75, 75),
    ("ours", "Ctrl-C", _to_launcher(signal.SIGINT), 130, 130),
    ("torchrun", "SIGTERM to the launcher", _to_launcher(signal.SIGTERM), 1, 75),
    ("torchrun", "SIGTERM to rank 1", _to_rank(signal.SIGTERM, is_main=False), 1, 75),
)


def _whole(count: int, seed: int, scratch: Path) -> Iterator[Trial]:
    """The scenes in turn, each when the run is at a step that the seed chooses."""
    rng = random.Random(f"{seed} whole")
    for number, (launcher, what, act, code, recorded) in enumerate(itertools.islice(SCENES, count)):
        step = rng.randint(1, STEPS // 3)
        case = f"--seed {seed}, {launcher}, {what} at step {step}"
        folder = scratch / f"whole-{number}"
        trial = Trial(case, folder / "run", is_halted="halted" in what)
        program = TORCHRUN if launcher == "torchrun" else ("train.py",)
        command = Command(folder, *program, *_arguments(), "hydra.run.dir=run")
        while command.is_alive and _rows(trial.directory) < step:
            time.sleep(0.005)
        act(command, trial.directory)
        began = time.monotonic()
        trial.codes = [command.wait()]
        trial.orphans = len(command.left(ORPHANED))
        trial.seconds = time.monotonic() - began
        command.end()
        found = read_json(trial.directory / SUMMARY).get("exit_code")
        if (trial.codes[0], found) != (code, recorded):
            trial.failures.append(
                f"exit code {trial.codes[0]}, summary.json {found}, expected {code} and {recorded}: "
                f"{command.console()[-400:]!r}"
            )
        if trial.orphans:
            trial.failures.append(f"{trial.orphans} processes left")
        yield trial


def _arguments() -> tuple[str, ...]:
    """The overrides as a command line takes them, which refuses a key that is given twice."""
    return tuple({override.partition("=")[0]: override for override in OVERRIDES}.values())


def _rows(directory: Path) -> int:
    file = directory / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


# ----------------------------------------------------------------------------------- equal ranks


def _noting(file: Path, spoil: Callable[[], object] = lambda: None) -> Before:
    """Let a rank write down its masks at each update and the samples of each step."""

    def patch() -> None:
        spoil()
        agree, load = loop.check_masks_agree, TrainingBatches.load
        stream = file.open("a", buffering=1)

        def agreeing(training: Any, step: int, mask_hash: str) -> None:
            masks = training.pruner.mask_hash()
            stream.write(json.dumps({"step": step, "masks": masks}) + "\n")
            agree(training, step, mask_hash)

        def loading(self: TrainingBatches, step: int, indices: np.ndarray) -> Any:
            stream.write(json.dumps({"step": step, "samples": indices.tolist()}) + "\n")
            return load(self, step, indices)

        loop.check_masks_agree = agreeing
        TrainingBatches.load = loading  # type: ignore[method-assign]

    return patch


def _unequal(directory: Path, seed: int, spoil: Callable[[], object] = lambda: None) -> list[str]:
    """What of two ranks is not as it must be in a whole run: masks, samples, folders."""
    files = [directory.with_name(f"{directory.name}.rank{rank}") for rank in range(2)]
    before = [_noting(file, spoil) for file in files]
    codes = [child.wait() for child in _ranks(directory, *before, overrides=(f"seed={seed}",))]
    if any(codes):
        return [f"{directory.name}: exit codes {codes}"]
    first, second = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    masks = [[(row["step"], row["masks"]) for row in rows if "masks" in row] for rows in (first, second)]
    found = [] if masks[0] and masks[0] == masks[1] else [f"{directory.name}: masks differ"]
    seen: dict[int, list[int]] = {}
    for row in (*first, *second):
        seen.setdefault(row["step"], []).extend(row.get("samples", ()))
    if repeated := [step for step, samples in seen.items() if len(samples) > len(set(samples))]:
        found.append(f"{directory.name}: ranks share samples in {len(repeated)} steps")
    if len([path for path in directory.parent.glob(f"{directory.name}*") if path.is_dir()]) != 2:
        found.append(f"{directory.name}: not one folder")  # the run's and its HOME
    return found


# --------------------------------------------------------------------------------------- controls


def _orphan(folder: Path) -> Control:
    """A child that does not care for its parent's end."""
    child = "import os, time; os.setsid(); time.sleep(600)"
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}])"
    parent = f"import subprocess, sys, time; {start}; time.sleep(600)"
    command = Command(folder, "-c", parent)
    while len(command.members()) < 2:
        time.sleep(0.02)
    command.send(signal.SIGKILL)
    command.wait()
    left = command.left(1.0)
    command.end()
    return Control("a child that outlives its launcher", 1, int(len(left) == 1))


def _same_data(directory: Path) -> Control:
    """Ranks that all take rank 0's samples."""

    def spoil() -> None:
        made = TrainingBatches.__init__

        def as_rank_0(self: TrainingBatches, *given: Any, **options: Any) -> None:
            made(self, *given, **{**options, "rank": 0})

        TrainingBatches.__init__ = as_rank_0  # type: ignore[method-assign]

    found = _unequal(directory, 1, spoil)
    return Control("ranks that see the same samples", 1, int(any("share samples" in line for line in found)))
