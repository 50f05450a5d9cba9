"""A composition as menus: every group with its options and every key with type, comment and default, once."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf

from adamwprune.config import Config
from adamwprune.configure.comments import opening
from adamwprune.configure.compositions import SEVERAL, WORDS, Composition, Unresolved, resolved
from adamwprune.configure.entries import Choice, Key, Menu, Option
from adamwprune.configure.origins import OptionFile, Origin, option_files, option_folders
from adamwprune.configure.values import as_typed, kind_of

# The group that stands first: it chooses from the others.
PRESETS = "experiment"


def describe(
    whole: Composition,
    alone: Composition,
    origins: Mapping[str, Origin],
    given: Mapping[str, str],
) -> Menu:
    """The top menu of a composition.

    Args:
        whole: the composition of all overrides.
        alone: that of those that choose options; its values are the defaults of keys.
        origins: where each key comes from.
        given: the overrides by key or group.
    """
    folders = option_folders(whole.composed)
    return _Description(whole, alone, origins, given, folders, option_files(folders)).root()


@dataclass(frozen=True)
class _Description:
    """What `describe` is given, and the files of all options with their folders, conf/ first."""

    whole: Composition
    alone: Composition
    origins: Mapping[str, Origin]
    given: Mapping[str, str]
    folders: Sequence[Path]
    files: Sequence[OptionFile]

    def root(self) -> Menu:
        """The top menu: groups, then sections, then keys that are in neither."""
        choices = {choice.group.replace("/", "."): choice for choice in self._choices()}
        sections = [name for name, kind in get_type_hints(Config).items() if dataclasses.is_dataclass(kind)]
        paths = [*choices, *(name for name in sections if name not in choices)]
        keys = [self._key(path) for path, raw in self.whole.raw.items() if _is_key(path, raw)]

        def menu(path: str) -> Menu:
            menus = [menu(inner) for inner in paths if _holder(inner, paths) == path]
            own = [key for key in keys if _holder(key.path, paths) == path]
            return Menu(path, self._comment(path, choices.get(path)), choices.get(path), (*menus, *own))

        return menu("")

    def _choices(self) -> list[Choice]:
        """The groups of conf/config.yaml, each with those within its chosen option."""
        defaults = yaml.safe_load((self.folders[0] / "config.yaml").read_text(encoding="utf-8"))["defaults"]
        listed = {
            name: chosen for item in defaults if isinstance(item, dict) for name, chosen in item.items()
        }
        inner = [str(group).partition("@")[0] for group in self.whole.composed.hydra.runtime.choices]
        groups = [name for name in listed if not name.startswith("optional ") and name != "hydra"]
        return [
            self._choice(group, takes_none=listed.get(group, "") is None)
            for outer in sorted(groups, key=lambda name: name != PRESETS)
            for group in (outer, *(name for name in reversed(inner) if name.startswith(f"{outer}/")))
        ]

    def _choice(self, group: str, *, takes_none: bool) -> Choice:
        takes_several = group == SEVERAL
        options = [
            Option(found.option, found.file, opening(found.file))
            for found in self.files
            if found.group == group and not (takes_several and found.option in WORDS)
        ]
        return Choice(
            group,
            options=tuple(sorted(options, key=lambda option: (option.name != "none", option.name))),
            chosen=self.whole.chosen(group),
            override=self.given.get(group),
            takes_none=takes_none,
            takes_several=takes_several,
        )

    def _comment(self, path: str, choice: Choice | None) -> str:
        """Of a group, what its chosen options are; of a section, what it is for."""
        if choice is not None:
            helps = {found.option: opening(found.file) for found in self.files if found.group == choice.group}
            nothing = f"Nothing chosen; there are {', '.join(option.name for option in choice.options)}."
            return " ".join(helps.get(name, nothing) for name in choice.chosen or ("none",))
        if path in self.origins and (comment := self.origins[path].comment):
            return comment
        return (get_type_hints(Config)[path].__doc__ or "") if path else (Config.__doc__ or "")

    def _key(self, path: str) -> Key:
        value, raw = self.whole.values[path], self.whole.raw[path]
        override = self.given.get(path)
        is_computed = override is None and isinstance(raw, str) and "${" in raw
        origin = self.origins.get(path)
        return Key(
            path,
            value=None if value is Unresolved else value,
            text="?" if value is Unresolved else as_typed(value),
            interpolation=raw if is_computed else None,
            kind=kind_of(path, self.whole.plain),
            comment=(origin.comment if origin else "") or self._comment_elsewhere(path),
            line=origin.line if origin else None,
            override=override,
            default=value if override is None else self._default(path),
        )

    def _default(self, path: str) -> Any:
        """What a key would hold without its override, beside all others; None too where nothing sets it."""
        if path not in self.alone.values:
            return None
        without = copy.deepcopy(self.whole.composed)
        OmegaConf.update(without, path, self.alone.raw[path], merge=False)
        value = resolved(without, path)
        return None if value is Unresolved else value

    def _comment_elsewhere(self, path: str) -> str:
        """What other options say of a key that only the schema sets here."""
        lines = (found.keys[path] for found in self.files if path in found.keys)
        return next((line.comment for line in lines if line.is_own), "")


def _is_key(path: str, raw: Any) -> bool:
    """Whether a leaf is for people; what a part is made of, and a group with nothing chosen, is not."""
    return path.rpartition(".")[2] != "_target_" and raw != {}


def _holder(path: str, menus: list[str]) -> str:
    """The innermost menu that an entry lies in."""
    parts = path.split(".")
    outer = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    return next((menu for menu in outer if menu in menus), "")
