"""Entries of a configuration tree in words, much as menuconfig writes them.

    (lenet5) model  --->    a group and what is chosen of it
    trainer  --->           a section
    [*] amsgrad             a key that is true or false
    (0.002) lr              any other key
    -null- criterion        a key that comes with an option and cannot be set
"""

import textwrap
from collections.abc import Iterator

from adamwprune.composition import CONF_DIR
from adamwprune.configure.entries import Choice, Key, Menu
from adamwprune.configure.tree import Tree
from adamwprune.configure.values import as_typed

# Columns of a row before its comment.
_NAMES = 36


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
    defaults = {key.override: as_typed(key.default) for key in tree.keys() if key.override}
    return [
        f"{override}  (default {defaults[override]})" if override in defaults else override
        for override in tree.overrides
    ]


def change(before: Tree, after: Tree) -> str:
    """What a change did beside what it was meant to do: options that it brought, overrides that it dropped."""
    old = {choice.group: choice.text for choice in before.choices()}
    brought = [
        f"{choice.group}={choice.text}"
        for choice in after.choices()
        if choice.override is None and old.get(choice.group, choice.text) != choice.text
    ]
    new = [override for override in after.overrides if override not in before.overrides]
    words = [f"{' '.join(new) or 'this'} brings {', '.join(brought)}"] if brought else []
    return "; ".join([*words, *(f"dropped {reason}" for _, reason in after.dropped)])


def help_text(entry: Menu | Key, width: int) -> str:
    """Everything about an entry, wrapped to a width."""
    lines = _help_of_key(entry) if isinstance(entry, Key) else _help_of_menu(entry)
    return "\n".join(_wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    """Long lines go on below their text, not below the label in front of it."""
    return textwrap.fill(line, width, subsequent_indent=" " * 12, break_on_hyphens=False) if line else ""


def _help_of_key(key: Key) -> Iterator[str]:
    yield f"{'key':12}{key.path}"
    yield f"{'holds':12}{key.text}"
    if key.interpolation:
        yield f"{'from':12}{key.interpolation}"
    yield f"{'type':12}{key.kind.words}"
    if key.override:
        yield f"{'set by':12}the override {key.override}"
        yield f"{'default':12}{as_typed(key.default)}"
    if key.line:
        yield f"{'file':12}{_shown_file(key)}, line {key.line.number}"
    yield ""
    yield key.comment
    yield ""
    if key.kind.is_editable:
        yield f"On the command line: python train.py {key.override or f'{key.path}={key.text}'}"


def _shown_file(key: Key) -> str:
    assert key.line is not None
    file = key.line.file
    return str(file.relative_to(CONF_DIR.parent) if file.is_relative_to(CONF_DIR.parent) else file)


def _help_of_menu(menu: Menu) -> Iterator[str]:
    yield f"{'section':12}{menu.path}" if menu.choice is None else f"{'group':12}{menu.choice.group}"
    if menu.choice is not None:
        yield f"{'chosen':12}{menu.choice.text}"
        if menu.choice.override:
            yield f"{'set by':12}the override {menu.choice.override}"
    yield ""
    yield menu.comment
    if menu.choice is not None:
        yield ""
        yield "Options:"
        yield from (f"{option.name:{max(11, len(option.name))}} {option.help}" for option in menu.choice.options)
