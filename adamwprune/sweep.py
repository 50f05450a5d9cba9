"""Sweeps: every combination of the values given to -m, each as a process of its own.

All jobs are composed and checked before the first starts. A job that raises, exits or is killed
takes no other with it; the table at the end says which failed. Where a sweep mixes dense and
pruned arms, the swept `pruning.*` keys do not multiply the dense ones. `hydra/launcher` says
where they run (launchers/); Hydra's own launchers would lose all results with one job's.

    multirun/<date>/<time>/sweep.jsonl     one line a finished job
                           0/, 1/, ...     the jobs' run folders
                           0.log, ...      their output, where they run side by side
"""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from adamwprune import run_directory
from adamwprune.callbacks.console import Terminal, format_number
from adamwprune.composition import compose, given_keys, parse, quoted, to_config
from adamwprune.config import Config, to_plain
from adamwprune.errors import ConfigError, Interrupted, Preempted
from adamwprune.launchers.base import TRAIN, Command, Launcher
from adamwprune.preflight import check_choices, check_machine
from adamwprune.reporting.sweep_tables import job_table, seed_table
from adamwprune.signal_handlers import STOP_SIGNALS, handling
from adamwprune.targets import build
from adamwprune.validation import MOST_LETTERS

# Hydra's default: no launcher was chosen.
_HYDRAS_OWN = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_BASIC = {"_target_": "adamwprune.launchers.basic.Basic"}
STOPPED = (Preempted.exit_code, Interrupted.exit_code)


@dataclass(frozen=True)
class Job:
    """One combination: its overrides, which of them were swept, and its checked configuration."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    config: Config


def run_sweep(overrides: list[str]) -> int:
    """Run all jobs; 0 if all succeeded, 1 if any failed, 75 or 130 if stopped.

    Raises:
        RunError: a job's configuration or this machine is wrong; no job has been started.
    """
    jobs, sweep_dir, launcher = expand(*split_overrides(overrides), command_line=overrides)
    launcher.check()
    check = check_machine if launcher.is_here else check_choices
    for config in {_machine_key(job.config): job.config for job in jobs}.values():
        check(config)
    directory = run_directory.claim(sweep_dir)
    terminal = Terminal(stderr=True)
    terminal.print(f"sweep of {len(jobs)} jobs in {directory}", highlight=False)
    results, stop_signal = _run_jobs(jobs, launcher, directory, terminal)
    Terminal().print(job_table(results, _title(results, len(jobs))))
    if means := seed_table(results):
        Terminal().print(means)
    was_stopped = len(results) < len(jobs) or any(result["exit_code"] in STOPPED for result in results)
    if stop_signal and was_stopped:
        return Interrupted.exit_code if stop_signal == signal.SIGINT else Preempted.exit_code
    return int(any(result["exit_code"] for result in results))


def _run_jobs(
    jobs: list[Job], launcher: Launcher, directory: Path, terminal: Terminal
) -> tuple[list[dict[str, Any]], int]:
    """Outcomes in the order of the jobs, and the signal that stopped them, or 0."""
    group = _group_name(directory, jobs[0].config)
    commands = [_command(job, number, directory, group) for number, job in enumerate(jobs)]
    received: list[int] = []
    started: dict[int, float] = {}
    results: dict[int, dict[str, Any]] = {}

    def say(number: int, words: str) -> None:
        terminal.print(f"[bold]job {number + 1}/{len(jobs)}[/bold] {words}", highlight=False)

    def on_start(command: Command) -> None:
        started[command.number] = time.monotonic()
        say(command.number, " ".join(jobs[command.number].swept))

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        launcher.stop(number)

    with handling(on_signal, *STOP_SIGNALS):
        for command, code in launcher.run(commands, on_start):
            number, seconds = command.number, time.monotonic() - started[command.number]
            result = results[number] = _outcome(jobs[number], command, directory, code, seconds)
            with (directory / "sweep.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(result) + "\n")
            if not launcher.shows_output:
                say(number, _ending(result, command))
    return [results[number] for number in sorted(results)], received[0] if received else 0


def _ending(result: Mapping[str, Any], command: Command) -> str:
    """How a job ended that wrote to its own file: its loss, or what it said last."""
    if result["exit_code"] == 0:
        loss = format_number("val/loss", result["metrics"]["val/loss"])
        return f"finished in {result['seconds']:.0f} s, val/loss {loss}"
    lines = [line for line in _read(command.console).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("error[")), lines[-1] if lines else "")
    return f"{result['status']}, exit code {result['exit_code']}: {escape(last or str(command.console))}"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def split_overrides(overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Swept keys with their values, and the other overrides.

    Raises:
        ConfigError: a sweep that is no list of values.
    """
    swept: dict[str, list[str]] = {}
    fixed = []
    for override in parse(overrides):
        if override.is_sweep_override():
            swept[override.get_key_element()] = _values(override)
        else:
            fixed.append(override.input_line or "")
    return swept, fixed


def _values(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        try:
            return list(override.sweep_string_iterator())
        except HydraException:
            raise ConfigError(f"{override.input_line}: glob is not supported; name the options") from None
    raise ConfigError(
        f"{override.input_line}: an interval needs a search; give values, as in KEY=1,2,3 or range(1,4)"
    )


def expand(
    swept: dict[str, list[str]], fixed: list[str], command_line: list[str] | None = None
) -> tuple[list[Job], Path, Launcher]:
    """All jobs, composed and checked, dense arms once; the sweep's folder, and what starts them.

    Raises:
        ConfigError: naming the first job that cannot run.
    """
    if "group" in swept:
        raise ConfigError("group: the jobs of a sweep are one group; give one name")
    if own := next((key for key in swept if _is_hydras(key)), None):
        raise ConfigError(f"{own}: belongs to the sweep, not to its jobs; give one value")
    shared = [o for o in fixed if not _is_pruning_only(o)]  # a dense arm may be the first
    first = compose([*shared, *(f"{key}={v[0]}" for key, v in swept.items() if not _is_pruning_only(key))])
    params = dict(first.hydra.sweeper.params or {})
    given = swept.keys() | given_keys(fixed).keys()  # what the command line says replaces the file's
    from_file = split_overrides([f"{key}={value}" for key, value in params.items() if key not in given])
    swept, fixed = from_file[0] | swept, [*fixed, *from_file[1]]
    if not swept:
        raise ConfigError("-m: no key has several values; give some, as in seed=1,2,3, or leave out -m")
    count = math.prod(map(len, swept.values()))
    if count > first.max_jobs:
        raise ConfigError(
            f"-m: {count} jobs are more than max_jobs={first.max_jobs}; add max_jobs={count} if you mean it"
        )
    mixes = len(swept.get("pruning", [])) > 1 or len(swept.get("optimizer", [])) > 1
    unnamed = {} if "run_name" in swept else {"run_name": ""}  # a name alone makes no other run
    jobs: dict[str, Job] = {}
    for combination in product(*swept.values()):
        own = [f"{key}={value}" for key, value in zip(swept, combination, strict=True)]
        job = _compose_job(own, fixed, command_line, drop_for_dense=mixes)
        jobs.setdefault(json.dumps({**to_plain(job.config), **unnamed}, sort_keys=True), job)
    for number, job in enumerate(jobs.values()):
        if len(f"{job.config.run_name}-{number}") > MOST_LETTERS:
            raise ConfigError(
                f"run_name={job.config.run_name}: too long with the job's number -{number}; shorten it"
            )
    return list(jobs.values()), Path(first.hydra.sweep.dir).resolve(), _launcher(first)


def _launcher(composed: DictConfig) -> Launcher:
    """What `hydra/launcher` names.

    Raises:
        ConfigError: it is none of ours, or a key of it is wrong.
    """
    node = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(node, dict)
    return build(_BASIC if node["_target_"] == _HYDRAS_OWN else node, "hydra.launcher")()


def _is_hydras(key: str) -> bool:
    return key.startswith(("hydra.", "hydra/"))


def _compose_job(
    swept: list[str], fixed: list[str], command_line: list[str] | None, *, drop_for_dense: bool
) -> Job:
    try:
        if drop_for_dense:
            without = [[o for o in part if not _is_pruning_only(o)] for part in (fixed, swept)]
            choices = compose([*without[0], *without[1]]).hydra.runtime.choices
            if choices.get("pruning") == "none":
                fixed, swept = without
        overrides = [*fixed, *swept]
        return Job(tuple(overrides), tuple(swept), to_config(compose(overrides), command_line))
    except ConfigError as error:
        raise ConfigError(*(f"job {' '.join(swept)}: {problem}" for problem in error.problems)) from None


def _is_pruning_only(override: str) -> bool:
    """`pruning.target_sparsity=0.5` or `pruning/scope=global`: meaningless in a dense arm.

    include and exclude say what is counted, in a dense arm too.
    """
    neutral = ("pruning.include", "pruning.exclude")
    return override.startswith(("pruning.", "pruning/")) and not override.startswith(neutral)


def _machine_key(config: Config) -> str:
    """Equal for jobs that differ in their seed only: one look at the machine and the data serves them all."""
    plain = {key: value for key, value in to_plain(config).items() if key not in ("seed", "run_name")}
    return json.dumps({**plain, "data": {**config.data, "seed": None}}, sort_keys=True)


def _group_name(directory: Path, config: Config) -> str:
    """The trackers' name for the sweep, from the date and time in its path."""
    return config.group or f"sweep_{directory.parent.name}_{directory.name}"


def _command(job: Job, number: int, directory: Path, group: str) -> Command:
    """A job as `python train.py ...`, without what belongs to the sweep."""
    own = [
        override.input_line or ""
        for override in parse(list(job.overrides))
        if not _is_the_sweeps(override.get_key_element())
    ]
    folder = quoted(directory / str(number))
    names = [f"group={group}", f"run_name={job.config.run_name}-{number}", f"hydra.run.dir={folder}"]
    return Command(number, (*own, *names), job.config.hardware, directory / f"{number}.log")


def _is_the_sweeps(key: str) -> bool:
    names = ("group", "run_name", "sweep", "hydra.mode", "hydra.sweep.dir", "hydra/launcher")
    return key in names or key.lstrip("+").startswith("hydra.launcher")


def _outcome(job: Job, command: Command, directory: Path, code: int, seconds: float) -> dict[str, Any]:
    """One line of sweep.jsonl, from what the job left in its folder."""
    folder = directory / str(command.number)
    if (folder / run_directory.RECORD).exists() and not (folder / run_directory.SUMMARY).exists():
        _close_killed(folder, code)
    summary = run_directory.read_json(folder / run_directory.SUMMARY)
    return {
        "job": command.number,
        "swept": list(job.swept),
        "overrides": list(job.overrides),
        "exit_code": code,
        "status": summary.get("status", "failed"),
        "seconds": seconds,
        "metrics": summary.get("metrics", {}).get("final", {}),
        "sparsity": summary.get("sparsity", {}).get("achieved"),
        "directory": str(folder),
    }


def _close_killed(folder: Path, code: int) -> None:
    """Say in the records and trackers of a job that could not do so itself that it has ended."""
    command = [sys.executable, "-m", "adamwprune.track", "close", str(folder), f"--exit-code={code}"]
    subprocess.run(command, cwd=TRAIN.parent, start_new_session=True, check=False)


def _title(results: list[dict[str, Any]], count: int) -> str:
    failed = sum(result["exit_code"] not in (0, *STOPPED) for result in results)
    stopped = sum(result["exit_code"] in STOPPED for result in results)
    more = f", {stopped} stopped" if stopped else ""
    return f"{len(results)} of {count} jobs run, {failed} failed{more}"
