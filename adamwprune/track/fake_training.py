"""`test`: a fake training through Records, Ledger and Mirror, as rows of a run go, and back from the store.

10 epochs of 100 steps, seeded; with p = step / 1000:

    train/loss       2.5 exp(-2 p) + N(0.1, 0.02)       val/perplexity   exp(train/loss)
    val/accuracy     0.1 + 0.85 (1 - exp(-1.5 p)), at most 0.95
    sparsity/global  0.5 (1 - exp(-3 p))                train/lr         1e-3 exp(-0.5 p)
    memory/peak_gib  2000 +- 100 MiB                    train/epoch      step / 100
"""

import math
import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import Row, RunInfo
from adamwprune.composition import quoted
from adamwprune.run_directory import METRICS
from adamwprune.track.compare import Check, check
from adamwprune.track.recorded import build_trackers
from adamwprune.track.replay import compose_options
from adamwprune.trackers.backend import environment
from adamwprune.trackers.loopback import WandbServer
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.parity import Series, compare, series
from adamwprune.trackers.rows import read_rows
from adamwprune.trackers.wandb_files import STEP
from adamwprune.training.ledger import Ledger
from adamwprune.training.records import Records

SEED = 1
STEPS, STEPS_PER_EPOCH = 1000, 100
TARGET_SPARSITY, LR = 0.5, 1e-3
PROJECT = "adamwprune-test"
SUMMARY = {"status": "finished", "steps": STEPS, "seconds": 0.0, "metrics": {"final": {}, "best": {}}}


def fake_rows(seed: int = SEED) -> Iterator[tuple[int, Row]]:
    """Step and row of each of the 1,000 steps."""
    noise = random.Random(seed)
    for step in range(1, STEPS + 1):
        p = step / STEPS
        loss = 2.5 * math.exp(-2 * p) + noise.gauss(0.1, 0.02)
        yield (
            step,
            {
                "train/loss": loss,
                "train/lr": LR * math.exp(-0.5 * p),
                "train/epoch": step / STEPS_PER_EPOCH,
                "val/accuracy": min(0.95, 0.1 + 0.85 * (1 - math.exp(-1.5 * p))),
                "val/perplexity": math.exp(loss),
                "sparsity/global": TARGET_SPARSITY * (1 - math.exp(-3 * p)),
                "memory/peak_gib": (2000 + noise.uniform(-100, 100)) / 1024,
            },
        )


def try_out(name: str, *, keep: bool = False) -> bool:
    """Send the fake training to the tracker `name`, print what its store holds; whether that is all.

    Args:
        name: an option of conf/tracker.
        keep: leave the temporary folder.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="adamwprune-test-"))
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server, overrides = _surroundings(name, folder, stack)
        options = compose_options([name], overrides, project=PROJECT)
        (tracker,) = build_trackers(options, ()).values()
        run = _fake_run(folder / "run", options)
        state = _send(tracker, run)
        checks = {METRICS: _check_ledger(run), "its store": check(tracker, run)}
        if server is not None:
            checks["the server"] = Check(compare(series(fake_rows()), _served(server)))
        elif state.get("mode") == "offline":
            checks["the server"] = Check(None, f"not reached: {state['reason']}")
        has_passed = state["state"] == "closed" and all(found.is_whole for found in checks.values())
        print(f"{name}: {'pass' if has_passed else 'FAIL'} in {time.monotonic() - started:.1f} s")
        for store, found in checks.items():
            print(f"  {store}: {found}")
        for kind, error in state["errors"].items():
            print(f"  {kind}: {error['first']}")
        if server is None and "url" in state:
            print(f"  {state['url']}")
        else:
            print(f"  {state.get('path', folder)}{'' if keep else ' (removed)'}")
    return has_passed


def _surroundings(name: str, folder: Path, stack: ExitStack) -> tuple[WandbServer | None, list[str]]:
    """Where the tracker stores: a server where it needs one, and the overrides that say so."""
    own = {
        "trackio": [f"tracker.trackio.dir={quoted(folder / 'trackio')}"],
        "mlflow": [f"tracker.mlflow.tracking_uri={quoted(f'sqlite:///{folder}/mlflow.db')}"],
    }
    if name != "wandb":
        return None, own.get(name, [])
    if os.environ.get("WANDB_ONLINE") == "1":
        print("wandb: WANDB_ONLINE=1: a run on the real server, with the key of this account")
        return None, ["tracker.wandb.mode=online"]
    stack.enter_context(
        environment(
            WANDB_API_KEY="0" * 40,  # the server takes any
            WANDB_CONFIG_DIR=str(folder / "config"),
            WANDB_CACHE_DIR=str(folder / "cache"),
            WANDB_DATA_DIR=str(folder / "data"),
        )
    )
    server = stack.enter_context(WandbServer())
    return server, ["tracker.wandb.mode=online", f"tracker.wandb.base_url={server.url}"]


def _fake_run(directory: Path, options: dict[str, Any]) -> RunInfo:
    directory.mkdir()
    return RunInfo(
        run_id=secrets.token_hex(6),
        name="fake_training",
        project=PROJECT,
        group=None,
        directory=directory,
        config={"seed": SEED, "optimizer": {"lr": LR}, "tracker": options},
        total_steps=STEPS,
    )


def _send(tracker: Mirror, run: RunInfo) -> dict[str, Any]:
    """What the loop does with its rows, without a loop; the tracker's state at the end."""
    records = Records(Ledger(run.directory / METRICS), [tracker])
    records.start(run)
    for step, row in fake_rows():
        records.log(step, row)
        records.step_end(step)
    records.finished(SUMMARY)
    return records.close(0)[tracker.backend.name]


def _check_ledger(run: RunInfo) -> Check:
    rows = ((entry.step, entry.row) for entry in read_rows(run.directory / METRICS))
    return Check(compare(series(fake_rows()), series(rows)))


def _served(server: WandbServer) -> Series:
    """What a server of one run took, without the keys that W&B and we add."""
    return series(
        (row[STEP], {key: value for key, value in row.items() if key != STEP and key[0] != "_"})
        for run in server.runs.values()
        for row in run.rows
    )
