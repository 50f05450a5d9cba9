"""Sweeps: every combination of the values given to -m, each as a process of its own.

All jobs are composed and checked before the first starts (sweeps/expansion.py). A job that raises, exits, is
killed or hangs takes no other with it; the table at the end says which failed and why. `hydra/launcher` says
where they run (launchers/); Hydra's own launchers would lose all results with one job's.

    multirun/<date>/<time>/sweep.json      what it is: command line, group, jobs (sweeps/record.py)
                           sweep.jsonl     one line a finished job
                           0/, 1/, ...     the jobs' run folders
                           0.log, ...      their output, where they run side by side

`sweep.resume=DIR` runs what is missing there. Which jobs these are is known by what they compute: a job that
came to its end is kept, one that has a folder goes on in it, and values that are new make new jobs.
"""

import re
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from adamwprune import run_directory
from adamwprune.callbacks.console import Terminal, format_number
from adamwprune.composition import complete, given_keys, parse, quoted
from adamwprune.config import Config
from adamwprune.errors import CheckpointError, ConfigError, Interrupted, Preempted
from adamwprune.launchers.base import Command, Ending, Launcher, Limits
from adamwprune.preflight import check_choices, check_machine
from adamwprune.reporting.sweep_tables import job_table, seed_table
from adamwprune.room import check_writable
from adamwprune.signal_handlers import STOP_SIGNALS, handling
from adamwprune.sweeps.expansion import Job, expand, machine_key, split_overrides
from adamwprune.sweeps.outcomes import STOPPED, found, is_complete, outcome
from adamwprune.sweeps.record import (
    TRUST,
    Endings,
    Planned,
    Record,
    key_of,
    merged,
    read_endings,
    read_record,
    repeated,
    write_record,
)
from adamwprune.track.recorded import is_locked


def run_sweep(today: list[str]) -> int:
    """Run all jobs, or what is missing of those of `sweep.resume`.

    Returns:
        0 if all jobs have succeeded, 1 if any has failed, 75 or 130 if they were stopped.

    Raises:
        RunError: a job's configuration, this machine, or the sweep to continue is wrong; no job was started.
    """
    given = given_keys(today).get("sweep.resume")
    if given is None:
        jobs, place, launcher = _jobs([], today)
        _check(jobs, launcher)
        check_writable(place, "hydra.sweep.dir")
        directory = run_directory.claim(place)
        record = Record(repeated(today), _group_name(directory, jobs[0].config), ())
        with run_directory.locked(directory, "sweep.resume"):
            return _run(jobs, launcher, directory, record, today)
    directory = Path(str(given)).expanduser().resolve()
    read_record(directory)  # before anything is written to a folder that is no sweep's
    with run_directory.locked(directory, "sweep.resume"):
        record = read_record(directory)
        jobs, _, launcher = _jobs(record.overrides, today)
        _check_group(jobs[0].config, record)
        missing = [job for job in jobs if not _is_done(job, directory, record)]
        _check_ended(directory, record)
        _check(missing, launcher)
        record = replace(record, overrides=repeated(merged(record.overrides, today)))
        return _run(jobs, launcher, directory, record, today)


def _jobs(stored: Sequence[str], today: list[str]) -> tuple[list[Job], Path, Launcher]:
    return expand(*split_overrides(complete(merged(stored, today))), command_line=today)


def _check(jobs: list[Job], launcher: Launcher) -> None:
    """Whether the jobs can run here, each kind of them once."""
    launcher.check()
    check = check_machine if launcher.is_here else check_choices
    for config in {machine_key(job.config): job.config for job in jobs}.values():
        check(config)


def _check_group(config: Config, record: Record) -> None:
    if config.group not in (None, record.group):
        raise ConfigError(
            f"group={config.group}: the sweep's is {record.group}, which its jobs have; leave it out"
        )


def _check_ended(directory: Path, record: Record) -> None:
    """No job of the sweep is still at work, as one may be that saves after the sweep's process was killed."""
    for job in record.jobs:
        if is_locked(directory / str(job.number)):
            raise CheckpointError(
                f"sweep.resume={directory}: its job {job.number} is still running; wait for it or stop it"
            )


def _is_done(job: Job, directory: Path, record: Record) -> bool:
    number = record.number_of(job.identity)
    return number is not None and is_complete(directory / str(number))


# ------------------------------------------------------------------------------------ running jobs


def _run(jobs: list[Job], launcher: Launcher, directory: Path, record: Record, today: Sequence[str]) -> int:
    """Run what is missing, and show all."""
    terminal = Terminal(stderr=True)
    record = replace(record, jobs=_numbered(jobs, record))
    write_record(directory, record)
    by_number = {number: job for job in jobs if (number := record.number_of(job.identity)) is not None}
    kept = {number for number, job in by_number.items() if is_complete(directory / str(number))}
    missing = {number: job for number, job in by_number.items() if number not in kept}
    also = f", {len(kept)} of which are complete" if kept else ""
    terminal.print(f"sweep of {len(record.jobs)} jobs in {directory}{also}", highlight=False)
    with closing(Endings(directory)) as endings:
        told = read_endings(directory, record)
        for number in sorted(n for n in kept if n not in told or told[n]["status"] != "finished"):
            command = _command(by_number[number], number, directory, record.group)
            endings.append(found(by_number[number], command, directory / str(number)))
        stop_signal = _run_jobs(missing, len(record.jobs), launcher, directory, record.group, endings)
    results = read_endings(directory, record)
    _show([results[number] for number in sorted(results)], len(record.jobs), len(kept))
    codes = [results[number]["exit_code"] if number in results else None for number in by_number]
    code = _exit_code(codes, stop_signal)
    if code:
        command_line = escape(_continuing(directory, today))
        terminal.print(f"to run what is missing: {command_line}", highlight=False, soft_wrap=True)
    return code


def _numbered(jobs: Sequence[Job], record: Record) -> tuple[Planned, ...]:
    """The sweep's jobs, and behind them those that are new."""
    first = 1 + max((job.number for job in record.jobs), default=-1)
    new = [job for job in jobs if record.number_of(job.identity) is None]
    return (*record.jobs, *(Planned(first + i, job.identity, job.swept) for i, job in enumerate(new)))


def _run_jobs(
    jobs: Mapping[int, Job],
    count: int,
    launcher: Launcher,
    directory: Path,
    group: str,
    endings: Endings,
) -> int:
    """Run the jobs and write how each ended; the signal that stopped them, or 0."""
    commands = [_command(job, number, directory, group) for number, job in jobs.items()]
    received: list[int] = []
    started: dict[int, float] = {}

    def say(number: int, words: str) -> None:
        terminal.print(f"[bold]job {number + 1}/{count}[/bold] {words}", highlight=False)

    def on_start(command: Command) -> None:
        started[command.number] = time.monotonic()
        say(command.number, " ".join(jobs[command.number].swept))

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        launcher.stop(number)

    terminal = Terminal(stderr=True)
    with handling(on_signal, *STOP_SIGNALS):
        for command, ending in launcher.run(commands, on_start):
            result = _result(jobs[command.number], command, directory, ending, started)
            endings.append(result)
            if result["exit_code"] or not launcher.shows_output:
                say(command.number, _last_line(result))
    return received[0] if received else 0


def _result(
    job: Job, command: Command, directory: Path, ending: Ending, started: Mapping[int, float]
) -> dict[str, Any]:
    seconds = time.monotonic() - started[command.number]
    return outcome(job, command, directory / str(command.number), ending, seconds)


def _last_line(result: Mapping[str, Any]) -> str:
    if result["exit_code"] == 0:
        loss = format_number("val/loss", result["metrics"]["val/loss"])
        return f"finished in {result['seconds']:.0f} s, val/loss {loss}"
    return f"{result['status']}, exit code {result['exit_code']}: {escape(result['reason'])}"


def _command(job: Job, number: int, directory: Path, group: str) -> Command:
    """A job as `python train.py ...`, without what belongs to the sweep; in its folder, if it has one."""
    folder = directory / str(number)
    overrides = parse(list(job.overrides))
    own = [o.input_line or "" for o in overrides if not _is_the_sweeps(o.get_key_element())]
    is_continued = (folder / run_directory.RECORD).exists()
    if is_continued:  # run.json has its names
        names = [f"resume={quoted(folder)}"]
    else:
        name = f"run_name={job.config.run_name}-{number}"
        names = [f"group={group}", name, f"hydra.run.dir={quoted(folder)}"]
    limits = Limits(job.config.sweep.job_timeout, job.config.sweep.kill_after)
    console = directory / f"{number}.log"
    return Command(number, (*own, *names), job.config.hardware, console, limits, is_continued)


def _is_the_sweeps(key: str) -> bool:
    names = ("group", "run_name", "sweep", "hydra.mode", "hydra.sweep.dir", "hydra/launcher")
    return key in names or key.lstrip("+").startswith(("hydra.launcher", "sweep."))


def _group_name(directory: Path, config: Config) -> str:
    """The trackers' name for the sweep, from the date and time in its path."""
    return config.group or f"sweep_{directory.parent.name}_{directory.name}"


# ------------------------------------------------------------------------------------ at the end


def _show(results: list[dict[str, Any]], count: int, kept: int) -> None:
    failed = sum(result["exit_code"] not in (0, *STOPPED) for result in results)
    stopped = sum(result["exit_code"] in STOPPED for result in results)
    parts = [f"{len(results)} of {count} jobs run", f"{failed} failed"]
    parts += [f"{stopped} stopped"] * bool(stopped) + [f"{kept} complete before"] * bool(kept)
    Terminal().print(job_table(results, ", ".join(parts)))
    if means := seed_table(results):
        Terminal().print(means)


def _exit_code(codes: Sequence[int | None], stop_signal: int) -> int:
    """Of the sweep, from those of the jobs; None is a job that was not started."""
    if stop_signal and any(code is None or code in STOPPED for code in codes):
        return Interrupted.exit_code if stop_signal == signal.SIGINT else Preempted.exit_code
    if any(code not in (None, 0, *STOPPED) for code in codes):
        return 1
    return Preempted.exit_code if any(codes) else 0


def _continuing(directory: Path, today: Sequence[str]) -> str:
    """The command that runs what is missing; trust is not stored, so it is typed again."""
    typed = [override for override in today if key_of(override) in TRUST]
    folder = str(run_directory.shown_path(directory))
    value = folder if re.fullmatch(r"[\w./-]+", folder) else quoted(folder)
    return shlex.join(["python", "train.py", "-m", f"sweep.resume={value}", *typed])
