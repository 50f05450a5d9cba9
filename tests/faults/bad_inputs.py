"""The hundred bad inputs of reliability.md section 9, typed at the real train.py.

Each case is a process of its own in a folder of its own: the exit code, one line a problem, no traceback,
nothing new and nothing changed on the disk. Cases of the configuration are forked from an interpreter that
has imported Hydra, and may not import torch; the others from one that has torch too. A sample of both is
started again as a user does, from nothing, for the seconds.

Controls: the same judgement of Hydra alone on the same conf/, and of programs that answer wrongly.
"""

import importlib
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.harness import Control, Outcome, Tier

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
# Seconds after which a process is ended; the goals are far below.
LIMIT = 90
# How many are started from nothing, of the configuration's and of the others.
COLD = {"short": (12, 2), "long": (100, 20)}
# How many of the cases that train to the end are done, and of the refusals that need torch.
TRAINED = {"short": 6, "long": None}
HEAVY = {"short": 20, "long": None}
GOAL_CONFIG, GOAL_OTHERS = 1.0, 5.0


@dataclass(frozen=True)
class Folder:
    """Where a case happens: `work` is the working directory, `home` HOME and `tmp` TMPDIR."""

    root: Path

    @property
    def work(self) -> Path:
        """The working directory of the process."""
        return self.root / "work"

    def make(self) -> "Folder":
        """Make the three."""
        for name in ("work", "home", "tmp"):
            (self.root / name).mkdir(parents=True)
        return self

    def environment(self) -> dict[str, str]:
        """Of the process: nothing of the account of who runs this."""
        own = {"HOME": self.root / "home", "TMPDIR": self.root / "tmp", "TRACKIO_DIR": self.root / "trackio"}
        return {**os.environ, **{name: str(path) for name, path in own.items()}}

    def entries(self) -> dict[str, tuple[object, ...]]:
        """Everything in it: kind, size, time and where it is."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            stat = path.lstat()
            is_folder = path.is_dir() and not path.is_symlink()
            # The time of a folder says no more than its entries do.
            found[str(path.relative_to(self.root))] = (
                (stat.st_mode,) if is_folder else (stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ino)
            )
        return found


@dataclass(frozen=True)
class Answer:
    """What a process said and did."""

    code: int
    out: str
    err: str
    seconds: float
    imported_torch: bool = False
    created: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()  # or changed

    @property
    def problems(self) -> list[str]:
        """The lines that say what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error[")]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        row: of the table.
        line: what follows `python train.py`, as typed in a shell.
        code: expected.
        words: each must be in one of the lines.
        arguments: instead of `line`, where no shell could type it.
        prepare: makes files before; what it makes is not "new".
        inside: changes the process before train.py begins (limits, a faked probe).
        environment: variables to set, or with None to unset.
        around: what is there while the process runs, such as a small disk.
        meanwhile: called with the folder and the process's id while it runs.
        look: what else must hold afterwards, as lines of what does not.
        needs_torch: no mistake that the configuration alone shows.
    """

    row: int
    line: str = ""
    code: int = 2
    words: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    prepare: Callable[[Folder], None] | None = None
    inside: Callable[[Folder], None] | None = None
    environment: dict[str, str | None] = field(default_factory=dict)
    around: Callable[[Folder], AbstractContextManager[None]] | None = None
    meanwhile: Callable[[Folder, int], None] | None = None
    look: Callable[[Folder, Answer], Iterable[str]] | None = None
    needs_torch: bool = False

    @property
    def typed(self) -> list[str]:
        """The arguments of train.py."""
        return list(self.arguments) or shlex.split(self.line)

    @property
    def is_quick_refusal(self) -> bool:
        """Whether it can be started again as a user does, and its seconds are those of a refusal."""
        return self.code not in _BEGUN and self.inside is None and self.meanwhile is None

    @property
    def name(self) -> str:
        """For a failure: what to type."""
        return f"row {self.row}: {' '.join(self.typed)[:120]!r}"


@dataclass(frozen=True)
class Decision:
    """A row that no machine without GPUs can show: the function that decides, with a faked probe.

    Args:
        row: of the table.
        what: in words.
        decide: lines of what does not hold.
    """

    row: int
    what: str
    decide: Callable[[], Iterable[str]]

    @property
    def name(self) -> str:
        """For a failure."""
        return f"row {self.row}: {self.what}"


# ------------------------------------------------------------------------------------- processes


def forked(program: Callable[[], None]) -> Callable[[Case, Folder], Answer]:
    """What answers a case by a program in a fork of this interpreter, which has imported what most need."""
    return lambda case, folder: _forked(case, folder, program)


def _forked(case: Case, folder: Folder, program: Callable[[], None]) -> Answer:
    before = _before(case, folder)
    out, err, torch = (
        folder.root.with_name(f"{folder.root.name}.{kind}") for kind in ("out", "err", "torch")
    )
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(case, folder, program, out, err, torch)
    code = _wait(case, folder, child, started)
    seconds = time.monotonic() - started
    has_torch = torch.exists() and torch.read_text() == "True"
    texts = [file.read_text(errors="replace") if file.exists() else "" for file in (out, err)]
    return _judged_files(folder, before, Answer(code, *texts, seconds, has_torch))


def _be(case: Case, folder: Folder, program: Callable[[], None], out: Path, err: Path, torch: Path) -> None:
    """Body of the fork, which never returns."""
    code: object = 1
    try:
        os.setsid()
        for number, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        report = os.open(torch, os.O_WRONLY | os.O_CREAT, 0o644)
        os.environ.clear()
        os.environ.update(_environment(case, folder))
        os.chdir(folder.work)
        sys.argv = [str(TRAIN), *case.typed]
        if case.inside:
            case.inside(folder)
        program()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(report, str("torch" in sys.modules).encode())
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _environment(case: Case, folder: Folder) -> dict[str, str]:
    merged = {**folder.environment(), **case.environment}
    return {name: value for name, value in merged.items() if value is not None}


def _wait(case: Case, folder: Folder, child: int, started: float) -> int:
    if case.meanwhile:
        case.meanwhile(folder, child)
    while time.monotonic() - started < LIMIT:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_before(folder: Folder, line: str) -> int:
    """Run train.py in the working directory of a folder to its end; its exit code."""
    aside = Folder(folder.root.with_name(f"{folder.root.name}-before"))
    case = Case(0, line)
    child = os.fork()
    if child == 0:
        _be(case, folder, train, *(aside.root.with_suffix(f".{kind}") for kind in ("out", "err", "torch")))
    return _wait(case, folder, child, time.monotonic())


def train() -> None:
    """The real train.py, as its own main module."""
    runpy.run_path(str(TRAIN), run_name="__main__")


def started_cold(case: Case, folder: Folder) -> Answer:
    """The answer of a process of its own, as a user starts it."""
    before = _before(case, folder)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(TRAIN), *case.typed],
        cwd=folder.work,
        env=_environment(case, folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT,
        check=False,
    )
    seconds = time.monotonic() - started
    return _judged_files(folder, before, Answer(done.returncode, done.stdout, done.stderr, seconds))


def _before(case: Case, folder: Folder) -> dict[str, tuple[object, ...]]:
    if case.prepare:
        case.prepare(folder)
    return folder.entries()


def _judged_files(folder: Folder, before: dict[str, tuple[object, ...]], answer: Answer) -> Answer:
    after = folder.entries()
    created = tuple(sorted(after.keys() - before.keys()))
    lost = tuple(sorted(name for name, entry in before.items() if after.get(name) != entry))
    return Answer(**{**vars(answer), "created": created, "lost": lost})


def trial(case: Case, root: Path, start: Callable[[Case, Folder], Answer]) -> tuple[list[str], Answer]:
    """What is wrong with the answer to a case, in a new folder."""
    folder = Folder(root).make()
    with case.around(folder) if case.around else nullcontext():
        answer = start(case, folder)
        return judge(case, answer, folder), answer


# ------------------------------------------------------------------------------------- judgement

_LINE = re.compile(r"error\[(\d+)\]( on rank \d+ \(\S+\))?: \S.*")
# Codes of runs that have begun: their folder is there.
_BEGUN = (0, 1, 7, 8, 75, 130)


def judge(case: Case, answer: Answer, folder: Folder) -> list[str]:
    """What is wrong with an answer; empty where it is as the table says."""
    found = []
    if answer.code != case.code:
        found.append(f"exit {answer.code}, expected {case.code}")
    text = f"{answer.out}\n{answer.err}"
    found += [f"says nothing of {words!r}" for words in case.words if words not in text]
    if "Traceback" in text:
        found.append("a traceback")
    if case.code not in (0, None):
        found += _line_problems(case, answer)
    if case.code not in _BEGUN and case.look is None:
        found += [f"created {', '.join(answer.created[:3])}"] if answer.created else []
        found += [f"lost or changed {', '.join(answer.lost[:3])}"] if answer.lost else []
    if not case.needs_torch and answer.imported_torch:
        found.append("imported torch")
    if case.look:
        try:
            found += case.look(folder, answer)
        except Exception as error:  # such as a file that should be there
            found.append(f"cannot be looked at: {type(error).__name__}: {error}")
    return found


def _line_problems(case: Case, answer: Answer) -> list[str]:
    if not answer.problems:
        return [f"no line error[{case.code}]: ...; last: {(answer.err.splitlines() or [''])[-1][:100]!r}"]
    found = []
    if not case.needs_torch:
        others = [
            line for line in answer.err.splitlines() if line and not line.startswith(("error[", "warning: "))
        ]
        found += [f"more than its lines: {others[0][:100]!r}"] if others else []
    for line in answer.problems:
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) != case.code:
            found.append(f"not error[{case.code}]: KEY=VALUE ...: {line[:100]!r}")
    return found


# ------------------------------------------------------------------------------------- the trials


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """All cases (long), or all that the configuration alone decides and a sample of the others (short)."""
    from tests.faults.bad_input_scenes import LIGHT
    from tests.faults.bad_input_table import TYPED

    os.environ["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    choose, log = random.Random(seed), Log(scratch)
    _import("adamwprune.command_line", "adamwprune.sweep")
    importlib.import_module("adamwprune.composition").compose([])  # what is cached of conf/, too
    light = [*TYPED, *LIGHT]
    in_workers(light, log)
    typed = choose.sample(TYPED, 20) if tier == "short" else TYPED
    controls = [hydra_alone(typed, scratch), wrong_answers(scratch)]
    _import("adamwprune.training.run", "adamwprune.launch", "matplotlib.pyplot")

    from tests.faults.bad_input_data import DATA
    from tests.faults.bad_input_decisions import DECISIONS
    from tests.faults.bad_input_runs import RUNS
    from tests.faults.bad_input_scenes import MODELS

    refused = [*MODELS, *DATA]
    trained = [case for case in RUNS if case.code in _BEGUN]
    refused += [case for case in RUNS if case.code not in _BEGUN]
    heavy = [*sampled(refused, HEAVY[tier], choose), *sampled(trained, TRAINED[tier], choose)]
    in_workers(heavy, log)
    for decision in DECISIONS:
        log.failures.setdefault(decision.row, []).extend(
            f"{decision.name}: {line}" for line in decision.decide()
        )
    config, others = ([case for case in cases if case.is_quick_refusal] for cases in (light, heavy))
    counts = COLD[tier]
    config_times = [log.add(case, started_cold) for case in choose.sample(config, counts[0])]
    other_times = [log.add(case, started_cold) for case in choose.sample(others, counts[1])]
    p95 = statistics.quantiles(config_times, n=20)[-1]
    return Outcome(
        fault="the hundred bad inputs of reliability.md section 9, given to train.py",
        promise="the right exit code, one line a problem, nothing created, nothing lost",
        trials=log.trials + len(DECISIONS),
        failures=[line for _, lines in sorted(log.failures.items()) for line in lines],
        figures={
            "rows": len(log.failures),
            "rows correct": sum(not lines for lines in log.failures.values()),
            "cases": len(light) + len(heavy) + len(DECISIONS),
            "configuration errors p95, s": round(p95, 2),
            "slowest other refusal, s": round(max(other_times), 2),
        },
        goals={"configuration errors p95, s": GOAL_CONFIG, "slowest other refusal, s": GOAL_OTHERS},
        controls=controls,
        peer="Hydra accepts +foo=1, ~key and a key given twice (reliability.md, section 11)",
    )


def sampled(cases: list[Case], count: int | None, choose: random.Random) -> list[Case]:
    """As many of the cases, or all."""
    return cases if count is None else choose.sample(cases, min(count, len(cases)))


class Log:
    """What came of the trials, by row."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.trials = scratch, 0
        self.failures: dict[int, list[str]] = {}

    def add(self, case: Case, start: Callable[[Case, Folder], Answer]) -> float:
        """Do a trial; the seconds that the process took."""
        root = self.scratch / f"trial{self.trials}"
        self.trials += 1
        try:
            found, answer = trial(case, root, start)
        except Exception as error:  # such as one of what is to be prepared
            found, answer = [f"could not be done: {type(error).__name__}: {error}"], Answer(1, "", "", 0.0)
        shutil.rmtree(root, ignore_errors=True)
        line = f"{case.name}: {'; '.join(found)}; said {answer.err.strip()[-300:]!r}"
        self.failures.setdefault(case.row, []).extend([line] if found else [])
        return answer.seconds


def in_workers(cases: list[Case], log: Log) -> None:
    """Do the cases in as many processes as there are cores; those with a port or a mount in one of them."""
    count = len(os.sched_getaffinity(0))
    shared = [case for case in cases if case.around]
    alone = [case for case in cases if not case.around]
    shares = [[*(() if number else shared), *alone[number::count]] for number in range(count)]
    workers = {}
    for number, share in enumerate(shares):
        place = log.scratch / f"worker{number}-{log.trials}"
        place.mkdir()
        if (child := os.fork()) == 0:
            own = Log(place)
            for case in share:
                own.add(case, forked(train))
            (place / "log.json").write_text(json.dumps([own.trials, own.failures]))
            os._exit(0)
        workers[child] = place
    for child, place in workers.items():
        os.waitpid(child, 0)
        trials, failures = json.loads((place / "log.json").read_text())
        log.trials += trials
        for row, lines in failures.items():
            log.failures.setdefault(int(row), []).extend(lines)


def _import(*names: str) -> None:
    """What each fork has imported already."""
    for name in names:
        importlib.import_module(name)


# -------------------------------------------------------------------------------------- controls


def hydra_alone(cases: list[Case], scratch: Path) -> Control:
    """The cases for Hydra with the same conf/ and schema and no check of ours: it must not pass."""

    def program() -> None:
        import hydra
        from omegaconf import OmegaConf

        from adamwprune.config import register_configs
        from adamwprune.resolvers import register_resolvers

        register_configs()
        register_resolvers()

        def main(config: Any) -> None:
            OmegaConf.to_container(config, resolve=True)

        hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(main)()

    single = [case for case in cases if "-m" not in case.typed]
    answers = [trial(case, scratch / f"hydra{number}", forked(program)) for number, case in enumerate(single)]
    noticed = sum(bool(found) for found, _ in answers)
    passed = sum(answer.code == 0 for _, answer in answers)
    what = f"Hydra alone with the same conf/ and schema, which lets {passed} of {len(single)} through"
    return Control(what, len(single), noticed)


def wrong_answers(scratch: Path) -> Control:
    """Programs that answer `optimizer.lr=-1` wrongly, each in one way."""
    line = "error[2]: optimizer.lr=-1: must be > 0"

    def answers(code: int, text: str, act: Callable[[], object] = lambda: None) -> Callable[[], None]:
        def program() -> None:
            act()
            print(text, file=sys.stderr)
            sys.exit(code)

        return program

    programs = [
        answers(1, line),
        answers(0, line),
        answers(2, "wrong"),
        answers(2, f"Traceback (most recent call last):\n{line}"),
        answers(2, f"usage: train.py\n{line}"),
        answers(2, "error[2]: optimizer.lr: must be > 0"),
        answers(2, line.replace("[2]", "[3]")),
        answers(2, line, lambda: Path("outputs").mkdir()),
        answers(2, line, lambda: Path.home().joinpath(".cache").mkdir()),
        answers(2, line, lambda: Path("mine.txt").unlink()),
        answers(2, line, lambda: Path("mine.txt").write_text("other")),
        answers(2, line, lambda: sys.modules.update(torch=sys)),
    ]

    def mine(folder: Folder) -> None:
        (folder.work / "mine.txt").write_text("mine")

    case = Case(1, "optimizer.lr=-1", words=("optimizer.lr=-1: must be > 0",), prepare=mine)
    right, _ = trial(case, scratch / "right", forked(answers(2, line)))
    noticed = [
        bool(trial(case, scratch / f"wrong{number}", forked(program))[0])
        for number, program in enumerate(programs)
    ]
    # The right answer must pass, else being noticed says nothing.
    return Control("wrong code, line, file, folder or import", len(programs), 0 if right else sum(noticed))
