"""One run from its configuration to its summary; what every rank executes.

    join the ranks -> build -> continue a checkpoint, if there is one -> steps -> test -> summary

Order at the end, on every path out: checkpoint, ledger, trackers, summary.json.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.callbacks.console import Console, print_summary
from adamwprune.callbacks.plot import Plot
from adamwprune.config import Config, to_plain
from adamwprune.distributed import joined
from adamwprune.errors import OutOfMemoryError, RunError, TrackerError
from adamwprune.run_directory import METRICS, RECORD, SUMMARY, locked, read_json, save_config, write_json
from adamwprune.targets import build
from adamwprune.training import checkpoint as checkpoints
from adamwprune.training.build import Training, build_training, choose_device, describe
from adamwprune.training.ledger import Ledger
from adamwprune.training.loop import evaluate_split, run_steps, samples_per_step
from adamwprune.training.loop_state import LoopState, restore
from adamwprune.training.random_state import determinism, seed_everything
from adamwprune.training.records import Records
from adamwprune.training.signals import StopSignals
from adamwprune.training.summary import summarise
from adamwprune.training.throughput import Throughput

log = logging.getLogger(__name__)


def train(config: Config, directory: Path) -> float:
    """Train, prune and evaluate the run in `directory`; return its final validation loss.

    Raises:
        RunError: with the exit code of what went wrong; summary.json says the same.
    """
    hardware = config.hardware
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        ranks = stack.enter_context(joined(choose_device(hardware.device), hardware.timeout))
        stack.enter_context(determinism(hardware.deterministic))
        config, directory = ranks.share((config, directory))
        if ranks.is_main:
            stack.enter_context(locked(directory))
        seed_everything(config.seed, rank=0)  # equal weights on all ranks
        training = build_training(config, ranks)
        seed_everything(config.seed, ranks.rank)  # then each rank its own dropout
        return _train(training, directory, stop)


def _train(training: Training, directory: Path, stop: StopSignals) -> float:
    ranks = training.ranks
    record = ranks.share(read_json(directory / RECORD) if ranks.is_main else {})
    revision = record["sessions"][-1]["code"]["revision"]
    state = _continue_or_start(training, directory, revision)
    records = _open_records(training, state, record, directory)
    throughput = _throughput(training)
    failure: BaseException | None = None
    try:
        run_steps(training, state, records, stop, throughput, directory / "checkpoints", revision)
        training.pruner.verify(state.step)
        final = evaluate_split(training, "val")
        if training.data.test is not None:
            final |= evaluate_split(training, "test")  # the only reading of the test set
        summary = summarise(training, state, "finished", 0, final | throughput.overall(), directory)
        records.finished(summary)
    except BaseException as error:
        failure = _as_run_error(error, training)
        records.failed(failure)
        summary = summarise(training, state, _status(failure), _exit_code(failure), {}, directory)
        summary["error"] = str(failure)
    if ranks.is_main:
        summary["trackers"] = records.close(summary["exit_code"])
        write_json(directory / SUMMARY, summary)
    if failure is not None:
        raise failure
    if ranks.is_main:
        print_summary(summary)
        _check_required_trackers(summary["trackers"])
    return final["val/loss"]


def _continue_or_start(training: Training, directory: Path, revision: str | None) -> LoopState:
    """The state to go on from: the newest valid checkpoint of this folder, or the beginning."""
    root = directory / "checkpoints"
    if not checkpoints.steps_on_disk(root):
        return LoopState.new(training)
    checkpoint = checkpoints.load_newest(root)
    state = restore(training, checkpoint, revision, exact=_is_exact(training.config))
    if training.ranks.is_main:
        log.info("continuing at step %d from %s", state.step, checkpoint.directory)
    return state


def _is_exact(config: Config) -> bool:
    return not config.resume_allow


def _open_records(training: Training, state: LoopState, record: dict[str, Any], directory: Path) -> Records:
    """The ledger and the callbacks on rank 0, started; silent records elsewhere."""
    if not training.ranks.is_main:
        return Records()
    config = training.config
    plain = to_plain(config)
    write_json(directory / RECORD, {**record, **describe(training)})
    save_config(directory, plain)
    trackers = [
        build(node, f"tracker.{name}", config.allow_targets)() for name, node in config.tracker.items()
    ]
    callbacks: list[Callback] = [Console(), Plot(), *trackers]
    ledger = Ledger(directory / METRICS, state.step, exact=_is_exact(config))
    records = Records(ledger, callbacks)
    records.start(
        RunInfo(
            run_id=record["run_id"],
            name=record["name"],
            project=record["project"],
            group=record["group"],
            directory=directory,
            config=plain,
            total_steps=training.total_steps,
            first_step=state.step,
        )
    )
    return records


def _throughput(training: Training) -> Throughput:
    per_device = samples_per_step(training) / training.ranks.world_size
    flops_per_token = getattr(training.model, "flops_per_token", None)
    return Throughput(
        unit=training.data.unit,
        samples_per_step=samples_per_step(training),
        flops_per_step=flops_per_token() * per_device if flops_per_token else None,
        peak_flops=training.config.hardware.peak_flops,
        device=training.ranks.device,
    )


def _check_required_trackers(trackers: Mapping[str, Mapping[str, Any]]) -> None:
    """A tracker that was required and missed rows is exit 6; the ledger is whole all the same."""
    for name, status in trackers.items():
        if status["required"] and status["state"] != "closed":
            raise TrackerError(
                f"tracker.{name}: {status['state']}, not all rows arrived; metrics.jsonl has them"
            )


# ----------------------------------------------------------------------------- how a run can end


def _as_run_error(error: BaseException, training: Training) -> BaseException:
    """Running out of memory in words that help; everything else as it is."""
    if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
        return error
    size = training.config.hardware.micro_batch_size
    return OutOfMemoryError(
        f"hardware.micro_batch_size={size}: does not fit into the memory of {training.ranks.device} "
        f"({str(error).splitlines()[0]}); try hardware.micro_batch_size={max(1, size // 2)}"
    )


def _status(error: BaseException) -> str:
    code = _exit_code(error)
    return {7: "diverged", 75: "preempted", 130: "interrupted"}.get(code, "failed")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, RunError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1
