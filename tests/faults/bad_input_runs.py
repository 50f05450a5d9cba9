"""Bad inputs of a run that has begun, or that begins on a bad machine: disks, resumes, trackers, clocks.

By row of reliability.md section 9. A run that is resumed is trained once and copied for each case.
"""

import fcntl
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults import mounts
from tests.faults.bad_input_scenes import QUICK, heavy
from tests.faults.bad_inputs import Answer, Case, Folder, train_before

MIB = 2**20


def finished(folder: Folder, answer: Answer) -> Iterable[str]:
    """All steps are there, whole, and summary.json says so."""
    for run in [file.parent for file in folder.work.rglob("run.json")]:
        summary = json.loads((run / "summary.json").read_text())
        if summary["status"] != "finished":
            yield f"{run.name}: {summary['status']}"
        steps = [json.loads(line).get("step") for line in (run / "metrics.jsonl").read_text().splitlines()]
        if max(steps) != summary["steps"]:
            yield f"{run.name}: rows up to step {max(steps)} of {summary['steps']}"


def runs(count: int) -> Callable[[Folder, Answer], Iterable[str]]:
    """So many runs, each finished, each in a folder of its own and with an identity of its own."""

    def look(folder: Folder, answer: Answer) -> Iterable[str]:
        yield from finished(folder, answer)
        ids = {json.loads(file.read_text())["run_id"] for file in folder.work.rglob("run.json")}
        if len(ids) != count:
            yield f"{len(ids)} runs, expected {count}"

    return look


# ------------------------------------------------------------------------------------------ disks


@contextmanager
def small_disk(folder: Folder) -> Iterator[None]:
    """`disk`: 1 MiB, of which 8 KiB are free."""
    with mounts.small_file_system(folder.work / "disk", MIB) as place:
        (place / "ballast").write_bytes(bytes(MIB - 8192))
        yield


def fill_up(place: Path) -> None:
    """Write until nothing is free."""
    with suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


@contextmanager
def full_disk(folder: Folder) -> Iterator[None]:
    """`disk`: nothing is free."""
    with mounts.small_file_system(folder.work / "disk", MIB) as place:
        fill_up(place)
        yield


@contextmanager
def read_only_disk(folder: Folder) -> Iterator[None]:
    """`disk`: nothing can be written."""
    with mounts.small_file_system(folder.work / "disk", MIB) as place:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        yield


@contextmanager
def disk_for_some(folder: Folder) -> Iterator[None]:
    """`disk`: room to begin, to be filled meanwhile."""
    with mounts.small_file_system(folder.work / "disk", 16 * MIB):
        yield


def fill(folder: Folder, _: int) -> None:
    """Leave no room as soon as there is a checkpoint."""
    run = folder.work / "disk" / "run"
    until(lambda: any(run.glob("checkpoints/step_*")))
    fill_up(folder.work / "disk")


def until(condition: Callable[[], bool], patience: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def kept_all(folder: Folder, _: Answer) -> Iterable[str]:
    """A valid checkpoint, and a ledger that is whole to its last line."""
    from adamwprune.training.checkpoint import find_problem, steps_on_disk

    run = folder.work / "disk" / "run"
    if all(find_problem(place) for _, place in steps_on_disk(run / "checkpoints")):
        yield "no valid checkpoint"
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


LONG = QUICK.replace("max_steps=4", "max_steps=4000") + " trainer.eval_every=20"
DISKS = (
    [
        heavy(
            61,
            f"{QUICK} hydra.run.dir=disk/run",
            9,
            ("hydra.run.dir=", "takes no file", "No space left"),
            around=full_disk,
        ),
        heavy(
            61,
            f"{QUICK} hydra.run.dir=disk/run",
            9,
            ("hydra.run.dir=", "takes no file", "Read-only"),
            around=read_only_disk,
        ),
        heavy(
            62,
            f"{QUICK} hydra.run.dir=disk/run",
            9,
            ("checkpoint.keep=2: needs", "MB are free at"),
            around=small_disk,
        ),
        heavy(
            63,
            f"{LONG} hydra.run.dir=disk/run",
            9,
            ("needed", "free"),
            around=disk_for_some,
            meanwhile=fill,
            look=kept_all,
        ),
    ]
    if not mounts.obstacle()
    else []
)

# ------------------------------------------------------------------------- places, clocks, limits


def in_folder(name: bytes) -> Callable[[Folder], None]:
    """Work in a folder of that name."""

    def inside(folder: Folder) -> None:
        place = os.fsencode(folder.work) + b"/" + name
        os.mkdir(place)
        os.chdir(place)

    return inside


def limited_memory(folder: Folder) -> None:
    """100 MB more than the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 100_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def jumping_clock(folder: Folder) -> None:
    """An hour back at each tenth look."""
    real, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return real() - 3600 * (looks[0] // 10)

    time.time = jumping


def closed_output(folder: Folder) -> None:
    """Standard output goes into a pipe that nobody reads."""
    receiving, sending = os.pipe()
    os.close(receiving)
    os.dup2(sending, 1)


def another(line: str) -> Callable[[Folder, int], None]:
    """Start a second run at the same moment, and wait for it."""

    def meanwhile(folder: Folder, _: int) -> None:
        train_before(folder, line)

    return meanwhile


def pause(folder: Folder, pid: int) -> None:
    """SIGSTOP for a second when the first row is there."""
    until(lambda: any(folder.work.rglob("metrics.jsonl")))
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(pid, signal.SIGCONT)


@contextmanager
def taken_port(folder: Folder) -> Iterator[None]:
    """Port 29517 listens already."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 29517))
        taken.listen()
        yield


RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
MACHINES = [
    heavy(
        56,
        f"{QUICK} hardware.num_devices=2 hardware.timeout=5",
        4,
        ("MASTER_PORT=29517",),
        environment=RANK,
        around=taken_port,
    ),
    heavy(
        59,
        f"{QUICK} data.num_train=4096 trainer.global_batch_size=4096 recipe.micro_batch_size=4096".replace(
            "data.num_train=64 ", ""
        ).replace("trainer.global_batch_size=16 ", ""),
        8,
        ("hardware.micro_batch_size=4096: does not fit", "GiB", "try hardware.micro_batch_size="),
        inside=limited_memory,
    ),
    *(
        heavy(64, QUICK, 0, inside=in_folder(name), look=runs(1))
        for name in (b"a b", "é🙂".encode(), b"new\nline", b"x" * 200, b"it's [1], ${x".replace(b"${", b"$"))
    ),
    heavy(
        64,
        QUICK,
        2,
        ("rename the folder",),
        inside=in_folder(b"a${x}"),
        look=lambda folder, _: ["created a run"] if list(folder.work.rglob("run.json")) else (),
    ),
    heavy(
        64,
        QUICK,
        2,
        ("UTF-8",),
        inside=in_folder(b"\xff\xfe"),
        look=lambda folder, _: ["created a run"] if list(folder.work.rglob("run.json")) else (),
    ),
    heavy(68, QUICK, 0, inside=jumping_clock, look=runs(1)),
    heavy(68, QUICK, 0, environment={"TZ": "Pacific/Kiritimati"}, look=runs(1)),
    heavy(68, QUICK, 0, meanwhile=another(QUICK), look=runs(2)),
    heavy(69, QUICK, 0, inside=closed_output, look=runs(1)),
    heavy(71, LONG.replace("max_steps=4000", "max_steps=200"), 0, meanwhile=pause, look=runs(1)),
    heavy(
        76,
        f"{QUICK} run_name=same hydra.run.dir=same",
        0,
        meanwhile=another(f"{QUICK} run_name=same hydra.run.dir=same"),
        look=runs(2),
    ),
]

# ---------------------------------------------------------------------------------------- resumes

BEGUN = f"{QUICK} hydra.run.dir=run trainer.stop_step=2 checkpoint.every=1 trainer.eval_every=1"
KINDS = {
    "dense": BEGUN,
    "pruned": f"{BEGUN} pruning=magnitude pruning.start_step=1 pruning.end_step=3 pruning.update_every=1",
    "caffe": f"{BEGUN} model=lenet5_caffe",
    "done": BEGUN.replace("trainer.stop_step=2 ", ""),
}


def begun(*changes: Callable[[Path], None], kind: str = "dense") -> Callable[[Folder], None]:
    """`run`, stopped after step 2 of 4 with checkpoints of steps 1 and 2, and changed."""

    def prepare(folder: Folder) -> None:
        shutil.copytree(_template(folder, kind), folder.work / "run")
        for change in changes:
            change(folder.work / "run")

    return prepare


def _template(folder: Folder, kind: str) -> Path:
    made = Folder(folder.root.parent / f"begun-{kind}")
    if not made.root.exists():
        made.make()
        train_before(made, KINDS[kind])
    return made.work / "run"


def checkpoint(run: Path, step: int) -> Path:
    """The folder of one."""
    return run / "checkpoints" / f"step_{step:08d}"


def spoil(
    step: int, change: Callable[[bytearray], None], name: str = "model.safetensors"
) -> Callable[[Path], None]:
    """Change the bytes of a file of a checkpoint."""

    def do(run: Path) -> None:
        file = checkpoint(run, step) / name
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return do


def flip(content: bytearray) -> None:
    """One bit in the middle."""
    content[len(content) // 2] ^= 4


def zero(content: bytearray) -> None:
    """A page in the middle."""
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(min(4096, len(content) - middle))


def cut(content: bytearray) -> None:
    """The last third is missing."""
    del content[len(content) * 2 // 3 :]


def reseal(folder: Path, **changes: object) -> None:
    """Make manifest.json right again for what is in the folder, with other facts."""
    from adamwprune.training.checkpoint import _describe, sealed

    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"] = {name: _describe(folder / name) for name in manifest["files"]}
    file.write_text(json.dumps(sealed({**manifest, **changes})))


class Hostile:
    """Unpickled without care, it writes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


def hostile(step: int) -> Callable[[Path], None]:
    """A pickle in the place of training_state.pt, with a manifest that vouches for it."""

    def do(run: Path) -> None:
        (checkpoint(run, step) / "training_state.pt").write_bytes(pickle.dumps(Hostile()))
        reseal(checkpoint(run, step))

    return do


def changed_state(**environment: object) -> Callable[[Path], None]:
    """Another environment in the state of both checkpoints."""

    def do(run: Path) -> None:
        import torch

        for step in (1, 2):
            file = checkpoint(run, step) / "training_state.pt"
            state = torch.load(file, weights_only=True)
            state["environment"] |= environment
            torch.save(state, file)
            reseal(checkpoint(run, step))

    return do


def from_kind(kind: str) -> Callable[[Path], None]:
    """Checkpoints of another run in the place of its own."""

    def do(run: Path) -> None:
        other = _template(Folder(run.parents[1]), kind)
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(other / "checkpoints", run / "checkpoints")

    return do


def revive(run: Path) -> None:
    """Pruned weights that are not zero in the newest checkpoint, and a manifest that vouches for it."""
    from safetensors.torch import load_file, save_file

    file = checkpoint(run, 2) / "model.safetensors"
    weights = load_file(file)
    tensor = next(t for t in weights.values() if t.ndim > 1 and (t == 0).any())
    tensor[tensor == 0] = 1.0
    save_file(weights, file)
    reseal(checkpoint(run, 2))


def newer(run: Path) -> None:
    """Checkpoints of a format that this version does not know."""
    for step in (1, 2):
        reseal(checkpoint(run, step), schema=99)


def crowd(run: Path) -> None:
    """Entries that are none of ours, and a newest checkpoint without manifest."""
    for number in range(2000):
        (run / "checkpoints" / f"note{number}").touch()
    (run / "checkpoints" / "step_abc").mkdir()
    checkpoint(run, 3).mkdir()
    (checkpoint(run, 3) / "model.safetensors").write_bytes(b"")


def foreign_kept(folder: Folder, answer: Answer) -> Iterable[str]:
    """Nothing that is not ours was removed."""
    yield from finished(folder, answer)
    if len(list((folder.work / "run" / "checkpoints").glob("note*"))) != 2000:
        yield "foreign files are gone"


def left_lock(run: Path) -> None:
    """The lock of a process that is dead."""
    (run / "run.lock").write_text("999999 on elsewhere")


@contextmanager
def held_lock(folder: Folder) -> Iterator[None]:
    """The lock of a process that lives."""
    begun()(folder)
    with (folder.work / "run" / "run.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()} on here")
        lock.flush()
        yield


def no_locks(folder: Folder) -> None:
    """flock is refused, as some network file systems do."""
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = refuse  # type: ignore[assignment]


def without_hostname(folder: Folder) -> None:
    """git is there, and no command that knows the machine's address."""
    (folder.root / "bin").mkdir()
    (folder.root / "bin" / "git").symlink_to(shutil.which("git") or "/usr/bin/git")
    os.environ["PATH"] = str(folder.root / "bin")


def not_hacked(folder: Folder, answer: Answer) -> Iterable[str]:
    """The pickle was not executed."""
    if list(folder.root.rglob("PWNED")):
        yield "the pickle was executed"


def as_it_was(folder: Folder, answer: Answer) -> Iterable[str]:
    """A refused resume may only leave a line in run.json's sessions and in the log."""
    lost = [name for name in answer.lost if "checkpoints" in name or name.endswith("metrics.jsonl")]
    if lost:
        yield f"lost or changed {', '.join(lost[:3])}"


def both(*looks: Callable[[Folder, Answer], Iterable[str]]) -> Callable[[Folder, Answer], Iterable[str]]:
    """All of them."""
    return lambda folder, answer: [line for look in looks for line in look(folder, answer)]


def resumes(
    row: int,
    code: int,
    words: tuple[str, ...],
    *changes: Callable[[Path], None],
    more: str = "",
    kind: str = "dense",
    look: Callable[[Folder, Answer], Iterable[str]] | None = None,
) -> Case:
    """`resume=run` of a changed run."""
    looked = look or (finished if code == 0 else as_it_was)
    return heavy(
        row, f"resume=run {more}".strip(), code, words, prepare=begun(*changes, kind=kind), look=looked
    )


NEWEST = ("step_00000002", "step_00000001")
RESUMES = [
    resumes(85, 0, (*NEWEST, "checksum"), spoil(2, flip)),
    resumes(85, 0, (*NEWEST, "checksum"), spoil(2, zero)),
    resumes(85, 0, (*NEWEST, "checksum"), spoil(2, cut, "training_state.pt")),
    resumes(85, 0, (*NEWEST, "manifest.json"), spoil(2, flip, "manifest.json")),
    resumes(85, 5, ("no valid checkpoint", *NEWEST), spoil(2, flip), spoil(1, cut)),
    resumes(86, 0, NEWEST, hostile(2), look=both(finished, not_hacked)),
    resumes(86, 5, ("no valid checkpoint",), hostile(2), hostile(1), look=both(as_it_was, not_hacked)),
    resumes(87, 5, ("resume=", "model._target_"), more="model=resnet18 model.stem=cifar"),
    resumes(87, 5, ("resume=", "optimizer._target_", "adamw", "sgd"), more="optimizer=sgd"),
    resumes(87, 5, ("the checkpoint is of another model", "ours ("), from_kind("caffe")),
    resumes(87, 5, ("no checkpoint can be used", "dense run"), from_kind("dense"), kind="pruned"),
    resumes(88, 0, (), more="checkpoint.keep=3"),
    resumes(88, 5, ("seed: 1 -> 2", "resume_allow=[data.seed,seed]"), more="seed=2"),
    resumes(88, 0, (), more="optimizer.lr=0.001 resume_allow='[optimizer.lr]'"),
    resumes(89, 5, ("hardware.threads: 1 -> 2",), more="hardware.threads=2"),
    resumes(89, 5, ("torch: 1.0 ->", "resume_allow=[environment]"), changed_state(torch="1.0")),
    resumes(89, 5, ("world_size: 4 -> 1", "resume_allow=[environment]"), changed_state(world_size=4)),
    resumes(89, 5, ("data: 0000 ->",), changed_state(data="0000")),
    resumes(89, 0, (), changed_state(torch="1.0"), more="resume_allow='[environment]'"),
    resumes(90, 5, ("no valid checkpoint", "format 99"), newer),
    resumes(90, 5, ("trainer.max_steps",), more="trainer.max_steps=1"),
    resumes(90, 0, ("already complete",), kind="done"),
    heavy(91, "resume=run", 5, ("in use by process", "on here"), around=held_lock, look=as_it_was),
    resumes(91, 0, (), left_lock),
    heavy(91, "resume=run", 0, ("no locks",), prepare=begun(), inside=no_locks, look=finished),
    resumes(92, 0, ("step_00000003",), crowd, look=foreign_kept),
    resumes(93, 0, NEWEST, revive, kind="pruned"),
    heavy(84, "resume=run/checkpoints", 5, ("no run there", "such as run"), prepare=begun()),
    heavy(84, "resume=run/checkpoints/step_00000002", 5, ("no run there", "such as run"), prepare=begun()),
    heavy(
        67,
        "resume=run",
        0,
        prepare=begun(),
        inside=without_hostname,
        look=lambda folder, _: _one_project(folder),
    ),
]


def _one_project(folder: Folder) -> Iterable[str]:
    """A resumed run stays in its project, whatever the machine is called by now."""
    record = json.loads((folder.work / "run" / "run.json").read_text())
    if record["project"] != record["config"]["project"]:
        yield "the project has changed"


# ----------------------------------------------------------------------------------------- trackers


def stored(folder: Folder) -> dict[str, dict[str, object]]:
    """What summary.json says of each tracker."""
    summary = next(folder.work.rglob("summary.json"))
    trackers: dict[str, dict[str, object]] = json.loads(summary.read_text())["trackers"]
    return trackers


def state(name: str, *wanted: str, **facts: str) -> Callable[[Folder, Answer], Iterable[str]]:
    """The run is finished, and its tracker ended in one of these states."""

    def look(folder: Folder, answer: Answer) -> Iterable[str]:
        yield from finished(folder, answer)
        found = stored(folder)[name]
        if found["state"] not in wanted:
            yield f"{name} is {found['state']}, expected {' or '.join(wanted)}"
        yield from (
            f"{name}.{key} is {found.get(key)}" for key, value in facts.items() if found.get(key) != value
        )

    return look


def corrupt_database(folder: Folder) -> None:
    """The project's database is no database."""
    (folder.root / "trackio").mkdir()
    (folder.root / "trackio" / "p.db").write_bytes(b"no database" * 1000)


def same_id(folder: Folder, answer: Answer) -> Iterable[str]:
    """One W&B run over two sessions."""
    yield from finished(folder, answer)
    files = list(folder.work.rglob("run-*.wandb"))
    names = {file.stem for file in files}
    if len(files) < 2 or len(names) != 1:
        yield f"W&B runs: {', '.join(sorted(names))} in {len(files)} files"


def kill_trackers_process(folder: Folder, pid: int) -> None:
    """SIGKILL to W&B's process once it is there."""

    def children() -> list[int]:
        listed = subprocess.run(
            ["pgrep", "-g", str(pid), "-f", "wandb-core"], capture_output=True, text=True, check=False
        )
        return [int(number) for number in listed.stdout.split()]

    until(lambda: bool(children()), 20)
    for child in children():
        os.kill(child, signal.SIGKILL)


def no_sockets(folder: Folder, answer: Answer) -> Iterable[str]:
    """The run listened nowhere; it is over, so this looks at what it said."""
    yield from finished(folder, answer)
    if "share" in answer.err.lower() or "gradio.live" in answer.out:
        yield "something was shared"


KEY = "0123456789abcdef0123456789abcdef01234567"
TRACKED = f"{QUICK} tracker=wandb project=p"
TRACKERS = [
    heavy(
        77,
        f"{QUICK} tracker=trackio project=p",
        0,
        environment={"GRADIO_SHARE": "true", "GRADIO_SERVER_NAME": "0.0.0.0", "TRACKIO_PORT": "29517"},
        around=taken_port,
        look=both(no_sockets, state("trackio", "closed")),
    ),
    heavy(78, TRACKED, 0, look=state("wandb", "closed", mode="offline")),
    heavy(
        78,
        f"{TRACKED} tracker.wandb.base_url=http://127.0.0.1:9",
        0,
        environment={"WANDB_API_KEY": KEY},
        look=state("wandb", "closed", mode="offline"),
    ),
    heavy(
        79,
        "resume=run",
        0,
        prepare=lambda folder: train_before(folder, f"{BEGUN} tracker=wandb project=p"),
        look=same_id,
    ),
    heavy(
        80,
        LONG.replace("max_steps=4000", "max_steps=400") + " tracker=wandb project=p",
        0,
        meanwhile=kill_trackers_process,
        look=finished,
    ),
    heavy(
        81,
        f"{QUICK} tracker=trackio project=p",
        0,
        prepare=corrupt_database,
        look=both(
            state("trackio", "degraded", "failed", "closed"),
            lambda folder, _: (
                ()
                if any(
                    b"no database" in file.read_bytes()
                    for file in (folder.root / "trackio").rglob("*")
                    if file.is_file()
                )
                else ["the user's file is gone"]
            ),
        ),
    ),
]

RUNS = [*DISKS, *MACHINES, *RESUMES, *TRACKERS]
