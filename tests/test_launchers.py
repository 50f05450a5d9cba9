"""Launchers: jobs side by side, each on devices of its own; and what a cluster is asked for."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from adamwprune.composition import CONF_DIR, compose
from adamwprune.config import Device, HardwareConfig, register_configs
from adamwprune.cores import usable_cores
from adamwprune.errors import ConfigError, Stopped
from adamwprune.launchers import base, process, slots
from adamwprune.launchers.base import Command, Ending, Limits
from adamwprune.launchers.basic import Basic
from adamwprune.launchers.joblib import Joblib
from adamwprune.launchers.process import Process, execute, follow_starter
from adamwprune.launchers.slots import Slots
from adamwprune.launchers.submitit import SubmititLocal, SubmititSlurm
from adamwprune.sweep import expand, split_overrides
from tests.helpers.runs import IMAGES, summary

ROOT = CONF_DIR.parent
HELPERS = (f"PYTHONPATH={ROOT}",)


def command(number=0, device=Device.cuda, devices=1, threads=None):
    hardware = HardwareConfig(device=device, num_devices=devices, threads=threads)
    return Command(number, ("seed=1",), hardware, Path("0.log"))


# ------------------------------------------------------------------------------ places and devices


def test_each_job_has_devices_of_its_own_and_the_next_waits():
    """Two of five devices a job: two jobs at a time, and the freed devices go to the third."""
    commands = [command(i, devices=2) for i in range(3)]
    places = Slots(list("abcde"), commands, most=4)
    assert places.count == 2
    first, second = places.take(commands[0]), places.take(commands[1])
    assert [own["CUDA_VISIBLE_DEVICES"] for own in (first, second)] == ["a,b", "c,d"]
    assert places.take(commands[2]) is None
    places.give_back(first)
    assert places.take(commands[2]) == first


def test_a_job_that_waits_is_woken():
    """`taken` blocks until the device is back."""
    commands, seen = [command(0), command(1)], []
    places = Slots(["GPU-7"], commands, most=2)

    def run(one):
        with places.taken(one) as own:
            seen.append(("in", own["CUDA_VISIBLE_DEVICES"]))
            time.sleep(0.02)
            seen.append(("out", own["CUDA_VISIBLE_DEVICES"]))

    threads = [threading.Thread(target=run, args=(one,)) for one in commands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [("in", "GPU-7"), ("out", "GPU-7")] * 2


def test_jobs_on_the_cpu_take_no_device():
    """`auto` is the CPU where no device is visible, and a device where one is."""
    jobs = [command(0, Device.cpu), command(1, Device.auto)]
    assert [Slots([], jobs, most=2).take(job) for job in jobs] == [{}, {}]
    assert [Slots(["0"], jobs, most=2).take(job) for job in jobs] == [{}, {"CUDA_VISIBLE_DEVICES": "0"}]
    assert Slots([], jobs, most=2).count == 2
    with pytest.raises(ValueError, match="2 devices for job 0, found 1"):
        Slots(["0"], jobs, most=2).take(command(0, devices=2))


@pytest.mark.parametrize(("most", "count"), [(3, 3), (-1, 6), (-2, 5), (99, 9), (1, 1), (-99, 1)])
def test_jobs_at_a_time_are_counted_as_joblib_counts(monkeypatch, most, count):
    """-1 is one a core, of six here; never more than nine jobs."""
    monkeypatch.setattr(slots, "usable_cores", lambda: 6)
    assert Slots([], [command(i, Device.cpu) for i in range(9)], most).count == count


def test_jobs_side_by_side_share_the_cores(monkeypatch):
    """By a key that their records keep; one that runs alone, or says how many, is left as it is."""
    monkeypatch.setattr(slots, "usable_cores", lambda: 12)
    jobs = [command(0, Device.cpu), command(1, Device.cpu, devices=2), command(2, Device.cpu, threads=5)]
    places = Slots([], jobs, most=3)
    shares = [places.arguments(job)[1:] for job in jobs]
    assert shares == [("hardware.threads=4",), ("hardware.threads=2",), ()]
    assert Slots([], jobs[:1], most=3).arguments(jobs[0]) == jobs[0].arguments
    continued = replace(jobs[0], is_continued=True)  # with the threads that it has had
    assert places.arguments(continued) == continued.arguments


def test_devices_are_those_that_this_process_may_use(monkeypatch):
    """By the names in CUDA_VISIBLE_DEVICES; a sweep on the CPU asks nobody."""
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots.visible_devices([command()]) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert slots.visible_devices([command(device=Device.auto)]) == ["3", "GPU-5"]
    assert slots.visible_devices([command(device=Device.cpu)]) == []


# ------------------------------------------------------------------------------ limits, orphans

SAVING = """
import signal, sys, time
def save(number, frame):
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR1, save)
open(sys.argv[1], "w").close()
time.sleep(60)
"""
DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program in the place of train.py; its first argument is a file that it makes when ready."""

    def install(text):
        monkeypatch.setattr(process, "TRAIN", tmp_path / "program.py")
        (tmp_path / "program.py").write_text(text)
        return tmp_path / "ready"

    return install


def await_file(file):
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.exists()


@pytest.mark.parametrize(
    ("text", "limits", "ending"),
    [
        (SAVING, Limits(job_timeout=1.0), Ending(75, is_overdue=True)),
        (DEAF, Limits(job_timeout=1.0, kill_after=0.1), Ending(137, is_overdue=True)),
        ("import os; os.abort()", Limits(), Ending(134)),
        ("import sys; sys.exit(3)", Limits(job_timeout=60.0), Ending(3)),
    ],
)
def test_a_job_has_its_time(program, text, limits, ending):
    """Then it is asked to save, and killed where it does not; one that ends by itself is not overdue."""
    assert Process([str(program(text))], limits).wait() == ending


def test_a_job_that_does_not_stop_is_killed(program):
    """A stop that is passed on is not waited for longer than kill_after; control: a job that saves."""
    for text, limits, code in ((DEAF, Limits(kill_after=0.1), 137), (SAVING, Limits(), 75)):
        ready = program(text)
        job = Process([str(ready)], limits)
        await_file(ready)
        job.ask(signal.SIGTERM)
        assert job.wait() == Ending(code)
        ready.unlink()


def test_a_job_ends_with_the_sweep_though_another_process_started_it(program):
    """What submitit's process does on this machine, when the sweep is killed beside it."""
    leader = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ready, endings = program(SAVING), []
    job = Process([str(ready)], Limits(), leader=leader.pid)
    waiting = threading.Thread(target=lambda: endings.append(job.wait()))
    waiting.start()
    await_file(ready)
    assert endings == []
    leader.kill()  # and not waited for: it stays a zombie
    waiting.join(30)
    leader.wait()
    assert endings == [Ending(75)]


def test_a_cluster_s_warning_asks_to_save(program, tmp_path):
    """SIGTERM, SIGUSR2 and their like come to the job as SIGUSR1; its output is appended to its file."""
    ready, console = program(SAVING), tmp_path / "0.log"
    console.write_text("before\n")
    sender = threading.Thread(target=lambda: (await_file(ready), os.kill(os.getpid(), signal.SIGUSR2)))
    sender.start()
    assert execute([str(ready)], console, Limits(), {}) == Ending(75)
    sender.join()
    assert console.read_text() == "before\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("follows", [True, False])
def test_a_job_is_told_that_its_starter_was_killed(follows):
    """SIGKILL for the process that forked it is SIGTERM for the job; control: a job that does not follow."""
    receiving, sending = os.pipe()
    starter = os.fork()
    if starter == 0:
        os.environ[process.STARTER] = str(os.getpid())
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: (os.write(sending, b"told"), os._exit(0)))
            if follows:
                follow_starter()
            os.write(sending, b"ready")
            time.sleep(2)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.close(sending)
    assert os.read(receiving, 5) == b"ready"
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    assert os.read(receiving, 5) == (b"told" if follows else b"")
    os.close(receiving)


def test_a_job_whose_starter_is_gone_already_does_not_begin(monkeypatch):
    """The starter died before the job could follow it; without a starter there is nothing to follow."""
    monkeypatch.setattr(process, "follow_parent", lambda: None)
    monkeypatch.setenv(process.STARTER, str(os.getpid()))  # which is not our parent
    with pytest.raises(Stopped):
        follow_starter()
    assert process.STARTER not in os.environ
    follow_starter()


# ------------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        pytest.param(None, Basic, marks=pytest.mark.slow),
        ("joblib", Joblib),
        pytest.param("submitit_local", SubmititLocal, marks=pytest.mark.slow),
        pytest.param("submitit_slurm", SubmititSlurm, marks=pytest.mark.slow),
    ],
)
def test_hydra_launcher_chooses(option, kind):
    """And no job has it on its own command line."""
    chosen = [] if option is None else [f"hydra/launcher={option}"]
    jobs, _, launcher = expand(*split_overrides(["seed=1,2", *chosen]))
    assert type(launcher) is kind
    assert len(jobs) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], r"hydra\.launcher\.n_jobs=0: must be > 0"),
        pytest.param(
            ["hydra.launcher._target_=os.system"],
            r"_target_=os\.system: not in this package",
            marks=pytest.mark.slow,
        ),
        (["hydra/launcher=joblib,basic"], "hydra/launcher: belongs to the sweep"),
    ],
)
def test_refused_launchers(overrides, words):
    """Before anything is created."""
    with pytest.raises(ConfigError, match=words):
        expand(*split_overrides(["seed=1,2", *overrides]))


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    """Exit 2; so is Slurm where there is none."""
    launcher = Joblib(n_jobs=2)
    launcher.check()
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install joblib"):
        launcher.check()


def test_hydras_own_plugins_do_not_change_ours():
    """A plugin's option of the same name would be merged into ours, with a warning."""
    register_configs()
    ConfigStore.instance().store(group="hydra/launcher", name="joblib", node={"n_jobs": 7, "verbose": 1})
    assert set(compose(["hydra/launcher=joblib"]).hydra.launcher) == {"_target_", "n_jobs"}


# ---------------------------------------------------------------------------------- whole sweeps


def cli(directory, *arguments, path=None):
    """Run train.py as a user does; the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


FAULTS = [f"tests.helpers.faulty_models.{name}" for name in ("raises", "killed", "good")]
FAULTY = (
    "-m",
    *IMAGES,
    f"model._target_={','.join(FAULTS)}",
    f"allow_targets=[{','.join(FAULTS)}]",
    "trainer.max_steps=4",
    "hydra.sweep.dir=sweep",
)
LOCAL = ["joblib", "submitit_local"]


def results(directory):
    lines = (directory / "sweep" / "sweep.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda result: result["job"])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("launcher", LOCAL)
def test_jobs_side_by_side_fail_alone(tmp_path, launcher):
    """One raises, one is killed, one finishes: lines of each, a table in the order of jobs, exit 1."""
    done = cli(tmp_path, *FAULTY, f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2")
    assert done.returncode == 1, done.stderr
    assert [result["exit_code"] for result in results(tmp_path)] == [1, 137, 0]
    assert "3 of 3 jobs run, 2 failed" in done.stdout
    assert summary(tmp_path / "sweep" / "2")["status"] == "finished"
    assert re.search(r"job 1/3 failed, exit code 1: error\[1\]: RuntimeError", done.stderr)
    assert re.search(r"job 3/3 finished in \d+ s, val/loss \d", done.stderr)
    assert "step 4/4" not in done.stdout + done.stderr  # a job's own lines are in its file
    assert "step 4/4" in (tmp_path / "sweep" / "2.log").read_text()
    record = json.loads((tmp_path / "sweep" / "2" / "run.json").read_text())
    assert record["hardware"]["threads"] == max(1, usable_cores() // 2)
    assert record["group"].startswith("sweep_")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("launcher", LOCAL)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_is_passed_on_to_all_that_run(tmp_path, launcher, number, code):
    """Both save and end, the third is not started; no process is left."""
    arguments = (*IMAGES, "seed=1,2,3", "trainer.max_steps=1000000", "trainer.eval_every=500000")
    own = (f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *arguments, *own],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    metrics = [tmp_path / "sweep" / str(n) / "metrics.jsonl" for n in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in metrics) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does with Ctrl-C: to all of its processes
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    found = results(tmp_path)
    assert [result["exit_code"] in (75, 130) for result in found] == [True, True], output
    assert all(summary(tmp_path / "sweep" / str(n))["steps"] > 0 for n in (0, 1))
    assert "2 of 3 jobs run, 0 failed, 2 stopped" in output
    left = [file for file in Path("/proc").glob("[0-9]*/cwd") if _points_to(file, tmp_path)]
    assert left == []


def _points_to(link, folder):
    try:
        return link.readlink() == folder
    except OSError:  # the process has ended, or is another user's
        return False


# ------------------------------------------------------------------------------------------ Slurm

# Stand-ins for Slurm's commands: an array's tasks run at once, on this machine, in sessions of their own.
SLURM = {
    "sbatch": """
        cp "$1" scripts/job.sh; count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        for i in $(seq 0 ${count:-0}); do
            [ -n "$count" ] && export SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$i
            export SLURM_JOB_ID=77 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
            setsid bash scripts/job.sh < /dev/null &> /dev/null &
            echo $! > scripts/77${count:+_$i}.pid
        done
        echo Submitted batch job 77""",
    "srun": """
        while [ "${1#--}" != "$1" ]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
        exec "$@" """,
    "sacct": """
        echo 'JobID|State|NodeList'
        for f in scripts/*.pid; do id=$(basename $f .pid)
            kill -0 $(cat $f) 2>/dev/null && echo "$id|RUNNING|here" || echo "$id|COMPLETED|here"
        done""",
    "scancel": "kill -TERM -- -$(cat scripts/$1.pid)",
}


@pytest.fixture
def slurm(tmp_path):
    """A PATH on which there is a Slurm; what it was asked for is in scripts/."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "scripts").mkdir()
    for name, body in SLURM.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(stat.S_IRWXU)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_slurm_gets_an_array_and_gives_a_table(tmp_path, slurm):
    """Against stand-ins of sbatch, srun and sacct: what a job asks for, and how its end comes back."""
    keys = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=8")
    done = cli(tmp_path, *FAULTY, *keys, "hardware.num_workers=1", path=slurm)
    assert done.returncode == 1, done.stderr
    assert [result["exit_code"] for result in results(tmp_path)] == [1, 137, 0]
    script = (tmp_path / "scripts" / "job.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
    wanted = {"partition": "gpu", "mem": "8GB", "time": "60", "cpus-per-task": "2", "nodes": "1"}
    wanted |= {"array": "0-2%3", "signal": "USR1@120", "ntasks-per-node": "1"}
    assert {key: asked.get(key) for key in wanted} == wanted
    assert "gpus-per-node" not in asked


@pytest.mark.slow
def test_a_job_on_cuda_asks_slurm_for_its_gpus(tmp_path, slurm, monkeypatch):
    """The login node needs none of its own; refusals of sbatch are one line."""
    monkeypatch.setenv("PATH", slurm)
    monkeypatch.chdir(tmp_path)
    own = ("hydra/launcher=submitit_slurm", "hardware=a10gx4", "model=gpt2", "hardware.num_devices=1,2")
    jobs, _, launcher = expand(*split_overrides(["data=synthetic_tokens", *own]))
    commands = [Command(0, (), job.config.hardware, tmp_path / "0.log") for job in jobs]
    assert [launcher._resources(command)["gpus_per_node"] for command in commands] == [1, 2]
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'error: invalid partition' >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"sbatch refused the jobs: .*invalid partition"):
        list(launcher.run(commands, lambda _: None))
