"""Lists with a cursor that shows without colours."""

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import OptionList


class Lines(OptionList):
    """A list with one line an entry and a mark at the cursor."""

    DEFAULT_CSS = """
    Lines {
        border: none;
        padding: 0;
        height: 1fr;
        background: ansi_default;
        text-wrap: nowrap;
        text-overflow: ellipsis;
        scrollbar-size-vertical: 1;
        & > .option-list--option { padding: 0; }
        scrollbar-background: ansi_default;
        & > .option-list--option-highlighted {
            color: ansi_default !important; background: ansi_default !important; text-style: none;
        }
    }
    Lines:focus { border: none; background-tint: transparent; }
    """

    def __init__(self, texts: Sequence[str] = (), at: int = 0, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self.texts: list[str] = []
        self.show(texts, at)

    def show(self, texts: Sequence[str], at: int = 0) -> None:
        """Replace all entries, the cursor at one of them."""
        self.texts = []
        self.set_options([Content(f"  {text}") for text in texts])
        self.texts = list(texts)
        self.highlighted = min(at, len(self.texts) - 1) if self.texts else None
        self._mark_cursor()

    def watch_highlighted(self, highlighted: int | None) -> None:
        """Move the mark of the cursor along."""
        super().watch_highlighted(highlighted)
        self._mark_cursor()

    def _mark_cursor(self) -> None:
        for index, text in enumerate(self.texts):
            is_marked = index == self.highlighted and self.shows_cursor()
            # A style of the list itself would not do: Textual leaves `reverse` out of it.
            line = Content.styled(f"> {text}", "reverse") if is_marked else Content(f"  {text}")
            if self.get_option_at_index(index).prompt != line:
                self.replace_option_prompt_at_index(index, line)

    def shows_cursor(self) -> bool:
        """Whether the cursor is marked."""
        return True

    def jump_to(self, letter: str, names: Sequence[str]) -> None:
        """Go to the next entry whose name begins with a letter."""
        count = len(names)
        start = (self.highlighted or 0) + 1
        found = (at % count for at in range(start, start + count) if names[at % count].startswith(letter))
        self.highlighted = next(found, self.highlighted)


class QuietLines(Lines):
    """A list beside another one: its cursor shows while the keys go to it."""

    def shows_cursor(self) -> bool:
        """Whether the keys go to this list."""
        return self.has_focus

    def watch_has_focus(self, has_focus: bool) -> None:
        """Show or hide the cursor."""
        super().watch_has_focus(has_focus)
        self._mark_cursor()
