"""make for real, in a copy of the project whose train.py only says what it was given."""

import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from adamwprune.composition import CONF_DIR
from adamwprune.configure import stored

ROOT = CONF_DIR.parent
TRAIN = """\
import json, os, signal, sys, time
print(json.dumps(sys.argv[1:]), flush=True)
if "seed=75" in sys.argv:
    sys.exit(75)
if "seed=130" in sys.argv:
    def stop(*_):
        time.sleep(0.5)
        os.write(1, b"saved\\n")  # print could be within its own call
        sys.exit(130)
    signal.signal(signal.SIGINT, stop)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project, and an environment that counts as installed."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(CONF_DIR, root / "conf")
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(ROOT / "adamwprune", root / "adamwprune", ignore=ignored)
    (root / "train.py").write_text(TRAIN)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (root / ".venv" / ".installed").touch()
    return root


@pytest.fixture
def echoing(tmp_path):
    """An environment whose Python prints its arguments, one a line, and what it finds in the environment."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\necho "RUN_NAME is <$RUN_NAME>"\n'
    )
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "constraints.txt", "venv/.installed"):
        (tmp_path / name).touch()

    return functools.partial(make, tmp_path, "VENV=venv")


def outside():
    """The environment of a shell, even where make runs the tests."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}


def heed_ctrl_c():
    """In a child: a shell that started the tests in the background has Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def make(directory, *words, **environment):
    """Run make as a shell would."""
    return subprocess.run(
        ["make", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        env={**outside(), **environment},
    )


# ------------------------------------------------------------------------------ what make hands on

HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$HOME",
    "$(shell touch pwned)",
    "$(touch pwned)",
    "`touch pwned`",
    "$$",
    "a;touch pwned",
    "a#b",
    "a\\",
    "*",
    "(a,b",
    "é",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_arrives_as_typed_and_is_not_executed(echoing, tmp_path, text):
    """Through make and the shell, byte for byte; it does not leak into the run's environment."""
    done = echoing("train", f"RUN_NAME={text}", f"notes={text}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["<-m>", "<adamwprune.configure>", "<run>"]
    assert sorted(lines[3:]) == sorted([f"<RUN_NAME={text}>", f"<notes={text}>", "RUN_NAME is <>"])
    assert not (tmp_path / "pwned").exists()


def test_the_makefile_before_would_have_executed_it(tmp_path):
    """Control: what make does to a value that a recipe simply names."""
    (tmp_path / "Makefile").write_text("train:\n\t@echo '$(RUN_NAME)'\n")
    subprocess.run(["make", "RUN_NAME=$(shell touch pwned)"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "pwned").exists()


def test_a_line_break_is_refused(echoing, tmp_path):
    """make would run the second line, also where errors are ignored."""
    for flags in ([], ["-i"]):
        done = echoing(*flags, "train", "RUN_NAME=x\ntouch pwned #")
        assert done.returncode == 2
        assert "make takes no line break" in done.stderr
    assert not (tmp_path / "pwned").exists()


def test_the_environment_is_not_taken_for_the_command_line(echoing):
    """TIME, PROJECT and NAME mean something else there."""
    assert echoing("train", TIME="60", PROJECT="p", NAME="host").stdout.splitlines()[3:] == ["RUN_NAME is <>"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "run"),
        (["train"], "run"),
        (["defconfig", "DEFCONFIG=x"], "defconfig DEFCONFIG=x"),
        (["menuconfig"], "menu"),
        (["showconfig"], "show"),
        (["list-defconfigs"], "list"),
        (["savedefconfig", "NAME=x"], "save NAME=x"),
        (["dashboard", "TRACKIO_PORT=8080"], "track dashboard TRACKIO_PORT=8080"),
        (["trackio-show", "PROJECT=p"], "track trackio-show PROJECT=p"),
        (["metrics", "RUN=d"], "track metrics RUN=d"),
        (["wandb-sync", "RUN=d"], "track wandb-sync RUN=d"),
        (["wandb-test"], "track wandb-test"),
        (["trackio-test"], "track trackio-test"),
    ],
)
def test_each_target_is_one_command(echoing, words, expected):
    """Thin names: `make -n` shows the very command."""
    done = echoing(*words).stdout.splitlines()
    assert done[:-1] == [f"<{word}>" for word in ["-m", "adamwprune.configure", *expected.split()]]
    shown = echoing("-n", *words).stdout.strip().replace("'", "")
    assert shown == f"exec venv/bin/python -m adamwprune.configure {expected}"


def test_help_names_every_target(echoing):
    """In one line of a terminal each; trackio-show is the old name of dashboard."""
    done = echoing("help")
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    makefile = (ROOT / "Makefile").read_text()
    phony = makefile.partition(".PHONY: ")[2].partition("\n.DEFAULT")[0].replace("\\\n", "").split()
    assert listed == set(phony) - {"trackio-show"}
    assert max(map(len, done.stdout.splitlines())) <= 110


# ------------------------------------------------------------------------------ what make then does


def trained_with(done):
    """The command that was printed first, and what train.py got."""
    command, got = done.stdout.splitlines()[:2]
    return command, json.loads(got)


def test_a_choice_is_stored_run_changed_and_saved(project):
    """The commands of the documentation, one after the other."""
    file = project / stored.FILE
    command, got = trained_with(make(project))
    assert got == ["experiment=lenet5-mnist5k"]
    assert not file.exists()

    done = make(
        project, "defconfig", "DEFCONFIG=gpt2-finewebedu-a10gx4", "TRACKER=wandb,trackio", "WANDB_OFFLINE=1"
    )
    assert done.returncode == 0, done.stderr
    choice = ["experiment=gpt2-finewebedu-a10gx4", "tracker=[wandb,trackio]", "tracker.wandb.mode=offline"]
    assert stored.read(file) == choice
    assert done.stdout == f".defconfig holds: {stored.command(choice)}\n"

    command, got = trained_with(
        make(project, "train", "EPOCHS=4", "ARGS=seed=75 'notes=\"it'\"'\"'s $HOME\"'")
    )
    assert got == [*choice, "trainer.max_epochs=4", "seed=75", 'notes="it\'s $HOME"']
    assert shlex.split(command)[1:] == ["train.py", *got]
    assert stored.read(file) == choice  # what is given today is not stored

    done = make(project, "TRACKER=none")
    assert trained_with(done)[1] == ["experiment=gpt2-finewebedu-a10gx4", "tracker=none"]
    assert "left out of .defconfig: tracker.wandb.mode=offline" in done.stderr

    done = make(project, "savedefconfig", "NAME=mine")
    assert done.stdout == "conf/experiment/mine.yaml is saved; run it with: python train.py experiment=mine\n"
    assert make(project, "savedefconfig", "NAME=mine").returncode == 2

    done = make(project, "list-defconfigs")
    assert len(done.stdout.splitlines()) == len(list((project / "conf/experiment").glob("*.yaml")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("defconfig DEFCONFIG=lenet5-mnist5", "did you mean lenet5-mnist5k?"),
        ("defconfig DEFCONFIG=lenet5-mnist5k TRACKER=Wandb", "TRACKER=Wandb: must be one of both, "),
        ("defconfig TRACKER=both", "DEFCONFIG: is missing; give DEFCONFIG=NAME, one of gpt2-"),
        ("defconfig DEFCONFIG=lenet5-mnist5k ARGS=-m", "-m: only overrides can be kept"),
        ("savedefconfig seed=2", "NAME: is missing"),
        ("dashboard PROJEKT=x", "PROJEKT=x: no such variable here; did you mean PROJECT?"),
        ("train WANDB_OFFLINE=1 TRACKER=none", "add TRACKER=wandb, or leave it out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(project, words, message):
    """Nothing is stored or started; make adds a line of its own."""
    file = project / stored.FILE
    before = file.read_text() if file.exists() else None
    done = make(project, *words.split())
    assert done.returncode == 2
    line, own = done.stderr.splitlines()
    assert line.startswith("error[2]: ")
    assert message in line
    assert own.startswith("make: ***")
    assert done.stdout == ""
    assert (file.read_text() if file.exists() else None) == before


def test_the_exit_code_is_the_runs(project):
    """75 behind python; make has 2 for every error, and says which it was."""
    command = [sys.executable, "-m", "adamwprune.configure", "run", "seed=75"]
    assert subprocess.run(command, cwd=project, capture_output=True, timeout=60).returncode == 75
    done = make(project, "seed=75")
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("Error 75")


def test_ctrl_c_lets_the_run_save(project):
    """The terminal's SIGINT reaches make, its shell and the run: make waits until the run has saved."""
    process = subprocess.Popen(
        ["make", "train", "seed=130"],
        cwd=project,
        env=outside(),
        preexec_fn=heed_ctrl_c,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.read().splitlines()[-1] == "saved"
    assert process.wait(timeout=30) != 0
    assert time.monotonic() - started < 30


def test_showconfig_prints_what_cfg_job_prints(project):
    """The same YAML under the command, and below it what is not default, as comments."""
    words = ["experiment=lenet5-mnist5k", "optimizer=adamw", "trainer.max_steps=7"]
    done = make(project, "showconfig", "DEFCONFIG=lenet5-mnist5k", *words[1:])
    command = [sys.executable, "train.py", "--cfg", "job", *words]
    expected = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == f"# {stored.command(words)}"
    assert "\n".join(rest).startswith(expected.rstrip("\n"))
    assert "# trainer.max_steps: null -> 7" in rest
    assert "# trainer.max_epochs: 30.0 -> null" in rest
    assert not any(line.startswith("# seed") for line in rest)


def test_a_reader_that_leaves_is_no_error(project):
    """As in `make showconfig | head -1`."""
    process = subprocess.Popen(
        ["make", "showconfig"],
        cwd=project,
        env=outside(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
