"""What `auto` chose on this machine, and why: one line for the log and for run.json."""

import torch

from adamwprune.config import Device, HardwareConfig, Precision


def chosen(hardware: HardwareConfig, device: torch.device, precision: Precision) -> str | None:
    """The line; None where hardware.device and hardware.precision say what to take.

    Args:
        hardware: as configured.
        device: what the run took.
        precision: what the run took.
    """
    said = []
    if hardware.device is Device.auto:
        said.append(f"hardware.device=auto took {device.type}: {_why_device(device)}")
    if hardware.precision is Precision.auto:
        said.append(f"hardware.precision=auto took {precision.name}: {_why_precision(device, precision)}")
    return "; ".join(said) or None


def _why_device(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.device_count()
        more = "" if found == 1 else f", one of {found}; hardware.num_devices={found} takes all"
        return f"{torch.cuda.get_device_name(device)}{more}"
    if device.type == "mps":
        return "there is no CUDA device, but Apple's GPU"
    return f"torch {torch.__version__} finds no CUDA device, nor Apple's GPU"


def _why_precision(device: torch.device, precision: Precision) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        has = "has" if precision is Precision.bf16 else "does not have"
        return f"the device, of capability {major}.{minor}, {has} it in hardware"
    if device.type == "mps":
        return "bf16 is not measured on Apple's GPU; hardware.precision=bf16 tries it"
    if torch.cpu._is_amx_tile_supported():
        return "bf16 is not measured on this CPU, which has AMX; hardware.precision=bf16 tries it"
    return "on a CPU without AMX bf16 is slower"
