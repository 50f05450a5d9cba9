"""Which checkpoint a run goes on from: the newest that is whole and fits, with a word about the others."""

import copy
import logging
import shutil

import pytest
import torch

from adamwprune.errors import CheckpointError, Preempted
from adamwprune.training import checkpoint as cp
from adamwprune.training.run import train
from tests.helpers.runs import IMAGES, mask_updates, rows, start

# Masks from step 5 on; checkpoints of steps 8 and 16.
RUN = (
    *IMAGES,
    "pruning=magnitude",
    "pruning.update_every=2",
    "trainer.max_steps=20",
    "trainer.eval_every=8",
    "checkpoint.keep=3",
)


@pytest.fixture(scope="module")
def _runs(tmp_path_factory):
    """A run that was stopped at step 16, and the same one unbroken."""
    folder = tmp_path_factory.mktemp("continuation")
    config, unbroken = start(folder / "unbroken", *RUN)
    train(config, unbroken)
    config, stopped = start(folder / "stopped", *RUN, "trainer.stop_step=16")
    with pytest.raises(Preempted):
        train(config, stopped)
    config.trainer.stop_step = None
    return config, stopped, unbroken


@pytest.fixture
def stopped(tmp_path, _runs):
    config, directory, unbroken = _runs
    return copy.deepcopy(config), shutil.copytree(directory, tmp_path / "run"), unbroken


def rewrite(directory, step, change):
    """Change what a checkpoint holds, and give it the right checksums for that."""
    root = directory / "checkpoints"
    folder = root / f"step_{step:08d}"
    checkpoint = cp.load(folder, step)
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    state = copy.deepcopy(checkpoint.state)
    change(weights, state)
    shutil.rmtree(folder)
    cp.save(root, step, weights, state)


def times(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def other_shape(weights, _):
    weights["fc1.weight"] = weights["fc1.weight"][:, :-1].contiguous()


def other_dtype(weights, _):
    weights["fc1.weight"] = weights["fc1.weight"].double()


def missing_name(weights, _):
    del weights["fc1.bias"]


def moments_of_another_shape(_, state):
    first = next(iter(state["optimizer"]["state"].values()))
    first["exp_avg"] = torch.zeros(3, 3)


def revived_weight(weights, state):
    packed = state["pruner"]["masks"]["packed"]["fc1.weight"]
    first = int((packed.numpy() != 255).argmax())  # a byte with a pruned weight
    bit = next(bit for bit in range(8) if not packed[first] & (128 >> bit))
    weights["fc1.weight"].view(-1)[8 * first + bit] = 1.0


def flipped_mask(_, state):
    state["pruner"]["masks"]["packed"]["fc1.weight"][0] ^= 1


def missing_key(_, state):
    del state["loss_sum"]


def of_a_later_run(_, state):
    state["records"]["metrics.jsonl"] += 1000


DAMAGES = (
    other_shape,
    other_dtype,
    missing_name,
    moments_of_another_shape,
    revived_weight,
    flipped_mask,
    missing_key,
    of_a_later_run,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_passed_over_though_its_checksums_are_right(stopped, caplog, damage):
    """The one before is taken, both are named, and the run ends as if nothing had been."""
    config, directory, unbroken = stopped
    rewrite(directory, 16, damage)
    with caplog.at_level(logging.INFO):
        train(config, directory)
    assert "skipped checkpoint step_00000016: " in caplog.text
    assert "continuing at step 8" in caplog.text
    assert rows(directory) == rows(unbroken)
    assert mask_updates(directory) == mask_updates(unbroken)


def test_what_fits_is_not_passed_over(stopped, caplog):
    """Control: rewritten without a change, the newest one is taken."""
    config, directory, _ = stopped
    rewrite(directory, 16, lambda weights, state: None)
    with caplog.at_level(logging.INFO):
        train(config, directory)
    assert "continuing at step 16" in caplog.text


def test_none_that_fits_is_exit_5_and_changes_nothing(stopped):
    """With the reason of each."""
    config, directory, _ = stopped
    rewrite(directory, 16, other_shape)
    rewrite(directory, 8, missing_name)
    before = times(directory / "checkpoints")
    with pytest.raises(CheckpointError, match=r"step_00000016: .*fc1.weight.*step_00000008: .*fc1.bias"):
        train(config, directory)
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in (directory / "checkpoints").rglob("*")
    )


def test_a_ledger_that_lost_rows_is_noticed(stopped):
    """Truncated behind our back: neither checkpoint has all the rows that it refers to."""
    config, directory, _ = stopped
    (directory / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl has 0 bytes, [\d,]+ when it was saved"):
        train(config, directory)


def test_a_checkpoint_behind_the_end_of_the_run_is_refused(stopped):
    """A run that is made shorter than what it has done."""
    config, directory, _ = stopped
    config.trainer.max_steps = 12
    shutil.rmtree(directory / "checkpoints" / "step_00000008")
    with pytest.raises(CheckpointError, match="step 16 lies behind the run's 12 steps"):
        train(config, directory)
