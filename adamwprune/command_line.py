"""What a command line asks for, decided before Hydra acts: refuse, continue, sweep, or run.

Order: compose and check (exit 2), look at the machine (4, 6, 3), and only then claim a folder.
What is refused has created nothing.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from adamwprune import run_directory
from adamwprune.composition import complete, compose, parse, to_config
from adamwprune.config import Config, changed_keys, to_plain
from adamwprune.errors import CheckpointError, ConfigError, RunError
from adamwprune.preflight import check_machine, is_rank

# Flags of Hydra that print something and run nothing.
INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with the code of a RunError, after one line that says what and how to mend it."""
    try:
        yield
    except RunError as error:
        for problem in error.problems:
            print(f"error[{error.exit_code}]: {problem}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def prepare(arguments: list[str]) -> list[str]:
    """Check a command line completely and claim the run's folder; the command line for Hydra.

    A sweep is run from here, and a finished run that is resumed is left alone: both end the process.

    Raises:
        RunError: whatever is wrong, before anything is created.
        SystemExit: after a sweep, or where nothing is left to do.
    """
    flags = get_args_parser().parse_args(arguments)
    if any(getattr(flags, name) for name in INFORMATION):
        return _for_information(arguments, flags)
    overrides = _with_search_path(flags)
    resumed = _resumed_directory(overrides)
    if resumed is not None:
        overrides = run_directory.resume_overrides(resumed, overrides)
    overrides = complete(overrides)
    if flags.multirun or _asks_for_sweep(overrides):
        from adamwprune.sweep import run_sweep

        sys.exit(run_sweep(overrides))

    composed = compose(overrides)
    config = to_config(composed)
    _check_allowed_targets(config, overrides)
    if resumed is not None:
        _check_unchanged(resumed, config)
        if run_directory.is_finished(resumed):
            print(f"{resumed}: already complete; nothing to do", file=sys.stderr)
            sys.exit(0)
    check_machine(config)
    if is_rank() and os.environ.get("RANK", "0") != "0":
        return overrides  # rank 0 claims the folder and tells where it is
    if resumed is not None:
        return _continue(resumed, overrides)
    return _claim(composed, config, overrides)


def _for_information(arguments: list[str], flags: argparse.Namespace) -> list[str]:
    """`--cfg` and its like: refuse here what cannot be composed, in one line; then Hydra prints."""
    added = complete(flags.overrides)[len(flags.overrides) :]
    if flags.cfg and not flags.multirun:
        compose(flags.overrides + added)
    return arguments + added


def _with_search_path(flags: argparse.Namespace) -> list[str]:
    if flags.config_path or flags.config_name:
        raise ConfigError(
            "--config-path, --config-name: the root is conf/config.yaml; add folders with --config-dir"
        )
    if flags.config_dir is None:
        return list(flags.overrides)
    return [*flags.overrides, f"hydra.searchpath=[file://{Path(flags.config_dir).resolve()}]"]


def _resumed_directory(overrides: list[str]) -> Path | None:
    given = next(
        (o for o in overrides if o.startswith("resume=") and o not in ("resume=null", "resume=")), None
    )
    return None if given is None else Path(given.removeprefix("resume=").strip("'\"")).resolve()


def _asks_for_sweep(overrides: list[str]) -> bool:
    """Whether a `sweep=` option turns this into a sweep without -m."""
    return any(o.startswith("sweep=") and o not in ("sweep=null", "sweep=") for o in overrides)


def _check_allowed_targets(config: Config, overrides: list[str]) -> None:
    """A file cannot allow its own targets: only the command line can."""
    if config.allow_targets and not any(o.get_key_element() == "allow_targets" for o in parse(overrides)):
        raise ConfigError(
            "allow_targets: set by a file; only the command line may trust code outside this package"
        )


def _check_unchanged(directory: Path, config: Config) -> None:
    """A continued run has the configuration that it started with, but for harmless keys."""
    before = run_directory.read_json(directory / run_directory.RECORD)["config"]
    if changed := changed_keys(before, to_plain(config), config.resume_allow):
        names = ",".join(line.partition(":")[0] for line in changed)
        raise CheckpointError(
            f"resume={directory}: would change {'; '.join(changed)}; leave that out, "
            f"or add 'resume_allow=[{names}]' to go on all the same"
        )


def _claim(composed: DictConfig, config: Config, overrides: list[str]) -> list[str]:
    """Create the run's folder exclusively and write run.json; two runs of one second get two folders."""
    wanted = Path(composed.hydra.run.dir).resolve()
    directory = run_directory.claim(wanted)
    suffix = directory.name.removeprefix(wanted.name)  # "" or -2, -3, ...
    named = any(o.startswith("run_name=") for o in overrides)
    name = config.run_name if named else f"{config.run_name}{suffix}"
    own = [o for o in overrides if not o.startswith("hydra.run.dir=")]
    plain = {**to_plain(config), "run_name": name}
    record = run_directory.new_record(
        plain, own, {"name": name, "project": config.project, "group": config.group}
    )
    run_directory.write_json(directory / run_directory.RECORD, record)
    names = [] if named else [f"run_name={name}"]
    return [*own, *names, f"hydra.run.dir='{directory}'"]


def _continue(directory: Path, overrides: list[str]) -> list[str]:
    """Add this session to run.json; Hydra writes into the same folder and keeps its first .hydra."""
    record = run_directory.read_json(directory / run_directory.RECORD)
    if "sessions" not in record:
        raise CheckpointError(
            f"resume={directory}: {run_directory.RECORD} has no sessions; it is not a run of this program"
        )
    record["sessions"].append(run_directory.session(overrides))
    with run_directory.locked(directory):
        run_directory.write_json(directory / run_directory.RECORD, record)
    return [*overrides, f"hydra.run.dir='{directory}'", "hydra.output_subdir=null"]
