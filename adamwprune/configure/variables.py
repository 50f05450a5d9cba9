"""The variables of make's command line, and the override of train.py that each becomes.

    make train TRACKER=wandb,trackio EPOCHS=4 optimizer.lr=3e-4 ARGS="seed=2"
    python train.py 'tracker=[wandb,trackio]' trainer.max_epochs=4 optimizer.lr=3e-4 seed=2

A word in small letters is an override as it is: make takes `optimizer.lr=3e-4` for a variable of its own and
hands it on, so the same words work behind make and behind train.py.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.utils import get_args_parser

from adamwprune import targets
from adamwprune.composition import CONF_DIR, complete, compose, given_keys, parse, quoted
from adamwprune.errors import ConfigError

# Each is one override, in this order; an empty variable is not given.
KEYS = {
    "DEFCONFIG": "experiment",
    "TRACKER": "tracker",
    "OPTIMIZER": "optimizer",
    "EPOCHS": "trainer.max_epochs",
    "MAX_ITERS": "trainer.max_steps",
    "TIME": "trainer.max_time",  # seconds
    "PROJECT": "project",
    "RUN_NAME": "run_name",
    "ENTITY": "tracker.wandb.entity",
    "WANDB_OFFLINE": "tracker.wandb.mode",  # 1 is offline, 0 is auto
    "TRACKIO_PORT": "tracker.trackio.port",
}
# Further overrides and flags of train.py, as a shell would split them.
ARGS = "ARGS"
# Those whose value is a text, whatever it looks like: RUN_NAME=1e3 is no number.
TEXTS = ("PROJECT", "RUN_NAME", "ENTITY")
WANDB_MODES = {"1": "offline", "0": "auto"}


@dataclass(frozen=True)
class Given:
    """What stands on a command line of make.

    Args:
        variables: those that are not empty, by name.
        overrides: of train.py, from variables, keys and ARGS; each key once.
        flags: of train.py, from ARGS, with their values.
    """

    variables: dict[str, str]
    overrides: list[str]
    flags: list[str]


def read(settings: list[str], *own: str) -> Given:
    """Read NAME=VALUE words: variables, keys of train.py, and the command's `own` variables.

    Raises:
        ConfigError: a name that is neither, a value that its variable cannot have, or a key given twice.
    """
    keys = sorted(word for word in settings if not _is_variable(word))  # make gives them in any order
    variables = only([word for word in settings if _is_variable(word)], *KEYS, ARGS, *own)
    flags, further = split_arguments(variables.get(ARGS, ""))
    overrides = [_override(name, value) for name, value in variables.items() if name in KEYS]
    overrides += [*keys, *further]
    parse(overrides)
    return Given(variables, overrides, flags)


def only(settings: list[str], *names: str) -> dict[str, str]:
    """The variables called `names`, in that order; an empty one is not given.

    Raises:
        ConfigError: anything else is given.
    """
    pairs = {}
    for word in settings:
        name, sign, value = word.partition("=")
        if not sign or name not in names:
            hint = targets.nearest(name, names) if names else "there are none"
            raise ConfigError(f"{word}: no such variable here; {hint}")
        pairs[name] = value
    return {name: pairs[name] for name in names if pairs.get(name)}


def _is_variable(word: str) -> bool:
    return word.partition("=")[0].isupper()


def split_arguments(text: str) -> tuple[list[str], list[str]]:
    """The flags and the overrides in ARGS.

    Raises:
        ConfigError: a quote is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"ARGS={text}: {error}") from None
    overrides = get_args_parser().parse_args(words).overrides
    return [word for word in words if word not in overrides], overrides


def _override(name: str, value: str) -> str:
    if name == "TRACKER":
        return tracker_override(value)
    if name == "WANDB_OFFLINE":
        if value not in WANDB_MODES:
            raise ConfigError(f"WANDB_OFFLINE={value}: must be 1 for offline, or 0 for {WANDB_MODES['0']}")
        value = WANDB_MODES[value]
    return _text(KEYS[name], value) if name in TEXTS else f"{KEYS[name]}={value}"


def tracker_override(value: str, conf_dir: Path = CONF_DIR) -> str:
    """TRACKER as an override: an option of conf/tracker, or several trackers with commas between them.

    Raises:
        ConfigError: it names anything else, or a tracker twice, or none or both beside others.
    """
    options = sorted(file.stem for file in (conf_dir / "tracker").glob("*.yaml"))
    names = value.split(",")
    if len(names) == 1 and value in options:
        return f"tracker={value}"
    several = [name for name in options if name not in ("none", "both")]
    if len(names) == 1 or len(set(names)) < len(names) or not set(names) <= set(several):
        raise ConfigError(
            f"TRACKER={value}: must be one of {', '.join(options)}; "
            f"or several of {', '.join(several)}, each once, as in wandb,trackio"
        )
    return f"tracker=[{value}]"


def _text(key: str, text: str) -> str:
    """An override that Hydra reads as this very text: plain where it can be, else in quotes."""
    plain = f"{key}={text}"
    try:
        is_read_so = given_keys([plain])[key] == text
    except ConfigError:
        is_read_so = False
    return plain if is_read_so and re.fullmatch(r"[\w./@%+-]+", text) else f"{key}={quoted(text)}"


def check_trackers(given: Given, overrides: list[str]) -> None:
    """Refuse a variable that belongs to a tracker which `overrides` do not choose.

    Raises:
        ConfigError: there is one, or the overrides do not compose.
    """
    meant = {
        name: KEYS[name].split(".")[1]
        for name in given.variables
        if KEYS.get(name, "").startswith("tracker.")
    }
    if not meant or given.flags:  # with flags only train.py can compose
        return
    chosen = compose(complete([o for o in overrides if not o.lstrip("+").startswith("tracker.")])).tracker
    for name, tracker in meant.items():
        if tracker not in chosen:
            raise ConfigError(
                f"{name}={given.variables[name]}: is for {tracker}, and the trackers are "
                f"{', '.join(chosen) or 'none'}; add TRACKER={tracker}, or leave it out"
            )
