"""Choose what to run, keep it, and run it: what `make` does with its variables.

NAME=VALUE is a variable of make (DEFCONFIG, TRACKER, OPTIMIZER, EPOCHS, MAX_ITERS, TIME, PROJECT, RUN_NAME,
ENTITY, WANDB_OFFLINE, TRACKIO_PORT, ARGS) or any override of train.py, such as optimizer.lr=3e-4.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from adamwprune.callbacks.console import Terminal
from adamwprune.command_line import Parser, exit_codes
from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.config import Config, flatten, to_plain
from adamwprune.configure import experiments, stored, tracking, variables
from adamwprune.configure.variables import Given
from adamwprune.errors import ConfigError
from adamwprune.ranges import shown
from adamwprune.run_directory import shown_path

ROOT = CONF_DIR.parent
FILE = ROOT / stored.FILE
Command = Callable[[list[str]], None]


def parser() -> Parser:
    """The command line of all commands."""
    made = Parser(
        prog="python -m adamwprune.configure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (_defconfig, _run, _list, _save, _show, _menu, _track):
        assert command.__doc__ is not None
        added = commands.add_parser(
            command.__name__.strip("_"),
            help=command.__doc__.partition("\n")[0],
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("settings", nargs="*", metavar="NAME=VALUE")
        added.set_defaults(command=command)
    return made


def _defconfig(settings: list[str]) -> None:
    """Store an experiment, and what else is given, as what `make` runs: DEFCONFIG=NAME."""
    given = variables.read(settings)
    if "DEFCONFIG" not in given.variables:
        names = ", ".join(name for name, _ in experiments.listed())
        raise ConfigError(f"DEFCONFIG: is missing; give DEFCONFIG=NAME, one of {names}")
    _check_flagless(given)
    variables.check_trackers(given, given.overrides)
    stored.write(FILE, given.overrides)
    print(f"{shown_path(FILE)} holds: {stored.command(given.overrides)}")


def _run(settings: list[str]) -> None:
    """Run the stored choice, or the default; what is given is added to it or replaces it."""
    given = variables.read(settings)
    _become(str(shown_path(ROOT / "train.py")), *given.flags, *_merged(given))


def _list(settings: list[str]) -> None:
    """List the experiments, each with what it is."""
    variables.only(settings)
    found = experiments.listed()
    width = max(len(name) for name, _ in found)
    _print(*(f"{name:{width}}  {words}" for name, words in found))


def _save(settings: list[str]) -> None:
    """Save the stored choice as a new experiment: NAME=x writes conf/experiment/x.yaml."""
    given = variables.read(settings, "NAME")
    if "NAME" not in given.variables:
        raise ConfigError("NAME: is missing; give NAME=x for conf/experiment/x.yaml")
    _check_flagless(given)
    if not given.overrides and not FILE.exists():
        raise ConfigError(f"{FILE.name}: nothing is stored; make defconfig DEFCONFIG=NAME stores a choice")
    name = given.variables["NAME"]
    file = experiments.save(name, _merged(given))
    print(f"{shown_path(file)} is saved; run it with: {stored.command([f'experiment={name}'])}")


def _show(settings: list[str]) -> None:
    """Print the configuration of the stored choice, as train.py --cfg job does, and what is not default."""
    given = variables.read(settings)
    _check_flagless(given)
    overrides = _merged(given)
    composed = compose(complete(overrides))
    plain = _values(to_config(composed, overrides))
    job = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    default = _values(to_config(compose([])))
    _print(
        f"# {stored.command(overrides)}",
        OmegaConf.to_yaml(job),
        "# Not as in python train.py:",
        *(
            f"# {key}: {_shown(default, key)} -> {_shown(plain, key)}"
            for key in sorted(plain.keys() | default.keys())
            if plain.get(key) != default.get(key)
        ),
    )


def _values(config: Config) -> dict[str, object]:
    """Each key with its value; an empty section has none."""
    return {key: value for key, value in flatten(to_plain(config)) if value != {}}


def _shown(flat: dict[str, object], key: str) -> str:
    return shown(flat[key]) if key in flat else "-"


def _print(*lines: str) -> None:
    """To a reader that may leave, as `head` does."""
    Terminal().out(*lines, sep="\n", highlight=False)


def _menu(settings: list[str]) -> None:
    """Edit the stored choice in a terminal."""
    variables.only(settings)
    from adamwprune.configure.menu import run_menu

    run_menu(FILE)


def _track(settings: list[str]) -> None:
    """Run the command of adamwprune.track that a target of make is, such as wandb-sync RUN=DIR."""
    target, *words = settings or [""]
    arguments, environment = tracking.arguments(target, words)
    os.environ.update(environment)
    _become("-m", "adamwprune.track", *arguments)


def _become(*words: str) -> None:
    """Print a command of this Python and go on as it: signals and exit code are its own."""
    print(shlex.join([str(shown_path(Path(sys.executable))), *words]), flush=True)
    os.execv(sys.executable, [sys.executable, *words])


def _merged(given: Given) -> list[str]:
    """The stored choice, or the default, with what is given; what had to go for that is said."""
    is_stored = FILE.exists()
    kept = stored.read(FILE) if is_stored else stored.DEFAULT
    overrides, left_out = stored.merge(kept, given.overrides)
    variables.check_trackers(given, overrides)
    if is_stored and left_out:
        print(f"left out of {FILE.name}: {' '.join(left_out)}", file=sys.stderr)
    return overrides


def _check_flagless(given: Given) -> None:
    if given.flags:
        raise ConfigError(f"{given.flags[0]}: only overrides can be kept; give flags to make train, in ARGS")


def main(arguments: list[str]) -> None:
    """Run one command."""
    given = parser().parse_args(arguments)
    command: Command = given.command
    command(given.settings)


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
