"""mask_updates.jsonl and the prune/ numbers of metrics.jsonl, against masks read from the run's own files."""

import json

import numpy as np
import pytest
import torch

from adamwprune import run_directory
from adamwprune.errors import SparsityError
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.pruner import Pruner
from adamwprune.training.run import train
from tests.helpers.runs import (
    BUSY,
    IMAGES,
    final_state,
    final_weights,
    mask_updates,
    rows,
    run,
    start,
    summary,
)

SMALL = (*IMAGES, *BUSY, "trainer.max_steps=20", "pruning.update_every=2")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    threads = torch.get_num_threads()
    yield run(tmp_path_factory.mktemp("runs") / "run", *SMALL, "pruning=state", "pruning.target_sparsity=0.8")
    torch.set_num_threads(threads)


def unpacked(directory):
    """Final masks by name, from the checkpoint's bits."""
    shapes = json.loads((directory / "run.json").read_text())["pruning"]["prunable"]
    packed = final_state(directory)["pruner"]["masks"]["packed"]
    weights = final_weights(directory)
    return {
        name: np.unpackbits(packed[name].numpy(), count=size).astype(bool).reshape(tuple(weights[name].shape))
        for name, size in shapes.items()
    }


def test_every_update_has_an_event_and_its_row_the_same_numbers(directory):
    """The window of 20 steps is 5 to 15; the plan is 0 at step 5."""
    events = mask_updates(directory)
    assert [event["step"] for event in events] == [7, 9, 11, 13, 15]
    by_step = {row["step"]: row for row in rows(directory)}
    for event in events:
        row = by_step[event["step"]]
        for name in ("pruned", "newly_pruned", "regrown", "churn", "jaccard_magnitude", "dead_rows"):
            assert row[f"prune/{name}"] == event[name]
        # Counted from the weights where the row has an evaluation too: equal but for the last bit.
        assert row["sparsity/fc1.weight"] == pytest.approx(event["layer_sparsity/fc1.weight"], abs=1e-12)
    assert np.cumsum([event["newly_pruned"] for event in events]).tolist() == [e["pruned"] for e in events]


def test_the_last_event_is_what_the_checkpoint_holds(directory):
    """Counted here from the masks: sparsity per layer, dead rows and columns, hash."""
    masks, last = unpacked(directory), mask_updates(directory)[-1]
    total = sum(mask.size for mask in masks.values())
    assert last["pruned"] == sum((~mask).sum() for mask in masks.values())
    assert last["sparsity"] == last["pruned"] / total
    assert last["counts/prunable"] == total
    assert last["counts/total"] == sum(weight.numel() for weight in final_weights(directory).values())
    assert last["counts/nonzero_prunable"] == total - last["pruned"]
    assert last["mask_hash"] == final_state(directory)["pruner"]["masks"]["hash"]
    for name, mask in masks.items():
        assert last[f"layer_sparsity/{name}"] == 1 - mask.mean()
        table = mask.reshape(*mask.shape[:2], -1)
        assert last[f"layer_dead_rows/{name}"] == (~table.any((1, 2))).sum()
        assert last[f"layer_dead_columns/{name}"] == (~table.any((0, 2))).sum()


def test_every_record_counts_prunable_total_and_nonzero(directory):
    parameters = summary(directory)["parameters"]
    weights = final_weights(directory)
    assert parameters["total"] == sum(weight.numel() for weight in weights.values())
    assert parameters["nonzero"] == sum(int(weight.count_nonzero()) for weight in weights.values())
    assert parameters["prunable"] == sum(mask.size for mask in unpacked(directory).values())


def test_magnitude_is_its_own_reference(tmp_path):
    events = mask_updates(run(tmp_path / "run", *SMALL, "pruning=magnitude"))
    assert {event["jaccard_magnitude"] for event in events} == {1.0}
    assert {event["jaccard_magnitude_new"] for event in events} == {1.0}


def test_random_overlaps_with_magnitude_as_chance_has_it(tmp_path):
    """Independent sets at sparsity s: |A and B| / |A or B| = s / (2 - s); a point is 3 standard errors."""
    plan = ("pruning/schedule=oneshot", "pruning.target_sparsity=0.6")
    (event,) = mask_updates(run(tmp_path / "run", *SMALL, "pruning=random", *plan))
    assert event["jaccard_magnitude"] == pytest.approx(0.6 / 1.4, abs=0.01)
    assert event["jaccard_magnitude_new"] == event["jaccard_magnitude"]  # nothing was pruned before


def test_a_dense_run_has_no_events(tmp_path):
    directory = run(tmp_path / "run", *IMAGES, "trainer.max_steps=4")
    assert not (directory / run_directory.MASK_UPDATES).exists()
    assert all("prune/pruned" not in row for row in rows(directory))


def test_a_plan_that_starts_sparse_has_an_event_at_step_0(tmp_path):
    plan = ("pruning=magnitude", "pruning.initial_sparsity=0.4")
    events = mask_updates(run(tmp_path / "run", *SMALL, *plan))
    assert (events[0]["step"], events[0]["planned"]) == (0, 0.4)


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_run_that_misses_its_target_by_one_weight_fails(tmp_path, monkeypatch, off_by):
    """Whatever prunes one weight too few or too many: exit code 1, and the message has both counts."""
    real = Pruner.after_step

    def tampering(pruner, step):
        update = real(pruner, step)
        if step == 20:
            mask, weight = pruner.masks["fc1.weight"], pruner.prunable["fc1.weight"]
            place = tuple(mask.logical_xor(torch.tensor(off_by == -1)).nonzero()[0])
            mask[place] = off_by == -1
            weight.data[place] = 0.5 if off_by == -1 else 0.0
            pruner.masks.recount()
        return update

    monkeypatch.setattr(Pruner, "after_step", tampering)
    config, directory = start(tmp_path / "run", *SMALL, "pruning=magnitude")
    with pytest.raises(SparsityError, match=r"43,200 weights of fc1.weight .*, the masks prune 43,(199|201)"):
        train(config, directory)
    assert summary(directory)["exit_code"] == 1


def test_packed_masks_of_the_record_are_those_of_the_model(directory):
    """Weights under the masks are +0.0 in the checkpoint, to the bit."""
    weights = final_weights(directory)
    for name, mask in unpacked(directory).items():
        assert not weights[name].view(torch.int32).numpy()[~mask].any()
    assert Masks({}).hash() != final_state(directory)["pruner"]["masks"]["hash"]


def test_the_summary_has_the_density_that_was_achieved(directory):
    """Mean over the 20 steps of what lives in each, from the events; the plan is rounded by layer."""
    total = sum(mask.size for mask in unpacked(directory).values())
    pruned = {event["step"]: event["pruned"] for event in mask_updates(directory)}
    held = [pruned[max(s for s in pruned if s < step)] if step > min(pruned) else 0 for step in range(1, 21)]
    sparsity = summary(directory)["sparsity"]
    assert sparsity["mean_density_achieved"] == pytest.approx(1 - sum(held) / (20 * total), abs=1e-12)
    assert sparsity["mean_density"] == pytest.approx(sparsity["mean_density_achieved"], abs=0.05)
    assert sparsity["reached"]
