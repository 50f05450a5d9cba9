"""What the devices of a run and its host do: sampled once a second, in a thread of rank 0.

    perf/cpu_utilisation         share of the machine's cores that this process and its children use
    memory/host_gib              GiB resident in these; pages that they share count in each
    memory/host_available_gib    GiB that the machine could still give
    perf/gpu0_utilisation        share of the time in which a kernel ran
    memory/gpu0_gib              GiB in use on the device, the driver's own among them
    perf/gpu0_watts, perf/gpu0_celsius

A row has the means since the row before; of memory and temperature the highest, of available memory
the lowest. GPU figures come from NVML, and only of the CUDA devices of this run, in whose order they
are numbered. Both libraries know a device by its UUID; by number they do not agree, unless
CUDA_DEVICE_ORDER=PCI_BUS_ID. A machine without NVML has no figures of GPUs, a device that does not tell
one (a MIG slice its watts) has the others.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Protocol

import torch

log = logging.getLogger(__name__)

# Seconds between two samples, and those that stop() waits for one that is being taken.
PERIOD = 1.0
PATIENCE = 2.0
# Part of one core's time that looking for child processes may take: 12 us for each process of the machine.
SEARCH = 0.005
GIB = 2**30


class Source(Protocol):
    """Something that can be sampled."""

    def sample(self) -> dict[str, float]:
        """Figures of this moment, by name; those that cannot be had are left out."""


class DeviceSampler:
    """Samples in a daemon thread between start() and stop(); never raises into the loop, never blocks it.

    Args:
        cuda_devices: how many CUDA devices of this process, or which, the run uses on this machine.
    """

    def __init__(self, *, cuda_devices: int | Sequence[int] = 0) -> None:
        self._devices = range(cuda_devices) if isinstance(cuda_devices, int) else cuda_devices
        self._lock = threading.Lock()
        self._figures: dict[str, Spread] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)

    def start(self) -> None:
        """Start sampling, the first sample at once."""
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def __enter__(self) -> "DeviceSampler":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def row(self) -> dict[str, float]:
        """Figures over the samples since the last row; empty where there was none."""
        with self._lock:
            figures, self._figures = self._figures, {}
        return {name: spread.figure(name) for name, spread in figures.items()}

    def _run(self) -> None:
        try:
            with opened_gpus(self._devices) as gpus:
                sources: list[Source] = [Host(), *gpus]
                while not self._stopping.is_set():
                    for source in sources:
                        self._add(source.sample())
                    self._stopping.wait(PERIOD)
        except Exception as error:  # a thread's traceback would land in the middle of the progress bar
            log.debug("devices are no longer sampled: %s: %s", type(error).__name__, error)

    def _add(self, sample: dict[str, float]) -> None:
        with self._lock:
            for name, value in sample.items():
                self._figures.setdefault(name, Spread()).add(value)


@dataclass
class Spread:
    """Number, sum, lowest and highest of some values."""

    count: int = 0
    total: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, value: float) -> None:
        """Take one more value into account."""
        self.count += 1
        self.total += value
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)

    def figure(self, name: str) -> float:
        """What a row has of the metric `name`: what it came to at worst, or the mean of a rate."""
        if name.endswith("_available_gib"):
            return self.lowest
        return self.highest if name.endswith(("_gib", "_celsius")) else self.total / self.count


# ------------------------------------------------------------------------------------------- host


class Host:
    """CPU time and memory of this process and its children, and what the machine has left."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._process = psutil.Process()
        self._cores = psutil.cpu_count() or 1
        self._children: list[Any] = []
        self._search_at = -math.inf
        self._before: tuple[float, float] | None = None  # time, and seconds of CPU that were used by then

    def sample(self) -> dict[str, float]:
        """Memory now, CPU since the sample before; nothing where a child ended just now."""
        now = time.monotonic()
        try:
            family = [self._process, *self._find_children(now)]
            seconds = sum(_cpu_seconds(process) for process in family)
            resident = sum(process.memory_info().rss for process in family)
        except self._psutil.Error:
            self._search_at = -math.inf  # the next sample has its seconds, from its parent
            return {}
        before, self._before = self._before, (now, seconds)
        figures = {
            "memory/host_gib": resident / GIB,
            "memory/host_available_gib": self._psutil.virtual_memory().available / GIB,
        }
        if before and seconds >= before[1]:  # less where a child's time is lost, because nobody waits for it
            figures["perf/cpu_utilisation"] = (seconds - before[1]) / (now - before[0]) / self._cores
        return figures

    def _find_children(self, now: float) -> list[Any]:
        """All descendants; looked for at each sample, but less often where a machine has many processes."""
        if now >= self._search_at:
            self._children = self._process.children(recursive=True)
            self._search_at = now + (time.monotonic() - now) / SEARCH
        return self._children


def _cpu_seconds(process: Any) -> float:
    """What a process has used, and those of its children that have ended."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


# ------------------------------------------------------------------------------------------- GPUs


@dataclass(frozen=True)
class Gpu:
    """One device of this run, by its handle in NVML."""

    nvml: ModuleType
    handle: Any
    index: int  # among the run's

    def sample(self) -> dict[str, float]:
        """The figures that the device has."""
        nvml, handle, name = self.nvml, self.handle, f"gpu{self.index}"
        readings = {
            f"perf/{name}_utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            f"memory/{name}_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / GIB,
            f"perf/{name}_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            f"perf/{name}_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        figures = {}
        for figure, read in readings.items():
            with suppress(nvml.NVMLError):
                figures[figure] = float(read())
        return figures


@contextmanager
def opened_gpus(devices: Sequence[int]) -> Iterator[list[Gpu]]:
    """CUDA devices of this process as NVML has them; none where there is no NVML."""
    if not devices:
        yield []
        return
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no package, no library, no driver
        log.debug("no figures of GPUs: %s", error)
        yield []
        return
    try:
        handles = [(index, find(pynvml, device)) for index, device in enumerate(devices)]
        yield [Gpu(pynvml, handle, index) for index, handle in handles if handle is not None]
    finally:
        pynvml.nvmlShutdown()


def find(nvml: ModuleType, device: int) -> Any:
    """NVML's handle of this process's CUDA device `device`; None where it cannot be told for certain."""
    for look_up, name in _names(nvml, device):
        with suppress(nvml.NVMLError):
            handle = look_up(name)
            return None if _is_divided(nvml, handle) else handle
    log.debug("no figures of CUDA device %d, which NVML does not know", device)
    return None


def _names(nvml: ModuleType, device: int) -> list[tuple[Callable[[Any], Any], str | int]]:
    """What NVML may call a CUDA device, the likeliest first, and how it is asked for that."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    entry = visible[device].strip() if device < len(visible) else ""
    by_uuid = nvml.nvmlDeviceGetHandleByUUID
    if entry.startswith("MIG-"):  # the slice: other slices of its board are somebody else's
        return [(by_uuid, entry)]
    if uuid := getattr(torch.cuda.get_device_properties(device), "uuid", None):
        return [(by_uuid, f"GPU-{uuid}"), (by_uuid, f"MIG-{uuid}")]
    if entry.startswith("GPU-"):
        return [(by_uuid, entry)]
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return [(nvml.nvmlDeviceGetHandleByIndex, int(entry or device))]
    return []


def _is_divided(nvml: ModuleType, handle: Any) -> bool:
    """Whether this is a board in MIG slices, of which the process has one."""
    with suppress(nvml.NVMLError):
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    return False
