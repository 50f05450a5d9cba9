"""What a command line asks for, decided before Hydra acts: refuse, continue, sweep, or run.

Order: compose and check (exit 2), look at the machine (4, 6, 3), and only then claim a folder.
What is refused has created nothing.
"""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig

from adamwprune import __version__, run_directory
from adamwprune.composition import complete, compose, given_keys, parse, quoted, to_config
from adamwprune.config import Config, changed_keys, to_plain
from adamwprune.credentials import refuse_in_arguments
from adamwprune.doubts import doubts
from adamwprune.errors import (
    CheckpointError,
    ConfigError,
    DiskError,
    HardwareError,
    OutOfMemoryError,
    RunError,
    Stopped,
)
from adamwprune.explanations import first_line
from adamwprune.launchers.process import follow_starter
from adamwprune.preflight import check_machine, is_rank
from adamwprune.rank_errors import speaker
from adamwprune.room import check_room, check_writable
from adamwprune.signal_handlers import follow_parent, stopping_at_once

# Flags of Hydra that print something and run nothing.
INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with the code of a RunError, after one line that says what and how to mend it.

    A stop signal ends it there and then, but where something has to be saved first.
    """
    try:
        with stopping_at_once():
            yield
    except RunError as error:
        if (where := speaker(error)) is not None:
            for problem in error.problems:
                say(f"error[{error.exit_code}]{where}: {problem}")
        _leave(error.exit_code)
    except Stopped as error:
        if os.environ.get("RANK", "0") == "0":
            say(f"error[{error.exit_code}]: {error}")
        _leave(error.exit_code)
    except KeyboardInterrupt:
        _leave(130)
    except (OSError, MemoryError) as error:
        refusal = _of_the_system(error)
        if refusal is None:
            traceback.print_exc()
            _leave(1)
        say(f"error[{refusal.exit_code}]: {refusal}")
        _leave(refusal.exit_code)
    except Exception:
        traceback.print_exc()
        _leave(1)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def _of_the_system(error: OSError | MemoryError) -> RunError | None:
    """What the system refused, wherever that was; None where it is our bug."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(
            f"memory: not even enough to prepare the run ({first_line(error)}); choose smaller data or a "
            "larger machine"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return HardwareError(f"{error.strerror}; raise the limit with ulimit -n 1024")
    if error.errno in _DISK:
        return DiskError(f"{error.filename}: {error.strerror}; free some space, or choose another folder")
    return None


def say(line: str) -> None:
    """A line on standard error, which may have gone with its terminal."""
    with suppress(OSError):
        print(line, file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2, as everywhere."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def _check_working_directory() -> None:
    try:
        str(Path.cwd()).encode()
    except FileNotFoundError:
        raise DiskError("the working directory is gone; change into one that is there") from None
    except UnicodeEncodeError:
        raise ConfigError(f"{Path.cwd()}: the working directory's name is not UTF-8; rename it") from None


def _parser() -> Parser:
    """Hydra's flags and the overrides, in any order."""
    return Parser(prog="train.py", add_help=False, parents=[get_args_parser()])


def _leave(code: int) -> None:
    """End the process; a rank of several at once: torch's threads may abort or wait at an ordinary exit."""
    if is_rank():
        with suppress(OSError):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def prepare(arguments: list[str], before_claim: Callable[[], None] = lambda: None) -> list[str]:
    """Check a command line completely and claim the run's folder; the command line for Hydra.

    Three kinds end the process here: a sweep, a finished run that is resumed, and a rank of
    torchrun other than 0, which needs no folder of its own.

    Args:
        arguments: without the program's name.
        before_claim: called when nothing can be refused any more, before the folder is created.

    Raises:
        RunError: whatever is wrong, before anything is created.
        SystemExit: where nothing is left for Hydra to do.
    """
    if is_rank():
        follow_parent()
    follow_starter()
    _check_working_directory()
    if "--version" in arguments:
        print(f"adamwprune {__version__}")
        sys.exit(0)
    refuse_in_arguments(arguments)
    flags = _parser().parse_intermixed_args(arguments)
    if flags.experimental_rerun:  # which reads a pickle
        raise ConfigError("--experimental-rerun: is not supported; resume=FOLDER continues a run")
    if any(getattr(flags, name) for name in INFORMATION):
        return _for_information(arguments, flags)
    if flags.resolve or flags.package:
        raise ConfigError("--resolve, --package: go with --cfg")
    today = _with_search_path(flags)
    keys = given_keys(today)
    if flags.multirun or keys.get("sweep") is not None or keys.get("sweep.resume") is not None:
        _run_sweep(today)
    resumed = _resumed_directory(today)
    overrides = complete(_resumed(today))
    if resumed is not None:
        _refuse_running(resumed)
    composed = compose(overrides)
    if composed.hydra.mode == RunMode.MULTIRUN:  # chosen by a file or by hydra.mode
        _run_sweep(today)
    if composed.hydra.runtime.choices.get("hydra/launcher", "basic") != "basic":
        raise ConfigError("hydra/launcher: starts the jobs of a sweep; add -m with values, or leave it out")
    if own := next((key for key in keys if key.startswith("sweep.")), None):
        raise ConfigError(f"{own}: is for the jobs of a sweep; add -m with values, or leave it out")
    config = to_config(composed, today)
    if resumed is not None:
        _check_unchanged(resumed, config)
        if run_directory.is_finished(resumed):
            print(f"{resumed}: already complete; nothing to do", file=sys.stderr)
            sys.exit(0)
    folder = resumed or _wanted(composed)
    check_writable(folder, "resume" if resumed else "hydra.run.dir")
    check_machine(config)
    check_room(config, folder)
    if is_rank() and os.environ.get("RANK", "0") != "0":
        _join(config)
    for line in doubts(config):
        say(f"warning: {line}")
    before_claim()
    if resumed is not None:
        return _continue(resumed, overrides)
    return _claim(folder, config, overrides)


def _for_information(arguments: list[str], flags: argparse.Namespace) -> list[str]:
    """`--cfg` and its like: refuse here what cannot be composed, in one line; then Hydra prints.

    It sets up logging before that, as the configuration says, so there is no kind that needs no check.
    """
    today = _with_search_path(flags)
    if flags.shell_completion:
        return arguments
    if flags.multirun:
        compose([o.input_line or "" for o in parse(today) if not o.is_sweep_override()])
        return arguments
    overrides = complete(_resumed(flags.overrides))
    compose([*overrides, *today[len(flags.overrides) :]])
    return [argument for argument in arguments if argument not in flags.overrides] + overrides


def _resumed(today: list[str]) -> list[str]:
    """Today's overrides on top of those of the run that is resumed, if one is."""
    directory = _resumed_directory(today)
    return today if directory is None else run_directory.resume_overrides(directory, today)


def _resumed_directory(today: list[str]) -> Path | None:
    given = given_keys(today).get("resume")
    return None if given is None else Path(str(given)).expanduser().resolve()


def _refuse_running(directory: Path) -> None:
    """A run that is running is refused at once, before what takes seconds; its own lock is taken later."""
    with suppress(OSError), run_directory.locked(directory):
        pass


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
            "resume: continues one run; sweep.resume=multirun/DATE/TIME continues a sweep, or leave out -m"
        )
    sys.exit(run_sweep(overrides))


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


def _wanted(composed: DictConfig) -> Path:
    """Where the run's folder is to be, which must be a place for runs."""
    wanted = run_directory.place_for_runs(composed.hydra.run.dir, "hydra.run.dir")
    quoted(wanted)  # refused now or never
    return wanted


def _claim(wanted: Path, config: Config, overrides: list[str]) -> list[str]:
    """Create the run's folder exclusively and write run.json; two runs of one second get two folders."""
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
