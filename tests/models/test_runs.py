"""The keys of GPT-2 in whole runs: checkpointing changes no bit, on one rank, under DDP and under FSDP."""

import os

import pytest

from adamwprune.training.run import train
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import BUSY, TOKENS, final_weights, rows, run, start
from tests.test_benchmarks import measured

SMALL = (*TOKENS, *BUSY, "hardware.micro_batch_size=2", "trainer.max_steps=8", "trainer.log_every=1")
CHECKPOINTING = "model.activation_checkpointing=true"


def losses(directory):
    return [row["train/loss"] for row in rows(directory) if "train/loss" in row]


def assert_same(first, second):
    """Losses and weights, bitwise."""
    assert losses(first) == losses(second)
    ours, theirs = final_weights(first), final_weights(second)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.slow
def test_a_pruned_run_is_the_same_with_checkpointing(tmp_path):
    """Dropout draws and micro batches accumulate; mode ste masks weights in the second pass too."""
    pruning = ("pruning=magnitude", "pruning.update_every=2", "pruning/mode=ste", "model.dropout=0.1")
    without = run(tmp_path / "without", *SMALL, *pruning)
    assert_same(without, run(tmp_path / "with", *SMALL, *pruning, CHECKPOINTING))
    other = run(tmp_path / "other", *SMALL, *pruning, "seed=2")  # the control
    assert losses(other) != losses(without)


@pytest.mark.slow
def test_a_run_with_padding_has_the_losses_of_one_without(tmp_path):
    """From one seed; 1e-5 after 8 steps, for the order of sums."""
    plain = losses(run(tmp_path / "plain", *SMALL))
    padded = losses(run(tmp_path / "padded", *SMALL, "model.pad_vocab_to_multiple_of=64"))
    assert padded == pytest.approx(plain, abs=1e-5)


def train_both(runs):
    """Train on this rank one run after the other."""
    port = int(os.environ["MASTER_PORT"])
    for number, (config, directory) in enumerate(runs):
        os.environ["MASTER_PORT"] = str(port + number)  # that of the run before may not be free yet
        train(config, directory)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_ranks_are_the_same_with_checkpointing(tmp_path, parallel):
    """The second pass of a block gathers its weights under FSDP, and starts no exchange under DDP."""
    several = (*SMALL, "model.dropout=0.1", "hardware.num_devices=2", f"hardware.parallel={parallel}")
    runs = [start(tmp_path / "without", *several), start(tmp_path / "with", *several, CHECKPOINTING)]
    run_ranks(train_both, 2, runs)
    assert_same(tmp_path / "without", tmp_path / "with")


@pytest.mark.slow
def test_the_benchmark_of_the_keys_counts_what_they_keep(tmp_path):
    """Checkpointing and flash attention keep less, dropout more, padding nothing beyond the loss's copy."""
    sizes = ("--model=gpt2-nano", "--batch=2", "--length=64", "--rounds=1")
    arms = measured(tmp_path, "gpt2_keys.py", *sizes)["arms"]
    kept = {name: arm["kept_bytes"] for name, arm in arms.items()}
    assert kept["checkpointing"] < kept["as shipped"] < kept["math attention"] < kept["dropout 0.1"]
    assert kept["padded"] == kept["as shipped"]
