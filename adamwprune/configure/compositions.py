"""What overrides compose to: raw and resolved values by dotted path, and the options that are chosen."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adamwprune.composition import complete, compose, parse
from adamwprune.config import flatten
from adamwprune.errors import ConfigError

# Several options of this group may be chosen; two of them are words for none and for several.
SEVERAL, WORDS = "tracker", ("none", "both")


class Unresolved:
    """In the place of a value that depends on another that is missing or wrong."""


@dataclass(frozen=True)
class Composition:
    """Overrides, composed.

    Args:
        composed: as Hydra has it, `hydra` node included, not resolved.
        plain: the same as plain dictionaries, without that node.
        values: the resolved value of each key by its dotted path; Unresolved where there is none.
    """

    composed: DictConfig
    plain: Mapping[str, Any]
    values: Mapping[str, Any]

    @functools.cached_property
    def raw(self) -> dict[str, Any]:
        """The value of each key as the files and overrides have it, interpolations included."""
        return dict(flatten(self.plain))

    def chosen(self, group: str) -> tuple[str, ...]:
        """The chosen options of a group: one, none of an optional group, or any number of trackers."""
        if group == SEVERAL:  # a list of options leaves no trace in runtime.choices
            return tuple(sorted(self.plain[SEVERAL]))
        name = self.composed.hydra.runtime.choices.get(group)
        return () if name is None else (str(name),)


def composition(overrides: tuple[str, ...], conf_dir: Path) -> Composition:
    """Compose, and resolve what can be.

    Raises:
        ConfigError: the overrides do not compose.
    """
    if that_choose(overrides, conf_dir) == overrides:
        return options_alone(overrides, conf_dir)
    return _composition(overrides, conf_dir)


@functools.lru_cache(maxsize=64)
def options_alone(overrides: tuple[str, ...], conf_dir: Path) -> Composition:
    """The composition of overrides that choose options and set no key: it has the defaults of all keys.

    Raises:
        ConfigError: they do not compose.
    """
    return _composition(overrides, conf_dir)


def _composition(overrides: tuple[str, ...], conf_dir: Path) -> Composition:
    composed = compose(complete(list(overrides)), conf_dir)
    run = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    plain = OmegaConf.to_container(run, enum_to_str=True)
    assert isinstance(plain, dict)
    try:
        values = dict(flatten(OmegaConf.to_container(run, resolve=True, enum_to_str=True)))
    except OmegaConfBaseException:
        values = {path: resolved(run, path) for path, _ in flatten(plain)}
    return Composition(composed, plain, values)


def resolved(composed: DictConfig, path: str) -> Any:
    """The plain value of a key; Unresolved where its interpolation leads nowhere."""
    try:
        node = OmegaConf.create({"value": OmegaConf.select(composed, path)})
        return OmegaConf.to_container(node, resolve=True, enum_to_str=True)["value"]
    except OmegaConfBaseException:
        return Unresolved


@functools.cache
def name_of(override: str) -> str:
    """The key or group that an override sets."""
    return parse([override])[0].get_key_element().lstrip("+")


def that_choose(overrides: tuple[str, ...], conf_dir: Path) -> tuple[str, ...]:
    """Those of the overrides that choose options, or add a folder of options, and set no key."""
    return tuple(override for override in overrides if _rank(override, conf_dir) < _KEY)


_FOLDER, _GROUP, _PART, _KEY = range(4)


def _rank(override: str, conf_dir: Path) -> int:
    """What an override sets; the lower, the more of the others may depend on it."""
    name = override.partition("=")[0].lstrip("+~").partition("@")[0]
    if name == "hydra.searchpath":
        return _FOLDER
    if "." in name or not (conf_dir / name).is_dir():
        return _KEY
    return _PART if "/" in name else _GROUP


def that_compose(overrides: tuple[str, ...], conf_dir: Path) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The overrides without those that do not compose beside the others, and these with the reason.

    Choices of options come first: where a choice and a key do not go together the key is left out.
    """
    kept: list[str] = []
    left_out = []
    for override in sorted(overrides, key=lambda override: _rank(override, conf_dir)):
        try:
            compose(complete([*kept, override]), conf_dir)
        except ConfigError as error:
            left_out.append((override, str(error)))
        else:
            kept.append(override)
    return tuple(override for override in overrides if override in kept), left_out
