"""The programs of examples/ run as a user starts them, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, directory: Path) -> str:
    """What `python examples/NAME` prints, started in an empty folder that it has to leave empty."""
    finished = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert list(directory.iterdir()) == []
    return finished.stdout


def test_a_model_of_ones_own_is_pruned_to_the_weight(tmp_path):
    """Dense and at 90 %: exact counts, and both recognise digits, far above the 10 % of guessing."""
    printed = run("prune_your_own_model.py", tmp_path)
    results = re.findall(r"sparsity ([\d.]+), accuracy ([\d.]+), ([\d,]+) non-zero parameters", printed)
    assert [sparsity for sparsity, _, _ in results] == ["0.0000", "0.9000"]
    assert all(float(accuracy) > 0.85 for _, accuracy, _ in results)
    dense, pruned = (int(count.replace(",", "")) for _, _, count in results)
    assert dense - pruned == 0.9 * (784 * 300 + 300 * 100)
    steps = [int(step) for step in re.findall(r"step (\d+): ", printed)]
    assert steps[0] < 150 < steps[-1]  # masks change before and after the checkpoint at step 150


def test_a_criterion_of_ones_own_runs_beside_its_controls(tmp_path):
    """Magnitude overlaps with itself entirely, the others less; random is the floor, by far."""
    printed = run("custom_criterion.py", tmp_path)
    rows = {
        name: (float(a), float(o)) for name, a, o in re.findall(r"^(\w+) +([\d.]+) +([\d.]+)$", printed, re.M)
    }
    assert list(rows) == ["onward", "state", "magnitude", "random"]
    assert rows["magnitude"][1] == 1.0
    assert rows["random"][1] < rows["onward"][1] < 1.0
    assert rows["random"][0] + 0.1 < min(rows[name][0] for name in ("onward", "state", "magnitude"))


def test_every_example_is_run_here():
    """No program in examples/ that the tests do not start."""
    started = re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text())
    assert sorted(started) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_a_failing_example_is_noticed(tmp_path):
    """Control: one that does not exist."""
    with pytest.raises(AssertionError, match="No such file"):
        run("missing", tmp_path)
