"""The menu over the configuration tree, with the keys of Linux's menuconfig.

Each change composes anew, in a thread, so that the keys stay responsive; one change is made after the other.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import OptionList

from adamwprune.configure import experiments, stored, wording
from adamwprune.configure.compositions import name_of
from adamwprune.configure.dialogs import Ask, ChooseOne, ChooseSeveral, Find, Item, Read, ReadCommand, Type
from adamwprune.configure.entries import Choice, Key, Menu
from adamwprune.configure.search import Hit, search
from adamwprune.configure.tree import Tree, build
from adamwprune.configure.view import View
from adamwprune.errors import RunError

LEAVING = "Esc again leaves the menu"
# In lists of options: none of them; in the list of what can be loaded: no override.
NOTHING, DEFAULTS = "(none)", "(defaults)"


class MenuApp(App[str]):
    """The menu; its result is what became of the changes, in a line.

    Args:
        tree: what it starts from.
        file: where the choice is stored.
        saved: what is stored there, or runs where nothing is.
        message: what it says first.
    """

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", show=False),
        Binding("left,backspace", "back", show=False),
        Binding("right", "go_in", show=False),
        Binding("space", "set", show=False),
        Binding("y", "switch('true')", show=False),
        Binding("n", "switch('false')", show=False),
        Binding("r,delete", "reset", show=False),
        Binding("u", "undo", show=False),
        Binding("question_mark,h", "help", show=False),
        Binding("slash", "search", show=False),
        Binding("c", "command", show=False),
        Binding("s", "save", show=False),
        Binding("l", "load", show=False),
        Binding("q,ctrl+c", "quit", show=False),
    ]

    def __init__(self, tree: Tree, file: Path, saved: Sequence[str], message: str = "") -> None:
        super().__init__(ansi_color=True)  # the colours of the terminal; none with NO_COLOR
        self.current, self.file, self.saved, self.message = tree, file, sorted(saved), message
        self.past: list[Tree] = []
        self.words = ""  # of the last search
        self.composing = asyncio.Lock()
        self.view = View(tree)
        self.theme = "ansi-dark"
        self.animation_level = "none"  # a slow line need not carry scrolling

    def compose(self) -> ComposeResult:
        """All that is seen."""
        yield self.view

    def on_mount(self) -> None:
        """Show the top menu."""
        self.show(self.message)
        self.view.lines.focus()

    def show(self, message: str, menu: str | None = None, at: str | None = None) -> None:
        """Show the current tree: a menu of it, or the same as before."""
        self.view.show(self.current, self.view.path if menu is None else menu, at)
        self.say(message)

    def say(self, message: str) -> None:
        """Say what happened, until something else does."""
        self.message = message
        self.view.say(message, f"{self.file.name}{', changed' if self.is_changed() else ''}")

    def is_changed(self) -> bool:
        """Whether what is shown is not what is stored."""
        return sorted(self.current.overrides) != self.saved

    # ---------------------------------------------------------------------------------- moving around

    @on(OptionList.OptionSelected, "#entries")
    def action_go_in(self) -> None:
        """Go into a menu; set what is none."""
        entry = self.view.entry()
        if isinstance(entry, Menu) and entry.entries and entry.path != self.view.path:
            self.show("", menu=entry.path)
        else:
            self.action_set()

    def action_back(self) -> None:
        """Go to the menu around this one."""
        if path := self.view.path:
            self.show("", menu=self.current.menu_of(path).path, at=path)

    def action_escape(self) -> None:
        """Go back; at the top, twice leaves."""
        if self.focused is not self.view.lines:
            self.view.lines.focus()
            self.say("")
        elif self.view.path:
            self.action_back()
        elif self.message != LEAVING:
            self.say(LEAVING)
        else:
            self.action_quit()

    @on(OptionList.OptionHighlighted, "#entries")
    def stay(self) -> None:
        """Forget that Esc was typed once."""
        if self.message == LEAVING:
            self.say("")

    def go_to(self, path: str) -> None:
        """Go to an entry."""
        self.show("", menu=self.current.menu_of(path).path, at=path)
        self.view.lines.focus()

    @on(OptionList.OptionSelected, "#differences")
    def go_to_difference(self, event: OptionList.OptionSelected) -> None:
        """Go to what an override sets."""
        self.go_to(name_of(self.current.overrides[event.option_index]).replace("/", "."))

    @work
    async def action_search(self) -> None:
        """Search, and go to what was found."""
        find = Find(lambda text: search(self.current, text), self.words)
        hit = await self.push_screen_wait(find)
        self.words = find.text
        if isinstance(hit, Hit):
            self.go_to(hit.path)
            if hit.option is not None:
                self.choose(self.current.choice(hit.path), hit.option)

    def action_help(self) -> None:
        """Everything about the entry under the cursor."""
        entry = self.view.entry()
        self.push_screen(Read(f"help: {entry.path}", wording.help_text(entry, self.size.width - 2)))

    def action_command(self) -> None:
        """The whole command, the differences and the problems, on a screen of their own."""
        command = stored.command(list(self.current.overrides))
        text = wording.command_text(self.current, command)
        self.push_screen(ReadCommand("the command that runs this configuration", text, command))

    # --------------------------------------------------------------------------------------- changing

    async def change(self, edit: Callable[[Tree], Tree]) -> bool:
        """Show the tree that an edit makes of the current one, or say why it makes none."""
        async with self.composing:
            try:
                self.take(await asyncio.to_thread(edit, self.current))
            except RunError as error:
                self.say(str(error))
                return False
            return True

    def take(self, tree: Tree) -> None:
        """Show a tree in the place of the current one, and what is different."""
        before, self.current = self.current, tree
        if tree.overrides != before.overrides:
            self.past.append(before)
        self.show(wording.change(before, tree))

    def action_set(self) -> None:
        """Choose an option, switch a key, or open what sets it."""
        entry = self.view.entry()
        if isinstance(entry, Menu):
            if entry.choice is None:
                self.show("", menu=entry.path)
            else:
                self.choose(entry.choice)
        elif entry.kind.is_switch:
            self.switch(entry.path, None)
        elif entry.kind.choices:
            self.pick(entry)
        elif entry.kind.is_editable:
            self.type_value(entry)
        else:
            self.say(f"{entry.path} comes with an option; choose another {entry.path.partition('.')[0]}")

    def action_switch(self, value: str) -> None:
        """`y` and `n`, as in menuconfig."""
        entry = self.view.entry()
        if isinstance(entry, Key) and entry.kind.is_switch:
            self.switch(entry.path, value)

    @work
    async def switch(self, path: str, value: str | None) -> None:
        """Set a key that is true or false; to the other of them for None."""
        await self.change(lambda tree: tree.with_value(path, value or str(not tree.key(path).value).lower()))

    @work
    async def choose(self, choice: Choice, at: str = "") -> None:
        """Choose from a group."""
        items = [Item(option.name, option.help) for option in choice.options]
        if choice.takes_several:
            names = await self.push_screen_wait(ChooseSeveral(choice.group, items, choice.chosen, at))
        else:
            none = [Item(NOTHING, "nothing of this group")] if choice.takes_none else []
            chosen = choice.chosen or (NOTHING,)
            name = await self.push_screen_wait(ChooseOne(choice.group, none + items, chosen, at))
            names = name and [name] * (name != NOTHING)
        if isinstance(names, list):
            await self.change(lambda tree: tree.with_choice(choice.group, names))

    @work
    async def pick(self, key: Key) -> None:
        """Choose one of a key's few values."""
        items = [Item(name) for name in key.kind.choices]
        name = await self.push_screen_wait(ChooseOne(key.path, items, [key.text]))
        if isinstance(name, str):
            await self.change(lambda tree: tree.with_value(key.path, name))

    @work
    async def type_value(self, key: Key) -> None:
        """Type a key's value; one that only another key makes wrong may be kept, by a second Enter."""
        warned = None

        async def attempt(text: str) -> str | None:
            nonlocal warned
            async with self.composing:
                try:
                    tree = await asyncio.to_thread(self.current.with_value, key.path, text)
                except RunError as error:
                    return str(error)
                new = [problem for problem in tree.problems if problem not in self.current.problems]
                if new and text != warned:
                    warned = text
                    return f"{new[0]}\nEnter again keeps it, for another key to mend that."
                self.take(tree)
                return None

        await self.push_screen_wait(Type(key.path, wording.prompt(key), key.text, attempt))

    @work
    async def action_reset(self) -> None:
        """Take back the override of the entry under the cursor, in the menu or among the differences."""
        differences = self.view.differences
        if differences.has_focus and differences.highlighted is not None:
            name = name_of(self.current.overrides[differences.highlighted])
        else:
            entry = self.view.entry()
            name = entry.choice.group if isinstance(entry, Menu) and entry.choice else entry.path
        if any(name_of(override) == name for override in self.current.overrides):
            await self.change(lambda tree: tree.without(name))
        else:
            self.say(f"{name} has no override to reset")

    def action_undo(self) -> None:
        """Take back the last change."""
        if not self.past:
            self.say("nothing to undo")
            return
        self.current = self.past.pop()
        self.show("undone")

    # ------------------------------------------------------------------------------ files and leaving

    @work
    async def action_save(self) -> None:
        """Store the choice in the file that `make` runs, or as a new experiment."""
        items = [
            Item(self.file.name, "what `make` runs"),
            Item("experiment", "a new file in conf/experiment, run by experiment=NAME"),
        ]
        to = await self.push_screen_wait(Ask("save to", items))
        if to == "experiment":
            about = "Name of the experiment: conf/experiment/NAME.yaml"
            await self.push_screen_wait(Type("save as an experiment", about, "", self.save_experiment))
        elif to is not None:
            await self.save_file()

    async def save_file(self) -> bool:
        """Store the choice in the file, or say why it cannot be."""
        overrides = list(self.current.overrides)
        async with self.composing:
            try:
                await asyncio.to_thread(stored.write, self.file, overrides, self.current.conf_dir)
            except RunError as error:
                self.say(f"not saved: {error}")
                return False
        self.saved = sorted(overrides)
        self.say(f"saved to {self.file.name}; make runs it")
        return True

    async def save_experiment(self, typed: str) -> str | None:
        """Store the choice as an experiment, or return why it cannot be."""
        name, overrides, conf_dir = typed.strip(), list(self.current.overrides), self.current.conf_dir
        async with self.composing:
            try:
                await asyncio.to_thread(experiments.save, name, overrides, conf_dir)
            except RunError as error:
                return str(error)
            self.current = await asyncio.to_thread(build, overrides, conf_dir)  # it can be chosen now
        self.show(f"saved as conf/experiment/{name}.yaml: python train.py experiment={name}")
        return None

    @work
    async def action_load(self) -> None:
        """Replace all differences by those of the file, by an experiment, or by none."""
        items = [
            Item(self.file.name, "the stored choice"),
            Item(DEFAULTS, "python train.py without any override"),
            *(Item(option.name, option.help) for option in self.current.choice("experiment").options),
        ]
        name = await self.push_screen_wait(ChooseOne("load", items))

        def load(tree: Tree) -> Tree:
            if name == self.file.name:
                return build(stored.read(self.file), tree.conf_dir)
            return build([] if name == DEFAULTS else [f"experiment={name}"], tree.conf_dir)

        if name is not None and await self.change(load):
            dropped = [f"dropped {reason}" for _, reason in self.current.dropped]
            self.say("; ".join([f"loaded {name}, u takes it back", *dropped]))

    @work
    async def action_quit(self) -> None:  # type: ignore[override]
        """Leave; ask first where something is not stored."""
        if not self.is_changed():
            self.exit("")
            return
        items = [Item("yes", "save, then leave"), Item("no", "leave without the changes")]
        answer = await self.push_screen_wait(Ask(f"save to {self.file.name}?", items))
        if answer == "no":
            self.exit("the changes were not saved")
        elif answer == "yes" and await self.save_file():
            self.exit(self.message)
