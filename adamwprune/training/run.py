"""One run from its configuration to its summary; what every rank executes.

    join the ranks -> build -> continue a checkpoint, if there is one -> steps -> test -> summary

Order at the end: the last checkpoint, then, on every path out, ledger, trackers, summary.json.
"""

import gc
import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.callbacks.console import Console, print_summary
from adamwprune.callbacks.plot import Plot
from adamwprune.config import Config, to_plain, trajectory_hash
from adamwprune.distributed import Ranks, is_lost_peer, joined
from adamwprune.errors import (
    DiskError,
    HardwareError,
    Interrupted,
    OutOfMemoryError,
    Preempted,
    RunError,
    TrackerError,
    exit_code_of,
)
from adamwprune.rank_errors import AGREED
from adamwprune.run_directory import (
    MASK_UPDATES,
    METRICS,
    RECORD,
    SAMPLES,
    SUMMARY,
    locked,
    read_json,
    save_config,
    shown_path,
    write_json,
)
from adamwprune.targets import build
from adamwprune.trackers.rows import rewinds
from adamwprune.training import checkpoint as checkpoints
from adamwprune.training.alerts import MaskPlan, Watch
from adamwprune.training.build import Training, build_training, choose_device, describe
from adamwprune.training.choices import chosen
from adamwprune.training.continuation import continue_or_start
from adamwprune.training.devices import DeviceSampler
from adamwprune.training.ledger import Ledger, read_rows
from adamwprune.training.loop import Session, evaluate_split, run_steps, samples_per_step, stop_polled
from adamwprune.training.loop_state import LoopState
from adamwprune.training.random_state import determinism, seed_everything
from adamwprune.training.records import Records
from adamwprune.training.saver import Saver
from adamwprune.training.signals import StopRequest, stop_requests
from adamwprune.training.summary import summarise
from adamwprune.training.throughput import Throughput

log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What there is of a run so far; a failure is reported with as much of it as exists."""

    config: Config
    directory: Path
    ranks: Ranks
    training: Training | None = None
    state: LoopState | None = None
    records: Records = field(default_factory=Records)


def train(config: Config, directory: Path) -> float:
    """Train, prune and evaluate the run in `directory`; return its final validation loss.

    Raises:
        RunError: with the exit code of what went wrong; summary.json says the same.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests(directory))
        device_type = choose_device(config.hardware.device)
        ranks = stack.enter_context(joined(device_type, config.hardware.timeout))
        config, directory = ranks.share((config, directory))
        if ranks.is_main:
            stack.enter_context(locked(directory))
        # Another resume may have brought it to its end while this one waited to begin.
        if ended := ranks.share(_ended(directory) if ranks.is_main else {}):
            if ranks.is_main:
                print(f"{shown_path(directory)}: already complete; nothing to do", file=sys.stderr)
            return float(ended["metrics"]["final"]["val/loss"])
        run = _Run(config, directory, ranks)
        failure: BaseException | None = None
        try:
            with determinism(config.hardware.deterministic):
                summary = _train(run, stop)
        except BaseException as error:
            stop.defer()
            failure = _explained(error, run)
            run.records.failed(failure)
            summary = _failure_summary(run, failure)
        if ranks.is_main:
            try:
                _close(run, summary)
            except DiskError as second:
                if failure is None:
                    raise
                log.warning("%s", second)  # what ended the run is what is told
        if isinstance(failure, Preempted | Interrupted):
            # Torch's launcher kills all that are there 30 s after the first has left: rank 0 may be closing.
            ranks.wait_for_all()
        if failure is not None:
            if ranks.is_main and isinstance(failure, Preempted | Interrupted):
                log.info("to continue: python train.py resume=%s", shown_path(directory))
            raise failure
        if ranks.is_main:
            print_summary(summary)
            _check_required_trackers(summary)
        # DDP must go before the process group that it talks through: else its end may wait for ever.
        if ranks.world_size > 1:
            run.training = None
            gc.collect()
        return float(summary["metrics"]["final"]["val/loss"])


def _ended(directory: Path) -> dict[str, Any]:
    """The summary of a run that has come to its end; empty for any other."""
    summary = read_json(directory / SUMMARY)
    return summary if summary.get("status") == "finished" else {}


def _train(run: _Run, stop: StopRequest) -> dict[str, Any]:
    """Build, continue, step, verify, test; the summary of a finished run."""
    config, ranks, directory = run.config, run.ranks, run.directory
    seed_everything(config.seed, rank=0)  # equal weights on all ranks
    training = run.training = build_training(config, ranks)
    if ranks.is_main and (line := chosen(config.hardware, ranks.device, training.autocast.precision)):
        log.info("%s", line)
    seed_everything(config.seed, ranks.rank)  # then each rank its own dropout
    record = ranks.share(read_json(directory / RECORD) if ranks.is_main else {})
    revision = record["sessions"][-1]["code"]["revision"]
    state = run.state = continue_or_start(training, directory, revision)
    stop.defer(ranks)
    if ranks.is_main:
        (directory / SUMMARY).unlink(missing_ok=True)  # an earlier session's; this one has not ended
    run.records = _open_records(training, state, record, directory)
    with ExitStack() as stack:
        sampler = stack.enter_context(_sampler(training)) if ranks.is_main else None
        throughput = _throughput(training, sampler)
        saver = stack.enter_context(closing(_saver(training, run.records, directory)))
        session = Session(training, state, run.records, saver, stop, throughput, directory, revision)
        run_steps(session)
    training.pruner.verify(state.step)
    with training.evaluated_weights():
        training.pruner.verify(state.step)
    final = dict(state.latest)
    if training.data.test is not None:
        final |= evaluate_split(training, "test", stop_polled(session))  # the only reading of the test set
    summary = summarise(training, state, "finished", 0, final | throughput.overall(), directory)
    summary["exact"] = summary["exact"] and record.get("exact", True)
    run.records.finished(summary)
    return summary


def _open_records(training: Training, state: LoopState, record: dict[str, Any], directory: Path) -> Records:
    """The ledger and the callbacks on rank 0, started; silent records elsewhere."""
    if not training.ranks.is_main:
        return Records()
    config = training.config
    plain = to_plain(config)
    is_exact = not config.resume_allow
    # From here on the run is what this session makes of it, and stays inexact once it was.
    now = {"config": plain, "overrides": record["sessions"][-1]["overrides"]}
    exact = {"exact": is_exact and record.get("exact", True)}
    write_json(directory / RECORD, {**record, **now, **exact, **describe(training)})
    save_config(directory, plain)
    trackers = [
        build(node, f"tracker.{name}", config.allow_targets)() for name, node in config.tracker.items()
    ]
    callbacks: list[Callback] = [Console(), Plot(), *trackers]
    ledger = Ledger(directory / METRICS, state.step, exact=is_exact)
    mask_updates = None
    if config.pruning.criterion is not None:
        mask_updates = Ledger(directory / MASK_UPDATES, state.step, exact=is_exact)
    samples = None
    if config.samples.tokens:
        samples = Ledger(directory / SAMPLES, state.step, exact=is_exact)
    records = Records(ledger, callbacks, mask_updates, _watch(training, state, directory), samples)
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
            is_continued=len(record["sessions"]) > 1,
            rewinds=rewinds(directory / METRICS),
            tags=tuple(config.tags),
            notes=config.notes,
        )
    )
    return records


def _watch(training: Training, state: LoopState, directory: Path) -> Watch:
    """The alert rules, which know the rows of earlier sessions."""
    plan, pruner = None, training.pruner
    if training.config.pruning.criterion is not None:
        plan = MaskPlan(
            updates=pruner.plan.updates(),
            update_every=pruner.plan.update_every,
            sparsity=lambda step: pruner.planned_count(step) / pruner.prunable_count,
        )
    watch = Watch(training.config.alerts, directory=directory, plan=plan)
    for row in read_rows(directory / METRICS):
        if row["step"] <= state.step:
            watch.learn(row["step"], row["time"], row)
    watch.resume()
    return watch


def _saver(training: Training, records: Records, directory: Path) -> Saver:
    identity = {"config": trajectory_hash(training.config)}
    keep = training.config.checkpoint.keep
    return Saver(directory / "checkpoints", keep=keep, identity=identity, sync_records=records.sync)


def _sampler(training: Training) -> DeviceSampler:
    is_cuda = training.ranks.device.type == "cuda"
    return DeviceSampler(cuda_devices=training.ranks.local_world_size if is_cuda else 0)


def _throughput(training: Training, sampler: DeviceSampler | None) -> Throughput:
    per_device = samples_per_step(training) / training.ranks.world_size
    flops_per_token = getattr(training.model, "flops_per_token", None)
    return Throughput(
        unit=training.data.unit,
        samples_per_step=samples_per_step(training),
        flops_per_step=flops_per_token() * per_device if flops_per_token else None,
        peak_flops=training.config.hardware.peak_flops,
        device=training.ranks.device,
        sampler=sampler,
    )


def _close(run: _Run, summary: dict[str, Any]) -> None:
    """Close ledger and trackers, then say in summary.json how the run ended."""
    summary["trackers"] = run.records.close(summary["exit_code"])
    was_refused = run.state is None and checkpoints.steps_on_disk(run.directory / "checkpoints")
    if was_refused and (run.directory / SUMMARY).exists():
        return  # a resume that was refused leaves the run as it was
    if summary["exit_code"] == 0 and _missed(summary):
        summary["exit_code"] = TrackerError.exit_code
    write_json(run.directory / SUMMARY, summary)


def _missed(summary: Mapping[str, Any]) -> list[str]:
    """Trackers that were required and did not take every row."""
    trackers = summary["trackers"].items()
    return [name for name, status in trackers if status["required"] and status["state"] != "closed"]


def _check_required_trackers(summary: Mapping[str, Any]) -> None:
    """A required tracker that missed rows is exit 6; the ledger is whole all the same."""
    for name in _missed(summary):
        state = summary["trackers"][name]["state"]
        raise TrackerError(f"tracker.{name}: {state}, not all rows arrived; metrics.jsonl has them")


# ----------------------------------------------------------------------------- how a run can end

# What torch says when the CPU's memory is used up.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")


def _explained(error: BaseException, run: _Run) -> BaseException:
    """The error as one line with its exit code; a bug's traceback goes to the log."""
    if isinstance(error, RunError | KeyboardInterrupt | SystemExit):
        return error
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in _NO_MEMORY):
        from adamwprune.fit.out_of_memory import explanation  # which few runs need

        return OutOfMemoryError(explanation(run.config, run.ranks.device, text))
    log.error("the run failed", exc_info=error)
    if "does not have a deterministic implementation" in text:
        return HardwareError(
            f"hardware.deterministic=true: {text.partition(',')[0]}; add hardware.deterministic=false, or do "
            "without it"
        )
    if is_lost_peer(error):
        return RunError(
            f"another rank has ended or does not answer ({text}); it, or its machine, says why; to go on "
            f"from the last checkpoint: python train.py resume={shown_path(run.directory)}"
        )
    return RunError(f"{type(error).__name__}: {text}; the traceback is in {run.directory / 'train.log'}")


def _failure_summary(run: _Run, failure: BaseException) -> dict[str, Any]:
    """What can be said of a run that did not finish."""
    code = exit_code_of(failure)
    status = {7: "diverged", 75: "preempted", 130: "interrupted", 143: "killed"}.get(code, "failed")
    error = {"error": str(failure)}
    # Weights that are spread are counted by all ranks together, which only an agreed end finds waiting.
    can_count = run.training is not None and (
        isinstance(failure, AGREED) or run.training.pruner.shards.is_alone
    )
    if can_count and run.training is not None and run.state is not None:
        try:
            return summarise(run.training, run.state, status, code, {}, run.directory) | error
        except RuntimeError as second:  # a device that failed cannot be asked again
            log.warning("the state of the failed run could not be read: %s", second)
    empty = {"metrics": {"final": {}, "best": {}}, "sparsity": {}, "parameters": {}, "trackers": {}}
    return {"status": status, "exit_code": code, "steps": 0, "seconds": 0.0, **empty, **error}
