"""What to say when a device's memory is full: what the run was predicted to take, and what to type."""

import psutil
import torch

from adamwprune.config import Config
from adamwprune.errors import ConfigError
from adamwprune.fit.forecast import forecast
from adamwprune.fit.memory import GIB, LIMIT, Predictor, device_bytes, divisors, workload
from adamwprune.fit.report import smaller
from adamwprune.fit.speed import MFU


def explanation(config: Config, device: torch.device, text: str) -> str:
    """One line for exit code 8. Predicted on tensors without memory, so it can be asked then.

    Args:
        config: of the run.
        device: that is full.
        text: torch's words.
    """
    size = config.hardware.micro_batch_size
    full = f"hardware.micro_batch_size={size}: does not fit into the memory of {device} ({text})"
    if (free := _free_bytes(device)) is not None:
        full += f"; {free / GIB:.2f} GiB are free"
    try:
        return f"{full}; {_prediction(config, _bytes_of(config, device))}"
    except (ConfigError, RuntimeError) as error:  # a user's model that cannot be followed
        return f"{full}; {error}; {_next_smaller(config, size // 2)}"


def _prediction(config: Config, memory: float) -> str:
    predictor, size = Predictor(workload(config)), config.hardware.micro_batch_size
    limit = LIMIT * memory
    needed = predictor.at(size)
    numbers = f"predicted {needed.total / GIB:.2f} of {memory / GIB:.2f} GiB ({needed})"
    if needed.total <= limit:
        return (
            f"{numbers}, which should fit: something else may use the device; "
            f"{_next_smaller(config, size // 2)}"
        )
    largest = predictor.largest(divisors(predictor.share), limit)
    if largest is None:
        return f"{numbers}; not even one sample fits into {LIMIT:.0%} of it: {smaller(forecast(config, MFU))}"
    return f"{numbers}; {LIMIT:.0%} of it hold {largest}: try hardware.micro_batch_size={largest}"


def _next_smaller(config: Config, most: int) -> str:
    """The largest micro batch, at most `most`, that the batch arithmetic allows."""
    share = config.trainer.global_batch_size // config.hardware.num_devices
    fitting = [size for size in divisors(share) if size <= most]
    return f"try hardware.micro_batch_size={fitting[-1]}" if fitting else "try a larger device"


def _free_bytes(device: torch.device) -> int | None:
    """What the device could still give when it was asked for too much; None where nobody can say."""
    try:
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0]
        return psutil.virtual_memory().available if device.type == "cpu" else None
    except (OSError, RuntimeError):
        return None


def _bytes_of(config: Config, device: torch.device) -> float:
    """The device's memory: what the configuration says, else the device, else the machine."""
    if (known := device_bytes(config)) is not None:
        return known
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)
