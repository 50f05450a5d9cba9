"""Whole runs: what they compute, what they leave, how they end."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch

from adamwprune.distributed import Ranks
from adamwprune.errors import (
    ConfigError,
    DataError,
    DivergedError,
    OutOfMemoryError,
    Preempted,
    RunError,
    SparsityError,
    TrackerError,
)
from adamwprune.training import run as run_module
from adamwprune.training.build import build_training
from adamwprune.training.run import train
from tests.helpers.runs import BUSY, IMAGES, TOKENS, configure, final_weights, rows, run, start, summary

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
PRUNED = ("optimizer=adamwprune", "pruning.update_every=3", "pruning.target_sparsity=0.9")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("sparsity", ["0.5", "0.9", "0.987"])
@pytest.mark.parametrize("pruning", ["magnitude", "state"])
@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_achieved_sparsity_equals_the_target_to_one_weight(tmp_path, pruning, scope, sparsity):
    """Zeros counted here from the saved weights, with the prunable set written out by hand."""
    overrides = (
        f"pruning={pruning}",
        f"pruning/scope={scope}",
        f"pruning.target_sparsity={sparsity}",
        "pruning.update_every=3",
    )
    directory = run(tmp_path / "run", *IMAGES, *overrides, "trainer.max_steps=24")
    weights = final_weights(directory)
    prunable = {name: weights[name] for name in ("conv2.weight", "fc1.weight", "fc2.weight")}
    zeros = {name: int((weight == 0).sum()) for name, weight in prunable.items()}
    sizes = {name: weight.numel() for name, weight in prunable.items()}
    planned = (
        {name: math.floor(float(sparsity) * size + 0.5) for name, size in sizes.items()}
        if scope == "layerwise"
        else {"all": math.floor(float(sparsity) * sum(sizes.values()) + 0.5)}
    )
    assert (zeros if scope == "layerwise" else {"all": sum(zeros.values())}) == planned
    report = summary(directory)
    assert report["sparsity"]["achieved"] == sum(zeros.values()) / sum(sizes.values())
    assert report["parameters"]["prunable"] == sum(sizes.values())
    assert report["parameters"]["nonzero"] == sum(int((w != 0).sum()) for w in weights.values())


def test_a_run_that_misses_its_target_fails(tmp_path, monkeypatch):
    """Control: a pruner that stops early ends the run with an error, not with a result."""
    config, directory = start(tmp_path / "run", *IMAGES, *PRUNED, "trainer.max_steps=24")
    from adamwprune.pruning.pruner import Pruner

    real = Pruner.after_step
    monkeypatch.setattr(Pruner, "after_step", lambda self, step: real(self, step) if step < 15 else None)
    with pytest.raises(SparsityError, match="the masks prune"):
        train(config, directory)
    report = summary(directory)
    assert (report["status"], report["exit_code"]) == ("failed", 1)
    assert report["metrics"]["final"] == {}


def test_adamwprune_equals_adamw_plus_state_pruning_bitwise(tmp_path):
    """The alias is the composition, weights and rows."""
    shared = (*IMAGES, *BUSY, "trainer.max_steps=24", "pruning.update_every=3")
    alias = run(tmp_path / "alias", *shared, "optimizer=adamwprune")
    written = run(tmp_path / "written", *shared, "optimizer=adamw", "pruning=state")
    assert rows(alias) == rows(written)
    first, second = final_weights(alias), final_weights(written)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pruning_to_zero_equals_no_pruning_bitwise(tmp_path):
    """Target 0 prunes nothing and changes nothing."""
    shared = (*IMAGES, *BUSY, "trainer.max_steps=16")
    dense = run(tmp_path / "dense", *shared)
    zero = run(
        tmp_path / "zero",
        *shared,
        "pruning=magnitude",
        "pruning.target_sparsity=0.0",
        "pruning.update_every=3",
    )
    first, second = final_weights(dense), final_weights(zero)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_repeats_and_another_does_not(tmp_path):
    """Everything random hangs on the one seed."""
    shared = (*TOKENS, *BUSY, "trainer.max_steps=10")
    one, two = run(tmp_path / "1", *shared), run(tmp_path / "2", *shared)
    other = run(tmp_path / "3", *shared, "seed=2")
    assert rows(one) == rows(two)
    assert rows(one) != rows(other)


def test_evaluation_does_not_change_training(tmp_path):
    """With dropout in the model: losses of training are the same, evaluated often or at the end only."""
    shared = (*TOKENS, "trainer.max_steps=12", "trainer.log_every=1")
    often = run(tmp_path / "often", *shared, "trainer.eval_every=2")
    seldom = run(tmp_path / "seldom", *shared, "trainer.eval_every=12")
    losses = [[row["train/loss"] for row in rows(directory)] for directory in (often, seldom)]
    assert losses[0] == losses[1]
    assert sum("val/loss" in row for row in rows(often)) == 6


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_equals_the_whole_batch(tmp_path, micro):
    """Micro batches change the order of float32 sums only: relative 1e-4 after 8 steps."""
    shared = (*TOKENS, "model.dropout=0.0", "trainer.max_steps=8", "trainer.log_every=1")
    whole = run(tmp_path / "whole", *shared)
    parts = run(tmp_path / "parts", *shared, f"hardware.micro_batch_size={micro}")
    losses = [[row["train/loss"] for row in rows(directory)] for directory in (whole, parts)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert summary(parts)["steps"] == 8


def test_workers_change_nothing(tmp_path):
    """Batches prepared ahead by threads are the same batches."""
    shared = (*IMAGES, *BUSY, "trainer.max_steps=10")
    assert rows(run(tmp_path / "0", *shared)) == rows(run(tmp_path / "2", *shared, "hardware.num_workers=2"))


def test_the_first_rows_are_those_of_the_first_step(tmp_path):
    """The first loss is about ln(classes), the logged lr is the applied one."""
    directory = run(
        tmp_path / "run", *TOKENS, "trainer.max_steps=12", "trainer.log_every=4", "lr_schedule.warmup_steps=4"
    )
    first, second = (row for row in rows(directory) if row["step"] in (1, 4))
    assert first["step"] == 1
    assert first["train/loss"] == pytest.approx(math.log(32), abs=0.3)
    assert first["train/lr"] == pytest.approx(2e-3 / 5)
    assert (second["step"], second["train/lr"]) == (4, pytest.approx(2e-3 * 4 / 5))


def test_logged_losses_are_means_over_their_steps(tmp_path):
    """A row every 4 steps holds the mean of what rows at every step hold."""
    shared = (*IMAGES, "trainer.max_steps=12", "trainer.eval_every=12")
    single = [row["train/loss"] for row in rows(run(tmp_path / "1", *shared, "trainer.log_every=1"))]
    means = {
        row["step"]: row["train/loss"] for row in rows(run(tmp_path / "4", *shared, "trainer.log_every=4"))
    }
    assert means[1] == single[0]
    assert means[4] == pytest.approx(np.mean(single[1:4]), rel=1e-5)
    assert means[8] == pytest.approx(np.mean(single[4:8]), rel=1e-5)


def test_the_test_set_is_read_once_at_the_end(tmp_path, monkeypatch):
    """No row of a run knows the test set; the summary does."""
    reads = []
    real = run_module.evaluate_split
    monkeypatch.setattr(
        run_module, "evaluate_split", lambda t, split, poll: reads.append(split) or real(t, split, poll)
    )
    directory = run(tmp_path / "run", *IMAGES, "trainer.max_steps=8")
    assert reads.count("test") == 1
    assert not any(name.startswith("test/") for row in rows(directory) for name in row)
    assert 0 <= summary(directory)["metrics"]["final"]["test/accuracy"] <= 1


def test_a_nan_never_reaches_the_weights(tmp_path, monkeypatch):
    """Exit 7, weights bitwise those before the step, and the record says where."""
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=8", "checkpoint.every=4")
    seen = {}

    def poisoned(training, batches, real=run_module.run_steps.__globals__["accumulate_gradients"]):
        loss = real(training, batches)
        seen["steps"] = seen.get("steps", 0) + 1
        if seen["steps"] == 6:
            training.model.fc1.weight.grad[3, 5] = math.nan
            seen["model"] = training.model
            seen["weights"] = {k: v.clone() for k, v in training.model.state_dict().items()}
        return loss

    monkeypatch.setitem(run_module.run_steps.__globals__, "accumulate_gradients", poisoned)
    with pytest.raises(DivergedError, match=r"step 6: .*first bad layer fc1.weight"):
        train(config, directory)
    assert all(torch.equal(seen["weights"][k], v) for k, v in seen["model"].state_dict().items())
    report = summary(directory)
    assert (report["status"], report["exit_code"], report["steps"]) == ("diverged", 7, 5)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("trainer.max_steps=9", 9),
        ("trainer.max_epochs=1.5", 24),
        ("trainer.max_epochs=2", 32),
        ("trainer.max_epochs=2.3125", 37),
    ],
)
def test_budgets(budget, steps):
    """Steps of the whole run, and of its schedule, from either budget."""
    assert build_training(configure(*IMAGES, budget), ALONE).total_steps == steps


def test_token_budget():
    """1,000 tokens are 7 steps of 8 x 16; images have no tokens."""
    assert build_training(configure(*TOKENS, "trainer.max_tokens=1000"), ALONE).total_steps == 7
    with pytest.raises(ConfigError, match="has no tokens"):
        build_training(configure(*IMAGES, "trainer.max_tokens=1000"), ALONE)
    with pytest.raises(ConfigError, match="less than one step"):
        build_training(configure(*TOKENS, "trainer.max_tokens=100"), ALONE)
    with pytest.raises(DataError, match="larger than the 256"):
        build_training(configure(*IMAGES, "trainer.global_batch_size=512"), ALONE)


def test_a_time_budget_saves_and_can_be_continued(tmp_path):
    """max_time stops like a preemption: exit 75, checkpoint at the step that was reached."""
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=1000", "trainer.max_time=0.2")
    with pytest.raises(Preempted, match=r"trainer.max_time=0.2"):
        train(config, directory)
    report = summary(directory)
    assert (report["status"], report["exit_code"]) == ("preempted", 75)
    assert 0 < report["steps"] < 1000
    assert (directory / "checkpoints" / f"step_{report['steps']:08d}").is_dir()


@pytest.mark.draws
def test_the_record_comes_from_the_live_objects(tmp_path):
    """run.json: groups, pruning, data and versions as built."""
    directory = run(tmp_path / "run", *IMAGES, *PRUNED, "trainer.max_steps=8")
    record = json.loads((directory / "run.json").read_text())
    assert record["pruning"]["criterion"]["name"] == "state"
    assert record["optimizer"]["class"] == "AdamW"
    assert sum(group["parameters"] for group in record["param_groups"]) == 61706
    assert len(record["data"]["fingerprint"]) == 64
    assert record["hardware"]["torch"] == str(torch.__version__)
    assert record["hardware"]["torch"].startswith(record["sessions"][0]["versions"]["torch"].split("+")[0])
    assert (directory / "config.yaml").read_text().startswith("recipe:")
    assert (directory / "metrics.png").stat().st_size > 5000


def test_a_run_whose_scores_overflow_still_leaves_a_summary(tmp_path):
    """Perplexity beyond float is Infinity in its row and never the best."""
    overrides = (
        *TOKENS,
        "model.dropout=0.0",
        "optimizer=sgd",
        "optimizer.lr=30000",
        "trainer.grad_clip=null",
    )
    config, directory = start(tmp_path / "run", *overrides, "trainer.eval_every=1", "trainer.max_steps=8")
    with contextlib.suppress(DivergedError):
        train(config, directory)
    report = summary(directory)
    assert report["exit_code"] in (0, 7)
    values = [best["value"] for best in report["metrics"]["best"].values()]
    assert all(math.isfinite(value) for value in values)
    assert any(row.get("val/perplexity") == "Infinity" for row in rows(directory))


def test_remembering_the_best_ignores_what_is_not_finite():
    """A first NaN must not stay the best for ever."""
    from adamwprune.training.loop import remember_best
    from adamwprune.training.loop_state import LoopState

    state = LoopState(loss_sum=torch.zeros(()))
    for step, (loss, accuracy) in enumerate(
        [(math.nan, 0.2), (2.0, math.nan), (1.0, 0.1), (math.inf, 0.3)], 1
    ):
        state.step = step
        remember_best(state, {"val/loss": loss, "val/accuracy": accuracy})
    assert state.best == {"val/loss": {"value": 1.0, "step": 3}, "val/accuracy": {"value": 0.3, "step": 4}}


def test_the_best_is_kept_between_checkpoints(tmp_path):
    """Evaluations every 2, checkpoints every 12: the best of all evaluations is on disk at the end."""
    directory = run(
        tmp_path / "run", *IMAGES, "trainer.max_steps=24", "trainer.eval_every=2", "checkpoint.every=12"
    )
    best = summary(directory)["metrics"]["best"]["val/loss"]["step"]
    assert (directory / "checkpoints" / f"step_{best:08d}").is_dir()


def test_a_model_that_fails_leaves_a_summary_and_its_traceback(tmp_path, monkeypatch):
    """Failures before the first step are recorded like later ones; an old summary does not stay."""
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=4")
    (directory / "summary.json").write_text('{"status": "preempted", "exit_code": 75}')

    def broken(config, ranks):
        raise ValueError("no such layer")

    monkeypatch.setattr(run_module, "build_training", broken)
    with pytest.raises(RunError, match=r"ValueError: no such layer; the traceback is in"):
        train(config, directory)
    report = summary(directory)
    assert (report["status"], report["exit_code"]) == ("failed", 1)
    assert "no such layer" in report["error"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")]
)
def test_out_of_memory_is_exit_8_with_the_batch_to_try(tmp_path, monkeypatch, error):
    """On the CPU too, in torch's words for it."""
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=4")

    def full(*_):
        raise error

    monkeypatch.setitem(run_module.run_steps.__globals__, "accumulate_gradients", full)
    with pytest.raises(
        OutOfMemoryError, match=r"hardware.micro_batch_size=16.*try hardware.micro_batch_size=8"
    ):
        train(config, directory)
    assert summary(directory)["exit_code"] == 8


def test_a_required_tracker_that_fails_is_exit_6_in_the_record_too(tmp_path, monkeypatch):
    """The ledger is whole, the summary and the process agree."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "file"))
    overrides = (*IMAGES, "tracker=trackio", "tracker.trackio.required=true", "trainer.max_steps=4")
    config, directory = start(tmp_path / "run", *overrides, "tracker.trackio.finish_timeout=3")
    with pytest.raises(TrackerError, match=r"metrics\.jsonl has them"):
        train(config, directory)
    assert summary(directory)["exit_code"] == 6
    assert len(rows(directory)) > 0


def test_summary_format(tmp_path):
    """The keys that outsiders rely on."""
    report = summary(run(tmp_path / "run", *IMAGES, *PRUNED, "trainer.max_steps=24", "trainer.eval_every=3"))
    assert (report["status"], report["exit_code"], report["steps"]) == ("finished", 0, 24)
    assert {"final", "best"} <= report["metrics"].keys()
    assert {"total", "prunable", "nonzero"} <= report["parameters"].keys()
    assert report["trackers"] == {}
    assert report["metrics"]["final"].keys() >= {"val/loss", "val/accuracy", "test/loss", "test/accuracy"}
    # Only evaluations at full sparsity, from step 18 on, can be the best.
    assert all(best["step"] >= 18 for best in report["metrics"]["best"].values())


@pytest.mark.parametrize("model", ["lenet5", "resnet18", "gpt2-nano"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("pruning", ["none", "magnitude", "state"])
def test_every_model_with_every_optimizer_and_pruning(tmp_path, model, optimizer, pruning):
    """Each cell trains and reaches its target; state with SGD is refused and says why."""
    parts = TOKENS if model == "gpt2-nano" else (*IMAGES, f"model={model}")
    small = ("model.width=4",) if model.startswith("resnet") else ()
    overrides = (*parts, *small, f"optimizer={optimizer}", f"pruning={pruning}", "trainer.max_steps=6")
    extra = () if pruning == "none" else ("pruning.update_every=1",)
    if (optimizer, pruning) == ("sgd", "state"):
        with pytest.raises(ConfigError, match="exp_avg_sq"):
            run(tmp_path / "run", *overrides, *extra)
        return
    report = summary(run(tmp_path / "run", *overrides, *extra))
    target = 0 if pruning == "none" else configure(*overrides, *extra).pruning.target_sparsity
    assert report["sparsity"]["achieved"] == pytest.approx(target, abs=1e-3)
