"""Configurations, checkpoints, data, archives, names and answers made by somebody hostile.

Opening one must run no code, import nothing, write nothing outside the run's folder and open no port that
another machine can reach. Names are tried at every door by which they could come to be called
(hostile_targets.py), files by the readers that they are meant for (hostile_files.py), both with traces
that a call would leave; some are typed at the real train.py. Controls: the same watch with the checks taken
away, Hydra's own `instantiate`, a plain unpickler, and a program that listens to everybody.
"""

import contextlib
import copy
import importlib
import os
import pickle
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from adamwprune import targets
from adamwprune.composition import compose, to_config
from adamwprune.errors import ConfigError
from tests.faults import hostile_files, hostile_names, hostile_targets
from tests.faults.harness import Control, Outcome, Tier

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
# Names at each door: at those of the issue, and at the others; all are tried in code.
NAMES = {"short": (6, 3), "long": (160, 40)}
MAIN_DOORS = ("by_command_line", "by_file", "by_continued_run", "by_logging", "by_tracked_run")
PROCESSES = {"short": 2, "long": 16}
# Packages that take seconds to import.
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "pandas",
    "gradio",
    "trackio",
    "wandb",
    "matplotlib",
    "numpy.f2py",
)
# Files whose making alone takes seconds.
SLOW = ("bomb", "gigabytes", "unpacks", "configuration_nested")

TRAVERSALS = (
    *("..", ".", "../x", "../../etc/cron.d/x", "/etc/passwd", "a/b", "a/../../b", "./x", "~/x", "~root/x"),
    *("a\\b", "..\\..\\x", "C:\\x", "file:///etc/passwd", "x\0y", "x\ny", "x\ty", "\x1b[2J", "-rf", " ", ""),
    *(
        "x/",
        "\u2215etc",
        "\u2024\u2024/x",
        "%2e%2e%2fx",
        "$(id)",
        "`id`",
        "x;id",
        "x|id",
        "*",
        "x?",
        ".hidden",
    ),
    *("default", "a" * 65, "\U0001f600", "con:", "x#y", "a b", "\u202ex"),
)
KEYS = ("project", "run_name", "group", "tags", "tracker.wandb.project", "tracker.wandb.entity")
# What Gradio, and so Trackio, would obey.
EVERYBODY = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "true", "TRACKIO_SHARE": "true"}
RUN = (
    *("data=synthetic_images", "data.num_train=64", "data.num_val=32", "data.num_test=32"),
    *("trainer.global_batch_size=16", "trainer.max_steps=12", "hardware.threads=1"),
)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """All that is hostile."""
    outcome = Outcome(
        "hostile names at every door, pickles, archives, images, records, names as paths; ports of runs",
        "nothing is run, imported or written elsewhere, each is refused in one line; only 127.0.0.1 is bound",
        peer="Hydra 1.3.8 resolved 56 of 71 dangerous names (reliability.md section 8)",
    )
    compose([])  # what is imported once is imported now
    _names(outcome, tier, random.Random(seed), scratch / "names")
    _typed(outcome, tier, random.Random(seed), scratch / "typed")
    _paths(outcome, scratch / "paths")
    _files(outcome, tier, scratch / "files")
    _ports(outcome, tier, scratch / "ports")
    return outcome


# ------------------------------------------------------------------------------------------ names


def _names(outcome: Outcome, tier: Tier, rng: random.Random, folder: Path) -> None:
    folder.mkdir()
    to_config(compose([]))  # asks for the machine's address, once
    watch = hostile_targets.Watch(folder)
    canary = f"{hostile_targets.CANARY}.run"
    names = (*hostile_names.NAMES, *hostile_names.NO_NAMES)
    failures = [hostile_targets.knock(hostile_targets.by_code, name, folder, watch) for name in names]
    for door in hostile_targets.DOORS:
        count = NAMES[tier][door.__name__ not in MAIN_DOORS]
        for name in (canary, *rng.sample(names, min(count, len(names)))):
            failures.append(hostile_targets.knock(door, name, folder, watch))
    outcome.trials += len(failures)
    outcome.failures += filter(None, failures)
    if "torch" in sys.modules:
        outcome.failures.append("names: torch was imported")
    outcome.figures["names"] = len(names)
    outcome.figures["names x doors"] = len(failures)
    outcome.figures["resolved"] = len(outcome.failures)
    outcome.goals["resolved"] = 0
    outcome.controls.append(_unchecked(folder, watch, canary))
    known = [name for name in hostile_names.ELSEWHERE if tier == "long" or not name.startswith(HEAVY)]
    resolved, existing = _in_process(hostile_targets.hydras_own, tuple(known))
    outcome.figures["resolved by Hydra's own instantiate"] = f"{resolved} of {existing}"
    outcome.controls.append(Control("names by Hydra's own instantiate", existing, resolved, 0.5))


def _unchecked(folder: Path, watch: hostile_targets.Watch, name: str) -> Control:
    """The canary at the doors that build, with the checks taken away."""

    def build(name: object, _: Path) -> object:
        return targets.build({"_target_": name}, "model")

    problems, targets.problems = targets.problems, lambda *_: []
    try:
        noticed = hostile_targets.knock(build, name, folder, watch)
    finally:
        targets.problems = problems
    return Control("a canary built without the check", 1, int("canary was imported" in (noticed or "")))


def _in_process(function: object, *arguments: object) -> tuple[int, int]:
    """The two numbers that a function returns, of a child that may import what it likes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os.write(writing, repr(function(*arguments)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        first, second = stream.read().strip("()").split(",")
    return int(first), int(second)


def _typed(outcome: Outcome, tier: Tier, rng: random.Random, folder: Path) -> None:
    """Some names as a user types them, at the real command."""
    folder.mkdir()
    doors = ("model._target_={}", "+tracker.x._target_={}", "++hydra.callbacks.x._target_={}")
    for number, name in enumerate(rng.sample(hostile_names.ELSEWHERE, PROCESSES[tier])):
        override = doors[number % len(doors)].format(name)
        done = subprocess.run(
            [sys.executable, str(TRAIN), override], cwd=folder, capture_output=True, text=True, check=False
        )
        lines = done.stderr.splitlines()
        if done.returncode != 2 or len(lines) != 1 or any(folder.iterdir()):
            outcome.failures.append(f"typed {override}: exit {done.returncode}, {done.stderr[-300:]!r}")
        outcome.trials += 1


# ------------------------------------------------------------------------------------------ paths


def _paths(outcome: Outcome, folder: Path) -> None:
    """Names that are paths, or come to be: each as a project, a run, a tag, ..."""
    folder.mkdir()
    good = compose(["tracker=wandb"])
    to_config(good)
    taken = 0
    for text in TRAVERSALS:
        for key in KEYS:
            if not text and key.startswith("tracker"):
                continue  # as none
            composed = copy.deepcopy(good)
            with contextlib.suppress(ConfigError):
                _set(composed, key, text)
                to_config(composed)
                taken += 1
                outcome.failures.append(f"paths {key}={text!a}: was taken")
            outcome.trials += 1
    for override in ("hydra.output_subdir=../../x", "hydra.output_subdir=/etc/x", "hydra.output_subdir=.."):
        with contextlib.suppress(ConfigError):
            compose([override])
            outcome.failures.append(f"paths {override}: was taken")
        outcome.trials += 1
    outcome.figures["names that are paths"] = len(TRAVERSALS)
    outcome.figures["taken"] = taken
    outcome.goals["taken"] = 0


def _set(composed: object, key: str, text: str) -> None:
    from omegaconf import OmegaConf, open_dict

    with open_dict(composed):
        OmegaConf.update(composed, key, [text] if key == "tags" else text)


# ------------------------------------------------------------------------------------------ files


def _files(outcome: Outcome, tier: Tier, folder: Path) -> None:
    folder.mkdir()
    for module in ("adamwprune.training.checkpoint", "adamwprune.models.weights", "adamwprune.data.cifar"):
        importlib.import_module(module)  # once, before all the children
    names = [name for name in hostile_files.FILES if tier == "long" or not any(word in name for word in SLOW)]
    failures = [hostile_files.attempt(name, folder) for name in names]
    outcome.trials += len(names)
    outcome.failures += [f"files {failure}" for failure in failures if failure]
    outcome.figures["hostile files"] = len(names)

    def unpickled(own: Path) -> object:
        return pickle.loads(hostile_files.global_pickle(own))

    hostile_files.FILES["unpickled"] = unpickled
    noticed = hostile_files.attempt("unpickled", folder)
    del hostile_files.FILES["unpickled"]
    outcome.controls.append(Control("a plain unpickler", 1, int("the canary is there" in (noticed or ""))))


# ------------------------------------------------------------------------------------------ ports


def _ports(outcome: Outcome, tier: Tier, folder: Path) -> None:
    """What a run on two ranks, one with trackers, and the dashboard listen on."""
    folder.mkdir()
    environment = {**os.environ, **EVERYBODY, "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    train = [sys.executable, str(TRAIN), *RUN]
    ranks = ["hardware.num_devices=2", "hardware.micro_batch_size=8", "run_name=ranks"]
    tracked = ["tracker=[trackio,wandb,tensorboard]", "project=ports", "run_name=tracked"]
    meet = "from adamwprune.rendezvous import Loopback; import time; kept = Loopback('x'); time.sleep(1)"
    commands = {"rendezvous": [sys.executable, "-c", meet]}
    if tier == "long":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        board = [sys.executable, "-m", "adamwprune.track", "dashboard", "--port", str(port)]
        commands |= {"two ranks": [*train, *ranks], "trackers": [*train, *tracked], "dashboard": board}
    seen = 0
    for what, command in commands.items():
        found = _listened_on(command, folder, environment, until_first=what == "dashboard")
        seen += len(found)
        outside = sorted(address for address in found if not address.startswith(("127.", "::1")))
        outcome.failures += [f"ports: {what} listens on {address}" for address in outside]
        outcome.trials += 1
        if not found and what != "trackers":
            outcome.failures.append(f"ports: {what} was not seen to listen at all")
    outcome.figures["ports seen"] = seen
    code = "import socket, time; s = socket.create_server(('0.0.0.0', 0)); time.sleep(1)"
    found = _listened_on([sys.executable, "-c", code], folder, environment, until_first=False)
    outcome.controls.append(
        Control("a program that listens to everybody", 1, int(any(a.startswith("0.0.0.0") for a in found)))
    )


def _listened_on(
    command: list[str], folder: Path, environment: dict[str, str], *, until_first: bool
) -> set[str]:
    """Addresses on which a command and its children listen at any time."""
    found: set[str] = set()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < deadline and not (until_first and found):
            found |= set(_addresses(process.pid))
            time.sleep(0.05)
    finally:
        for one in _tree(process.pid):
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()
    return found


def _tree(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _addresses(pid: int) -> Iterator[str]:
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield f"{connection.laddr.ip}:{connection.laddr.port}"
