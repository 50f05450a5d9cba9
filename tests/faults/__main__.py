"""Do the faults and write one JSON of what came of them.

    python -m tests.faults --tier short                  under 4 minutes on 2 cores, in CI
    python -m tests.faults --tier long --out FILE        up to an hour; docs/reliability.md is made from it
    python -m tests.faults --only kills,sweeps           some of them

Each kind of fault is a process of its own with an empty HOME. The command ends with 1 if a promise
was broken or a control was not noticed.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.faults.harness import Control, Outcome, run_one, to_json, write

# In the order of reliability.md section 10; what takes all cores, and measures times, comes last and alone.
FAULTS = (
    "kills",
    "resume",
    "save_points",
    "omissions",
    "corruption",
    "power_cuts",
    "fsync_order",
    "full_disks",
    "disk_errors",
    "ranks",
    "trackers",
    "sweeps",
    "crowds",
    "divergence",
    "memory",
    "determinism",
    "releases",
    "hostile",
    "secrets",
    "signals",
    "chaos",
)
ALONE = ("bad_inputs",)
# Not part of the short tier unless named: unmarked tests have their essence, or they take minutes.
LONG_ONLY = ("memory", "determinism", "chaos")
ROOT = Path(__file__).resolve().parents[2]
# Seconds that one kind of fault may take.
LIMIT = {"short": 240, "long": 3600}


def main() -> int:
    """Run, print a line a fault, write the results."""
    options = arguments()
    if options.one:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as a terminal has it, under nohup too
        write(options.out, run_one(options.one, options.tier, options.seed, Path.cwd()))
        return 0
    started = time.monotonic()
    results: list[dict[str, Any]] = []

    def done(result: dict[str, Any]) -> None:
        results.append(result)
        show(result)
        if options.out:  # after each: an hour's work is not lost with its last minute
            merge(options.out, options, result)

    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda name: do(name, options), [n for n in options.only if n not in ALONE]):
            done(result)
    for name in options.only:
        if name in ALONE:
            done(do(name, options))
    broken = [result["name"] for result in results if not result["holds"]]
    verdict = f"broken: {', '.join(broken)}" if broken else "all promises kept"
    print(f"{len(results)} kinds of fault in {time.monotonic() - started:.0f} s; {verdict}")
    return int(bool(broken))


def arguments() -> argparse.Namespace:
    """The command line; `only` is a list of faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tier", choices=["short", "long"], default="short")
    parser.add_argument("--only", help="names of faults, with commas; the others keep their results in --out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="faults at a time")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    every = (*FAULTS, *ALONE)
    usual = [name for name in every if options.tier == "long" or name not in LONG_ONLY]
    options.only = options.only.split(",") if options.only else usual
    if unknown := set(options.only) - set(every):
        parser.error(f"--only: no such fault: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    return options


def do(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One kind of fault in a process and an empty folder of its own."""
    with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as folder:
        scratch, home, out = Path(folder, "scratch"), Path(folder, "home"), Path(folder, "result.json")
        scratch.mkdir()
        home.mkdir()
        command = [sys.executable, "-m", "tests.faults", "--one", name, "--tier", options.tier]
        command += ["--seed", str(options.seed), "--out", str(out)]
        console = Path(folder, "console.txt")
        with console.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=scratch,
                env=environment(home),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            try:
                process.wait(LIMIT[options.tier])
            except subprocess.TimeoutExpired:
                kill_all(process)
        if out.exists():
            return json.loads(out.read_text(encoding="utf-8"))
        said = " | ".join(console.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:])
        failed = Outcome(name, "the harness comes to an end", failures=[f"it did not: {said}"])
        return to_json(failed, name, options.tier, options.seed, LIMIT[options.tier])


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all below it, whichever session they are in."""
    below = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def environment(home: Path) -> dict[str, str]:
    """That of this process without accounts and settings of trackers; one thread, a HOME of its own."""
    ours = ("WANDB_", "HF_", "TRACKIO_", "ADAMWPRUNE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"HOME": str(home), "TRACKIO_DIR": str(home / "trackio"), "PYTHONPATH": path}
    return {**kept, **own, "OMP_NUM_THREADS": "1"}


def show(result: dict[str, Any]) -> None:
    """One line on the terminal, and what is wrong."""
    verdict = "skipped" if result["skipped"] else "kept" if result["holds"] else "BROKEN"
    figures = ", ".join(f"{name} {value}" for name, value in result["figures"].items()) or result["skipped"]
    head = f"{result['name']:14} {verdict:8} {result['trials']:6} trials {result['seconds']:6.0f} s"
    print(f"{head}  {figures}", flush=True)
    for line in [*result["failures"][:5], *result["missed"]]:
        print(f"    {line}", flush=True)
    for control in result["controls"]:
        if not Control(**control).holds:
            noticed = f"{control['noticed']} of {control['trials']}"
            print(f"    control not noticed: {control['what']}: {noticed}", flush=True)


def merge(file: Path, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Put a result in its place among those of the file, with the machine that it is from."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"faults": []}
    others = {fault["name"]: fault for fault in before["faults"]} | {result["name"]: result}
    faults = [others[name] for name in (*FAULTS, *ALONE) if name in others]
    about = {
        "command": f"python -m tests.faults --tier {options.tier}",
        "seconds": round(sum(fault["seconds"] for fault in faults)),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch").partition("+")[0],
        "system": f"{platform.system()} {platform.machine()}",
    }
    write(file, {**about, "faults": faults})


if __name__ == "__main__":
    sys.exit(main())
