"""Every command of docs/tracking.md, typed into a shell in the page's order: it does what the page says.

The shell stands in a copy of the checkout. Trainings are made short by overrides at their end and by
ARGS; a run's folder and W&B's server, with a key for it, are real; GPUs that are not there are refused.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamwprune.composition import CONF_DIR
from adamwprune.trackers.loopback import WandbServer
from tests.test_documentation import DOCS, fences

pytestmark = pytest.mark.slow

ROOT = CONF_DIR.parent
COPIED = ("adamwprune", "conf", "train.py", "Makefile", "setup.cfg", "constraints.txt", "pyproject.toml")
SHORT = (
    *("data=synthetic_images", "data.num_train=256", "data.num_val=64", "data.num_test=64"),
    *("trainer.global_batch_size=16", "trainer.max_steps=12", "trainer.max_epochs=null"),
)
SERVING = ("make dashboard", "python -m adamwprune.track dashboard")


def commands(text: str) -> list[str]:
    """The lines of the page's shell blocks, without comments."""
    lines = [line for fence in fences(text) if fence.language == "bash" for line in fence.text.splitlines()]
    return [re.split(r"\s+# ", line)[0].strip() for line in lines if line.strip()]


PAGE = commands((DOCS / "tracking.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Sandbox"]:
    with WandbServer() as server:
        yield Sandbox(tmp_path_factory.mktemp("page"), server)


class Sandbox:
    """A checkout, a home and a server of its own."""

    def __init__(self, directory: Path, server: WandbServer) -> None:
        self.root = directory / "adamwprune"
        self.root.mkdir()
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, self.root / name)
        venv = directory / "venv"
        (venv / "bin").mkdir(parents=True)
        for name in ("python", "wandb", "tensorboard", "mlflow"):
            program = Path(sys.executable).with_name(name)
            if program.exists():
                (venv / "bin" / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
                (venv / "bin" / name).chmod(0o755)
        (venv / ".installed").touch()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO"))},
            **{"PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "VENV": str(venv), "HOME": str(directory)},
            **{"PYTHONPATH": str(self.root), "MAKEFLAGS": "", "OMP_NUM_THREADS": "1"},
            **{"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"},
        }

    def shell(self, line: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Type a line."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.root,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run_folder(self) -> Path:
        """The newest run, made where there is none; offline, so that there is something to sync."""
        offline = "outputs/*/*/wandb/offline-run-*"
        if not list(self.root.glob(offline)):
            line = f"python train.py tracker=both tracker.wandb.mode=offline {shlex.join(SHORT)}"
            assert self.shell(line).returncode == 0
        newest = max(self.root.glob(offline), key=lambda path: path.stat().st_mtime)
        return newest.parents[1].relative_to(self.root)


def as_typed(line: str, sandbox: Sandbox) -> str:
    """The line with what its reader would fill in, made short."""
    if re.search(r"\b(RUN|DIR)\b", line):
        folder = str(sandbox.run_folder())
        line = re.sub(r"outputs/DATE/RUN|\bRUN\b(?!=)", folder, line)
    if line.startswith("python train.py"):
        return f"{line} {shlex.join(word for word in SHORT if word.partition('=')[0] + '=' not in line)}"
    return line


@pytest.mark.parametrize("line", PAGE)
def test_each_command_of_the_page_works(line: str, sandbox: Sandbox) -> None:
    """Exit code 0; a dashboard answers on the address that it prints and leaves on Ctrl-C."""
    if line.startswith(SERVING):
        return check_dashboard(line, sandbox)
    done = sandbox.shell(as_typed(line, sandbox), ARGS=shlex.join(SHORT))
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return None


def check_dashboard(line: str, sandbox: Sandbox) -> None:
    """Start it, open what it prints, stop it."""
    sandbox.run_folder()
    project = next((sandbox.root.parent / ".cache/huggingface/trackio").glob("*.db")).stem
    line = re.sub(r"\blenet\b", project, line)
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=sandbox.root,
        env={**sandbox.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell that started the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+\S*", text):
                break
        else:
            pytest.fail(f"{line}: printed no address")
        for _ in range(100):
            try:
                assert urllib.request.urlopen(found[0], timeout=5).status == 200
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(f"{found[0]} does not answer")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(20)
    # make dies of the signal too, or says 2 of its child.
    assert code in ((0, 2, -signal.SIGINT) if line.startswith("make") else (0,))


def test_the_page_has_commands_of_every_kind() -> None:
    """The test above would pass on an empty page."""
    for start in ("make", "python train.py", "python -m adamwprune.track", "wandb sync", *SERVING):
        assert any(line.startswith(start) for line in PAGE), start
    assert len(PAGE) >= 20


def test_a_wrong_command_is_found(sandbox: Sandbox) -> None:
    """Control."""
    assert sandbox.shell("python -m adamwprune.track stat").returncode == 2
    assert sandbox.shell("make defconfig DEFCONFIG=nope").returncode == 2
