"""F7: the system calls of a real save, in the order in which they must come, seen by strace.

What one save of training/saver.py must do:

    write of each file  <  its fsync  <  fsync of the temporary folder  <  its rename
    fsync of the rows   <  rename  <  fsync of checkpoints/
    fsync of checkpoints/  <  reading back  <  removal of the old

Each fsync is left out once as a control; the order must then be found wrong.
"""

import ctypes
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from adamwprune.run_directory import METRICS
from adamwprune.training.checkpoint import MANIFEST, STATE, WEIGHTS
from adamwprune.training.ledger import Ledger
from adamwprune.training.saver import Saver, Snapshot
from tests.faults.harness import Control, Outcome, Tier

CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2")
# The save that is looked at: the first of which an older checkpoint is removed.
STEP = 3
PATIENCE = 30.0
# sys/prctl.h: let any process trace this one, where the kernel restricts that to parents.
_SET_PTRACER, _ANY = 0x59616D61, -1


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """One save as it is, and one without each of its fsyncs."""
    outcome = Outcome(
        "system calls of a save, seen by strace",
        "write < fsync < rename < fsync of the folder < reading back < removal of the old",
        peer="fsync anywhere: 3 of 12 frameworks (reliability.md, section 1)",
    )
    if reason := obstacle(scratch / "strace.txt"):
        outcome.skipped = reason
        return outcome
    events = trace(scratch / "whole", leave_out=None)
    outcome.trials = 1
    outcome.failures = problems_of(events)
    outcome.figures["fsyncs of a save"] = len(fsyncs(events))
    noticed = 0
    for number in range(len(fsyncs(events))):
        noticed += bool(problems_of(trace(scratch / f"without-{number}", leave_out=number)))
    outcome.controls.append(Control("each fsync left out once", len(fsyncs(events)), noticed))
    return outcome


def obstacle(file: Path) -> str:
    """Why strace cannot be used here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", file, "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


# ----------------------------------------------------------------------------------------- order


@dataclass(frozen=True)
class Event:
    """One finished system call: its name, and the paths that it names or that its descriptor is of."""

    call: str
    paths: tuple[str, ...]


def problems_of(events: list[Event]) -> list[str]:
    """What is not in the order that the module's docstring asks for."""
    final, problems = f"/checkpoints/step_{STEP:08d}", []
    renames = at(events, "rename", final)
    if len(renames) != 1:
        return [f"{len(renames)} renames to the final name"]
    appears = renames[0]
    temporary = events[appears].paths[0]
    folder_synced = max(
        (place for place in at(events, "fsync", temporary) if place < appears), default=len(events)
    )
    for name in (WEIGHTS, STATE, MANIFEST):
        named = at(events, "rename", f"{temporary}/{name}")  # some are written under a name of their own
        names = [f"{temporary}/{name}", *(events[place].paths[0] for place in named)]
        writes = [place for draft in names for place in at(events, "write", draft)]
        synced = min(next_at(events, "fsync", draft, after=max(writes, default=-1)) for draft in names)
        if not writes:
            problems.append(f"{name} is not written in the temporary folder")
        if synced > appears:
            problems.append(f"{name} has no fsync after it was written")
        if max([synced, *named]) > folder_synced:
            problems.append(f"the temporary folder has its fsync before {name}")
    if folder_synced == len(events):
        problems.append("the temporary folder has no fsync before it is renamed")
    if next_at(events, "fsync", f"/{METRICS}") > appears:
        problems.append("the rows have no fsync before the checkpoint appears")
    durable = next_at(events, "fsync", "/checkpoints", after=appears)
    removed = next_at(events, "rename", f"/.del-step_{STEP - 2:08d}-{temporary.rpartition('-')[2]}")
    if durable == len(events):
        problems.append("checkpoints/ has no fsync after the rename")
    if removed == len(events):
        problems.append("the old checkpoint is not removed")
    if removed < durable:
        problems.append("the old checkpoint is removed before the new one is durable")
    for name in (WEIGHTS, STATE, MANIFEST):
        if not durable < next_at(events, "openat", f"{final}/{name}", after=durable) < removed:
            problems.append(f"{name} is not read back between the fsync and the removal of the old")
    return problems


def at(events: list[Event], call: str, path: str) -> list[int]:
    """Where such calls are, on a path that ends so."""
    return [
        place
        for place, event in enumerate(events)
        if event.call == call and event.paths and event.paths[-1].endswith(path)
    ]


def next_at(events: list[Event], call: str, path: str, after: int = -1) -> int:
    """The first such call after a place; the number of events where there is none."""
    return next((place for place in at(events, call, path) if place > after), len(events))


def fsyncs(events: list[Event]) -> list[int]:
    """Where something is flushed."""
    return at(events, "fsync", "")


# ----------------------------------------------------------------------------------------- trace


def trace(folder: Path, leave_out: int | None) -> list[Event]:
    """The calls of the last of three saves, with one of its fsyncs left out."""
    folder.mkdir()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_save_thrice, args=(folder, leave_out, theirs)
    )
    process.start()
    if not ours.poll(PATIENCE):
        raise RuntimeError("the saver is not ready")
    ours.recv()
    command = ["strace", "-f", "-y", "-e", f"trace={','.join(CALLS)}", "-o", str(folder / "calls.txt")]
    with subprocess.Popen([*command, "-p", str(process.pid)], stderr=subprocess.PIPE, text=True) as strace:
        _wait_for_tracer(process.pid or 0, strace)
        ours.send("go on")
        process.join()
        strace.wait()
    if process.exitcode:
        raise RuntimeError(f"the saver ended with {process.exitcode}")
    return list(parse((folder / "calls.txt").read_text(errors="replace")))


def _wait_for_tracer(pid: int, strace: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        if strace.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"strace does not trace: {strace.stderr.read() if strace.stderr else ''}")
        time.sleep(0.001)


def _save_thrice(folder: Path, leave_out: int | None, pipe: Connection) -> None:
    """In the child: two saves, then, traced, the third."""
    ctypes.CDLL(None).prctl(_SET_PTRACER, _ANY)
    ledger = Ledger(folder / METRICS)
    saver = Saver(folder / "checkpoints", keep=2, identity={}, sync_records=ledger.sync)
    for step in range(1, STEP + 1):
        if step == STEP:
            pipe.send("ready")
            pipe.recv()
            if leave_out is not None:
                leave_out_fsync(leave_out)
        ledger.write(step, 0.0, {"train/loss": 1.0})
        tensor = torch.full((50_000,), float(step))
        saver.start(Snapshot(step, {"weight": tensor}, {"step": step, "moment": tensor}, "", None))
        saver.wait()
    os._exit(0)  # the ledger's own last fsync is no part of a save


def leave_out_fsync(number: int) -> None:
    """From now on the fsync of that number does nothing."""
    fsync, calls = os.fsync, iter(range(10**6))
    os.fsync = lambda descriptor: None if next(calls) == number else fsync(descriptor)


def parse(text: str) -> Iterator[Event]:
    """Calls that succeeded, in the order in which they ended; what threads interleave is put together."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            rest = begun.pop(pid) + rest[resumed.end() :]
        if (found := re.match(r"(\w+)\((.*)\)\s+= \d", rest)) is None:
            continue
        call, arguments = found[1], found[2]
        named = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
        of_descriptor = re.findall(r"^\d+<([^>]*)>", arguments)
        call = {"renameat": "rename", "renameat2": "rename", "fdatasync": "fsync", "pwrite64": "write"}.get(
            call, call
        )
        yield Event(call, tuple(of_descriptor if call in ("write", "fsync") else named))
