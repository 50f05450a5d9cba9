"""Whether there is room for a run: for its checkpoints on the disk, and for its states on the GPU.

Predicted from the model without memory, before anything is created (fit/ has the arithmetic).
"""

import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adamwprune.config import Config, Device
from adamwprune.errors import ConfigError, DiskError, HardwareError
from adamwprune.explanations import first_line

if TYPE_CHECKING:
    from adamwprune.fit.memory import Predictor

MB = 2**20
# What a run writes beside its checkpoints: rows, logs, plots, trackers' files.
MARGIN = 2 * MB


def existing(folder: Path) -> Path:
    """The folder, or what there is above it."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_writable(folder: Path, key: str) -> None:
    """The file system takes and keeps 4 KiB where the run's folder will be; nothing stays.

    Raises:
        DiskError: it does not, such as one that is full or read-only.
    """
    place = existing(folder)
    probe = place / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
        written, renamed = probe / "written", probe / "renamed"
        with written.open("wb") as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
        written.rename(renamed)
        renamed.unlink()
    except OSError as error:
        raise DiskError(
            f"{key}={folder}: {place} takes no file ({error.strerror}); choose a folder that you can write to"
        ) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(probe)


def check_room(config: Config, folder: Path) -> None:
    """The disk holds the checkpoints that are kept, the best and the one being written; the GPU the states.

    Raises:
        DiskError, HardwareError: with what is needed and what is free.
    """
    from adamwprune.fit.memory import Predictor, workload

    try:
        predictor = Predictor(workload(config))
    except (ConfigError, RuntimeError, TypeError):  # a user's own model or data, which cannot be followed
        return
    _check_disk(config, predictor, folder)
    if config.hardware.device in (Device.cuda, Device.auto):
        _check_gpus(config, predictor)


def _check_disk(config: Config, predictor: "Predictor", folder: Path) -> None:
    from adamwprune.fit.speed import checkpoint_bytes, checkpoints_at_a_time

    place, one = existing(folder), checkpoint_bytes(predictor)
    count = checkpoints_at_a_time(config.checkpoint.keep)
    needed, free = count * one + MARGIN, shutil.disk_usage(place).free
    if free < needed:
        raise DiskError(
            f"checkpoint.keep={config.checkpoint.keep}: needs {_mb(needed)} MB ({count} checkpoints of "
            f"{_mb(one)} MB and {_mb(MARGIN)} MB for the rest), {_mb(free)} MB are free at {place}; free "
            "some, or choose another hydra.run.dir"
        )


def _check_gpus(config: Config, predictor: "Predictor") -> None:
    """No GPU is so full already that not even weights, gradients and states fit, as they would otherwise."""
    import torch

    from adamwprune.fit.memory import tensor_bytes

    count = torch.cuda.device_count()
    needed = 2 * tensor_bytes(predictor.model) + predictor.optimizer_bytes + predictor.pruning_bytes
    for index in range(min(count, int(os.environ.get("LOCAL_WORLD_SIZE", config.hardware.num_devices)))):
        free, total = torch.cuda.mem_get_info(index)
        if free < needed <= total:
            raise HardwareError(
                f"hardware.device=cuda: GPU {index} has {_mb(free)} of {_mb(total)} MB free, and weights, "
                f"gradients and states alone need {_mb(needed)} MB; {_holders(index)}, or choose another GPU "
                "with CUDA_VISIBLE_DEVICES"
            )


def _holders(index: int) -> str:
    """Who has the memory, as far as the driver says."""
    import torch

    try:
        listed = re.findall(r"process\s+(\d+)", torch.cuda.list_gpu_processes(index))
    except Exception as error:  # of NVML, which may be missing: it must not hide what is wrong
        return f"nvidia-smi shows who has it ({first_line(error)}); end that"
    return f"end process {', '.join(listed)}" if listed else "nvidia-smi shows who has it; end that"


def _mb(size: float) -> str:
    return f"{size / MB:,.0f}"
