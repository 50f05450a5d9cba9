"""The benchmarks run and write what they print; their figures are no test."""

import json
import subprocess
import sys

from adamwprune.composition import CONF_DIR
from tests.helpers.runs import IMAGES


def test_loop_overhead_prints_ratios_and_writes_them(tmp_path):
    """One short round on small data: all three arms, ratios to the bare loop of the same round."""
    file = tmp_path / "figures.json"
    command = [
        sys.executable,
        "benchmarks/loop_overhead.py",
        *IMAGES,
        "--rounds=1",
        "--steps=8",
        f"--json={file}",
    ]
    done = subprocess.run(command, cwd=CONF_DIR.parent, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    arms = json.loads(file.read_text())["arms"]
    assert arms.keys() == {"bare", "ours", "pruned"}
    assert arms["bare"]["cpu_ratio"] == 1.0
    assert all(f"{arm} " in done.stdout for arm in arms)
    assert arms["ours"]["wall_ratio"] == arms["ours"]["wall_ms"][0] / arms["bare"]["wall_ms"][0]
