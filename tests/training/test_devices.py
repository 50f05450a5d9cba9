"""Sampled figures: of this run's devices and processes, of no others; never in the loop's way."""

import contextlib
import itertools
import logging
import math
import resource
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from adamwprune.training import devices
from adamwprune.training.devices import DeviceSampler, Host

HOST = {"memory/host_gib", "memory/host_available_gib", "perf/cpu_utilisation"}


def of_gpu(index):
    return {f"perf/gpu{index}_{name}" for name in ("utilisation", "watts", "celsius")} | {
        f"memory/gpu{index}_gib"
    }


# ---------------------------------------------------------------------------- a machine with GPUs


class NVMLError(Exception):
    """What NVML says instead of a figure."""


class Board:
    """One device: NVML's handle of it, which counts who reads it."""

    def __init__(self, letter, prefix="GPU-", divided=False, **figures):
        self.uuid = f"{letter * 8}-{letter * 4}-{letter * 4}-{letter * 4}-{letter * 12}"
        self.name = prefix + self.uuid
        self.divided = divided
        self.reads = 0
        self.figures = {"utilisation": [50], "gib": [1], "watts": [100], "celsius": [40], **figures}
        self.exhausted = threading.Event()

    def read(self, figure):
        """The next value of a series, whose last one repeats; None is not supported."""
        self.reads += 1
        series = self.figures[figure]
        value = series[0]
        if len(series) > 1:
            del series[0]
        elif figure == "celsius":  # which is read last
            self.exhausted.set()
        if value is None:
            raise NVMLError("Not Supported")
        return value


class FakeNvml:
    """The part of pynvml that is used, over boards in the order of the bus."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, boards, driver=True):
        self.boards, self.driver, self.open = boards, driver, 0

    def nvmlInit(self):
        if not self.driver:
            raise NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, name):
        for board in self.boards:
            if board.name == name:
                return board
        raise NVMLError("Not Found")

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.boards[index]

    def nvmlDeviceGetMigMode(self, board):
        if board.name.startswith("MIG-"):
            raise NVMLError("Invalid Argument")
        return [int(board.divided), int(board.divided)]

    def nvmlDeviceGetUtilizationRates(self, board):
        return SimpleNamespace(gpu=board.read("utilisation"), memory=99)

    def nvmlDeviceGetMemoryInfo(self, board):
        return SimpleNamespace(used=board.read("gib") * 2**30, free=0, total=0)

    def nvmlDeviceGetPowerUsage(self, board):
        return board.read("watts") * 1000

    def nvmlDeviceGetTemperature(self, board, sensor):
        return board.read("celsius")


@pytest.fixture
def machine(monkeypatch):
    """Puts boards into this machine; CUDA counts those that are visible in an order of its own."""

    def put(boards, cuda_order=None, visible=None, driver=True, has_uuids=True):
        cuda_order = boards if cuda_order is None else cuda_order
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            seen = cuda_order
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            seen = [_cuda_device(cuda_order, entry.strip()) for entry in visible.split(",")]
        nvml = FakeNvml(boards, driver)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda i: SimpleNamespace(name="board", **({"uuid": seen[i].uuid} if has_uuids else {})),
        )
        return nvml

    monkeypatch.setattr(devices, "PERIOD", 0.001)
    return put


def _cuda_device(order, entry):
    """What CUDA takes for an entry of CUDA_VISIBLE_DEVICES: a number in its order, or a name."""
    if entry.isdigit():
        return order[int(entry)]
    return next(board for board in order if board.name.startswith(entry))


def sampled(boards, sampler):
    """The row after the given boards have shown the last value of their series."""
    with sampler:
        for board in boards:
            assert board.exhausted.wait(10.0)
    return sampler.row()


# --------------------------------------------------------------------------------- which devices


@pytest.mark.parametrize(
    "visible", [None, "0,1,2", *(",".join(order) for order in itertools.permutations("012", 2)), "2", "1, 0"]
)
def test_devices_are_those_of_cuda_in_its_order(machine, visible):
    """CUDA numbers the fastest first, NVML along the bus; the figures follow CUDA. Others stay alone."""
    slow, fast, other = boards = [
        Board(letter, watts=[watts]) for letter, watts in (("a", 100), ("b", 200), ("c", 300))
    ]
    order = [fast, other, slow]
    machine(boards, cuda_order=order, visible=visible)
    entries = ["0", "1", "2"] if visible is None else visible.split(",")
    used = [order[int(entry)] for entry in entries][:2]
    row = sampled(used, DeviceSampler(cuda_devices=len(used)))
    assert [row[f"perf/gpu{i}_watts"] for i in range(len(used))] == [
        {slow: 100, fast: 200, other: 300}[board] for board in used
    ]
    assert not any(board.reads for board in boards if board not in used), "somebody else's device was read"
    assert {name for name in row if "gpu" in name} == set().union(*(of_gpu(i) for i in range(len(used))))


def test_by_number_alone_it_would_be_another_device(machine):
    """Control of the test above: NVML's device 0 is not CUDA's."""
    boards = [Board("a"), Board("b")]
    nvml = machine(boards, cuda_order=boards[::-1])
    assert devices.find(nvml, 0) is not nvml.nvmlDeviceGetHandleByIndex(0)


def test_chosen_devices_are_numbered_as_chosen(machine):
    boards = [Board("a", celsius=[50]), Board("b", celsius=[60]), Board("c", celsius=[70])]
    machine(boards)
    row = sampled([boards[2], boards[0]], DeviceSampler(cuda_devices=[2, 0]))
    assert (row["perf/gpu0_celsius"], row["perf/gpu1_celsius"]) == (70.0, 50.0)
    assert boards[1].reads == 0


def test_devices_visible_by_name(machine):
    """By UUID, also a shortened one, which CUDA takes and NVML would not."""
    boards = [Board("a"), Board("b"), Board("c")]
    nvml = machine(boards, visible=f"{boards[2].name},GPU-aaaa")
    assert [devices.find(nvml, i) for i in range(2)] == [boards[2], boards[0]]


def test_a_slice_is_read_and_its_board_is_not(machine, monkeypatch):
    """MIG: CUDA's properties may name the board, whose other slices belong to others."""
    board = Board("a", divided=True)
    mine = Board("b", prefix="MIG-", watts=[None], utilisation=[None], celsius=[None], gib=[7])
    nvml = machine([board, mine], visible=mine.name)
    row = sampled([mine], DeviceSampler(cuda_devices=1))
    assert {name for name in row if "gpu" in name} == {"memory/gpu0_gib"}, "all that a slice tells"
    assert row["memory/gpu0_gib"] == 7.0
    assert board.reads == 0
    machine([board, mine], cuda_order=[board])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mine.name)
    assert devices.find(nvml, 0) is mine, "the slice that is visible, whatever CUDA's properties name"
    machine([board, mine], cuda_order=[mine])
    assert devices.find(nvml, 0) is mine, "CUDA names the slice itself, without a prefix"
    machine([board, mine], cuda_order=[board])
    assert devices.find(nvml, 0) is None, "the board stands for all slices"


@pytest.mark.parametrize(
    ("visible", "order", "found"),
    [
        ("1,0", "PCI_BUS_ID", [1, 0]),
        (None, "PCI_BUS_ID", [0, 1]),
        ("1,0", "FASTEST_FIRST", [None, None]),
        (None, None, [None, None]),
        ("{name}", None, [1]),
    ],
)
def test_without_uuids_only_what_is_certain_is_read(machine, monkeypatch, visible, order, found):
    """A number means the same to CUDA and NVML in one order only; a full name always does."""
    boards = [Board("a"), Board("b")]
    visible = visible and visible.format(name=boards[1].name)
    nvml = machine(boards, visible=visible, has_uuids=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if order:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    expected = [None if i is None else boards[i] for i in found]
    assert [devices.find(nvml, i) for i in range(len(found))] == expected


# ----------------------------------------------------------------------------------- which figures


def test_a_row_has_means_and_extremes_since_the_row_before(machine):
    """Means of utilisation and watts, the highest memory and temperature, in the units of the names."""
    board = Board(
        "a", utilisation=[0, 100, 20], gib=[3, 9, 6], watts=[100, 300, 200], celsius=[50, 70, 60, 60]
    )
    nvml = machine([board])
    row = sampled_exactly(nvml, samples=3)
    gpu = {name: value for name, value in row.items() if "gpu" in name}
    assert gpu == pytest.approx(
        {
            "perf/gpu0_utilisation": 0.4,
            "memory/gpu0_gib": 9.0,
            "perf/gpu0_watts": 200.0,
            "perf/gpu0_celsius": 70.0,
        }
    )


def sampled_exactly(nvml, samples):
    """The row of as many samples, taken without the thread."""
    sampler = DeviceSampler(cuda_devices=1)
    with devices.opened_gpus(range(1)) as gpus:
        for _ in range(samples):
            sampler._add(gpus[0].sample())
    return sampler.row()


def test_rows_do_not_share_samples(machine):
    """What one row has shown, the next has not; without a sample in between it is empty."""
    board = Board("a", celsius=[90, 40, 40])
    machine([board])
    sampler = DeviceSampler(cuda_devices=1)
    with sampler:
        assert board.exhausted.wait(10.0)
        assert sampler.row()["perf/gpu0_celsius"] == 90.0
        board.exhausted.clear()
        assert board.exhausted.wait(10.0)
    assert sampler.row()["perf/gpu0_celsius"] == 40.0
    assert sampler.row() == {}


@pytest.mark.parametrize("missing", ["utilisation", "gib", "watts", "celsius"])
def test_a_figure_that_a_device_does_not_have_is_left_out(machine, missing):
    """It alone; the other device has all of them."""
    lacking, whole = Board("a", **{missing: [None]}), Board("b")
    machine([lacking, whole])
    row = sampled([lacking, whole], DeviceSampler(cuda_devices=2))
    left_out = {name for name in of_gpu(0) if name.endswith(f"_{missing}")}
    assert {name for name in row if "gpu" in name} == (of_gpu(0) | of_gpu(1)) - left_out
    assert len(left_out) == 1


@pytest.mark.parametrize("absent", ["driver", "package"])
def test_a_machine_without_nvml_has_the_figures_of_its_host(machine, monkeypatch, caplog, absent):
    """One line for developers, nothing for users."""
    caplog.set_level(logging.DEBUG)
    machine([], driver=False)
    if absent == "package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    with DeviceSampler(cuda_devices=2) as sampler:
        assert set(rows_until(sampler, HOST)) == HOST
    assert [record.levelname for record in caplog.records if record.name == devices.__name__] == ["DEBUG"]


def test_a_run_on_the_cpu_leaves_gpus_alone(machine):
    """Not even the driver is asked, which may take seconds to start."""
    board = Board("a")
    nvml = machine([board])
    nvml.nvmlInit = pytest.fail
    with DeviceSampler() as sampler:
        assert set(rows_until(sampler, HOST)) == HOST
    assert board.reads == 0


def rows_until(sampler, names):
    """All rows joined until they have had the figures `names`."""
    row = {}
    deadline = time.monotonic() + 10.0
    while not names <= row.keys() and time.monotonic() < deadline:
        row |= sampler.row()
        time.sleep(0.001)
    return row


# ------------------------------------------------------------------------------- beside training


def test_the_thread_ends_and_closes_nvml(machine):
    board = Board("a")
    nvml = machine([board])
    sampler = DeviceSampler(cuda_devices=1)
    with contextlib.suppress(KeyError), sampler:
        assert board.exhausted.wait(10.0)
        assert nvml.open == 1
        raise KeyError("training failed")
    assert "devices" not in {thread.name for thread in threading.enumerate()}
    assert nvml.open == 0
    reads = board.reads
    time.sleep(0.02)
    assert board.reads == reads, "sampled after its end"


def test_a_driver_that_hangs_holds_nobody_up(machine, monkeypatch):
    """row() and stop() come back; the thread does not keep the process."""
    monkeypatch.setattr(devices, "PATIENCE", 0.05)
    release, hung = threading.Event(), threading.Event()
    nvml = machine([Board("a")])

    def hang(_):
        hung.set()
        release.wait(60.0)
        return SimpleNamespace(gpu=1)

    nvml.nvmlDeviceGetUtilizationRates = hang
    sampler = DeviceSampler(cuda_devices=1)
    sampler.start()
    assert hung.wait(10.0)
    assert "memory/host_gib" in sampler.row()
    assert sampler.row() == {}
    sampler.stop()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "devices"]
    assert thread.daemon
    release.set()
    thread.join(10.0)


@pytest.mark.parametrize("where", ["nvmlDeviceGetHandleByUUID", "nvmlDeviceGetPowerUsage", "nvmlShutdown"])
def test_a_bug_ends_sampling_and_nothing_else(machine, monkeypatch, caplog, where):
    """Whatever a library raises: no traceback in the middle of the progress bar, no row that fails."""
    caplog.set_level(logging.DEBUG)
    tracebacks = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    board, reached = Board("a"), threading.Event()
    nvml = machine([board])

    def broken(*_):
        reached.set()
        raise ValueError("a bug")

    setattr(nvml, where, broken)
    with DeviceSampler(cuda_devices=1) as sampler:
        assert (board.exhausted if where == "nvmlShutdown" else reached).wait(10.0)
        sampler.row()
    assert reached.is_set()
    assert tracebacks == []
    assert "ValueError: a bug" in caplog.text


def test_other_ranks_have_a_sampler_that_never_starts():
    sampler = DeviceSampler(cuda_devices=4)
    assert sampler.row() == {}
    sampler.stop()


# ------------------------------------------------------------------------------- the real host

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="accounting of children as Linux has it"
)


@pytest.fixture
def host(monkeypatch):
    """The figures of this process, which looks for its children at every sample."""
    monkeypatch.setattr(devices, "SEARCH", math.inf)
    return Host()


def child(code):
    """A child process that says when its code has run, and ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", f"{code}\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    return process


def burn(seconds):
    """Code that uses as much CPU time, however busy the machine is."""
    return f"import time\nwhile time.process_time() < {seconds}: pass"


@linux
def test_memory_of_children_counts(host):
    """200 MB that a child holds are seen and go with it; control: one that holds nothing."""
    alone = host.sample()["memory/host_gib"]
    assert alone > 0.9 * psutil.Process().memory_info().rss / 2**30
    for megabytes in (0, 200):
        process = child(f"held = bytearray(b'x' * 1_000_000) * {megabytes}")
        grown = (host.sample()["memory/host_gib"] - alone) * 2**30 / 1e6
        process.communicate("\n")
        assert megabytes <= grown < megabytes + 100
    assert host.sample()["memory/host_gib"] == pytest.approx(alone, abs=0.05)


@linux
@pytest.mark.parametrize("who", ["this process", "a child that lives", "a child that has ended", "nobody"])
def test_cpu_of_the_family_counts(host, who):
    """The figure times cores and seconds is the CPU time that was used, to a few clock ticks of 10 ms."""
    host.sample()
    started, own, theirs = time.monotonic(), time.process_time(), 0.0
    if who == "this process":
        exec(burn(own + 0.2))
    elif who == "nobody":
        time.sleep(0.2)
    else:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process, theirs = child(burn(0.2)), 0.2
        if who == "a child that has ended":
            process.communicate("\n")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            theirs = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    share = host.sample()["perf/cpu_utilisation"]
    used = share * psutil.cpu_count() * (time.monotonic() - started)
    assert used == pytest.approx(time.process_time() - own + theirs, abs=0.06)
    assert (used > 0.15) == (who != "nobody")
    if who == "a child that lives":
        process.communicate("\n")


def test_a_child_that_ends_while_it_is_read_costs_one_sample(host, monkeypatch):
    """Nothing in that one; the next covers both periods."""
    process = child("")
    monkeypatch.setattr(devices, "SEARCH", 1e-9)  # not looked for again: the dead one stays on the list
    host.sample()
    process.communicate("\n")
    assert host.sample() == {}
    assert host.sample().keys() == HOST


def test_looking_for_children_has_a_budget(monkeypatch):
    """Where a machine has so many processes that looking takes 0.1 s, the next look is 20 s later."""
    now, looks = [100.0], []
    host = Host()
    monkeypatch.setattr(devices.time, "monotonic", lambda: now[0])

    def children(recursive):
        looks.append(now[0])
        now[0] += 0.1
        return []

    monkeypatch.setattr(host, "_process", SimpleNamespace(children=children))
    for second in range(100, 160):
        now[0] = max(now[0], float(second))
        host._find_children(now[0])
    assert looks == [100.0, 120.0, 140.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_real_devices_of_this_process():
    """All figures, within what is possible; memory grows by what torch takes."""
    held = torch.zeros(1, device="cuda")
    with DeviceSampler(cuda_devices=1) as sampler:
        before = rows_until(sampler, of_gpu(0))
        assert of_gpu(0) <= before.keys()
        held = torch.zeros(2**29, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        sampler.row()
        time.sleep(2.0 * devices.PERIOD)
        after = sampler.row()
    del held
    assert 0.0 <= after["perf/gpu0_utilisation"] <= 1.0
    assert 1.0 < after["perf/gpu0_watts"] < 2000.0
    assert 0.0 < after["perf/gpu0_celsius"] < 120.0
    assert after["memory/gpu0_gib"] - before["memory/gpu0_gib"] > 0.4
