"""The files of conf/hardware_model: the largest micro batch of a model on a device, a power of two.

    python -m adamwprune.fit model=gpt2 hardware=a10g optimizer=adamwprune --hardware-model

prints conf/hardware_model/a10g_gpt2.yaml. It is of what the command says, with accumulation; the shipped
files are of AdamW's moments and of masks. Each has its command in it, which a test runs again.
"""

import shlex
from collections.abc import Mapping, Sequence

from adamwprune.config import Config
from adamwprune.errors import ConfigError, OutOfMemoryError
from adamwprune.fit.memory import GIB, LIMIT, Predictor, Traces, device_bytes, workload

# Larger micro batches gain nothing.
MOST = 1024


def text(
    config: Config, choices: Mapping[str, str], overrides: Sequence[str], traces: Traces | None = None
) -> str:
    """The file's content.

    Args:
        config: what runs.
        choices: its options.
        overrides: what it was composed of, for the command in the file.
        traces: see Predictor.

    Raises:
        ConfigError: the device's memory is unknown.
        OutOfMemoryError: not even one sample fits.
    """
    pair = f"model={choices['model']} hardware={choices['hardware']}"
    device = device_bytes(config)
    if device is None:
        raise ConfigError(f"hardware.memory_gb=null: {pair}: unknown; give GB of one device")
    predictor = Predictor(workload(config), traces)
    sizes = [2**power for power in range(MOST.bit_length())]
    size = predictor.largest(sizes, LIMIT * device, grad_accum_steps=2)
    if size is None:
        raise OutOfMemoryError(f"{pair}: not even one sample fits, {predictor.at(1, 2)}")
    peak = predictor.at(size, 2).total
    sample = "sequences" if predictor.load.unit == "tokens" else "images"
    return (
        "# @package recipe\n"
        f"# {choices['model']} on {choices['hardware']}: {peak / GIB:.1f} of {device / GIB:.1f} GiB (eager), "
        "predicted by\n"
        f"# python -m adamwprune.fit {shlex.join(overrides)} --hardware-model\n\n"
        f"# Largest micro batch: {sample} per device in one forward and backward pass.\n"
        f"micro_batch_size: {size}\n"
    )
