"""Entries of a configuration tree in words, much as menuconfig writes them.

(lenet5) model  --->    a group and what is chosen of it
trainer  --->           a section
[*] amsgrad             a key that is true or false
(0.002) lr              any other key
-null- criterion        a key that comes with an option and cannot be set
"""

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from adamwprune.composition import CONF_DIR
from adamwprune.configure.compositions import name_of
from adamwprune.configure.entries import Choice, Key, Menu
from adamwprune.configure.tree import Tree
from adamwprune.configure.values import as_typed

# Columns of a row before its comment.
_NAMES = 32


def row(entry: Menu | Key, within: str) -> str:
    """One line for an entry of the menu at the path `within`; `*` where it differs from the default."""
    name = entry.path.removeprefix(f"{within}.")
    return _line("*" if is_changed(entry) else " ", f"{_value(entry)}{name}{_arrow(entry)}", entry.comment)


def own_row(menu: Menu, choice: Choice) -> str:
    """The line of a group's choice within the group's own menu."""
    return _line("*" if choice.override else " ", f"({choice.text}) option  --->", menu.comment)


def _line(mark: str, text: str, comment: str) -> str:
    return f"{mark} {text:{_NAMES}}  {comment}".rstrip()


def _value(entry: Menu | Key) -> str:
    if isinstance(entry, Menu):
        return f"({entry.choice.text}) " if entry.choice else ""
    if entry.kind.is_switch and isinstance(entry.value, bool):
        return "[*] " if entry.value else "[ ] "
    return f"({entry.text}) " if entry.kind.is_editable else f"-{entry.text}- "


def _arrow(entry: Menu | Key) -> str:
    return "  --->" if isinstance(entry, Menu) else ""


def is_changed(entry: Menu | Key) -> bool:
    """Whether an override sets the entry, or one below it."""
    if isinstance(entry, Key):
        return entry.override is not None
    is_chosen = entry.choice is not None and entry.choice.override is not None
    return is_chosen or any(is_changed(inner) for inner in entry.entries)


def headline(entry: Menu | Key) -> str:
    """Name and type of an entry."""
    if isinstance(entry, Key):
        return f"{entry.path}: {entry.kind.words}"
    if entry.choice is None:
        return entry.path
    return f"{entry.choice.group}={entry.choice.text}"


def differences(tree: Tree) -> list[str]:
    """A line for each override, with what the key would hold without it."""
    defaults = {key.override: as_typed(key.default) for key in tree.keys if key.override}
    return [
        f"{override} (was {defaults[override]})" if override in defaults else override
        for override in tree.overrides
    ]


def command_text(tree: Tree, command: str) -> str:
    """The command, broken between words as a shell reads it, the differences, and what is wrong."""
    words = shlex.split(command)
    lines = [shlex.join(words[:2]), *(f"  {shlex.quote(word)}" for word in words[2:])]
    parts = [" \\\n".join(lines)]
    if tree.overrides:
        parts.append("\n".join(["Differences:", *(f"  {line}" for line in differences(tree))]))
    if tree.problems:
        parts.append("\n".join(["It cannot run:", *(f"  {problem}" for problem in tree.problems)]))
    if tree.dropped:
        parts.append("\n".join(["Dropped by the last change:", *(f"  {why}" for _, why in tree.dropped)]))
    return "\n\n".join(parts)


def count(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def prompt(key: Key) -> str:
    """What one should know while typing a key's value."""
    computed = f"\nComputed: {key.interpolation}" if key.interpolation else ""
    return f"{key.comment}\n\nType: {key.kind.words}{computed}"


def change(before: Tree, after: Tree) -> str:
    """What a change did: overrides that are new or gone, what options brought, what was dropped and why."""
    new = [override for override in after.overrides if override not in before.overrides]
    dropped = dict(after.dropped)
    gone = {name_of(o) for o in before.overrides if o not in after.overrides and o not in dropped}
    gone -= {name_of(override) for override in new}
    old = {choice.group: choice.text for choice in before.choices}
    brought = [
        f"{choice.group}={choice.text}"
        for choice in after.choices
        if choice.override is None and old.get(choice.group, choice.text) != choice.text
    ]
    said = [" ".join(new)] if new else []
    said += [f"{name} is the default again" for name in sorted(gone)]
    said += [f"brings {', '.join(brought)}"] if brought else []
    said += [f"dropped {reason}" for reason in dropped.values()]
    return "; ".join(said) or "no change"


def help_text(entry: Menu | Key, width: int) -> str:
    """Everything about an entry, wrapped to a width."""
    lines = list(_help_of_key(entry) if isinstance(entry, Key) else _help_of_menu(entry))
    indent = max(len(label) for label, _ in lines) + 2
    return "\n".join(
        textwrap.fill(
            words,
            width,
            initial_indent=f"{label:{indent}}" if label else "",
            subsequent_indent=" " * indent if label else "",
            break_on_hyphens=False,
        )
        for label, words in lines
    )


def _help_of_key(key: Key) -> Iterator[tuple[str, str]]:
    """Labels with what they are about; "" before running text."""
    yield "key", key.path
    yield "holds", key.text
    if key.interpolation:
        yield "from", key.interpolation
    yield "type", key.kind.words
    if key.override:
        yield "set by", f"the override {key.override}"
        yield "default", as_typed(key.default)
    if key.line:
        yield "file", f"{_shown(key.line.file)}, line {key.line.number}"
    yield from (("", ""), ("", key.comment), ("", ""))
    if key.kind.is_editable:
        yield "", f"On the command line: python train.py {key.override or f'{key.path}={key.text}'}"


def _shown(file: Path) -> str:
    root = CONF_DIR.parent
    return str(file.relative_to(root) if file.is_relative_to(root) else file)


def _help_of_menu(menu: Menu) -> Iterator[tuple[str, str]]:
    yield "section" if menu.choice is None else "group", menu.path.replace(".", "/")
    if menu.choice is not None:
        yield "chosen", menu.choice.text
        if menu.choice.override:
            yield "set by", f"the override {menu.choice.override}"
    yield from (("", ""), ("", menu.comment), ("", ""))
    if menu.choice is not None:
        yield from ((option.name, option.help) for option in menu.choice.options)
