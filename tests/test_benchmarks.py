"""The benchmarks run and write what they print; their figures are no test."""

import json
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adamwprune.composition import CONF_DIR
from benchmarks import measure
from tests.helpers.runs import IMAGES


def measured(tmp_path, script, *arguments):
    """The figures that a benchmark writes; it prints each of the arms."""
    file = tmp_path / "figures.json"
    command = [sys.executable, f"benchmarks/{script}", *arguments, f"--json={file}"]
    done = subprocess.run(command, cwd=CONF_DIR.parent, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["machine"]["threads"] == 1
    assert all(f"{arm} " in done.stdout for arm in figures["arms"])
    return figures


@pytest.mark.slow
def test_loop_overhead_prints_ratios_and_writes_them(tmp_path):
    """One short round on small data: all three arms, ratios to the bare loop of the same round."""
    arms = measured(tmp_path, "loop_overhead.py", *IMAGES, "--rounds=1", "--steps=8")["arms"]
    assert arms.keys() == {"bare", "ours", "pruned"}
    assert arms["bare"]["cpu_ratio"] == 1.0
    assert arms["ours"]["wall_ratio"] == arms["ours"]["wall_ms"][0] / arms["bare"]["wall_ms"][0]


@pytest.mark.slow
def test_inference_runs_every_encoding(tmp_path):
    """LeNet-5 with random masks: dense, and what each encoding holds; decoded weights change no logit."""
    rounds = ("--model=lenet5", "--rounds=1", "--calls=2")
    figures = measured(tmp_path, "inference.py", "--sparsity=0.9", *rounds)
    arms = figures["arms"]
    assert arms.keys() == {"dense", "bitmask", "csr"}
    assert arms["bitmask"]["held_bytes"] < arms["csr"]["held_bytes"] < arms["dense"]["held_bytes"]
    assert arms["bitmask"]["largest_difference"] == 0
    assert figures["inputs"].keys() == {"batch 1", "batch 32", "batch 128"}
    assert measured(tmp_path, "inference.py", "--sparsity=2:4", *rounds)["arms"].keys() == {
        "dense",
        "bitmask",
        "2:4",
    }


@pytest.mark.slow
def test_loader_compares_batches_and_finds_its_share_of_a_step(tmp_path):
    """A batch of ours beside those by hand and by DataLoader; waiting is a part of the step."""
    small = ("--rounds=1", "--batches=2", "--tokens=1000000", "--steps=2")
    figures = measured(tmp_path, "loader.py", *small)
    assert {"tokens: by hand", "tokens: ours", "images: DataLoader", "images: ours"} <= figures["arms"].keys()


@pytest.mark.slow
def test_coverage_says_what_runs_and_what_does_not(tmp_path, monkeypatch):
    """A row that trained has its figures; one without data has exit code 3, and no path is written."""
    monkeypatch.setenv("ADAMWPRUNE_DATA", str(tmp_path))
    file, command = tmp_path / "figures.json", [sys.executable, "benchmarks/coverage.py"]
    for only in ("lenet5 mnist5k", "resnet50 imagenet"):
        arguments = [*command, f"--only={only}", f"--json={file}"]
        subprocess.run(arguments, cwd=CONF_DIR.parent, capture_output=True, check=True, timeout=100)
        arm = json.loads(file.read_text())["arms"][only]
        assert str(tmp_path) not in file.read_text().replace(str(file), "")
        assert (arm["last_loss"] < arm["first_loss"]) if only.startswith("lenet5") else arm["exit_code"] == 3


@pytest.mark.slow
def test_optimizer_step_measures_every_way_to_mask(tmp_path):
    """All arms mask what they say, and hold what their masks take: bytes, floats, floats and products."""
    arms = measured(tmp_path, "optimizer_step.py", "--model=lenet5", "--rounds=1")["arms"]
    dense = {"torch, dense", "ours, dense", "torch, dense, clipping", "ours, dense, clipping", "for-loop"}
    for name, arm in arms.items():
        # Random masks of 60,480 weights: four standard errors are 0.008.
        assert arm["masked"] == 0 if name in dense else abs(arm["masked"] - 0.5) < 0.01, name
        assert arm["ratio"]["median"] == 1 or not name.startswith("torch, dense")
    held = {name: round(arm["held_bytes_per_weight"], 3) for name, arm in arms.items() if name not in dense}
    assert held == {
        "ours, hard": 1,
        "ours, hard, clipping": 1,
        "bool pass": 1,
        "float pass": 4,
        "four passes": 1,
        "torch.nn.utils.prune": 8,
        "torch.ao.pruning": 4,
    }


def test_mask_selection_compares_with_a_sort(tmp_path):
    """Ours is exact, with ties too; what a sample gets wrong is seen."""
    figures = measured(tmp_path, "mask_selection.py", "--sizes=3e5", "--sparsity=0.9", "--rounds=1")
    assert figures["cases"].keys() == {"300,000, 90%", "300,000, ties, 90%"}
    for case in figures["cases"].values():
        arms = case["arms"]
        assert list(arms) == figures["arms"]
        assert arms["ours"]["wrong"] == arms["sort"]["wrong"] == arms["ours"]["off_points"] == 0
        assert arms["sample"]["wrong"] > 0
        assert arms["sample"]["off_points"] != 0


@pytest.mark.slow
def test_train_step_measures_steps_and_updates(tmp_path):
    """One step of each arm, then updates: masks take a byte a weight."""
    figures = measured(tmp_path, "train_step.py", "--model=lenet5", "--rounds=1", "--steps=1")
    assert figures["arms"].keys() == {"bare", "dense", "pruned"}
    assert figures["arms"]["bare"]["cpu_of_bare"]["median"] == 1
    assert figures["arms"]["dense"]["wall_of_dense"]["median"] == 1
    assert figures["updates"]["held_bytes_per_weight"] == 1
    assert figures["updates"]["decision_ms"]["least"] > 0


def test_arms_take_turns_and_ratios_are_of_one_round():
    """Every second round in reverse; the median of ratios, which is not the ratio of medians."""
    order = []
    arms = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert measure.interleave(arms, 3) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert order == list("abccbaabc")
    assert measure.paired_ratio([2, 20, 9], [1, 10, 3]) == (2, 2, 3)
    assert measure.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_memory_that_work_takes_is_seen():
    """64 MB that are gone when it ends, within the precision of the count; none where none is taken."""

    def work():
        torch.ones(16 << 20).sum()

    work()
    least, peak = measure.peak_extra_bytes(lambda: None), measure.peak_extra_bytes(work)
    if least is None:
        pytest.skip("no high-water mark on this system")
    assert least < 2**20
    assert abs(peak - (64 << 20)) < 2**20


def test_memory_of_tensors_is_counted_once():
    """A view takes nothing; what is gone is not counted."""
    shape_only = FakeTensorMode().from_tensor(torch.zeros(1000))  # as compilation leaves them behind
    before = measure.tensor_bytes()
    tensor = torch.zeros(1 << 20)
    views = [tensor[::2], tensor.view(4, -1)]
    assert measure.tensor_bytes() - before == 4 << 20
    del tensor, views, shape_only
    assert measure.tensor_bytes() == before
