"""Experiments: those of conf/experiment, and the stored choice as a new one.

A saved experiment names the options that it is made of and, below them, only the keys that differ from
what these options bring, each under the comment that explains it. It is composed and compared first.
"""

import json
import re
import tempfile
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from adamwprune.composition import CONF_DIR, complete, compose, given_keys, quoted, to_config
from adamwprune.config import flatten, to_plain
from adamwprune.configure.comments import opening, read_keys
from adamwprune.configure.origins import read_origins
from adamwprune.configure.stored import command
from adamwprune.errors import ConfigError
from adamwprune.run_directory import write_text

# What an experiment is about: named even where it is the default.
ALWAYS_NAMED = ("data", "model", "optimizer", "hardware")
# Groups that no experiment can choose, or that come by themselves.
NEVER_NAMED = ("experiment", "sweep", "hardware_model")
# Keys of one command: where it runs, what it continues, what it trusts.
OF_A_COMMAND = ("hydra", "sweep", "resume", "resume_allow", "allow_targets")
# An option, or several trackers.
Choice = str | list[str]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WIDTH = 100
# The first sentence, up to a colon before a number.
_START = re.compile(r"(.+?(?=\. |: \d|$))?")


def listed(conf_dir: Path = CONF_DIR) -> list[tuple[str, str]]:
    """Name and opening comment of each experiment, sorted by name."""
    return [(file.stem, opening(file)) for file in sorted((conf_dir / "experiment").glob("*.yaml"))]


def save(name: str, overrides: list[str], conf_dir: Path = CONF_DIR) -> Path:
    """Write conf/experiment/NAME.yaml, which composes to the same configuration as `overrides`.

    Raises:
        ConfigError: the name cannot be one or is taken, the overrides do not compose, or one of them
            belongs to a command; nothing is written.
    """
    file = conf_dir / "experiment" / f"{name}.yaml"
    _check_name(name, file)
    for key, value in given_keys(overrides).items():
        if re.split(r"[./]", key)[0] in OF_A_COMMAND:
            raise ConfigError(f"{key}={value}: belongs to one command, not to an experiment; leave it out")
    target = compose(complete(overrides), conf_dir)
    expected = dict(flatten(to_plain(to_config(target, overrides))))
    chosen = _chosen(target)
    named = {group: chosen[group] for group in ALWAYS_NAMED}
    while missing := _missing(chosen, bare := _try_out(name, _text(name, overrides, named), conf_dir), named):
        named |= missing
    deltas = _differences(target, bare)
    text = _text(name, overrides, named, deltas, _comments(deltas, overrides, target, conf_dir))
    saved = dict(flatten(to_plain(to_config(_try_out(name, text, conf_dir)))))
    if different := sorted(key for key in saved.keys() | expected if saved.get(key) != expected.get(key)):
        raise ConfigError(f"NAME={name}: no experiment can say {', '.join(different)}; keep it in .defconfig")
    write_text(file, text)
    return file


def _check_name(name: str, file: Path) -> None:
    # Hydra would read null as no experiment, 3 as a number, a.yaml as a.
    is_text = bool(_NAME.fullmatch(name)) and given_keys([f"experiment={name}"])["experiment"] == name
    if not is_text or name.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"NAME={name}: must be 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit, "
            "and neither a number nor a word such as null"
        )
    if file.exists():
        raise ConfigError(f"NAME={name}: {file.name} is already in conf/experiment; choose another name")


def _chosen(composed: DictConfig) -> dict[str, Choice]:
    """Group -> option, of all groups that an experiment may choose for; a list of several trackers."""
    choices = composed.hydra.runtime.choices
    found: dict[str, Choice] = {
        group: option
        for group, option in reversed(choices.items())
        if option is not None and not group.startswith("hydra") and group not in NEVER_NAMED
    }
    if "tracker" not in found:  # chosen as a list
        trackers = list(composed.tracker)
        found["tracker"] = trackers if len(trackers) > 1 else next(iter(trackers), "none")
    return found


def _missing(chosen: Mapping[str, Choice], bare: DictConfig, named: Collection[str]) -> dict[str, Choice]:
    """The choices still to be named: whole groups before their parts, which a choice may bring."""
    brought = _chosen(bare)
    found = {
        group: option
        for group, option in chosen.items()
        if group not in named and brought.get(group) != option
    }
    return {group: option for group, option in found.items() if "/" not in group} or found


def _try_out(name: str, text: str, conf_dir: Path) -> DictConfig:
    """The composition of an experiment that is in no folder yet."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment" / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        return compose([f"experiment={name}", f"hydra.searchpath=[{quoted(f'file://{folder}')}]"], conf_dir)


def _differences(target: DictConfig, bare: DictConfig) -> dict[str, Any]:
    """Leaves of `target` that `bare` has not; unresolved, so that none follows from another."""
    before = {key: repr(value) for key, value in _leaves(bare)}
    return {key: value for key, value in _leaves(target) if before.get(key) != repr(value)}


def _leaves(composed: DictConfig) -> Iterator[tuple[str, Any]]:
    plain = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    return flatten({key: value for key, value in plain.items() if key != "hydra"})


# -------------------------------------------------------------------------------------- the file


def _text(
    name: str,
    overrides: list[str],
    named: Mapping[str, Choice],
    deltas: Mapping[str, Any] | None = None,
    comments: Mapping[str, str] | None = None,
) -> str:
    lines = [
        "# @package _global_",
        f"# {command([f'experiment={name}'])}",
        "#",
        f"# Saved from `{command(overrides)}`.",
        "defaults:",
        *(f"  - override /{group}: {_as_yaml(option)}" for group, option in named.items()),
    ]
    for section, tree in _nested(deltas or {}).items():
        lines += ["", *_key_lines(section, tree, comments or {})]
    return "\n".join(lines) + "\n"


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return tree


def _key_lines(path: str, value: Any, comments: Mapping[str, str]) -> Iterator[str]:
    """A key under its comment, or a section with its keys, a blank line between them."""
    *sections, key = path.split(".")
    indent = "  " * len(sections)
    if not isinstance(value, dict) or not value:
        if comment := comments.get(path):
            yield from textwrap.wrap(
                comment, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        yield f"{indent}{key}: {_as_yaml(value)}"
        return
    yield f"{indent}{key}:"
    for number, (inner, item) in enumerate(value.items()):
        yield from [""] if number else []
        yield from _key_lines(f"{path}.{inner}", item, comments)


def _as_yaml(value: Any) -> str:
    """A value in one line of YAML, which OmegaConf reads as that value."""
    text = yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
    read = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index,call-overload]
    return text if repr(read) == repr(value) else json.dumps(value)  # such as the text 1e3


def _comments(
    keys: Collection[str], overrides: list[str], target: DictConfig, conf_dir: Path
) -> dict[str, str]:
    """What the files say about each key, as far as it holds for any value.

    That is the comment of config.yaml, else the start of the one of the option that sets it, which may go on
    to explain its own number.
    """
    origins = read_origins(overrides, target, conf_dir)
    general = read_keys(conf_dir / "config.yaml")
    found = {}
    for key in keys:
        words = origins[key].comment if key in origins else ""
        words = general[key].comment if key in general else _START.match(words)[0]  # type: ignore[index]
        found[key] = words if not words or words.endswith(".") else f"{words}."
    return found
