"""What the menu opens above itself: lists to choose from, fields to type into, texts to read.

Each is left by Esc, without effect. All work with keys only and without colours.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

from adamwprune.configure.lists import Lines
from adamwprune.configure.search import Hit


class Dialog(ModalScreen[object]):
    """A box above the menu; Esc leaves it."""

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
        background: transparent;
        & > Vertical {
            width: 100%;
            max-width: 100;
            height: auto;
            max-height: 100%;
            border: solid ansi_default;
            background: ansi_default;
            padding: 0 1;
        }
        Static { background: ansi_default; }
        .hint { text-style: dim; }
        Horizontal { height: 1; margin: 1 0; background: ansi_default; }
        Horizontal Static { width: 2; }
        Input { border: none; height: 1; padding: 0; background: ansi_default; text-style: underline; }
        Input:focus { border: none; background-tint: transparent; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,ctrl+c", "leave", show=False)]

    def action_leave(self) -> None:
        """Close without effect."""
        self.dismiss(None)


@dataclass(frozen=True)
class Item:
    """Something to choose: its name and what it is."""

    name: str
    help: str = ""


class ChooseOne(Dialog):
    """A list of which one is chosen; returns its name."""

    DEFAULT_CSS = """
    ChooseOne {
        Lines { height: auto; max-height: 14; }
        #help { height: auto; max-height: 4; min-height: 1; border-top: solid ansi_default; }
    }
    """
    HINT = "Enter choose   letter jump   Esc leave as it is"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("space", "choose", show=False)]

    def __init__(self, title: str, items: Sequence[Item], chosen: Collection[str] = (), at: str = "") -> None:
        super().__init__()
        self.box_title, self.items, self.chosen = title, list(items), set(chosen)
        self.names = [item.name for item in items]
        first = at or next((name for name in self.names if name in self.chosen), "")
        self.start = self.names.index(first) if first in self.names else 0

    def compose(self) -> ComposeResult:
        """The list, and the help of the entry under the cursor."""
        with Vertical() as box:
            box.border_title = self.box_title
            yield Lines(self._texts(), self.start)
            yield Static(id="help", markup=False)
            yield Static(self.HINT, classes="hint", markup=False)

    def _mark(self, name: str) -> str:
        return "(X)" if name in self.chosen else "( )"

    def _texts(self) -> list[str]:
        width = min(max(map(len, self.names)), 30)
        return [f"{self._mark(item.name)} {item.name:{width}}  {item.help}" for item in self.items]

    @on(OptionList.OptionHighlighted)
    def show_help(self, event: OptionList.OptionHighlighted) -> None:
        """All of the help that the list has no room for."""
        self.query_one("#help", Static).update(self.items[event.option_index].help)

    def answer(self) -> str | list[str]:
        """The name of the entry under the cursor."""
        return self.names[self.query_one(Lines).highlighted or 0]

    @on(OptionList.OptionSelected)
    def action_choose(self) -> None:
        """Take the answer."""
        self.dismiss(self.answer())

    def on_key(self, event: events.Key) -> None:
        """Letters jump, as in menuconfig."""
        if event.character and event.character.isalnum():
            self.query_one(Lines).jump_to(event.character, self.names)


class ChooseSeveral(ChooseOne):
    """A list of which any number are chosen; returns their names."""

    HINT = "Space on or off   Enter done   Esc leave as it is"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("space", "switch", show=False)]

    def _mark(self, name: str) -> str:
        return "[*]" if name in self.chosen else "[ ]"

    def action_switch(self) -> None:
        """Choose the entry under the cursor, or no longer."""
        lines = self.query_one(Lines)
        self.chosen ^= {self.names[lines.highlighted or 0]}
        lines.show(self._texts(), lines.highlighted or 0)

    def answer(self) -> list[str]:
        """The names of all that are chosen."""
        return [name for name in self.names if name in self.chosen]


class Ask(ChooseOne):
    """A question with a few answers, of which the first letter is enough."""

    HINT = "Enter or a first letter answers   Esc back to the menu"

    def _texts(self) -> list[str]:
        width = max(map(len, self.names))
        return [f"{item.name:{width}}  {item.help}" for item in self.items]

    def on_key(self, event: events.Key) -> None:
        """A first letter answers."""
        letter = event.character or "\0"
        answers = [name for name in self.names if name.lstrip(".").startswith(letter)]
        if len(answers) == 1:
            event.stop()
            self.dismiss(answers[0])


# Takes what was typed and returns why it is refused; None where it was taken.
Attempt = Callable[[str], Awaitable[str | None]]


class Type(Dialog):
    """A field to type into; what is wrong with it is said, and the field stays."""

    DEFAULT_CSS = """
    Type {
        #text { height: auto; max-height: 10; }
        #error { height: auto; max-height: 6; text-style: bold; color: ansi_red; }
    }
    """

    def __init__(self, title: str, about: str, text: str, attempt: Attempt) -> None:
        super().__init__()
        self.box_title, self.about, self.text, self.attempt = title, about, text, attempt

    def compose(self) -> ComposeResult:
        """What is asked for, the field, what is wrong."""
        with Vertical() as box:
            box.border_title = self.box_title
            yield Static(self.about, id="text", markup=False)
            with Horizontal():
                yield Static("> ", markup=False)
                yield Input(self.text, select_on_focus=False)
            yield Static(id="error", markup=False)
            yield Static("Enter take it   Ctrl-U clear   Esc leave as it is", classes="hint", markup=False)

    @on(Input.Submitted)
    async def try_it(self, event: Input.Submitted) -> None:
        """Close if what was typed is taken."""
        error = await self.attempt(event.value)
        if error is None:
            self.dismiss(event.value)
        else:
            self.query_one("#error", Static).update(error)


class Read(Dialog):
    """A text that fills the screen, to be scrolled."""

    DEFAULT_CSS = """
    Read {
        & > Vertical { width: 100%; height: 100%; border: none; padding: 0; }
        VerticalScroll { height: 1fr; scrollbar-size-vertical: 1; }
        VerticalScroll { background: ansi_default; scrollbar-background: ansi_default; }
        #heading { text-style: reverse; width: 100%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,left,question_mark,enter", "leave", show=False)]
    HINT = "Up/Down PgUp/PgDn scroll   Esc back"

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self.box_title, self.text = title, text

    def compose(self) -> ComposeResult:
        """Title, text, keys."""
        with Vertical():
            yield Static(f" {self.box_title}", id="heading", markup=False)
            with VerticalScroll():
                yield Static(self.text, markup=False)
            yield Static(self.HINT, classes="hint", markup=False)


class ReadCommand(Read):
    """The whole command, to be copied: by the terminal's own selection, or with `c` where it takes OSC 52."""

    HINT = "c copy the command   Up/Down scroll   Esc back"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("c", "copy", show=False)]

    def __init__(self, title: str, text: str, command: str) -> None:
        super().__init__(title, text)
        self.command = command

    def action_copy(self) -> None:
        """Put the command into the terminal's clipboard."""
        self.app.copy_to_clipboard(self.command)
        self.query_one(".hint", Static).update("sent to the terminal's clipboard   Esc back")


class Find(Dialog):
    """Search as you type; returns the hit that was chosen."""

    DEFAULT_CSS = """
    Find {
        & > Vertical { height: 100%; width: 100%; }
        Horizontal { margin: 0; }
        #help { height: 3; border-top: solid ansi_default; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"move('cursor_{key}')", show=False) for key in ("up", "down")
    ] + [Binding(f"page{way}", f"move('page_{way}')", show=False) for way in ("up", "down")]

    def __init__(self, find: Callable[[str], Sequence[Hit]], text: str) -> None:
        super().__init__()
        self.find, self.text = find, text
        self.hits: Sequence[Hit] = []

    def compose(self) -> ComposeResult:
        """The field, the hits, all that is said about the one under the cursor."""
        with Vertical() as box:
            box.border_title = "search"
            with Horizontal():
                yield Static("/ ", markup=False)
                yield Input(self.text, placeholder="names, comments, options; several words narrow it")
            yield Lines()
            yield Static(id="help", markup=False)
            yield Static("Up/Down   Enter go there   Esc back", classes="hint", markup=False)

    @on(Input.Changed)
    def look(self, event: Input.Changed) -> None:
        """Show what has all the words in it."""
        self.text = event.value
        self.hits = self.find(event.value)
        self.query_one(Lines).show([f"{hit.title:36}  {hit.words}" for hit in self.hits])
        count = f"{len(self.hits)} found" if event.value.strip() else ""
        self.query_one(Vertical).border_subtitle = count
        if not self.hits:
            self.query_one("#help", Static).update("")

    @on(OptionList.OptionHighlighted)
    def show_help(self, event: OptionList.OptionHighlighted) -> None:
        """All that the list has no room for."""
        hit = self.hits[event.option_index]
        self.query_one("#help", Static).update(f"{hit.title}: {hit.words}")

    def action_move(self, action: str) -> None:
        """Move the list's cursor, while the field keeps the focus."""
        getattr(self.query_one(Lines), f"action_{action}")()

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def go(self) -> None:
        """Take the hit under the cursor."""
        at = self.query_one(Lines).highlighted
        if at is not None:
            self.dismiss(self.hits[at])
