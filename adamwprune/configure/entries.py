"""What a configuration tree is made of: keys, groups with options, and menus that hold them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamwprune.configure.comments import Line
from adamwprune.configure.values import Kind


@dataclass(frozen=True)
class Key:
    """One key with all that is known about it.

    Args:
        path: its dotted path.
        value: what it holds; None too where that cannot be resolved.
        text: the value as it is shown and typed; "?" where it cannot be resolved.
        interpolation: what its file holds where that is computed from others, such as ${recipe.adam_lr}.
        kind: what it may hold.
        comment: what its file says about it.
        line: the line of a file that sets it, below any override; None: only the schema does.
        override: the override that sets it.
        default: what it would hold without that override.
    """

    path: str
    value: Any
    text: str
    interpolation: str | None
    kind: Kind
    comment: str
    line: Line | None
    override: str | None
    default: Any


@dataclass(frozen=True)
class Option:
    """One option of a group: its name, its file, and the first comment of that."""

    name: str
    file: Path
    help: str


@dataclass(frozen=True)
class Choice:
    """A group such as pruning/scope, its options, and which are chosen."""

    group: str
    options: tuple[Option, ...]
    chosen: tuple[str, ...]
    override: str | None
    takes_none: bool
    takes_several: bool

    @property
    def text(self) -> str:
        """What is chosen, in a word."""
        return ",".join(self.chosen) or "none"


@dataclass(frozen=True)
class Menu:
    """A group, a section or the root.

    Args:
        path: dotted; "" for the root.
        comment: what it is, or what its chosen option is.
        choice: of a group; None for a section.
        entries: menus and keys in it.
    """

    path: str
    comment: str
    choice: Choice | None
    entries: tuple["Menu | Key", ...]

    def walk(self) -> Iterator[tuple["Menu", "Menu | Key"]]:
        """Every entry below, with the menu that holds it, in the order of reading."""
        for entry in self.entries:
            yield self, entry
            if isinstance(entry, Menu):
                yield from entry.walk()
