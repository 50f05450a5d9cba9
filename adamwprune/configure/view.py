"""What the menu shows, from top to bottom.

Where one is; the entries there; what the one under the cursor is; the differences so far, beside the command
that they make; whether that can run; what the last key did; the keys.
"""

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import OptionList, Static

from adamwprune.configure import stored, wording
from adamwprune.configure.entries import Key, Menu
from adamwprune.configure.lists import Lines, QuietLines
from adamwprune.configure.tree import Tree

KEYS = "Space set  ? help  / search  r reset  u undo  c command  s save  l load  q quit"
VALID = "VALID: it composes, and every check that needs no data and no device passes"


class View(Vertical):
    """One menu of a tree.

    Args:
        tree: the configuration.
    """

    DEFAULT_CSS = """
    View {
        background: ansi_default;
        color: ansi_default;
        Horizontal, VerticalScroll { background: ansi_default; scrollbar-background: ansi_default; }
        #title { height: 1; text-style: reverse; }
        #where { width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
        #state { width: auto; }
        #about { height: 3; border-top: solid ansi_default; }
        #panel { height: 20%; min-height: 5; }
        #panel > * { width: 1fr; height: 100%; border-top: solid ansi_default; scrollbar-size-vertical: 1; }
        #command { margin-left: 1; }
        #verdict { height: auto; max-height: 2; }
        #message { height: auto; min-height: 1; max-height: 3; }
        #keys { height: 1; text-style: dim; text-wrap: nowrap; text-overflow: ellipsis; }
    }
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.current, self.path = tree, ""

    def compose(self) -> ComposeResult:
        """The parts, still empty."""
        with Horizontal(id="title"):
            yield Static(id="where", markup=False)
            yield Static(id="state", markup=False)
        yield Lines(id="entries")
        yield Static(id="about", markup=False)
        with Horizontal(id="panel"):
            yield QuietLines(id="differences")
            with VerticalScroll(id="command"):
                yield Static(markup=False)
        yield Static(id="verdict", markup=False)
        yield Static(id="message", markup=False)
        yield Static(KEYS, id="keys", markup=False)

    @property
    def lines(self) -> Lines:
        """The list of entries."""
        return self.query_one("#entries", Lines)

    @property
    def differences(self) -> QuietLines:
        """The list of overrides."""
        return self.query_one("#differences", QuietLines)

    def show(self, tree: Tree, path: str, at: str | None = None) -> None:
        """Show a menu; the nearest around it where the tree has none at `path`.

        Args:
            tree: the configuration.
            path: of the menu.
            at: path of the entry to go to; None: the cursor stays where it is.
        """
        self.current = tree
        while not tree.has_menu(path):
            path = path.rpartition(".")[0]
        line = self.lines.highlighted if path == self.path else 0
        self.path = path
        paths = [entry.path for entry in self.entries()]
        self.lines.show(self._rows(), paths.index(at) if at in paths else line or 0)
        self._text("#where", " > ".join([" AdamWPrune configuration", *filter(None, path.split("."))]))
        self.differences.show(wording.differences(tree), len(tree.overrides) - 1)
        self.differences.border_title = wording.count(len(tree.overrides), "difference")
        command = self.query_one("#command")
        command.border_title = "command"
        command.query_one(Static).update(stored.command(list(tree.overrides)))
        first = f" (first of {len(tree.problems)})" if len(tree.problems) > 1 else ""
        self._text("#verdict", f"CANNOT RUN{first}: {tree.problems[0]}" if tree.problems else VALID)
        self._tell_about()

    def entries(self) -> list[Menu | Key]:
        """What the lines stand for; the first of a group's own menu is the group itself, to choose from."""
        menu = self.current.menu(self.path)
        return [*([menu] if menu.choice else []), *menu.entries]

    def entry(self) -> Menu | Key:
        """The entry under the cursor."""
        return self.entries()[self.lines.highlighted or 0]

    def _rows(self) -> list[str]:
        menu = self.current.menu(self.path)
        own = [wording.own_row(menu, menu.choice)] if menu.choice else []
        return own + [wording.row(entry, self.path) for entry in menu.entries]

    @on(OptionList.OptionHighlighted, "#entries")
    def _tell_about(self) -> None:
        about, entry = self.query_one("#about", Static), self.entry()
        about.border_title = wording.headline(entry)
        about.update(entry.comment)

    def say(self, message: str, state: str) -> None:
        """Say what happened, and what the file is to what is shown."""
        self._text("#message", message)
        self._text("#state", f" {state} ")

    def _text(self, where: str, text: str) -> None:
        self.query_one(where, Static).update(text)
