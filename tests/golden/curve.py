"""The golden curve: a short pruned run whose rows are kept as a file; `make golden` rewrites it.

A change that must not alter numbers leaves the file as it is; any other shows in its diff.
"""

import csv
import tempfile
from pathlib import Path

from tests.helpers.runs import IMAGES, rows, run

FILE = Path(__file__).with_name("lenet5_synthetic.csv")
# Warm-up within the run, so that the loss moves; a mask update every 4 steps.
PACE = (
    "lr_schedule.warmup_steps=5",
    "pruning.update_every=4",
    "optimizer.lr=5e-3",
    "data.noise=0.5",
    "pruning.target_sparsity=0.5",
)
COLUMNS = ("step", "train/loss", "train/grad_norm", "sparsity/global")


def curve() -> list[dict[str, float]]:
    """Rows of LeNet-5 on synthetic images, state pruning to 50 %, seed 1, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        cadence = ("trainer.max_steps=40", "trainer.log_every=2", "trainer.eval_every=40")
        directory = run(Path(folder) / "run", *IMAGES, "optimizer=adamwprune", *PACE, *cadence)
        return [{name: row[name] for name in COLUMNS} for row in rows(directory) if "train/loss" in row]


def read() -> list[dict[str, float]]:
    """The rows that the file keeps."""
    with FILE.open(newline="", encoding="utf-8") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


if __name__ == "__main__":
    with FILE.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve())
