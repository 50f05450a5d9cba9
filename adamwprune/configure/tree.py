"""The configuration as a tree for people: groups with their options, keys with type, comment and default.

`build(overrides)` composes and checks as train.py does and returns a `Tree`. A change of a tree is a new one,
composed again, so that whatever an option brings is in it. Overrides that do not compose, such as keys that
the chosen option lacks, are left out, and `Tree.dropped` says which and why. No interface is known here.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adamwprune.composition import BUDGETS, CONF_DIR, to_config
from adamwprune.configure.compositions import (
    SEVERAL,
    WORDS,
    composition,
    name_of,
    options_alone,
    that_choose,
    that_compose,
)
from adamwprune.configure.description import describe
from adamwprune.configure.entries import Choice, Key, Menu
from adamwprune.configure.origins import read_origins
from adamwprune.configure.values import override_value
from adamwprune.errors import ConfigError


@dataclass(frozen=True)
class Tree:
    """A composition that was checked.

    Args:
        overrides: what differs from the defaults, as typed on a command line.
        dropped: what was given besides and is not in force, with the reason.
        problems: why it could not run, one line each.
        root: the top menu.
        composed: the composition itself, not resolved.
        conf_dir: where its files are.
    """

    overrides: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    root: Menu
    composed: DictConfig
    conf_dir: Path

    def find(self, path: str) -> Menu | Key:
        """The entry at a dotted path, "" for the root.

        Raises:
            ConfigError: there is none.
        """
        found = next((entry for entry in (self.root, *self._entries()) if entry.path == path), None)
        if found is None:
            raise ConfigError(f"{path}: this configuration has no such key or group")
        return found

    def key(self, path: str) -> Key:
        """The key at a dotted path.

        Raises:
            ConfigError: there is none.
        """
        if not isinstance(key := self.find(path), Key):
            raise ConfigError(f"{path}: is a section, not a key")
        return key

    def menu(self, path: str) -> Menu:
        """The menu at a dotted path.

        Raises:
            ConfigError: there is none.
        """
        if not isinstance(menu := self.find(path), Menu):
            raise ConfigError(f"{path}: is a key")
        return menu

    def has_menu(self, path: str) -> bool:
        """Whether there is a menu at a dotted path."""
        return any(isinstance(entry, Menu) and entry.path == path for entry in (self.root, *self._entries()))

    def menu_of(self, path: str) -> Menu:
        """The menu that holds an entry; the root where there is no such entry."""
        return next((menu for menu, entry in self.root.walk() if entry.path == path), self.root)

    def choice(self, group: str) -> Choice:
        """The choice of a group such as pruning/scope.

        Raises:
            ConfigError: there is no such group.
        """
        if (choice := self.menu(group.replace("/", ".")).choice) is None:
            raise ConfigError(f"{group}: is no group")
        return choice

    def _entries(self) -> list[Menu | Key]:
        return [entry for _, entry in self.root.walk()]

    @property
    def keys(self) -> list[Key]:
        """All keys, in the order of reading."""
        return [entry for entry in self._entries() if isinstance(entry, Key)]

    @property
    def choices(self) -> list[Choice]:
        """All groups, in the order of reading."""
        menus = (entry for entry in self._entries() if isinstance(entry, Menu))
        return [menu.choice for menu in menus if menu.choice is not None]

    def with_value(self, path: str, typed: str) -> "Tree":
        """The tree whose key holds what was typed; a budget takes the place of another.

        Raises:
            ConfigError: the key cannot hold that, whatever else is chosen.
        """
        key = self.key(path)
        if not key.kind.is_editable:
            raise ConfigError(f"{path}: comes with an option; choose another {path.partition('.')[0]}")
        text, value = override_value(path, key.kind, typed, self.composed)
        kept, default = self.overrides, key.default
        if path in BUDGETS and value is not None:
            kept = tuple(o for o in kept if name_of(o) == path or name_of(o) not in BUDGETS)
            default = options_alone(that_choose(kept, self.conf_dir), self.conf_dir).values[path]
        changed = build(
            _replaced(kept, path, None if _are_equal(value, default) else f"{path}={text}"), self.conf_dir
        )
        replaced = [(o, f"{o}: {path} is the budget now") for o in self.overrides if o not in kept]
        return dataclasses.replace(changed, dropped=(*replaced, *changed.dropped))

    def with_choice(self, group: str, names: Iterable[str]) -> "Tree":
        """The tree in which these options of a group are chosen; () for none of them."""
        names = tuple(sorted(names))
        others = _replaced(self.overrides, group, None)
        is_default = _comes_anyway(group, names, others, self.conf_dir)
        if is_default or (not names and group != SEVERAL):  # Hydra takes no experiment=null
            return build(others, self.conf_dir)
        value = f"[{','.join(names)}]" if len(names) > 1 else "".join(names) or WORDS[0]
        return build(_replaced(self.overrides, group, f"{group}={value}"), self.conf_dir)

    def without(self, name: str) -> "Tree":
        """The tree without the override of a key or a group."""
        return build(_replaced(self.overrides, name, None), self.conf_dir)


def _replaced(overrides: Iterable[str], name: str, override: str | None) -> tuple[str, ...]:
    """The overrides with one in the place of that of the same key or group, or without it."""
    new = [] if override is None else [override]
    names = {name_of(given): given for given in overrides}
    if name not in names:
        return (*overrides, *new)
    at = list(names).index(name)
    return (*tuple(overrides)[:at], *new, *tuple(overrides)[at + 1 :])


def _are_equal(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)  # 1 is not true


def _comes_anyway(group: str, names: tuple[str, ...], others: tuple[str, ...], conf_dir: Path) -> bool:
    """Whether the other choices bring these options by themselves."""
    try:
        alone = options_alone(that_choose(others, conf_dir), conf_dir)
    except ConfigError:  # they do not compose without a choice from this group
        return False
    return alone.chosen(group) == names


def build(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> Tree:
    """Compose and check overrides, and describe everything that can be chosen or set.

    Raises:
        ConfigError: the files of conf/ do not compose by themselves.
    """
    kept, left_out = tuple(overrides), []
    try:
        whole = composition(kept, conf_dir)
    except ConfigError:
        kept, left_out = that_compose(kept, conf_dir)
        whole = composition(kept, conf_dir)
    choosing = that_choose(kept, conf_dir)
    alone = options_alone(choosing, conf_dir)
    HydraConfig.instance().set_config(whole.composed)  # resolvers read it
    try:
        to_config(whole.composed)
        problems: tuple[str, ...] = ()
    except ConfigError as error:
        problems = error.problems
    given = {name_of(override): override for override in kept}
    root = describe(whole, alone, read_origins(choosing, alone.composed, conf_dir), given)
    return Tree(kept, tuple(left_out), problems, root, whole.composed, conf_dir)
