"""The menu at 80 x 24, by its keys: what it shows, changes, refuses, stores and loads."""

import asyncio
import configparser
import importlib.util
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.config import to_plain
from adamwprune.configure import menu, stored
from adamwprune.configure.tree import build
from adamwprune.errors import ConfigError

pytest.importorskip("textual")
from textual import events
from textual.geometry import Region
from textual.pilot import Pilot
from textual.widgets import Input, Static

from adamwprune.configure.app import LEAVING, MenuApp
from adamwprune.configure.lists import Lines

SIZE = (80, 24)


class User:
    """Someone at the keys.

    Args:
        pilot: of the running menu.
    """

    def __init__(self, pilot: Pilot) -> None:
        self.pilot = pilot
        assert isinstance(pilot.app, MenuApp)
        self.app = pilot.app

    async def press(self, *keys: str) -> None:
        """Press keys, each after what the one before has set off."""
        for key in keys:
            self.app.post_message(events.Key(key, key if len(key) == 1 else None))
            for _ in range(4):  # the key, what it opens or closes, the change, what that shows
                await self.pilot.pause(0)
                async with self.app.composing:
                    pass

    async def type(self, text: str) -> None:
        """Replace what is in the field, and press Enter."""
        self.app.screen.query_one(Input).value = text
        await self.press("enter")

    async def go_to(self, path: str) -> None:
        """The cursor at an entry, wherever it is."""
        self.app.go_to(path)
        await self.pilot.pause(0)

    def text(self, selector: str) -> str:
        """What a part of the screen says."""
        return str(self.app.screen.query_one(selector, Static).content)

    def lines(self) -> list[str]:
        """The lines of the list on top."""
        return self.app.screen.query_one(Lines).texts

    @property
    def overrides(self) -> tuple[str, ...]:
        """What differs."""
        return self.app.current.overrides

    @property
    def is_in_menu(self) -> bool:
        """Whether no dialog is open."""
        return len(self.app.screen_stack) == 1


def sit_down(
    do: Callable[[User], Awaitable[None]], file: Path, conf_dir: Path = CONF_DIR, message: str = ""
) -> str | None:
    """Start the menu on a file, let the user do something, and return the menu's result."""
    saved = stored.read(file) if file.exists() else stored.DEFAULT
    app = MenuApp(build(saved, conf_dir), file, saved, message)

    async def session() -> None:
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause()
            await do(User(pilot))

    asyncio.run(session())
    return app.return_value


@pytest.fixture
def file(tmp_path) -> Path:
    """Nothing is stored yet; the default run would be shown."""
    return tmp_path / ".defconfig"


@pytest.fixture
def plain(file) -> Path:
    """A stored choice without any difference."""
    file.write_text("# no override\n")
    return file


# ------------------------------------------------------------------------------------ what is seen


def test_everything_has_its_place_at_80_by_24_whatever_the_length_of_the_command(file):
    """Nothing overlaps, nothing is outside, the list keeps ten lines; the long parts scroll."""
    stored.write(
        file,
        [
            *("experiment=gpt2-shakespeare-cpu", "tracker=both", "tracker.wandb.mode=offline", "seed=5"),
            *(
                "notes='a note, with a comma'",
                "tags=[ablation,v2]",
                "hardware.threads=2",
                "trainer.log_every=7",
            ),
        ],
    )

    async def do(user: User) -> None:
        screen = Region(0, 0, *SIZE)
        for message in ("", "x" * 300):
            user.app.say(message)
            await user.pilot.pause()
            parts = list(user.app.view.children)
            assert sum(part.region.height for part in parts) == 24
            assert all(part.region in screen and part.region.width == 80 for part in parts)
            assert user.app.view.lines.size.height >= 10
        assert user.text("#where") == " AdamWPrune configuration"
        command = user.app.screen.query_one("#command")
        assert str(command.query_one(Static).content) == stored.command(list(user.overrides))
        assert command.max_scroll_y > 0
        await user.press("tab")
        assert user.app.view.differences.has_focus
        await user.press("tab", "end")
        await user.pilot.pause()  # it scrolls with the next refresh
        assert command.scroll_y == command.max_scroll_y
        await user.press("escape")
        assert user.app.view.lines.has_focus

    sit_down(do, file)


def test_the_cursor_and_what_is_changed_show_without_colours(plain):
    """`>` at the cursor, `*` before what differs, on the way to it too."""

    async def do(user: User) -> None:
        await user.go_to("optimizer.amsgrad")
        await user.press("space", "left")
        marked = [line for line in user.lines() if line.startswith("* ")]
        assert [line.split()[2] for line in marked] == ["optimizer"]
        prompts = [str(option.prompt) for option in user.app.view.lines.options]
        at = user.app.view.lines.highlighted
        assert [prompt[0] for prompt in prompts].index(">") == at
        assert sum(prompt[0] == ">" for prompt in prompts) == 1

    sit_down(do, plain)


def test_help_and_command_fill_the_screen_and_are_left_by_esc(plain):
    """Everything about the entry; the command as a shell would take it over several lines."""

    async def do(user: User) -> None:
        await user.go_to("optimizer.lr")
        await user.press("question_mark")
        text = user.text("Read VerticalScroll Static")
        assert "number > 0 and finite" in text
        assert "conf/optimizer/adamw.yaml, line 5" in text
        await user.press("escape")
        await user.go_to("seed")
        await user.press("enter")
        await user.type("3")
        await user.press("c")
        assert user.text("Read VerticalScroll Static").startswith("python train.py \\\n  seed=3\n")
        await user.press("c")
        assert user.app.clipboard == "python train.py seed=3"
        await user.press("escape")
        assert user.is_in_menu

    sit_down(do, plain)


# ---------------------------------------------------------------------------------------- changing


def test_keys_switch_and_take_values_and_refuse_with_the_words_of_the_command_line(plain):
    """Space, y, n, Enter; a bad value stays in the field with its line; reset and undo take back."""

    async def do(user: User) -> None:
        await user.go_to("optimizer.amsgrad")
        await user.press("space")
        assert user.overrides == ("optimizer.amsgrad=true",)
        await user.press("y")
        assert user.overrides == ("optimizer.amsgrad=true",)
        await user.press("n")
        assert user.overrides == ()
        for _ in range(3):  # faster than it composes
            user.app.post_message(events.Key("space", " "))
        await user.press("up")
        assert user.overrides == ("optimizer.amsgrad=true",)
        await user.press("down", "n")
        await user.go_to("optimizer.lr")
        await user.press("enter")
        await user.type("-1")
        assert user.text("#error") == "optimizer.lr=-1: must be > 0 and finite"
        assert user.overrides == ()
        await user.type("3e-4")
        assert user.is_in_menu
        assert user.overrides == ("optimizer.lr=3e-4",)
        assert user.app.view.differences.texts == ["optimizer.lr=3e-4 (was 0.002)"]
        assert "(0.0003) lr" in user.lines()[1]
        await user.press("r")
        assert (user.overrides, user.text("#message")) == ((), "optimizer.lr is the default again")
        await user.press("u")
        assert user.overrides == ("optimizer.lr=3e-4",)
        await user.press("enter")
        await user.press("9", "escape")  # left as it was
        assert user.overrides == ("optimizer.lr=3e-4",)

    sit_down(do, plain)


def test_what_another_key_could_mend_is_kept_by_a_second_enter_and_said(plain):
    """48 and then 96 is allowed; alone neither is, so one must come first."""

    async def do(user: User) -> None:
        await user.go_to("hardware.micro_batch_size")
        await user.press("enter")
        await user.type("48")
        assert "nearest: 48 or 96" in user.text("#error")
        assert user.overrides == ()
        await user.press("enter")
        assert user.overrides == ("hardware.micro_batch_size=48",)
        assert user.text("#verdict").startswith("CANNOT RUN: trainer.global_batch_size=64 is not a multiple")
        await user.press("s", "enter")
        assert user.text("#message").startswith("not saved: trainer.global_batch_size=64")
        assert stored.read(plain) == []
        await user.go_to("trainer.global_batch_size")
        await user.press("enter")
        await user.type("96")
        assert user.text("#verdict").startswith("VALID")

    sit_down(do, plain)


def test_a_choice_brings_and_drops_visibly(plain):
    """adamwprune brings state at once; sgd has no betas, and the line says that they are gone."""

    async def do(user: User) -> None:
        await user.go_to("optimizer")
        await user.press("space")
        assert any("(X) adamw " in line for line in user.lines())
        while "adamwprune" not in user.lines()[user.app.screen.query_one(Lines).highlighted]:
            await user.press("a")
        await user.press("enter")
        assert user.overrides == ("optimizer=adamwprune",)
        assert "brings pruning=state" in user.text("#message")
        assert any("(state) pruning" in line for line in user.lines())
        await user.go_to("optimizer.betas")
        await user.press("enter")
        await user.type("0.9,0.9")
        await user.go_to("optimizer")
        await user.press("space", "s", "enter")
        assert user.overrides == ("optimizer=sgd",)
        assert "dropped optimizer.betas=[0.9,0.9]" in user.text("#message")
        assert "has no betas" in user.text("#message")

    sit_down(do, plain)


@pytest.mark.slow
def test_a_menu_that_a_choice_takes_away_is_left(plain):
    """In pruning/scope, undo what brought it: the menu around is shown."""

    async def do(user: User) -> None:
        await user.go_to("pruning")
        await user.press("space", *"state", "enter")
        await user.go_to("pruning.scope")
        await user.press("space", "e", "enter", "right")
        assert user.app.view.path == "pruning.scope"
        await user.press("u", "u")
        assert (user.overrides, user.app.view.path) == ((), "pruning")

    sit_down(do, plain)


def test_trackers_are_ticked_and_named_values_picked(plain):
    """Several trackers; a list of three devices."""

    async def do(user: User) -> None:
        await user.go_to("tracker")
        await user.press("enter", "t", "t", "space", "w", "space", "enter")
        assert user.overrides == ("tracker=[trackio,wandb]",)
        await user.go_to("hardware.device")
        await user.press("enter", "a", "enter")
        assert user.overrides == ("tracker=[trackio,wandb]", "hardware.device=auto")

    sit_down(do, plain)


def test_a_difference_is_gone_to_and_reset_in_its_list(file):
    """Also where it is one that no entry stands for."""
    stored.write(file, ["optimizer.lr=0.5", "hydra.run.dir=x"])

    async def do(user: User) -> None:
        await user.press("tab", "up", "enter")
        assert (user.app.view.path, user.app.view.entry().path) == ("optimizer", "optimizer.lr")
        await user.press("tab", "delete")
        assert user.overrides == ("optimizer.lr=0.5",)

    sit_down(do, file)


def test_search_goes_to_keys_and_to_options_that_are_not_chosen(plain):
    """Up and Down move in the hits while the field keeps the keys."""

    async def do(user: User) -> None:
        await user.press("slash")
        await user.type("eval_every")
        assert user.app.view.entry().path == "trainer.eval_every"
        await user.press("slash", "ctrl+u", *"nesterov")
        titles = [line.split("  ")[0] for line in user.lines()]
        wanted = titles.index("optimizer.nesterov of optimizer=sgd")
        await user.press(*["down"] * wanted, "enter")
        lines = user.app.screen.query_one(Lines)
        assert "sgd" in lines.texts[lines.highlighted]
        await user.press("enter")
        assert user.overrides == ("optimizer=sgd",)
        await user.press("slash")
        await user.type("no such thing")
        assert not user.is_in_menu
        await user.press("escape")
        assert user.is_in_menu

    sit_down(do, plain)


# -------------------------------------------------------------------------------- files and leaving


def without_name(overrides: list[str]) -> dict[str, object]:
    """A configuration without the names that hold time or option."""
    return to_plain(to_config(compose(complete(overrides)))) | {"run_name": None}


def test_what_is_saved_composes_to_what_is_shown_and_is_loaded_again(plain):
    """To the file; the defaults and an experiment can be loaded over it, and undone."""

    async def do(user: User) -> None:
        await user.go_to("notes")
        await user.press("enter")
        await user.type('a, "b" [c]')
        assert user.text("#state") == " .defconfig, changed "
        await user.press("s", "d")
        assert user.text("#state") == " .defconfig "
        assert stored.read(plain) == list(user.overrides)
        assert (
            without_name(stored.read(plain))["notes"] == user.app.current.key("notes").value == 'a, "b" [c]'
        )
        await user.press("l", "down", "enter")
        assert (user.overrides, user.text("#state")) == ((), " .defconfig, changed ")
        await user.press("l", "l", "enter")
        assert user.overrides == ("experiment=lenet5-mnist",)
        await user.press("l", "enter")
        assert list(user.overrides) == stored.read(plain)
        await user.press("u")
        assert user.overrides == ("experiment=lenet5-mnist",)

    sit_down(do, plain)


def test_an_experiment_is_saved_under_a_free_name_and_can_be_chosen(plain, tmp_path):
    """A name that is taken, or none, is refused in the field."""
    conf = shutil.copytree(CONF_DIR, tmp_path / "conf")

    async def do(user: User) -> None:
        await user.go_to("seed")
        await user.press("enter")
        await user.type("7")
        await user.press("s", "e")
        await user.type("lenet5-mnist")
        assert "already" in user.text("#error")
        await user.type("mine")
        assert user.is_in_menu
        assert "experiment=mine" in user.text("#message")
        assert "mine" in {option.name for option in user.app.current.choice("experiment").options}

    sit_down(do, plain, conf)
    saved = compose(["experiment=mine"], conf)
    assert saved.seed == 7
    assert stored.read(plain) == []


def test_esc_esc_asks_before_changes_are_lost(plain):
    """One Esc only warns, another key forgets it; without changes nothing is asked."""
    assert sit_down(lambda user: user.press("escape", "escape"), plain) == ""

    async def do(user: User) -> None:
        await user.go_to("optimizer.amsgrad")
        await user.press("space", "escape")
        assert user.app.view.path == ""
        await user.press("escape")
        assert user.text("#message") == LEAVING
        await user.press("up")
        assert user.text("#message") == ""
        await user.press("escape", "escape")
        assert not user.is_in_menu
        await user.press("escape")
        assert user.is_in_menu
        await user.press("q", "n")

    assert sit_down(do, plain) == "the changes were not saved"
    assert stored.read(plain) == []

    async def save(user: User) -> None:
        await user.go_to("optimizer.amsgrad")
        await user.press("space", "q", "y")

    assert sit_down(save, plain) == "saved to .defconfig; make runs it"
    assert stored.read(plain) == ["optimizer.amsgrad=true"]


# ------------------------------------------------------------------------------------ before it starts


def test_without_textual_one_line_says_how_to_get_it(monkeypatch, file):
    """The requirement is the one of setup.cfg, and the exit code that of a configuration."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "textual" else find(name))
    with pytest.raises(ConfigError, match="pip install 'textual") as caught:
        menu.run_menu(file)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    setup = configparser.ConfigParser()
    setup.read(CONF_DIR.parent / "setup.cfg")
    assert setup["options.extras_require"]["menu"].strip() == menu.REQUIREMENT


def test_without_a_terminal_one_line_says_so(file):
    """As in a pipe, or a test."""
    with pytest.raises(ConfigError, match="needs a terminal"):
        menu.run_menu(file)
