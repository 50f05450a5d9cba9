"""metrics.png: loss and sparsity over the steps, drawn from metrics.jsonl when a run ends."""

from pathlib import Path

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.reporting.plots import plot_run


class Plot(Callback):
    """Draws the run's picture on every path out of it."""

    def __init__(self) -> None:
        self._run: RunInfo | None = None

    def on_train_start(self, run: RunInfo) -> None:
        """Remember where the run is kept."""
        self._run = run

    def close(self, exit_code: int) -> None:
        """Draw what there is."""
        if self._run is not None:
            directory: Path = self._run.directory
            plot_run(directory / "metrics.jsonl", directory / "metrics.png", title=self._run.name)
