"""A run on Slurm that is stopped and started again, with stand-ins for `sbatch` and `scontrol`."""

import os
import re
import signal
import subprocess
import time

import pytest

from adamwprune.composition import CONF_DIR
from adamwprune.run_directory import RECORD, read_json
from tests.faults.processes import Command
from tests.helpers.runs import IMAGES, summary
from tests.helpers.same_run import assert_same_run

ROOT = CONF_DIR.parent
SCRIPT = ROOT / "examples" / "slurm_requeue.sh"
OWN = (*IMAGES, "hardware.threads=1", "trainer.max_steps=3000", "trainer.eval_every=1000")
OWN += ("pruning=magnitude", "pruning.update_every=100")

# Runs the script as Slurm does, again where it was put back into the queue; notes each start.
SBATCH = """#!/bin/bash
export SLURM_JOB_ID=77
until [ -e ended ]; do
    rm -f queued
    bash "$@" &
    echo $! >> started
    wait $!
    code=$?
    [ -e queued ] || touch ended
done
exit $code
"""
SCONTROL = """#!/bin/bash
echo "$@" >> asked
[ "$*" = "requeue 77" ] && touch queued
"""


class Queue:
    """The script in a queue of one, in a folder of its own."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        for name in ("train.py", "conf"):  # the script is started beside them
            (folder / name).symlink_to(ROOT / name)
        path = os.pathsep.join((str(folder), os.environ["PATH"]))
        self.console = (folder / "console").open("w")
        self.process = subprocess.Popen(
            ["sbatch", str(SCRIPT), *arguments],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdout=self.console,
            stderr=self.console,
            start_new_session=True,
        )

    @property
    def run(self):
        return self.folder / "outputs" / "slurm-77"

    def wait_for_a_row(self, seconds=90):
        metrics, deadline = self.run / "metrics.jsonl", time.monotonic() + seconds
        while not (metrics.exists() and metrics.read_text()):
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)

    def announce_the_end(self):
        """SIGUSR1 to the script that runs now, and to it alone."""
        os.kill(int((self.folder / "started").read_text().split()[-1]), signal.SIGUSR1)

    def said(self):
        return (self.folder / "console").read_text()


def test_the_script_asks_slurm_for_what_the_run_needs():
    """A warning to the script alone, early enough to save, and the same job again."""
    options = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert "--requeue" in options
    assert any(re.fullmatch(r"--signal=B:USR1@\d+", option) for option in options)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_stopped_job_is_put_back_and_ends_as_the_run_that_nobody_stopped(tmp_path):
    """Twice the same job number: one folder, two sessions, equal to the bit."""
    folder = tmp_path / "queue"
    folder.mkdir()
    queue = Queue(folder, *OWN)
    queue.wait_for_a_row()
    queue.announce_the_end()
    assert queue.process.wait(200) == 0, queue.said()
    assert (folder / "asked").read_text() == "requeue 77\n"
    assert len((folder / "started").read_text().split()) == 2
    assert len(read_json(queue.run / RECORD)["sessions"]) == 2
    assert "SIGUSR1: stopped and saved at step" in queue.said()

    alone = Command(tmp_path / "alone", "train.py", *OWN, "hydra.run.dir=run")
    assert alone.wait() == 0, alone.console()
    assert_same_run(queue.run, tmp_path / "alone" / "run")


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("argument", "code"), [("optimizer.lr=-1", 2), ("trainer.max_steps=4", 0)])
def test_a_job_that_cannot_run_or_is_done_is_not_put_back(tmp_path, argument, code):
    """Nothing asks for another start."""
    queue = Queue(tmp_path, *IMAGES, argument)
    assert queue.process.wait(100) == code, queue.said()
    assert not (tmp_path / "asked").exists()
    if code == 0:
        assert summary(queue.run)["status"] == "finished"
