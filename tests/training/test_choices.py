"""What `auto` takes and says, on machines that this one is not."""

import json

import pytest
import torch

from adamwprune.config import Device, HardwareConfig, Precision
from adamwprune.errors import HardwareError
from adamwprune.preflight import check_devices
from adamwprune.training import random_state
from adamwprune.training.build import choose_device
from adamwprune.training.choices import chosen
from adamwprune.training.precision import choose
from tests.helpers.runs import IMAGES, configure, run

AUTO = HardwareConfig(device=Device.auto, precision=Precision.auto)


@pytest.fixture
def machine(monkeypatch):
    """Make this machine have `cuda` devices, or Apple's GPU."""

    def have(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: cuda > 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


def test_auto_is_the_first_of_cuda_mps_cpu(machine):
    """A device that is named is taken as it is."""
    for has, expected in (({"cuda": 2, "mps": True}, "cuda"), ({"mps": True}, "mps"), ({}, "cpu")):
        machine(**has)
        assert choose_device(Device.auto) == expected
        assert choose_device(Device.cpu) == "cpu"
    assert choose(Precision.auto, "mps") is Precision.fp32


def test_the_line_says_what_was_taken_and_why(machine, monkeypatch):
    """Device and precision, each only where it was left open."""
    machine()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    line = chosen(AUTO, torch.device("cpu"), Precision.fp32)
    assert "hardware.device=auto took cpu: torch" in line
    assert "finds no CUDA device" in line
    assert "hardware.precision=auto took fp32: on a CPU without AMX bf16 is slower" in line
    assert "\n" not in line
    assert chosen(HardwareConfig(), torch.device("cpu"), Precision.fp32) is None

    machine(cuda=4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A10G")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    line = chosen(AUTO, torch.device("cuda", 0), Precision.bf16)
    assert "auto took cuda: NVIDIA A10G, one of 4; hardware.num_devices=4 takes all" in line
    assert "auto took bf16: the device, of capability 8.6, has it in hardware" in line
    line = chosen(AUTO, torch.device("mps"), Precision.fp32)
    assert "auto took mps" in line
    assert "hardware.precision=bf16 tries it" in line


@pytest.mark.slow
def test_a_run_keeps_the_line(tmp_path):
    """In run.json, under hardware; null where nothing was left open."""
    for hardware, expected in (("auto", str), ("cpu", type(None))):
        directory = run(tmp_path / hardware, *IMAGES, f"hardware={hardware}", "trainer.max_steps=1")
        record = json.loads((directory / "run.json").read_text())
        assert isinstance(record["hardware"]["chosen"], expected)


def test_apples_gpu_is_refused_where_there_is_none_and_is_one(machine):
    """Exit 4, before anything is created."""
    machine()
    config = configure("hardware=mps")
    with pytest.raises(HardwareError, match=r"^hardware.device=mps: .*type hardware=cpu"):
        check_devices(config)
    machine(mps=True)
    check_devices(config)
    config.hardware.num_devices = 2
    with pytest.raises(HardwareError, match=r"^hardware.num_devices=2: Apple's GPU is one device"):
        check_devices(config)
    config.hardware.device = Device.auto
    with pytest.raises(HardwareError, match="is one device"):
        check_devices(config)


def test_each_machine_of_several_looks_for_its_own_devices(machine, monkeypatch):
    """torchrun's LOCAL_WORLD_SIZE counts, not all ranks."""
    config = configure("hardware=a10gx4")
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    machine(cuda=2)
    check_devices(config)
    machine(cuda=1)
    with pytest.raises(HardwareError, match=r"num_devices=4: needs 2 of them here, CUDA|needs 2"):
        check_devices(config)


def test_the_random_state_of_apples_gpu_is_kept(machine, monkeypatch):
    """Beside those of Python, NumPy and the CPU."""
    machine(mps=True)
    put_back = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", put_back.append)
    state = random_state.capture()
    random_state.restore(state)
    assert [tensor.tolist() for tensor in put_back] == [[7]]
