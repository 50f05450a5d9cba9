"""What is allowed and yet seldom meant: a line each on standard error before the run, which goes on."""

from collections.abc import Iterator

from adamwprune.config import Config, Device
from adamwprune.cores import usable_cores

# Above it no optimizer here trains; a typo of an exponent is far above.
USUAL_LR = 10.0
WORKERS_PER_CORE = 4


def doubts(config: Config) -> Iterator[str]:
    """One line each, as `key=value: why; what is usual`."""
    lr = config.optimizer.get("lr")
    if isinstance(lr, float | int) and lr > USUAL_LR:
        yield f"optimizer.lr={lr:g}: usual values lie between 1e-5 and 1; the run will probably diverge"
    cores, hardware = usable_cores(), config.hardware
    if hardware.num_workers > WORKERS_PER_CORE * cores:
        yield (
            f"hardware.num_workers={hardware.num_workers}: more than {WORKERS_PER_CORE} x {cores} cores gain "
            f"nothing; {WORKERS_PER_CORE * cores} is the most that can help"
        )
    if hardware.device is Device.cpu and hardware.num_devices > cores:
        yield (
            f"hardware.num_devices={hardware.num_devices}: more processes than the {cores} cores that this "
            "one may use; they will wait for each other"
        )
