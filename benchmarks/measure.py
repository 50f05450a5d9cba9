"""How every benchmark here measures, so that its figures can be compared and repeated.

Arms take turns within one process, round by round, in an order that turns too: what else the
machine does hits all alike, and a ratio is one of the same round. A figure is the median over
rounds, with the least and the most. Seconds are taken twice: `wall`, and `cpu` of the whole process.
On a shared machine the CPU seconds of one thread repeat within percents, the wall seconds of
several not within factors. The file with the figures names machine, versions, code and command.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from adamwprune import run_directory

REPORTS = Path(__file__).parent / "reports"

Figure = TypeVar("Figure")

# -------------------------------------------------------------------------------------- clocks


class Seconds(NamedTuple):
    """A moment, or a duration: wall clock, and CPU time of all threads of this process."""

    wall: float
    cpu: float

    def per(self, count: int, start: "Seconds") -> "Seconds":
        """The `count`-th part of the time from `start` to here."""
        return Seconds((self.wall - start.wall) / count, (self.cpu - start.cpu) / count)


def now() -> Seconds:
    """Both clocks of this process, after an accelerator that it uses has done all that it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def steady_clock(threads: int, device: torch.device) -> Literal["wall", "cpu"]:
    """The clock that other work on the machine disturbs least and that counts what one waits for."""
    return "cpu" if threads == 1 and device.type == "cpu" else "wall"


def timed(work: Callable[[], Any], calls: int = 1) -> Seconds:
    """The mean time of a call, over `calls` of them in a row."""
    start = now()
    for _ in range(calls):
        work()
    return now().per(calls, start)


def interleave(arms: Mapping[str, Callable[[], Figure]], rounds: int) -> dict[str, list[Figure]]:
    """What each arm returned in each round; every second round takes them in reverse."""
    figures: dict[str, list[Figure]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            figures[name].append(arms[name]())
    return figures


def tensor_bytes() -> int:
    """Memory of all tensors that exist in this process; what several share counts once."""
    gc.collect()
    # By exact type: what compilation leaves behind are tensors without memory.
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = {storage.data_ptr(): storage.nbytes() for t in tensors if (storage := t.untyped_storage())}
    return sum(storages.values())


def peak_extra_bytes(work: Callable[[], Any]) -> int | None:
    """By how much the memory of this process rose above its start during `work`, at most.

    On an accelerator, if this process uses one, what tensors took there; else resident memory, within about
    100 KB: the high-water mark that Linux keeps, reset before. None where there is none. Do the work once
    before, since code that is used for the first time is loaded then. What glibc kept of memory freed
    earlier would hide a rise: it is given back first.
    """
    if torch.cuda.is_initialized():
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - start
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        start = _resident("VmRSS")
    except (OSError, AttributeError):
        start = None
    work()
    return None if start is None else max(0, _resident("VmHWM") - start)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: no {key}")


# ------------------------------------------------------------------------------------- figures


class Spread(NamedTuple):
    """Rounds in three numbers."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        median, least, most = (f"{n:.0f}" if abs(n) >= 1000 else f"{n:.4g}" for n in self)
        return f"{median} ({least} to {most})"


def spread(values: Iterable[float]) -> Spread:
    """Median, least and most of one figure's rounds."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratio(values: Iterable[float], base: Iterable[float]) -> Spread:
    """The ratio to another arm, formed within each round."""
    return spread(value / reference for value, reference in zip(values, base, strict=True))


def print_table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """A Markdown table, padded to read well in a terminal: names to the left, figures to the right."""
    rows = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |")


# ----------------------------------------------------------------------- command line and file


def argument_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: `--rounds`, `--threads`, `--json`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each arm (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures (below benchmarks/reports)")
    return parser


def machine() -> dict[str, Any]:
    """What figures depend on beside the code; call it after the threads are set."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": accelerator,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def report(figures: Mapping[str, Any], *, model: str, subject: str, file: Path | None = None) -> None:
    """Print machine and command below the table, and write both with the figures as JSON.

    The file is `<model>_<hardware>_<date>_<subject>.json` among the reports, unless `file` says otherwise.
    """
    facts = machine()
    command = f"python {shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])}"
    hardware = (facts["accelerator"] or "cpu").replace(" ", "-").lower()
    file = file or REPORTS / f"{model}_{hardware}_{time.strftime('%Y-%m-%d')}_{subject}.json"
    content = {"command": command, "machine": facts, "code": run_directory.code_revision(), **figures}
    file.write_text(json.dumps(_named(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print("machine: " + ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    print(f"command: {command}")
    print(f"figures: {os.path.relpath(file)}")


def _named(value: Any) -> Any:
    """Spreads as mappings, so that the file says which number is which."""
    if isinstance(value, Spread):
        return value._asdict()
    return {key: _named(item) for key, item in value.items()} if isinstance(value, Mapping) else value
