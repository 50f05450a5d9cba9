"""Models on data sets, each trained for a few steps on this machine: what runs, and what it takes.

    python benchmarks/coverage.py                   the table of docs/recipes.md
    python benchmarks/coverage.py --only gpt2       rows whose names contain the word
    python benchmarks/coverage.py --hardware gpu    on another option of conf/hardware

Each row is `python train.py ...` in a process of its own. Losses are those of the first and the last step; a
step's time is the median over all but the first, which compiles and loads; memory is the peak that the run
recorded. A row that could not be run has the exit code, 3 where this machine cannot have the data; why is
said on standard error.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from measure import argument_parser, print_table, report

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


class Case(NamedTuple):
    """What is trained, how long, and in batches of what size."""

    model: str
    data: str
    steps: int
    batch: int
    more: tuple[str, ...] = ()


SHORT = ("recipe.block_size=256",)
CASES = (
    Case("lenet5", "mnist5k", 200, 64),
    Case("lenet5", "mnist", 200, 64),
    Case("lenet5", "fashion_mnist", 200, 64),
    Case("lenet5_caffe", "mnist5k", 200, 64),
    Case("resnet18", "fashion3k", 20, 64),
    Case("resnet18", "fashion_mnist", 20, 64),
    Case("resnet18", "cifar10", 20, 64),
    Case("resnet50", "fashion3k", 10, 16),
    Case("resnet50", "cifar100", 10, 16),
    Case("resnet50", "imagenet", 10, 16, ("model.stem=imagenet",)),
    Case("gpt2-nano", "shakespeare", 100, 8),
    Case("gpt2-nano", "sotu", 100, 8),
    Case("gpt2-nano", "debian_docs", 100, 8),
    Case("gpt2-nano", "tinystories", 100, 8),
    Case("gpt2", "sotu", 10, 2, SHORT),
    Case("gpt2", "finewebedu", 10, 2, SHORT),
    Case("gpt2", "openwebtext", 10, 2, SHORT),
    Case("gpt2-medium", "sotu", 5, 1, SHORT),
    Case("gpt2-large", "sotu", 3, 1, SHORT),
    Case("gpt2-xl", "sotu", 2, 1, (*SHORT, "optimizer=sgd", "optimizer.momentum=0")),
)


def train(case: Case, hardware: str) -> dict[str, Any]:
    """Figures of one run, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        overrides = [
            *(f"model={case.model}", f"data={case.data}", f"hardware={hardware}"),
            *(f"trainer.max_steps={case.steps}", f"trainer.eval_every={case.steps}", "trainer.log_every=1"),
            *(f"trainer.global_batch_size={case.batch}", "trainer.eval_samples=16"),
            *("lr_schedule.warmup_steps=0", f"checkpoint.every={case.steps}", *case.more),
        ]
        command = [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={run}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr.strip(), file=sys.stderr)
            return {"exit_code": done.returncode}
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        rows = [row for row in lines if "train/loss" in row]
        record = json.loads((run / "summary.json").read_text())
        return {
            "parameters": record["parameters"]["total"],
            "step_ms": statistics.median(row["perf/step_time_ms"] for row in rows[1:]),
            "peak_gib": max(row["memory/peak_gib"] for row in rows),
            "first_loss": rows[0]["train/loss"],
            "last_loss": rows[-1]["train/loss"],
            "overrides": overrides,
        }


def line(case: Case, figures: dict[str, Any]) -> list[str]:
    """One line of the table."""
    name = [case.model, case.data]
    if "exit_code" in figures:
        return [*name, "", f"not run: exit {figures['exit_code']}", "", "", "", ""]
    return [
        *name,
        f"{figures['parameters']:,}",
        f"{case.steps} x {case.batch}",
        f"{figures['step_ms']:.0f}",
        f"{figures['peak_gib']:.2f}",
        f"{figures['first_loss']:.3f}",
        f"{figures['last_loss']:.3f}",
    ]


def main() -> None:
    """Train all, print the table, write the JSON."""
    parser = argument_parser(__doc__, rounds=1)
    parser.add_argument("--hardware", default="cpu", help="option of conf/hardware (%(default)s)")
    parser.add_argument("--only", default="", help="a word that the names of model and data must contain")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in f"{case.model} {case.data}"]
    figures = {}
    for case in cases:
        figures[case] = train(case, arguments.hardware)
        print(" ".join(line(case, figures[case])), file=sys.stderr)
    head = ("model", "data", "parameters", "steps x batch", "ms a step", "GiB", "first loss", "last loss")
    print_table(head, [line(case, one) for case, one in figures.items()])
    arms = {f"{case.model} {case.data}": {**case._asdict(), **one} for case, one in figures.items()}
    content = {"hardware": arguments.hardware, "arms": arms}
    report(content, model="all", subject="coverage", file=arguments.json)


if __name__ == "__main__":
    main()
