"""What a command line asks for, decided before Hydra acts: refuse, continue, sweep, or run.

Order: compose and check (exit 2), look at the machine (4, 6, 3), and only then claim a folder.
What is refused has created nothing.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig

from adamwprune import __version__, run_directory
from adamwprune.composition import complete, compose, given_keys, parse, quoted, to_config
from adamwprune.config import Config, changed_keys, to_plain
from adamwprune.errors import CheckpointError, ConfigError, HardwareError, RunError
from adamwprune.preflight import check_machine, is_rank
from adamwprune.rank_errors import speaker

# Flags of Hydra that print something and run nothing.
INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with the code of a RunError, after one line that says what and how to mend it."""
    try:
        yield
    except RunError as error:
        if (where := speaker(error)) is not None:
            for problem in error.problems:
                print(f"error[{error.exit_code}]{where}: {problem}", file=sys.stderr)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        _leave(130)
    except Exception:
        traceback.print_exc()
        _leave(1)


class Parser(argparse.ArgumentParser):
    """A parser of the other commands whose errors are one line and exit code 2, as everywhere."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def _leave(code: int) -> None:
    """End the process; a rank of several at once: torch's threads may abort or wait at an ordinary exit."""
    if is_rank():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def prepare(arguments: list[str]) -> list[str]:
    """Check a command line completely and claim the run's folder; the command line for Hydra.

    Three kinds end the process here: a sweep, a finished run that is resumed, and a rank of
    torchrun other than 0, which needs no folder of its own.

    Raises:
        RunError: whatever is wrong, before anything is created.
        SystemExit: where nothing is left for Hydra to do.
    """
    if "--version" in arguments:
        print(f"adamwprune {__version__}")
        sys.exit(0)
    flags = get_args_parser().parse_args(arguments)
    if any(getattr(flags, name) for name in INFORMATION):
        return _for_information(arguments, flags)
    if flags.resolve or flags.package or flags.experimental_rerun:
        raise ConfigError("--resolve, --package: go with --cfg; --experimental-rerun is not supported")
    today = _with_search_path(flags)
    keys = given_keys(today)
    if flags.multirun or keys.get("sweep") is not None:
        _run_sweep(today)
    resumed = _resumed_directory(today)
    overrides = complete(_resumed(today))
    composed = compose(overrides)
    if composed.hydra.mode == RunMode.MULTIRUN:  # chosen by a file or by hydra.mode
        _run_sweep(today)
    if composed.hydra.runtime.choices.get("hydra/launcher", "basic") != "basic":
        raise ConfigError("hydra/launcher: starts the jobs of a sweep; add -m with values, or leave it out")
    config = to_config(composed, today)
    if resumed is not None:
        _check_unchanged(resumed, config)
        if run_directory.is_finished(resumed):
            print(f"{resumed}: already complete; nothing to do", file=sys.stderr)
            sys.exit(0)
    check_machine(config)
    if is_rank() and os.environ.get("RANK", "0") != "0":
        _join(config)
    if resumed is not None:
        return _continue(resumed, overrides)
    return _claim(composed, config, overrides)


def _for_information(arguments: list[str], flags: argparse.Namespace) -> list[str]:
    """`--cfg` and its like: refuse here what cannot be composed, in one line; then Hydra prints."""
    if flags.multirun:
        return arguments
    overrides = complete(_resumed(flags.overrides))
    if flags.cfg or flags.help:
        compose([*overrides, *_with_search_path(flags)[len(flags.overrides) :]])
    return [argument for argument in arguments if argument not in flags.overrides] + overrides


def _resumed(today: list[str]) -> list[str]:
    """Today's overrides on top of those of the run that is resumed, if one is."""
    directory = _resumed_directory(today)
    return today if directory is None else run_directory.resume_overrides(directory, today)


def _resumed_directory(today: list[str]) -> Path | None:
    given = given_keys(today).get("resume")
    return None if given is None else Path(str(given)).expanduser().resolve()


def _with_search_path(flags: argparse.Namespace) -> list[str]:
    if flags.config_path or flags.config_name:
        raise ConfigError(
            "--config-path, --config-name: the root is conf/config.yaml; add folders with --config-dir"
        )
    return with_config_dir(flags.overrides, flags.config_dir)


def with_config_dir(overrides: list[str], config_dir: str | None) -> list[str]:
    """The overrides, and one that adds the folder's options, if there is one."""
    if config_dir is None:
        return list(overrides)
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    if "hydra.searchpath" in given_keys(overrides):
        raise ConfigError("hydra.searchpath: give it or --config-dir, not both")
    folder = quoted(f"file://{Path(config_dir).resolve()}")
    return [*overrides, f"hydra.searchpath=[{folder}]"]


def _run_sweep(overrides: list[str]) -> None:
    """Run all jobs and leave with the sweep's exit code."""
    from adamwprune.sweep import run_sweep

    if is_rank():
        raise HardwareError(
            "-m: a sweep starts its own processes; type python train.py -m ..., without torchrun"
        )
    if "resume" in given_keys(overrides):
        raise ConfigError(
            "resume: a sweep cannot continue one run; leave out -m, or resume its jobs one by one"
        )
    sys.exit(run_sweep(complete(overrides)))


def _join(config: Config) -> None:
    """Body of a rank of torchrun other than 0: rank 0 claims the folder and tells where it is."""
    from adamwprune.launch import launch

    launch(config, Path(), {})
    _leave(0)


def _check_unchanged(directory: Path, config: Config) -> None:
    """A continued run has the configuration that it has so far, but for harmless keys."""
    before = run_directory.read_json(directory / run_directory.RECORD)["config"]
    changed = changed_keys(before, to_plain(config), config.resume_allow)
    if not changed:
        return
    names = [line.partition(":")[0] for line in changed]
    advice = f", or add 'resume_allow=[{','.join(names)}]' to go on all the same"
    if run_directory.is_finished(directory):
        advice = "; the run is complete, so start a new one"
    elif any(name.startswith("pruning.") for name in names) or (
        config.pruning.criterion and any(name.startswith("trainer.max_") for name in names)
    ):
        advice = "; masks belong to the pruning, and to the length of run, that made them"
    raise CheckpointError(f"resume={directory}: would change {'; '.join(changed)}; leave that out{advice}")


def _claim(composed: DictConfig, config: Config, overrides: list[str]) -> list[str]:
    """Create the run's folder exclusively and write run.json; two runs of one second get two folders."""
    wanted = Path(composed.hydra.run.dir).resolve()
    quoted(wanted)  # refused now or never
    directory = run_directory.claim(wanted)
    keys = given_keys(overrides)
    # "" or -2, -3, ...: folder and name carry the same suffix.
    suffix = "" if "run_name" in keys else directory.name.removeprefix(wanted.name)
    name = f"{config.run_name}{suffix}"
    record = run_directory.new_record(
        {**to_plain(config), "run_name": name},
        overrides,
        {"name": name, "project": config.project, "group": config.group},
    )
    run_directory.write_json(directory / run_directory.RECORD, record)
    own = [
        o.input_line or ""
        for o in parse(overrides)
        if o.get_key_element() not in ("hydra.run.dir", "run_name")
    ]
    return [*own, f"run_name={name}", f"hydra.run.dir={quoted(directory)}"]


def _continue(directory: Path, overrides: list[str]) -> list[str]:
    """Add this session to run.json; Hydra writes into the same folder and keeps its first .hydra."""
    record = run_directory.read_json(directory / run_directory.RECORD)
    if "sessions" not in record:
        raise CheckpointError(f"resume={directory}: {run_directory.RECORD} is not of this program")
    with run_directory.locked(directory):
        record["sessions"].append(run_directory.session(overrides))
        run_directory.write_json(directory / run_directory.RECORD, record)
    return [*overrides, f"hydra.run.dir={quoted(directory)}", "hydra.output_subdir=null"]
