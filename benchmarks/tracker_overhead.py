"""What one logged row costs the training loop: our mirrors beside what others do, on this machine.

    pip install lightning accelerate        # for their arms; what is not installed is left out
    python benchmarks/tracker_overhead.py

Each arm trains nothing: it works a step on matrix products (GIL released, as torch does), then logs
a row of ten scalars, and only the logging is timed. `ours` is the whole way of a row: sanitised, one
line of metrics.jsonl, callbacks, alert rules, while the trackers' threads follow the file. The others
call what their documentation says. W&B is offline everywhere. An arm has a process of its own, the arms
alternate round by round; the figures are over all rows of all rounds. `start` is what the loop waits
for before its first row, `finish` for the end of the trackers, which for ours includes reading both
stores back. Steps are short, so that what the threads take from the loop is seen.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measure import argument_parser, interleave, print_table, report

GOAL_P99_MS = 0.3
Row = dict[str, float]


class Logger(NamedTuple):
    """How an arm logs a row, and how it ends."""

    log: Callable[[Row, int], Any]
    finish: Callable[[], Any]


Start = Callable[[Path], Logger]


def ours(*trackers: str) -> Callable[[], Start]:
    """The project's records with the given trackers, as `python train.py tracker=...` builds them."""

    def prepare() -> Start:
        from adamwprune.callbacks.base import RunInfo
        from adamwprune.composition import compose, to_config
        from adamwprune.targets import build
        from adamwprune.training.alerts import Watch
        from adamwprune.training.ledger import Ledger
        from adamwprune.training.records import Records

        choice = f"tracker=[{','.join(trackers)}]" if trackers else "tracker=none"
        offline = ["tracker.wandb.mode=offline"] if "wandb" in trackers else []
        config = to_config(compose([choice, *offline]))

        def start(folder: Path) -> Logger:
            records = Records(
                Ledger(folder / "metrics.jsonl"),
                [build(node, f"tracker.{name}")() for name, node in config.tracker.items()],
                watch=Watch(config.alerts, directory=folder, plan=None),
            )
            records.start(RunInfo("0123456789ab", "run", "p", None, folder, {"lr": 1e-3}))

            def finish() -> None:
                for name, state in records.close(0).items():
                    if state["state"] != "closed":
                        raise SystemExit(f"{name}: {state}")

            return Logger(lambda row, step: records.log(step, row), finish)

        return start

    return prepare


def direct_wandb(folder: Path) -> Logger:
    """wandb.init and run.log, as W&B's quick start says."""
    import wandb

    run = wandb.init(project="p", mode="offline", dir=str(folder), settings=wandb.Settings(silent=True))
    return Logger(lambda row, step: run.log(row, step=step), run.finish)


def direct_trackio(folder: Path) -> Logger:
    """trackio.init and trackio.log, as Trackio's quick start says."""
    import trackio

    trackio.init(project="p", embed=False)
    return Logger(lambda row, step: trackio.log(row, step=step), trackio.finish)


def direct_both(folder: Path) -> Logger:
    """Both in the loop, one after the other."""
    first, second = direct_wandb(folder), direct_trackio(folder)

    def log(row: Row, step: int) -> None:
        first.log(row, step)
        second.log(row, step)

    def finish() -> None:
        first.finish()
        second.finish()

    return Logger(log, finish)


def lightning(folder: Path) -> Logger:
    """Lightning's WandbLogger; it has none for Trackio."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="p", save_dir=str(folder), offline=True)
    _ = logger.experiment  # which starts the run
    return Logger(logger.log_metrics, wandb.finish)


def accelerate(*trackers: str) -> Start:
    """Accelerate's trackers, all of them by one `Accelerator.log`."""

    def start(folder: Path) -> Logger:
        os.environ["WANDB_MODE"] = "offline"
        from accelerate import Accelerator

        accelerator = Accelerator(log_with=list(trackers), project_dir=str(folder), cpu=True)
        accelerator.init_trackers("p", init_kwargs={"wandb": {"dir": str(folder)}})
        return Logger(lambda row, step: accelerator.log(row, step=step), accelerator.end_training)

    return start


# What prepares an arm, untimed, and returns what starts it.
ARMS: dict[str, Callable[[], Start]] = {
    "ours, none": ours(),
    "ours, trackio": ours("trackio"),
    "ours, wandb": ours("wandb"),
    "ours, both": ours("trackio", "wandb"),
    "trackio.log": lambda: direct_trackio,
    "wandb.log": lambda: direct_wandb,
    "both directly": lambda: direct_both,
    "Lightning, wandb": lambda: lightning,
    "Accelerate, wandb": lambda: accelerate("wandb"),
    "Accelerate, both": lambda: accelerate("wandb", "trackio"),
}
NEEDS = {"Lightning": "lightning", "Accelerate": "accelerate"}


def available() -> list[str]:
    """The arms whose packages are installed."""
    needed = {name: NEEDS.get(name.partition(",")[0]) for name in ARMS}
    return [name for name, package in needed.items() if package is None or importlib.util.find_spec(package)]


def work(seconds: float) -> None:
    """A step: matrix products until the time is over."""
    import numpy as np

    left = np.ones((256, 256), np.float32)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        left @ left


def run_arm(name: str, rows: int, step_ms: float, folder: Path) -> dict[str, Any]:
    """One process's figures: milliseconds of each log call, seconds of start and finish."""
    start_arm = ARMS[name]()
    began = time.perf_counter()
    logger = start_arm(folder)
    start = time.perf_counter() - began
    milliseconds = []
    for step in range(1, rows + 1):
        work(step_ms / 1e3)
        row = {f"group/metric{number}": number + 1 / step for number in range(9)} | {"train/loss": 2 / step}
        began = time.perf_counter()
        logger.log(row, step)
        milliseconds.append(1e3 * (time.perf_counter() - began))
    began = time.perf_counter()
    logger.finish()
    return {"start": start, "log_ms": milliseconds, "finish": time.perf_counter() - began}


def in_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run an arm in a process, folder and home of its own."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("WANDB_API_KEY", "HF_TOKEN", "WANDB_MODE")
        environment = {key: value for key, value in os.environ.items() if key not in names}
        environment |= {
            **{"HOME": folder, "TRACKIO_DIR": f"{folder}/trackio", "WANDB_SILENT": "true"},
            **{"WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        }
        command = [sys.executable, __file__, f"--arm={name}", f"--rows={arguments.rows}"]
        command += [f"--step-ms={arguments.step_ms}", f"--json={folder}/figures.json"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        return json.loads(Path(f"{folder}/figures.json").read_text())


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Median, 99th percentile and most over the rows of all rounds; medians of start and finish."""
    rows = sorted(value for one in rounds for value in one["log_ms"])
    return {
        "median_ms": statistics.median(rows),
        "p99_ms": rows[int(0.99 * len(rows))],
        "max_ms": rows[-1],
        "start_s": statistics.median(one["start"] for one in rounds),
        "finish_s": statistics.median(one["finish"] for one in rounds),
    }


def main() -> None:
    """Interleave the arms, print the table, write the JSON; or be one arm."""
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, default=1000, help="rows of a round (%(default)s)")
    parser.add_argument("--step-ms", type=float, default=5.0, help="work between two rows (%(default)s)")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        figures = run_arm(arguments.arm, arguments.rows, arguments.step_ms, Path.cwd())
        arguments.json.write_text(json.dumps(figures))
        return
    rounds = interleave(
        {name: lambda name=name: in_process(name, arguments) for name in available()}, arguments.rounds
    )
    arms = {name: summary(results) for name, results in rounds.items()}
    base = arms["both directly"]
    print_table(
        ("arm", "median ms", "p99 ms", "max ms", "start s", "finish s", "median / both directly"),
        [
            (
                name,
                *(f"{arm[key]:.3f}" for key in ("median_ms", "p99_ms", "max_ms", "start_s", "finish_s")),
                f"{arm['median_ms'] / base['median_ms']:.3f}",
            )
            for name, arm in arms.items()
        ],
    )
    print(f"goal: ours, both: p99 <= {GOAL_P99_MS} ms")
    figures = {"rows": arguments.rows, "step_ms": arguments.step_ms, "arms": arms}
    report(figures, model="rows", subject="tracker-overhead", file=arguments.json)


if __name__ == "__main__":
    main()
