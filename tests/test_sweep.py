"""Sweeps: which jobs there are, and that none takes another with it."""

import json
import os
import subprocess
import sys

import pytest

from adamwprune.composition import CONF_DIR
from adamwprune.config import to_plain
from adamwprune.errors import ConfigError
from adamwprune.sweep import expand, split_overrides
from tests.helpers.runs import IMAGES, summary

ROOT = CONF_DIR.parent


def jobs(*overrides):
    return expand(*split_overrides(list(overrides)))[0]


def cli(directory, *arguments, **environment):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=110, env={**os.environ, **environment}
    )


def test_every_combination_is_a_job():
    """2 optimizers x 3 seeds."""
    found = jobs("optimizer=adamw,adamwprune", "seed=1,2,3")
    assert len(found) == 6
    assert {(job.config.seed, job.config.pruning.criterion is None) for job in found} == {
        (seed, dense) for seed in (1, 2, 3) for dense in (True, False)
    }


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["pruning=none,magnitude,state", "pruning.target_sparsity=0.5,0.7,0.9"], 7),
        (["pruning=none,magnitude", "pruning.target_sparsity=0.5,0.7", "seed=1,2"], 6),
        (["optimizer=adamw,adamwprune", "pruning.target_sparsity=0.5,0.7"], 3),
        (["pruning=none,magnitude", "pruning.target_sparsity=0.5"], 2),
        pytest.param(
            ["pruning=magnitude,state", "pruning.target_sparsity=0.5,0.7,0.9", "seed=1,2,3"],
            18,
            marks=pytest.mark.slow,
        ),
        (["pruning=none,state", "pruning/scope=layerwise,global"], 3),
        (["pruning=none,magnitude", "pruning/schedule=linear"], 2),
    ],
)
def test_dense_arms_are_composed_once(overrides, count):
    """The swept sparsity does not multiply runs that prune nothing; pruned arms have each."""
    found = jobs(*overrides)
    assert len(found) == count
    dense = [job for job in found if job.config.pruning.criterion is None]
    assert all(job.config.pruning.target_sparsity is None for job in dense)
    plain = [json.dumps({**to_plain(job.config), "run_name": ""}, sort_keys=True) for job in found]
    assert len(set(plain)) == count


def test_a_sweep_of_dense_arms_alone_with_a_target_is_refused():
    """Control: the contradiction is forgiven only where arms are mixed."""
    with pytest.raises(ConfigError, match="prunes nothing"):
        jobs("seed=1,2", "pruning.target_sparsity=0.5")


def test_a_name_alone_makes_no_other_run_unless_it_is_swept():
    """run_name=a,b are two jobs; include and exclude reach dense arms too."""
    assert len(jobs("run_name=a,b")) == 2
    found = jobs("pruning=none,magnitude", "pruning.exclude=[conv2.weight]")
    assert [job.config.pruning.exclude for job in found] == [["conv2.weight"]] * 2


def test_an_invalid_job_is_found_before_any_starts(tmp_path, monkeypatch):
    """Job 3 of 3 is wrong: exit 2, no folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"job optimizer.lr=-1: optimizer.lr=-1: must be > 0"):
        jobs("optimizer.lr=0.1,0.2,-1")
    assert list(tmp_path.iterdir()) == []


def test_sweep_files_need_no_m():
    """sweep=seeds and sweep=sparsity hold their own values; the command line may replace them."""
    assert len(jobs("sweep=seeds")) == 5
    assert len(jobs("sweep=seeds", "seed=7,8")) == 2
    assert [job.config.seed for job in jobs("sweep=seeds", "seed=7", "optimizer=adamw,adam")] == [7, 7]


@pytest.mark.slow
def test_the_sparsity_sweep_has_its_dense_arm_once_a_seed():
    """Two criteria at three sparsities and one dense arm, three seeds each."""
    assert len(jobs("sweep=sparsity")) == (1 + 2 * 3) * 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=range(0,1000)"], "max_jobs=1000"),
        (["seed=1"], "no key has several values"),
        (["optimizer.lr=interval(0.1,1)"], "an interval needs a search"),
        (["seed=glob(*)"], "seed=glob"),
        (["group=a,b"], "one group"),
        ([f"run_name={'a' * 63}", "seed=1,2"], "too long"),
    ],
)
def test_refused_sweeps(overrides, words):
    """Too many, none, or not a list."""
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        jobs(*overrides)


def test_a_job_that_raises_exits_or_is_killed_takes_no_other_with_it(tmp_path):
    """Five jobs, three faults: the others finish, exit 1, a table and sweep.jsonl say which."""
    names = ("raises", "exits", "killed", "good")
    targets = [f"tests.helpers.faulty_models.{name}" for name in names]
    done = cli(
        tmp_path,
        "-m",
        *IMAGES,
        f"model._target_={','.join(targets)}",
        f"allow_targets=[{','.join(targets)}]",
        "trainer.max_steps=4",
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 1, done.stderr
    (directory,) = tmp_path.glob("multirun/*/*")
    results = [json.loads(line) for line in (directory / "sweep.jsonl").read_text().splitlines()]
    assert [result["exit_code"] for result in results] == [1, 3, 137, 0]
    assert summary(directory / "3")["status"] == "finished"
    assert "4 of 4 jobs run, 3 failed" in done.stdout
    records = [json.loads((directory / str(number) / "run.json").read_text()) for number in range(4)]
    assert len({record["run_id"] for record in records}) == 4
    assert len({record["name"] for record in records}) == 4
    assert {record["group"] for record in records} == {f"sweep_{directory.parent.name}_{directory.name}"}
