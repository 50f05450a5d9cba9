"""Sweeps: every combination of the values given to -m, each as a process of its own.

All jobs are composed and checked before the first starts. A job that raises, exits or is killed
takes no other with it; the table at the end says which failed. Where a sweep mixes dense and
pruned arms, the swept `pruning.*` keys do not multiply the dense ones.

    multirun/<date>/<time>/sweep.jsonl    one line a finished job
                           0/, 1/, ...    the jobs' run folders
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from rich.table import Table

from adamwprune import run_directory
from adamwprune.callbacks.console import Terminal, format_number
from adamwprune.composition import compose, parse, to_config
from adamwprune.config import Config, to_plain
from adamwprune.errors import ConfigError
from adamwprune.preflight import check_machine

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
STOPPED = (75, 130)


@dataclass(frozen=True)
class Job:
    """One combination: its overrides, which of them were swept, and its checked configuration."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    config: Config


def run_sweep(overrides: list[str]) -> int:
    """Run all jobs one after the other; 0 if all succeeded, 1 if any failed, 75 or 130 if stopped.

    Raises:
        RunError: a job's configuration or this machine is wrong; no job has been started.
    """
    swept, fixed = _split(overrides)
    jobs, sweep_dir = expand(swept, fixed)
    for config in {_machine_key(job.config): job.config for job in jobs}.values():
        check_machine(config)
    directory = run_directory.claim(sweep_dir)
    group = _group_name(directory, jobs[0].config)
    terminal = Terminal(stderr=True)
    terminal.print(f"sweep of {len(jobs)} jobs in {directory}", highlight=False)
    results: list[dict[str, Any]] = []
    for number, job in enumerate(jobs):
        terminal.print(f"[bold]job {number + 1}/{len(jobs)}[/bold] {' '.join(job.swept)}", highlight=False)
        result = _run_job(job, number, directory, group)
        results.append(result)
        with (directory / "sweep.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result) + "\n")
        if result["exit_code"] in STOPPED:
            break
    Terminal().print(_table(results, len(jobs)))
    last = results[-1]["exit_code"]
    if last in STOPPED:
        return int(last)
    return int(any(result["exit_code"] for result in results))


def _split(overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Swept keys with their values, and the other overrides."""
    swept: dict[str, list[str]] = {}
    fixed = []
    for override in parse(overrides):
        if override.is_sweep_override():
            swept[override.get_key_element()] = _values(override)
        else:
            fixed.append(override.input_line or "")
    return swept, fixed


def _values(override: Override) -> list[str]:
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: an interval needs a search; give values, as in KEY=1,2,3 or range(1,4)"
        )
    return list(override.sweep_string_iterator())


def expand(swept: dict[str, list[str]], fixed: list[str]) -> tuple[list[Job], Path]:
    """All jobs, composed and checked, dense arms once; and the folder that the sweep goes to.

    Raises:
        ConfigError: naming the first job that cannot run.
    """
    first = compose(
        [*fixed, *(f"{key}={values[0]}" for key, values in swept.items() if not _is_pruning_key(key))]
    )
    params = dict(first.hydra.sweeper.params or {})
    from_file = _split([f"{key}={value}" for key, value in params.items() if key not in swept])
    swept, fixed = from_file[0] | swept, [*fixed, *from_file[1]]
    if not swept:
        raise ConfigError("-m: no key has several values; give some, as in seed=1,2,3, or leave out -m")
    count = 1
    for values in swept.values():
        count *= len(values)
    if count > first.max_jobs:
        raise ConfigError(
            f"-m: {count} jobs are more than max_jobs={first.max_jobs}; add max_jobs={count} if you mean it"
        )
    jobs, seen = [], set()
    mixes = len(swept.get("pruning", [])) > 1 or len(swept.get("optimizer", [])) > 1
    for combination in product(*swept.values()):
        own = [f"{key}={value}" for key, value in zip(swept, combination, strict=True)]
        job = _compose_job(own, fixed, drop_for_dense=mixes)
        identity = json.dumps({**to_plain(job.config), "run_name": ""}, sort_keys=True)
        if identity not in seen:
            seen.add(identity)
            jobs.append(job)
    return jobs, Path(first.hydra.sweep.dir).resolve()


def _compose_job(swept: list[str], fixed: list[str], *, drop_for_dense: bool) -> Job:
    if drop_for_dense:
        without = [o for o in swept if not _is_pruning_key(o)], [o for o in fixed if not _is_pruning_key(o)]
        compose([*without[1], *without[0]])
        if HydraConfig.get().runtime.choices.get("pruning") == "none":
            swept, fixed = without
    overrides = [*fixed, *swept]
    try:
        return Job(tuple(overrides), tuple(swept), to_config(compose(overrides)))
    except ConfigError as error:
        raise ConfigError(*(f"job {' '.join(swept)}: {problem}" for problem in error.problems)) from None


def _is_pruning_key(override: str) -> bool:
    """`pruning.target_sparsity=0.5` or `pruning/scope=global`: meaningless in a dense arm."""
    return override.startswith(("pruning.", "pruning/"))


def _machine_key(config: Config) -> str:
    """Equal for jobs that differ in their seed only: one look at the machine and the data serves them all."""
    plain = {key: value for key, value in to_plain(config).items() if key not in ("seed", "run_name")}
    return json.dumps({**plain, "data": {**config.data, "seed": None}}, sort_keys=True)


def _group_name(directory: Path, config: Config) -> str:
    """The trackers' name for the sweep, from the date and time in its path."""
    return config.group or f"sweep_{directory.parent.name}_{directory.name}"


def _run_job(job: Job, number: int, directory: Path, group: str) -> dict[str, Any]:
    """Run one job as `python train.py ...` in its own session; its outcome as plain values."""
    folder = directory / str(number)
    name = f"{job.config.run_name}-{number}"
    own = [o for o in job.overrides if not o.startswith(("group=", "run_name=", "sweep=", "hydra.mode="))]
    command = [
        sys.executable,
        str(TRAIN),
        *own,
        f"group={group}",
        f"run_name={name}",
        f"hydra.run.dir='{folder}'",
    ]
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    with _forwarding(process):
        code = process.wait()
    summary = run_directory.read_json(folder / run_directory.SUMMARY)
    return {
        "job": number,
        "swept": list(job.swept),
        "overrides": list(job.overrides),
        "exit_code": code if code >= 0 else 128 - code,
        "status": summary.get("status", "failed"),
        "seconds": time.monotonic() - started,
        "metrics": summary.get("metrics", {}).get("final", {}),
        "sparsity": summary.get("sparsity", {}).get("achieved"),
        "directory": str(folder),
    }


class _forwarding:
    """While a job runs, pass SIGINT, SIGTERM and SIGUSR1 on to it: it saves, then the sweep ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, lambda n, _: self._process.send_signal(n))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _table(results: list[dict[str, Any]], count: int) -> Table:
    failed = sum(result["exit_code"] != 0 for result in results)
    table = Table(title=f"{len(results)} of {count} jobs run, {failed} failed", title_justify="left")
    for column in ("job", "choices", "outcome", "metric", "sparsity", "seconds"):
        table.add_column(column, overflow="fold")
    for result in results:
        outcome = (
            "finished" if result["exit_code"] == 0 else f"{result['status']}, exit code {result['exit_code']}"
        )
        table.add_row(
            str(result["job"]),
            " ".join(result["swept"]),
            outcome,
            *_numbers(result),
            f"{result['seconds']:.0f}",
        )
    return table


def _numbers(result: dict[str, Any]) -> Iterator[str]:
    names = ("test/accuracy", "test/perplexity", "val/accuracy", "val/perplexity")
    name = next((n for n in names if n in result["metrics"]), None)
    yield f"{name} {format_number(name, result['metrics'][name])}" if name else ""
    yield "" if result["sparsity"] is None else format_number("sparsity", result["sparsity"])
