"""The menu over the configuration tree: lists of entries, as Linux's menuconfig has them.

Above is where one is, below what the entry under the cursor is, the differences so far beside the command that
they make, whether that can run, and what the last key did. Each change composes anew, in a thread, so that the
keys stay responsive; changes are made one after the other.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import OptionList, Static

from adamwprune.configure import experiments, stored, wording
from adamwprune.configure.dialogs import (
    Ask,
    ChooseOne,
    ChooseSeveral,
    Find,
    Item,
    Lines,
    Read,
    ReadCommand,
    Type,
)
from adamwprune.configure.entries import Choice, Key, Menu
from adamwprune.configure.search import Hit, search
from adamwprune.configure.tree import Tree, build
from adamwprune.errors import RunError

KEYS = "Enter in  Space set  ? help  / search  r reset  u undo  c command  s save  l load  Esc back"


class MenuApp(App[str]):
    """The menu.

    Args:
        tree: what it starts from.
        file: where the choice is stored.
        message: what it says first.
    """

    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    #title { height: 1; text-style: reverse; }
    #title Static { width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    #title #state { width: auto; }
    #about { height: 3; border-top: solid ansi_default; }
    #panel { height: 5; }
    #differences, #differences:focus { width: 1fr; height: 5; border-top: solid ansi_default; }
    #command { width: 1fr; height: 5; border-top: solid ansi_default; scrollbar-size-vertical: 1; padding-left: 1; }
    #verdict { height: auto; max-height: 2; }
    #message { height: auto; min-height: 1; max-height: 3; }
    #keys { height: 1; text-style: dim; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q,q", "leave", show=False, priority=False),
        Binding("escape,left,backspace", "back", show=False),
        Binding("right", "enter", show=False),
        Binding("space", "set", show=False),
        Binding("y", "switch('true')", show=False),
        Binding("n", "switch('false')", show=False),
        Binding("r,delete", "reset", show=False),
        Binding("u", "undo", show=False),
        Binding("question_mark,h", "explain", show=False),
        Binding("slash", "search", show=False),
        Binding("c", "command", show=False),
        Binding("s", "save", show=False),
        Binding("l", "load", show=False),
    ]
