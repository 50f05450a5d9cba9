"""Resume to the bit: rows, weights, optimizer, masks, random state."""

import copy
import dataclasses
import shutil

import pytest
import torch

from adamwprune import run_directory
from adamwprune.distributed import Ranks
from adamwprune.errors import CheckpointError, Preempted, RunError, SparsityError
from adamwprune.training import continuation, loop_state
from adamwprune.training import run as run_module
from adamwprune.training.build import build_training
from adamwprune.training.checkpoint import load_newest
from adamwprune.training.run import train
from tests.helpers.runs import BUSY, IMAGES, TOKENS, rows, run, start
from tests.helpers.same_run import assert_same_run

PRUNINGS = {
    "none": (),
    "magnitude": ("pruning=magnitude", "pruning.update_every=2"),
    "state": ("pruning=state", "pruning.update_every=2", "pruning/scope=global"),
}
# What other modes and criteria keep beside the masks: dense weights, sums, live moments.
KEEPING = {
    "soft": (*PRUNINGS["state"], "pruning/mode=soft", "pruning.target_sparsity=0.8"),
    "ste": (*PRUNINGS["magnitude"], "pruning/mode=ste"),
    "movement": ("pruning=movement", "pruning.update_every=2", "pruning/mode=ste"),
    "spam": (*PRUNINGS["state"], "optimizer=adamwspam", "optimizer.reset_every=2300"),
    "muon": (*PRUNINGS["magnitude"], "optimizer=muon", "pruning/mode=soft", "pruning.mode.grow=none"),
}
# Batches accumulate and dropout draws, so that every random stream and counter matters.
SMALL = (*TOKENS, *BUSY, "hardware.micro_batch_size=4", "trainer.max_steps=20")
STATE = (*SMALL, *PRUNINGS["state"])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Runs that nothing interrupts, each trained once for all tests that compare with it."""
    runs = {}

    def trained(*overrides):
        if overrides not in runs:
            runs[overrides] = run(tmp_path_factory.mktemp("unbroken") / "run", *overrides)
        return runs[overrides]

    return trained


@pytest.fixture(scope="module")
def _stopped_once(tmp_path_factory):
    config, directory = start(tmp_path_factory.mktemp("stopped") / "run", *STATE, "trainer.stop_step=10")
    with pytest.raises(Preempted):
        train(config, directory)
    config.trainer.stop_step = None
    return config, directory


@pytest.fixture
def stopped(tmp_path, _stopped_once):
    """A run with `state` that was stopped at step 10, to be continued: its configuration and folder."""
    config, directory = _stopped_once
    torch.manual_seed(12345)  # whatever a new process would have
    return copy.deepcopy(config), shutil.copytree(directory, tmp_path / "run")


def stop_and_continue(directory, stop_step, *overrides):
    """Train to a step, leave as a preempted run does, continue from the checkpoint in a new state."""
    config, directory = start(directory, *overrides, f"trainer.stop_step={stop_step}")
    with pytest.raises(Preempted):
        train(config, directory)
    torch.manual_seed(12345)  # whatever a new process would have
    config.trainer.stop_step = None
    train(config, directory)
    return directory


def assert_continues_to(config, directory, unbroken):
    train(config, directory)
    assert_same_run(directory, unbroken)


@pytest.mark.parametrize(
    ("pruning", "stop_step"),
    [
        pytest.param(pruning, step, marks=() if pruning == "state" or step == 10 else pytest.mark.slow)
        for pruning in PRUNINGS
        for step in (1, 5, 10, 12, 19)
    ],
)
def test_stopped_and_continued_equals_unbroken(tmp_path, unbroken, pruning, stop_step):
    """Before, in and after the ramp (5 to 15), between rows, with accumulation and dropout."""
    overrides = (*SMALL, *PRUNINGS[pruning])
    assert_same_run(stop_and_continue(tmp_path / "run", stop_step, *overrides), unbroken(*overrides))


@pytest.mark.parametrize("keeping", KEEPING)
def test_what_modes_and_optimizers_keep_is_kept(tmp_path, unbroken, keeping):
    """In the ramp."""
    overrides = (*SMALL, *KEEPING[keeping])
    assert_same_run(stop_and_continue(tmp_path / "run", 9, *overrides), unbroken(*overrides))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "parts", [IMAGES, (*IMAGES, "model=resnet18", "model.width=4")], ids=["lenet5", "resnet18"]
)
def test_other_models_and_optimizers(tmp_path, unbroken, parts, optimizer):
    """Buffers of BatchNorm and momentum included."""
    overrides = (*parts, *BUSY, f"optimizer={optimizer}", *PRUNINGS["magnitude"], "trainer.max_steps=20")
    assert_same_run(stop_and_continue(tmp_path / "run", 11, *overrides), unbroken(*overrides))


def test_stopping_twice_equals_unbroken(tmp_path, unbroken):
    """20 = 4 + 9 + 7."""
    config, directory = start(tmp_path / "run", *STATE)
    for stop_step in (4, 13):
        config.trainer.stop_step = stop_step
        with pytest.raises(Preempted):
            train(config, directory)
    config.trainer.stop_step = None
    train(config, directory)
    assert_same_run(directory, unbroken(*STATE))


def test_a_crash_between_checkpoints_replays_without_new_rows(tmp_path, monkeypatch):
    """Killed at step 17 with the last checkpoint at 14: steps 15 to 17 are repeated and compared."""
    overrides = (*SMALL, *PRUNINGS["state"], "trainer.log_every=1")
    config, directory = start(tmp_path / "crashed", *overrides)
    real = run_module.run_steps.__globals__["accumulate_gradients"]
    calls = []

    def crashing(training, batches):
        calls.append(1)
        if len(calls) == 18:
            raise RuntimeError("power cut")
        return real(training, batches)

    monkeypatch.setitem(run_module.run_steps.__globals__, "accumulate_gradients", crashing)
    with pytest.raises(RunError, match="power cut"):
        train(config, directory)
    assert load_newest(directory / "checkpoints").step == 14
    assert rows(directory)[-1]["step"] == 17
    monkeypatch.undo()
    train(config, directory)
    assert_same_run(directory, run(tmp_path / "unbroken", *overrides))


# What a checkpoint holds, and the part of the state that a control leaves out: each must be missed.
OMISSIONS = {
    "weights": lambda cp: cp.weights.update(
        {k: v + 1e-3 for k, v in cp.weights.items() if v.is_floating_point()}
    ),
    "exp_avg": lambda cp: [s["exp_avg"].zero_() for s in cp.state["optimizer"]["state"].values()],
    "exp_avg_sq": lambda cp: [s["exp_avg_sq"].mul_(1.5) for s in cp.state["optimizer"]["state"].values()],
    "optimizer step": lambda cp: [s["step"].zero_() for s in cp.state["optimizer"]["state"].values()],
    "step": lambda cp: cp.state.update(step=cp.state["step"] - 1),
    "data position": lambda cp: cp.state.update(skipped=1),
    "loss sum": lambda cp: cp.state["loss_sum"][0].zero_(),
    "loss count": lambda cp: cp.state.update(loss_count=cp.state["loss_count"] + 1),
    "random state of torch": lambda cp: cp.state["random"][0].update(
        torch=torch.Generator().manual_seed(0).get_state()
    ),
    "best": lambda cp: cp.state.update(best={"val/loss": {"value": 0.0, "step": 1}}),
    "last mask update": lambda cp: cp.state["pruner"].update(last_update=10**6),
}


@pytest.mark.parametrize("field", OMISSIONS)
def test_each_field_left_out_is_noticed(stopped, unbroken, monkeypatch, field):
    """Controls: without one field of the state the continued run is another one, or is refused."""
    real = loop_state.restore

    def without(training, checkpoint):
        OMISSIONS[field](checkpoint)
        return real(training, checkpoint)

    monkeypatch.setattr(continuation, "restore", without)
    with pytest.raises((AssertionError, CheckpointError, SparsityError)):
        assert_continues_to(*stopped, unbroken(*STATE))


def test_nothing_left_out_is_the_same_run(stopped, unbroken):
    """The control of these controls."""
    assert_continues_to(*stopped, unbroken(*STATE))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 99}, "threads: 99 -> 1"),
        ({"torch": "1.0"}, "torch: 1.0 ->"),
        ({"world_size": 2}, "world_size: 2 -> 1"),
        ({"data": "0" * 64}, "data: 000"),
        ({"revision": "abc"}, "revision: abc ->"),
        ({"numpy": "1.0"}, "numpy: 1.0 ->"),
    ],
)
def test_another_environment_is_refused(stopped, monkeypatch, change, words):
    """Exit 5 with what differs; with resume_allow it goes on and says that it is not exact."""
    config, directory = stopped
    real = loop_state.check_environment

    def elsewhere(training, checkpoint, revision):
        checkpoint.state["environment"].update(change)
        return real(training, checkpoint, revision)

    monkeypatch.setattr(continuation, "check_environment", elsewhere)
    with pytest.raises(CheckpointError, match=words):
        train(config, directory)
    config.resume_allow = ["environment"]
    train(config, directory)
    assert run_directory.read_json(directory / run_directory.SUMMARY)["exact"] is False


def test_a_mean_that_is_under_way_survives_another_number_of_ranks(tmp_path):
    """Each rank of two had a sum of losses; one rank alone goes on with their mean, not with one of them."""
    config, directory = start(tmp_path / "run", *SMALL, "trainer.stop_step=10", "trainer.log_every=7")
    with pytest.raises(Preempted):
        train(config, directory)
    checkpoint = load_newest(directory / "checkpoints")
    own = checkpoint.state["loss_sum"][0]
    checkpoint.state["loss_sum"] = [own - 0.5, own + 0.5]
    config.trainer.stop_step = None
    training = build_training(config, Ranks(0, 0, 1, torch.device("cpu")))
    state = loop_state.restore(training, checkpoint)
    assert torch.allclose(state.loss_sum, own)


def test_ranks_that_found_different_checkpoints_do_not_begin(tmp_path):
    """As on machines that share no folder: one would continue, and the other start."""
    config, directory = start(tmp_path / "run", *SMALL)
    training = build_training(config, Ranks(0, 0, 1, torch.device("cpu")))
    continuation.continue_or_start(training, directory, None)

    class Apart(Ranks):
        def gather(self, value):
            return [value, 14]

    apart = dataclasses.replace(training, ranks=Apart(0, 0, 2, torch.device("cpu")))
    with pytest.raises(CheckpointError, match=r"different steps, 0, 14; keep the run's folder"):
        continuation.continue_or_start(apart, directory, None)


def test_a_run_that_has_ended_meanwhile_is_left_as_it_is(tmp_path, capsys):
    """Two resumes of one run: the second looked at it before the first brought it to its end."""
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=4")
    loss = train(config, directory)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "run.lock"}
    assert train(config, directory) == loss
    assert "already complete" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_only_one_process_may_continue_a_run(tmp_path):
    """The second is refused while the first holds the lock; afterwards it is free."""
    directory = run_directory.claim(tmp_path / "run")
    with (
        run_directory.locked(directory),
        pytest.raises(CheckpointError, match="in use by process"),
        run_directory.locked(directory),
    ):
        pass
    with run_directory.locked(directory):
        pass
