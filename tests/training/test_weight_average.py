"""The average of the weights: its formula, what it leaves alone, what masks make of it, resume."""

import pytest
import torch
from torch import nn

from adamwprune.errors import CheckpointError, SparsityError
from adamwprune.export.run import open_run
from adamwprune.training import loop
from adamwprune.training.checkpoint import load_newest
from adamwprune.training.weight_average import WeightAverage
from tests.helpers.runs import BUSY, IMAGES, final_weights, rows, run
from tests.helpers.same_run import assert_same_run
from tests.training.test_resume import stop_and_continue

AVERAGED = (*IMAGES, *BUSY, "trainer.max_steps=20", "trainer.ema_decay=0.9")
PRUNED = (*AVERAGED, "pruning=magnitude", "pruning.update_every=2", "pruning.target_sparsity=0.7")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_formula_against_a_plain_loop():
    model, weights = small_network(), []
    average = WeightAverage(model, 0.6)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3))  # moves the running means of BatchNorm
        decay = 0.6 if step >= 13 else (1 + step) / (10 + step)  # 14 / 23 is the first above .6
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
            else:
                expected[name] = value.double()
        average.update(step)
        weights.append(model[0].weight.detach().clone())
    state = average.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(state["0.weight"], weights[-1])


def test_in_place_gives_the_average_and_takes_it_back_to_the_bit():
    model = small_network()
    average = WeightAverage(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1.0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_training_never_sees_it(tmp_path):
    """Same rows but for the scores, same weights; and the scores do differ."""
    plain = run(tmp_path / "plain", *PRUNED, "trainer.ema_decay=null")
    averaged = run(tmp_path / "averaged", *PRUNED)
    weights = final_weights(plain)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in final_weights(averaged).items())
    pairs = list(zip(rows(plain), rows(averaged), strict=True))
    assert all(a.get("train/loss") == b.get("train/loss") for a, b in pairs)
    assert any(a["val/loss"] != b["val/loss"] for a, b in pairs if "val/loss" in a)


@pytest.mark.parametrize(
    "mode", ["hard", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("ste", "soft"))]
)
def test_pruned_weights_are_zero_in_what_is_exported(tmp_path, mode):
    directory = run(tmp_path / "run", *PRUNED, f"pruning/mode={mode}")
    source, checkpoint = open_run(directory), load_newest(directory / "checkpoints")
    for name in source.prunable:
        exported, live = source.weights[name], checkpoint.weights[name]
        assert torch.equal(exported == 0, live == 0), name
        assert not torch.equal(exported, live)
    assert source.counts()["sparsity"] == pytest.approx(0.7, abs=1e-3)


def test_an_average_that_keeps_pruned_weights_fails_the_run(tmp_path, monkeypatch):
    """Control of the check at the end: without the masks the average would not be sparse."""

    def unmasked(training, step, *, has_new_masks):
        training.average.update(step)

    monkeypatch.setattr(loop, "average", unmasked)
    with pytest.raises(SparsityError):
        run(tmp_path / "run", *PRUNED)


def test_a_decay_of_zero_is_the_weights(tmp_path):
    directory = run(tmp_path / "run", *PRUNED, "trainer.ema_decay=0")
    checkpoint = load_newest(directory / "checkpoints")
    assert all(torch.equal(tensor, checkpoint.weights[name]) for name, tensor in checkpoint.evaluated.items())


def test_resume_is_exact(tmp_path):
    assert_same_run(stop_and_continue(tmp_path / "stopped", 9, *PRUNED), run(tmp_path / "unbroken", *PRUNED))


def test_a_checkpoint_without_an_average_is_refused():
    average = WeightAverage(small_network(), 0.9)
    with pytest.raises(CheckpointError, match=r"trainer\.ema_decay=null"):
        average.load_state_dict({})
