"""The OmegaConf resolvers of conf/: pure functions of what the configuration holds."""

import functools
from datetime import datetime

from omegaconf import OmegaConf

from adamwprune.checksum import local_checksum, model_slug


def grad_accum_steps(global_batch_size: int, micro_batch_size: int, num_devices: int) -> int:
    """Micro batches that each device accumulates per optimizer step.

    Raises:
        ValueError: the global batch is not a multiple of micro batch x devices, or a number is < 1.
    """
    _check_positive("trainer.global_batch_size", global_batch_size)
    _check_positive("hardware.micro_batch_size", micro_batch_size)
    _check_positive("hardware.num_devices", num_devices)
    steps, rest = divmod(global_batch_size, micro_batch_size * num_devices)
    if steps < 1 or rest:
        raise ValueError(
            f"trainer.global_batch_size={global_batch_size} is not a multiple of hardware.micro_batch_size="
            f"{micro_batch_size} x hardware.num_devices={num_devices}; "
            f"nearest: {_nearest_multiples(global_batch_size, micro_batch_size * num_devices)}"
        )
    return steps


def _check_positive(key: str, value: int) -> None:
    """The schema's ranges are checked after the resolvers have run: these would divide by zero."""
    if value < 1:
        raise ValueError(f"{key}={value}: must be >= 1")


def _nearest_multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return " or ".join(str(multiple) for multiple in (below, below + unit) if multiple)


def micro_batch_size(global_batch_size: int, num_devices: int, most: int) -> int:
    """The largest micro batch that divides a device's share of the global batch, at most `most`.

    Raises:
        ValueError: the global batch cannot be shared evenly between the devices, or a number is < 1.
    """
    _check_positive("trainer.global_batch_size", global_batch_size)
    _check_positive("hardware.num_devices", num_devices)
    _check_positive("recipe.micro_batch_size", most)
    share, rest = divmod(global_batch_size, num_devices)
    if share < 1 or rest:
        raise ValueError(
            f"trainer.global_batch_size={global_batch_size} is not a multiple of "
            f"hardware.num_devices={num_devices}; "
            f"nearest: {_nearest_multiples(global_batch_size, num_devices)}"
        )
    return next(size for size in range(min(share, most), 0, -1) if share % size == 0)


def ratio(part: float, whole: float) -> float:
    """Quotient of two numbers, for keys that are shares of others."""
    return part / whole


@functools.cache  # OmegaConf's own cache is per config: each composition of one launch must agree
def run_stamp(form: str) -> str:
    """The time of the launch: `form` is `date`, `time` or `name` (%Y%m%d_%H%M%S)."""
    return _launch_time().strftime({"date": "%Y-%m-%d", "time": "%H-%M-%S", "name": "%Y%m%d_%H%M%S"}[form])


@functools.cache
def _launch_time() -> datetime:
    return datetime.now()


project_checksum = functools.cache(local_checksum)


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf; calling it again changes nothing."""
    OmegaConf.register_new_resolver("grad_accum_steps", grad_accum_steps, replace=True)
    OmegaConf.register_new_resolver("micro_batch_size", micro_batch_size, replace=True)
    OmegaConf.register_new_resolver("ratio", ratio, replace=True)
    OmegaConf.register_new_resolver("run_stamp", run_stamp, replace=True)
    OmegaConf.register_new_resolver("model_slug", model_slug, replace=True)
    OmegaConf.register_new_resolver("project_checksum", project_checksum, replace=True)
