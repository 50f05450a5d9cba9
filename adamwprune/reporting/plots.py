"""Plots of a run, from its metrics.jsonl alone."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adamwprune.training.ledger import read_rows

# Metrics of each panel, in the order of drawing.
LOSSES = ("train/loss", "val/loss")
METRICS = ("val/accuracy", "val/perplexity")
SPARSITY = "sparsity/global"


def plot_run(metrics_file: Path, png_file: Path, title: str) -> None:
    """Draw loss, then accuracy or perplexity, then sparsity in percent, over optimizer steps."""
    rows = read_rows(metrics_file)
    second = next((name for name in METRICS if any(name in row for row in rows)), None)
    panels = [LOSSES, *([(second,)] if second else []), (SPARSITY,)]
    height = 2.4 * len(panels)
    figure = Figure(figsize=(7, height), dpi=120)
    FigureCanvasAgg(figure)
    # By hand: matplotlib's own search for margins draws everything twice.
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.45 / height, top=1 - 0.35 / height, hspace=0.12)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=10)
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            steps, values = series(rows, name)
            scale = 100 if name in (SPARSITY, "val/accuracy") else 1
            style = "steps-post" if name == SPARSITY else "default"
            axis.plot(steps, [scale * value for value in values], label=name, linewidth=1.2, drawstyle=style)
        axis.set_ylabel({LOSSES: "loss (nats)", (SPARSITY,): "sparsity (%)"}.get(names, _label(names[0])))
        if names == (SPARSITY,):
            axis.set_ylim(-2, 102)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, loc="upper right")
    axes[-1].set_xlabel("optimizer step")
    figure.align_ylabels(axes)
    figure.savefig(png_file)


def _label(name: str) -> str:
    words = name.replace("/", " ")
    return f"{words} (%)" if name.endswith("accuracy") else words


def series(rows: list[dict[str, object]], name: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of one metric."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return [int(step) for step, _ in points], [float(value) for _, value in points]  # type: ignore[call-overload]
