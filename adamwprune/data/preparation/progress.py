"""How far a preparation is: a bar on a terminal, a line now and then elsewhere; both on standard error."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0


class TokenProgress:
    """A context manager; `total` tokens are an estimate, `done` of them came from an earlier process."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self._name = name
        self._total = max(total, done, 1)
        self._start = done
        self._done = done
        self._began = self._last_line = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TokensColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=self._total, completed=done)

    def __enter__(self) -> "TokenProgress":
        """Show the bar, or the first line."""
        self._bar.start()
        if self._bar.disable:
            going_on = f", going on from {millions(self._start)}" if self._start else ""
            self._say(f"preparing about {millions(self._total)} tokens{going_on}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away; a line says what was done."""
        self._bar.stop()
        if kind is None:
            self._say(f"{millions(self._done)} tokens, {self._speed()}")

    def advance(self, tokens: int) -> None:
        """So many more are done."""
        self._done += tokens
        self._bar.advance(self._task, tokens)
        if self._bar.disable and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = (self._total - self._done) * (self._last_line - self._began) / (self._done - self._start)
            self._say(
                f"{millions(self._done)} of about {millions(self._total)} tokens, {self._speed()}, "
                f"{max(left, 0) / 60:.0f} min left"
            )

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{millions((self._done - self._start) / seconds)} a second"

    def _say(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", highlight=False, soft_wrap=True, markup=False)


class TokensColumn(ProgressColumn):
    """`1,234 M of 9,040 M tokens, 9.1 M a second`."""

    def render(self, task: Task) -> Text:
        """Called by rich."""
        speed = f", {millions(task.speed)} a second" if task.speed else ""
        return Text(f"{millions(task.completed)} of {millions(task.total or 0)} tokens{speed}")


def millions(tokens: float) -> str:
    """`9,040 M`, `3.4 M`, `1,900`."""
    if tokens < 1e6:
        return f"{tokens:,.0f}"
    count = tokens / 1e6
    return f"{count:,.0f} M" if count >= 100 else f"{count:.3g} M"
