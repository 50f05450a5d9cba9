"""Jobs of a sweep that end in every way a job can end, and the sweep's own process killed.

Real sweeps of tiny jobs, each with a model that goes off once (faulty_once.py): all other jobs must finish,
the sweep must tell each job's code, `sweep.resume` must run what is missing and nothing else, no process may
be left, and in the end each job must be what a run is that nothing happened to, bitwise. The control is
Hydra's own launcher, which loses the jobs behind the faulty one.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from adamwprune.run_directory import METRICS, SUMMARY
from tests.faults.faulty_once import ARMED, CODES
from tests.faults.fork_server import spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.processes import PATIENCE, Command
from tests.helpers.runs import IMAGES, final_weights, rows

MODEL = "tests.faults.faulty_once.faulty_once"
ALLOWED = f"allow_targets=[{MODEL}]"
# What computes: 12 steps, checkpoints at 4, 8 and 12; the fault is in step 10.
RUN = (*IMAGES, f"model._target_={MODEL}", "+model.after=9", "trainer.max_steps=12", "trainer.eval_every=4")
ONE_THREAD = "hardware.threads=1"
# Seconds after which a job is overdue, many times what one needs; the hanging one takes them.
JOB_TIMEOUT, KILL_AFTER = 30, 1
SIDE_BY_SIDE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LAUNCHERS = (
    ("hydra/launcher=basic",),
    SIDE_BY_SIDE,
    ("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2"),
)
# Faults that take the jobs behind them along under Hydra's launcher; it survives an exception.
CONTROLS = {"short": ("exit", "kill"), "long": ("exit", "leave", "kill", "segfault")}


class Sweep:
    """A sweep whose jobs are named by the fault that each is open to, and what came of it.

    Args:
        folder: where it is typed; the sweep is its folder `sweep`.
        jobs: names; one that is a fault goes off in its job, once.
        armed: faults that go off.
        overrides: further ones.
    """

    def __init__(self, folder: Path, jobs: Sequence[str], armed: Sequence[str], *overrides: str) -> None:
        (folder / ARMED).mkdir(parents=True)
        for fault in armed:
            (folder / ARMED / fault).touch()
        limits = (f"sweep.job_timeout={JOB_TIMEOUT}", f"sweep.kill_after={KILL_AFTER}")
        self.folder, self.jobs = folder, list(jobs)
        self.directory = folder / "sweep"
        self._overrides = (*RUN, ONE_THREAD, f"+model.fault={','.join(jobs)}", *limits, *overrides)

    def begin(self) -> Command:
        """`python train.py -m ...`."""
        return Command(self.folder, "train.py", "-m", *self._overrides, ALLOWED, "hydra.sweep.dir=sweep")

    def resume(self) -> Command:
        """`python train.py -m sweep.resume=DIR`: what the sweep itself says at its end."""
        return Command(self.folder, "train.py", "-m", "sweep.resume=sweep", ALLOWED)

    def lines(self) -> list[dict]:
        """sweep.jsonl."""
        file = self.directory / "sweep.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def codes(self) -> dict[str, int]:
        """The last exit code of each job, by its name."""
        return {self.jobs[line["job"]]: line["exit_code"] for line in self.lines()}

    def differences(self, unbroken: Path) -> list[str]:
        """Jobs that are not what a run is that nothing happened to."""
        wanted_rows, wanted = rows(unbroken), final_weights(unbroken)
        found = []
        for number, name in enumerate(self.jobs):
            folder = self.directory / str(number)
            if not (folder / SUMMARY).exists() or rows(folder) != wanted_rows:
                found.append(f"job {name}: other rows")
            elif not all(torch.equal(value, wanted[key]) for key, value in final_weights(folder).items()):
                found.append(f"job {name}: other weights")
        return found


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """All faults in one sweep, or each in one of its own; then the sweep's process is killed."""
    unbroken = scratch / "unbroken"
    if code := spawn(unbroken, *RUN, ALLOWED, "+model.fault=none").wait():
        raise RuntimeError(f"the unbroken run ended with {code}")
    failures: list[str] = []
    if tier == "short":
        names = ["hang", "none", *(fault for fault in CODES if fault != "hang")]  # the others go on beside it
        sweep = Sweep(scratch / "all", names, list(CODES), *SIDE_BY_SIDE)
        failures += faulty(sweep, list(CODES))
        failures += parent_killed(sweep, sweep.resume())
        failures += completed(sweep, unbroken, rerun=list(CODES))
        trials, left_alone = len(CODES) + 1, len(sweep.jobs) - len(CODES)
    else:
        trials, left_alone = 0, 0
        for number, fault in enumerate(CODES):
            names = [*"ab", fault, *"def"]
            sweep = Sweep(scratch / fault, names, [fault], *LAUNCHERS[number % len(LAUNCHERS)])
            found = faulty(sweep, [fault]) + completed(sweep, unbroken, rerun=[fault])
            failures += [f"{fault}: {line}" for line in found]
            trials, left_alone = trials + 1, left_alone + len(names) - 1
            shutil.rmtree(sweep.folder)
        for launcher in LAUNCHERS:
            sweep = Sweep(scratch / launcher[0].partition("=")[2], "abcd", [], *launcher)
            found = parent_killed(sweep, sweep.begin()) + completed(sweep, unbroken)
            failures += [f"{launcher[0]}: {line}" for line in found]
            trials += 1
    controls = CONTROLS[tier]
    return Outcome(
        fault="a job of a sweep raises, exits, is killed, segfaults, starves, hangs; the sweep is killed",
        promise="all other jobs finish, sweep.resume runs only what is missing, all jobs bitwise, no orphans",
        trials=trials,
        failures=failures,
        figures={"kinds of fault": len(CODES), "jobs that nothing happened to": left_alone},
        controls=[
            Control(
                "Hydra's own launcher: jobs behind the fault lost",
                len(controls),
                sum(hydra_loses(fault, scratch / f"hydra-{fault}") for fault in controls),
            )
        ],
        peer="Hydra 1.3.8: sys.exit loses the later jobs, SIGKILL all; no resume (reliability.md section 7)",
    )


def faulty(sweep: Sweep, faults: list[str]) -> list[str]:
    """The first run of a sweep: what is told must be what happened."""
    command = sweep.begin()
    code, found = command.wait(PATIENCE * len(sweep.jobs)), []
    wanted = {name: CODES.get(name, 0) for name in sweep.jobs}
    if code != 1:
        found.append(f"the sweep ended with {code}: {command.console()[-500:]}")
    if sweep.codes() != wanted:
        found.append(f"codes {sweep.codes()}, wanted {wanted}")
    if silent := [line["job"] for line in sweep.lines() if line["exit_code"] and not line["reason"]]:
        found.append(f"jobs {silent} failed without a reason")
    if left := command.left():
        found.append(f"{len(left)} processes left")
        command.end()
    return found


def parent_killed(sweep: Sweep, command: Command) -> list[str]:
    """SIGKILL for the sweep's process in the middle of a job: the job saves and leaves."""
    before = {folder: _length(folder) for folder in sweep.directory.glob("[0-9]*/")}
    deadline = time.monotonic() + PATIENCE
    while not any(_length(f) > before.get(f, 0) for f in sweep.directory.glob("[0-9]*/")):
        if not command.is_alive or time.monotonic() > deadline:
            command.end()
            return [f"no job began: {command.console()[-500:]}"]
        time.sleep(0.01)
    command.send(signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + PATIENCE  # to save and to leave: on a busy machine this takes longer
    while (left := command.left()) and time.monotonic() < deadline:
        pass
    command.end()
    return [f"{len(left)} processes left by the killed sweep"] if left else []


def _length(folder: Path) -> int:
    file = folder / METRICS
    return file.stat().st_size if file.exists() else 0


def completed(sweep: Sweep, unbroken: Path, rerun: list[str] | None = None) -> list[str]:
    """What is missing is run, nothing else; then all is as if nothing had happened.

    Args:
        sweep: after its fault.
        unbroken: a run that nothing happened to.
        rerun: jobs that must have been run again; None: any.
    """
    before = {line["job"]: line for line in sweep.lines() if line["exit_code"] == 0}
    marks = {number: (sweep.directory / str(number) / SUMMARY).stat().st_mtime_ns for number in before}
    command = sweep.resume()
    code, found = command.wait(PATIENCE * len(sweep.jobs)), []
    if code != 0:
        found.append(f"sweep.resume ended with {code}: {command.console()[-500:]}")
    found += [
        f"job {number} was complete and has been touched"
        for number, mark in marks.items()
        if (sweep.directory / str(number) / SUMMARY).stat().st_mtime_ns != mark
    ]
    if rerun is not None and (not_run := set(rerun) - {sweep.jobs[line["job"]] for line in sweep.lines()}):
        found.append(f"not run again: {sorted(not_run)}")
    if left := command.left():
        found.append(f"{len(left)} processes left")
        command.end()
    return found + sweep.differences(unbroken)


# A task that Hydra's own launcher runs three times, the second time with the fault.
HYDRAS = """
import hydra
from pathlib import Path
from tests.faults.faulty_once import FAULTS

@hydra.main(version_base="1.3", config_path=None)
def task(config):
    if config.job in FAULTS:
        FAULTS[config.job]()
    Path(config.job).touch()

task()
"""


def hydra_loses(fault: str, folder: Path) -> bool:
    """Whether the job behind the faulty one is lost under Hydra's own launcher."""
    folder.mkdir()
    (folder / "task.py").write_text(HYDRAS)
    command = [sys.executable, "task.py", "-m", f"+job=first,{fault},last"]
    subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=PATIENCE)
    return (folder / "first").exists() and not (folder / "last").exists()
