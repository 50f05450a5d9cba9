"""train.py as a user meets it: folders, signals, exit codes, resume."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from adamwprune import run_directory
from adamwprune.command_line import prepare
from adamwprune.composition import CONF_DIR, compose, to_config
from adamwprune.errors import CheckpointError, ConfigError, DiskError, Preempted
from adamwprune.training.run import train
from tests.helpers.runs import IMAGES, final_weights, rows, summary

ROOT = CONF_DIR.parent
LONG = (
    *IMAGES,
    "optimizer=adamwprune",
    "pruning.update_every=7",
    "trainer.max_steps=4000",
    "trainer.eval_every=1000",
)


def spawn(directory, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(directory, count):
    """The folder of the one run below, once it has written some rows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in directory.glob("outputs/*/*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= count:
                return file.parent
        time.sleep(0.05)
    raise AssertionError("the run did not start")


@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_saves_and_exits_as_documented(tmp_path, number, code, status):
    """Stopped in the middle: a checkpoint at the step that was reached, one line, the code in both places."""
    process = spawn(tmp_path, *LONG)
    directory = wait_for_rows(tmp_path, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.strip().splitlines()[-1].startswith(f"error[{code}]: ")
    report = summary(directory)
    assert (report["status"], report["exit_code"]) == (status, code)
    assert 0 < report["steps"] < 4000
    assert (directory / "checkpoints" / f"step_{report['steps']:08d}").is_dir()


def test_a_stopped_run_continues_to_the_bit_by_the_command_line(tmp_path):
    """Three real processes: stopped at step 40, resumed to 80; equal to one that went to 80."""
    spawn(tmp_path, *LONG, "trainer.stop_step=40", "hydra.run.dir=stopped").communicate(timeout=60)
    resumed = spawn(tmp_path, "resume=stopped", "trainer.stop_step=80")
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 75, errors
    spawn(tmp_path, *LONG, "trainer.stop_step=80", "hydra.run.dir=unbroken").communicate(timeout=60)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "unbroken")
    first, second = final_weights(tmp_path / "stopped"), final_weights(tmp_path / "unbroken")
    assert all((first[name] == second[name]).all() for name in first)
    assert len(json.loads((tmp_path / "stopped" / "run.json").read_text())["sessions"]) == 2


def test_eight_runs_of_one_moment_get_eight_folders(tmp_path):
    """The claim is exclusive."""
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: run_directory.claim(tmp_path / "outputs" / "run"), range(8)))
    assert len(set(claimed)) == 8
    assert {path.name for path in claimed} == {"run", *(f"run-{number}" for number in range(2, 9))}


def test_a_folder_that_cannot_be_made_is_exit_9(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"hydra.run.dir=.*File exists"):
        run_directory.claim(tmp_path / "file" / "run")


def test_two_runs_of_one_second_differ_in_name_too(tmp_path, monkeypatch):
    """Folder and run name carry the same suffix."""
    monkeypatch.chdir(tmp_path)
    first, second = prepare(list(IMAGES)), prepare(list(IMAGES))
    names = [next(o for o in line if o.startswith("run_name=")) for line in (first, second)]
    assert names[1] == f"{names[0]}-2"
    assert len(list(tmp_path.glob("outputs/*/*/run.json"))) == 2


def test_runs_lie_below_the_working_directory_or_where_it_is_allowed(tmp_path, monkeypatch):
    """`..`, an absolute path and a link lead out and are refused; the variable allows the same folder."""
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir(), elsewhere.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("ADAMWPRUNE_OUTPUTS")
    (work / "link").symlink_to(elsewhere)
    for given in ("../elsewhere/run", str(elsewhere / "run"), "link/run"):
        with pytest.raises(ConfigError, match="ADAMWPRUNE_OUTPUTS"):
            run_directory.place_for_runs(given, "hydra.run.dir")
    assert run_directory.place_for_runs("a/../run", "hydra.run.dir") == work / "run"
    monkeypatch.setenv("ADAMWPRUNE_OUTPUTS", str(elsewhere))
    assert run_directory.place_for_runs("link/run", "hydra.run.dir") == elsewhere / "run"
    (work / "gone").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DiskError, match="leads to nothing"):
        run_directory.place_for_runs("gone/run", "hydra.run.dir")


def test_flags_and_overrides_come_in_any_order(tmp_path, monkeypatch):
    """KEY=VALUE before -m is a sweep too; the error is that of its second job."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"job optimizer.lr=-1: optimizer.lr=-1: must be > 0"):
        prepare(["seed=1", "-m", "optimizer.lr=0.1,-1"])


def test_a_run_with_options_of_its_own_is_resumed_without_naming_them_again(tmp_path, monkeypatch):
    """The folder of --config-dir is in run.json."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    prepare([*IMAGES, "--config-dir", "my", "experiment=mine", "hydra.run.dir=run"])
    assert to_config(compose([o for o in prepare(["resume=run"]) if "run.dir" not in o])).seed == 7


def test_a_resume_of_a_part_of_a_run_names_the_run(tmp_path, monkeypatch):
    """Its checkpoints folder was given; without any run, the form of a path is said."""
    monkeypatch.chdir(tmp_path)
    prepare([*IMAGES, "hydra.run.dir=run"])
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"such as run$"):
        prepare(["resume=run/checkpoints"])


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_resuming_what_is_no_run_is_exit_5(tmp_path, monkeypatch, place):
    """A missing folder, and one without a run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run there"):
        prepare([f"resume={place}"])


def test_a_resumed_run_may_not_change_its_course(tmp_path, monkeypatch, capsys):
    """A science key is exit 5 and named; a harmless one passes; a finished run is left alone."""
    monkeypatch.chdir(tmp_path)
    prepare([*IMAGES, "hydra.run.dir=run"])
    with pytest.raises(CheckpointError, match=r"optimizer.lr: 0.002 -> 0.5.*resume_allow=\[optimizer.lr\]"):
        prepare(["resume=run", "optimizer.lr=0.5"])
    with pytest.raises(CheckpointError, match=r"seed: 1 -> 2"):
        prepare(["resume=run", "seed=2"])
    continued = prepare(["resume=run", "tracker=both", "trainer.max_time=60"])
    assert f"hydra.run.dir='{tmp_path / 'run'}'" in continued
    prepare(["resume=run", "optimizer.lr=0.5", "resume_allow=[optimizer.lr]"])
    with pytest.raises(CheckpointError, match=r"pruning.target_sparsity.*masks belong to the pruning"):
        prepare(["resume=run", "pruning=magnitude"])
    (tmp_path / "run" / "summary.json").write_text('{"status": "finished"}')
    with pytest.raises(SystemExit) as caught:
        prepare(["resume=run"])
    assert caught.value.code == 0
    assert "already complete" in capsys.readouterr().err


def test_a_changed_course_stays_changed_and_inexact(tmp_path, monkeypatch):
    """lr changed by the first resume: the second goes on with it, and the record says not exact."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments):
        overrides = prepare([*arguments])
        config = to_config(compose([o for o in overrides if not o.startswith("hydra.")]))
        with contextlib.suppress(Preempted):
            train(config, tmp_path / "run")

    go(*IMAGES, "trainer.max_steps=40", "trainer.stop_step=10", "lr_schedule=constant", "hydra.run.dir=run")
    go("resume=run", "optimizer.lr=0.5", "resume_allow=[optimizer.lr]", "trainer.stop_step=20")
    go("resume=run")
    rates = {row["step"]: row["train/lr"] for row in rows(tmp_path / "run") if "train/lr" in row}
    assert (rates[10], rates[20], rates[40]) == (2e-3, 0.5, 0.5)
    assert summary(tmp_path / "run")["exact"] is False


def test_a_record_cannot_allow_its_own_targets(tmp_path, monkeypatch):
    """run.json is data: trust must be typed again, and what Hydra builds by itself is not taken over."""
    monkeypatch.chdir(tmp_path)
    prepare([*IMAGES, "hydra.run.dir=run"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    hostile = [
        "allow_targets=[os.system]",
        "model._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
    ]
    record["overrides"] += hostile
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"model._target_=os.system: not in this package"):
        prepare(["resume=run"])


@pytest.mark.parametrize("sweep", [["-m"], []], ids=["sweep", "run"])
def test_a_file_cannot_allow_its_own_targets(tmp_path, monkeypatch, sweep):
    """Neither for one run nor for a sweep; nothing of it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('PWNED', 'w')\ndef data(): pass\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "evil.yaml").write_text(
        "# @package _global_\nallow_targets: [evil.data]\ndata:\n  _target_: evil.data\n"
    )
    with pytest.raises(ConfigError, match="only the command line"):
        prepare([*sweep, "--config-dir", str(tmp_path), "experiment=evil", f"seed={'1,2' if sweep else '1'}"])
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=evil.C",
        "hydra.job_logging.handlers.console.class=evil.C",
        "hydra.job_logging.handlers.file.class=subprocess.Popen",
        "hydra.launcher._target_=evil.C",
        "hydra.sweeper._target_=evil.C",
        "+hydra.job.env_set.LD_PRELOAD=evil.so",
    ],
)
def test_what_hydra_would_build_itself_is_refused(tmp_path, monkeypatch, override):
    """Callbacks, log handlers, launchers: the shipped ones only; the run's folder is free (control)."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="may not be changed"):
        prepare([*IMAGES, override])
    assert list(tmp_path.iterdir()) == []
    prepare([*IMAGES, "hydra.run.dir=here"])


@pytest.mark.parametrize("name", ["it's", "a b", "a,b", "é", "x=[1]", "back\\slash", "\\'", "end\\"])
def test_odd_folder_names_reach_hydra_unchanged(tmp_path, monkeypatch, name):
    """Whatever the working directory is called, Hydra gets the folder that was claimed."""
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    composed = compose(prepare(list(IMAGES)))
    (claimed,) = folder.glob("outputs/*/*")
    assert composed.hydra.run.dir == str(claimed)


def test_an_interpolation_in_a_folder_name_is_refused(tmp_path, monkeypatch):
    """It would be read, not written: exit 2 before anything is made."""
    folder = tmp_path / "a${seed}b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="rename the folder"):
        prepare(list(IMAGES))
    assert list(folder.iterdir()) == []


def test_resume_in_other_spellings(tmp_path, monkeypatch):
    """++resume= is a resume; a file's resume is refused; a sweep cannot resume."""
    monkeypatch.chdir(tmp_path)
    prepare([*IMAGES, "hydra.run.dir=run"])
    assert "hydra.output_subdir=null" in prepare(["++resume=run"])
    with pytest.raises(ConfigError, match="continues one run"):
        prepare(["-m", "resume=run", "seed=1,2"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "again.yaml").write_text("# @package _global_\nresume: run\n")
    with pytest.raises(ConfigError, match="give it on the command line"):
        prepare(["--config-dir", str(tmp_path), "experiment=again"])


def test_output_that_nobody_reads_stops_no_run(tmp_path):
    """`python train.py | head -1` with the pipe closed: the run goes on to its end."""
    overrides = " ".join([*IMAGES, "trainer.max_steps=8", "hydra.run.dir=run"])
    command = f"{sys.executable} {ROOT / 'train.py'} {overrides} 2>&1 | head -1"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, timeout=60, check=True, capture_output=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "run" / "summary.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert summary(tmp_path / "run")["status"] == "finished"


def test_unsuited_environment_variables_are_not_needed(tmp_path):
    """An empty HOME and no TERM: a run from nothing."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *IMAGES, "trainer.max_steps=4"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Run finished" in done.stdout
