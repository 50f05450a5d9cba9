"""The stored choice: `.defconfig` in the project's root, overrides of train.py, one a line.

`make defconfig` and `make menuconfig` write it, `make` runs it. What is given on make's command line is
added to it, or takes the place of what it replaces.
"""

import shlex
from pathlib import Path

from adamwprune.composition import BUDGETS, CONF_DIR, complete, compose, given_keys, parse, to_config
from adamwprune.errors import ConfigError
from adamwprune.run_directory import write_text

FILE = ".defconfig"
# What `make` trains where nothing is stored.
DEFAULT = ["experiment=lenet5-mnist5k"]
HEAD = """\
# What `make` trains: overrides of train.py, one a line, from make defconfig, make menuconfig or an editor.
# `make` prints the whole command and runs it; `make showconfig` prints what it composes to.
"""


def read(file: Path) -> list[str]:
    """The overrides in `file`; none where there is no such file.

    Raises:
        ConfigError: the file cannot be read, or a line (which is named) is no override or repeats a key.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file.name}: cannot be read ({error}); make defconfig writes a new one") from None
    overrides: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            parse([*overrides, text])
        except ConfigError as error:
            raise ConfigError(*(f"{file.name}:{number}: {problem}" for problem in error.problems)) from None
        overrides.append(text)
    return overrides


def write(file: Path, overrides: list[str], conf_dir: Path = CONF_DIR) -> None:
    """Replace `file` by these overrides, atomically, if they compose to a configuration that can run.

    Raises:
        ConfigError: they do not, or one of them cannot be a line; the file stays as it was.
    """
    for override in overrides:
        if len(override.splitlines()) != 1:
            raise ConfigError(f"{override!r}: a line break cannot be stored; leave it out")
    to_config(compose(complete(overrides), conf_dir), overrides)
    write_text(file, HEAD + "".join(f"{override}\n" for override in overrides))


def command(overrides: list[str]) -> str:
    """The whole command, quoted for a shell."""
    return shlex.join(["python", "train.py", *overrides])


def merge(stored: list[str], given: list[str]) -> tuple[list[str], list[str]]:
    """The stored overrides with those given, each key once; and the stored ones that had to go.

    What is given takes the place of the same key, and further: an experiment, or a run to resume, of all
    that is stored; a budget of any budget; another option of a group of the keys below that group, which
    were meant for the option before. The keys of a tracker stay as long as it is chosen.
    """
    old, new = _by_key(stored), _by_key(given)
    values = given_keys(given)
    anew = {key for key in values if (CONF_DIR / key).is_dir() and old.get(key) != new[key]}
    takes_all = "experiment" in new or "resume" in new
    has_budget = any(values.get(key) is not None for key in BUDGETS)

    def stays(key: str) -> bool:
        if key in new:
            return True
        if takes_all or (has_budget and key in BUDGETS):
            return False
        group = next((group for group in anew if key.startswith((f"{group}.", f"{group}/"))), None)
        return group is None or (group == "tracker" and key.split(".")[1] in _trackers(values[group]))

    kept = {key: override for key, override in old.items() if stays(key)}
    return list((kept | new).values()), [override for key, override in old.items() if key not in kept]


def _by_key(overrides: list[str]) -> dict[str, str]:
    return {o.get_key_element().lstrip("+~"): o.input_line or "" for o in parse(overrides)}


def _trackers(choice: object) -> list[str]:
    """Of a choice of the group tracker."""
    if choice == "both":
        return ["trackio", "wandb"]
    return [str(name) for name in choice] if isinstance(choice, list) else [str(choice)]
