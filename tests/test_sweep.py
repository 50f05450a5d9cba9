"""Sweeps: which jobs there are, and that none takes another with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from adamwprune import run_directory, sweep
from adamwprune.command_line import prepare
from adamwprune.composition import CONF_DIR
from adamwprune.config import to_plain
from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.launchers.base import Ending, Launcher
from adamwprune.sweeps.expansion import _identity, expand, split_overrides
from adamwprune.sweeps.outcomes import reason
from adamwprune.sweeps.record import read_record
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


# ------------------------------------------------------------------------------------- sweep.resume


class Fake(Launcher):
    """Runs jobs in no time; `plan` says how each seed ends: `finished`, `failed`, `killed`, or `stopped`.

    A job that fails does so before it has a folder; all others leave one.
    """

    def __init__(self, plan):
        self.plan, self.commands = plan, []

    def run(self, commands, on_start):
        for command in commands:
            on_start(command)
            self.commands.append(command)
            how = self.plan[seed_of(command)]
            code = {"finished": 0, "failed": 2, "killed": 137, "stopped": 75}[how]
            if how != "failed":
                folder = command.console.parent / str(command.number)
                folder.mkdir(exist_ok=True)
                (folder / "run.json").write_text("{}")
                final = {"val/loss": 1.5}
                ended = {"status": how, "exit_code": code, "seconds": 1.0, "metrics": {"final": final}}
                (folder / "summary.json").write_text(json.dumps(ended))
            yield command, Ending(code)


def seed_of(command):
    return next(int(a.removeprefix("seed=")) for a in command.arguments if a.startswith("seed="))


@pytest.fixture(scope="module")
def composed():
    """Five jobs, composed once."""
    return {job.config.seed: job for job in jobs("seed=1,2,3,4,5")}


@pytest.fixture
def start(tmp_path, monkeypatch, composed):
    """Runs a sweep whose jobs end as planned; its exit code and the commands that it started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "check_machine", lambda config: None)

    def run(plan, *overrides):
        launcher = Fake(plan)

        def expand(swept, fixed, command_line):
            return [composed[int(value)] for value in swept["seed"]], tmp_path / "sweep", launcher

        monkeypatch.setattr(sweep, "expand", expand)
        return sweep.run_sweep(list(overrides)), launcher.commands

    return run


ONLY_TWO_FAILS = {1: "finished", 2: "failed", 3: "finished"}
ALL_FINISH = dict.fromkeys(range(1, 6), "finished")


def test_what_has_finished_is_not_run_again(start, tmp_path, capsys):
    """Job 2 of 3 fails; the sweep's own command line is repeated, and only that job is run."""
    code, commands = start(ONLY_TWO_FAILS, "seed=1,2,3")
    assert (code, len(commands)) == (1, 3)
    assert "python train.py -m sweep.resume=sweep" in capsys.readouterr().err
    code, commands = start(ALL_FINISH, "sweep.resume=sweep")
    assert code == 0
    assert [(command.number, seed_of(command)) for command in commands] == [(1, 2)]
    assert "3 of 3 jobs run, 0 failed, 2 complete before" in capsys.readouterr().out
    assert start({}, "sweep.resume=sweep") == (0, [])


def test_values_may_be_added_to_a_sweep(start, tmp_path):
    """Seeds 1 to 3 and then two more, in folders of their own; control: elsewhere all are new."""
    start(ALL_FINISH, "seed=1,2,3")
    code, commands = start(ALL_FINISH, "sweep.resume=sweep", "seed=4,2,5")
    assert code == 0
    assert [(command.number, seed_of(command)) for command in commands] == [(3, 4), (4, 5)]
    assert len((tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()) == 5
    assert len(start(ALL_FINISH, "seed=4,2,5")[1]) == 3


def test_a_job_with_a_folder_goes_on_in_it(start):
    """Killed or stopped: resume= with its own names; without a folder it begins. The group stays."""
    start({1: "killed", 2: "failed", 3: "stopped"}, "seed=1,2,3")
    _, commands = start(ALL_FINISH, "sweep.resume=sweep")
    resumed = [any(a.startswith("resume=") for a in command.arguments) for command in commands]
    assert resumed == [command.is_continued for command in commands] == [True, False, True]
    groups = {a for command in commands for a in command.arguments if a.startswith("group=")}
    assert len(groups) == 1
    assert groups.pop().startswith("group=sweep_")


def test_a_sweep_that_was_killed_goes_on(start, tmp_path):
    """A torn line, one that is missing, and one of an earlier end: the folder of the job has the truth."""
    start(ALL_FINISH, "seed=1,2,3")
    file = tmp_path / "sweep" / "sweep.jsonl"
    lines = file.read_text().splitlines()
    overdue = json.dumps({**json.loads(lines[1]), "exit_code": 143, "status": "killed"})
    file.write_text(f"{lines[0]}\n{overdue}\n{lines[2][:40]}")
    assert start({}, "sweep.resume=sweep") == (0, [])
    results = [json.loads(line) for line in file.read_text().splitlines()]
    assert [result["exit_code"] for result in results] == [0, 143, 0, 0]


def test_nothing_is_lost_where_a_summary_cannot_be_read(start, tmp_path):
    """A damaged summary.json is no finished job, and no end of the sweep."""
    start(ALL_FINISH, "seed=1,2,3")
    (tmp_path / "sweep" / "1" / "summary.json").write_text("{")
    code, commands = start(ALL_FINISH, "sweep.resume=sweep")
    assert (code, [command.number for command in commands]) == (0, [1])


def test_two_processes_do_not_run_one_sweep(start, tmp_path):
    """Exit 5; so it is while a job that outlived its sweep is still at work."""
    start(ONLY_TWO_FAILS, "seed=1,2,3")
    for folder, words in (("sweep", "in use by process"), ("sweep/2", "job 2 is still running")):
        with run_directory.locked(tmp_path / folder), pytest.raises(CheckpointError, match=words):
            start(ALL_FINISH, "sweep.resume=sweep")
    assert start(ALL_FINISH, "sweep.resume=sweep")[0] == 0


def _no_sweep(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _changed(**values):
    def change(folder):
        content = json.loads((folder / "sweep.json").read_text())
        (folder / "sweep.json").write_text(json.dumps({**content, **values}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_sweep, "no sweep there"),
        (shutil.rmtree, "no sweep there"),
        (lambda folder: (folder / "sweep.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "9").symlink_to("/tmp"), "9 is a link"),
        (_changed(format="x"), "no sweep there"),
        (_changed(group="../x"), "group must be of"),
        (_changed(jobs=[{"number": -1, "identity": "0" * 16, "swept": []}]), "a number of its own"),
        (_changed(jobs=[{"number": 0, "identity": "../..", "swept": []}]), "16 hex digits"),
        (_changed(jobs=7), "keys are not those"),
    ],
)
def test_what_is_no_sweep_is_refused(start, tmp_path, change, words):
    """Exit 5, and nothing is written."""
    start(ONLY_TWO_FAILS, "seed=1,2,3")
    change(tmp_path / "sweep")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=words):
        start(ALL_FINISH, "sweep.resume=sweep")
    assert sorted(tmp_path.rglob("*")) == before


def test_trust_is_typed_each_time(start, tmp_path, capsys):
    """What allows code, or runs commands on a cluster, is neither stored nor believed; the advice has it."""
    typed = ("allow_targets=[a.b]", "hydra.launcher.setup=[x]", "trainer.max_time=9", "optimizer.lr=0.1")
    start(ONLY_TWO_FAILS, "seed=1,2,3", *typed)
    file = tmp_path / "sweep" / "sweep.json"
    assert json.loads(file.read_text())["overrides"] == ["seed=1,2,3", "optimizer.lr=0.1"]
    assert "sweep.resume=sweep 'allow_targets=[a.b]' 'hydra.launcher.setup=[x]'" in capsys.readouterr().err
    _changed(overrides=["seed=1,2,3", *typed])(file.parent)
    assert read_record(file.parent).overrides == ("seed=1,2,3", "optimizer.lr=0.1")


def test_a_job_is_known_by_what_it_computes(composed):
    """Another name, tracker or number of checkpoints is the same job, unless swept; another rate never is."""
    config = composed[1].config
    renamed = replace(config, run_name="x", project="y", group="z", tags=["t"])
    assert _identity(renamed, ["seed"]) == _identity(config, ["seed"]) == composed[1].identity
    assert _identity(renamed, ["seed", "tags"]) != _identity(config, ["seed", "tags"])
    assert _identity(renamed, ["run_name"]) != _identity(config, ["run_name"])
    other = replace(config, optimizer={**config.optimizer, "lr": 0.3})
    assert _identity(other, ["seed"]) != composed[1].identity


@pytest.mark.parametrize(
    ("codes", "stop", "code"),
    [
        ([0, 0], 0, 0),
        ([0, 137], 0, 1),
        ([75, 0], 0, 75),
        ([75, 1], 0, 1),
        ([75, None], signal.SIGTERM, 75),
        ([1, None], signal.SIGINT, 130),
        ([0, 0], signal.SIGINT, 0),
    ],
)
def test_the_code_of_a_sweep_is_that_of_its_jobs(codes, stop, code):
    """1 for a failure, 75 and 130 for a stop, which has something to continue."""
    assert sweep._exit_code(codes, stop) == code


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, ""),
        (75, "stopped and saved"),
        (134, "abort (SIGABRT)"),
        (137, "killed (SIGKILL)"),
        (139, "segmentation fault (SIGSEGV)"),
        (143, "stopped"),
        (138, "SIGUSR1"),
        (7, "error[7]: diverged"),
        (5, "says the summary"),
    ],
)
def test_why_a_job_ended(tmp_path, code, words):
    """By its signal, else by what it said last in this session."""
    console = tmp_path / "0.log"
    console.write_text("error[75]: an earlier session\nerror[7]: diverged\nbye\n")
    assert reason(code, {"error": "says the summary"}, console) == words


@pytest.mark.parametrize("override", ["sweep.job_timeout=5", "sweep.kill_after=1"])
def test_keys_of_a_sweep_are_refused_for_one_run(override):
    """They would be ignored."""
    with pytest.raises(ConfigError, match=r"is for the jobs of a sweep; add -m"):
        prepare([override])


# --------------------------------------------------------------------------------------- for real


@pytest.mark.slow
def test_a_job_that_raises_exits_or_is_killed_takes_no_other_with_it(tmp_path):
    """Four jobs, three faults: the other finishes; tests/faults/sweeps.py has all faults."""
    target, names = "tests.faults.faulty_once.faulty_once", ("raise", "exit", "kill", "none")
    (tmp_path / "armed").mkdir()
    for name in names[:3]:
        (tmp_path / "armed" / name).touch()
    done = cli(
        tmp_path,
        "-m",
        *IMAGES,
        f"model._target_={target}",
        f"allow_targets=[{target}]",
        f"+model.fault={','.join(names)}",
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
