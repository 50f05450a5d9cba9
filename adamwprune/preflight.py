"""What must be true of this machine before a run is worth starting; nothing is created before.

Cheapest first: devices (exit 4), trackers (6), initial weights (5), data (3), then what only the
objects know: whether the model takes its shape, has the weights that patterns name, and whether
the optimizer keeps the state that the criterion scores by (2).
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adamwprune.config import Config, Device, Parallel, Precision, update_steps
from adamwprune.errors import ConfigError, HardwareError, TrackerError
from adamwprune.explanations import first_line
from adamwprune.targets import build
from adamwprune.trackers.backend import missing_packages
from adamwprune.training.budget import total_steps
from adamwprune.validation import plan_problems, warmup_problems

if TYPE_CHECKING:
    from adamwprune.data.base import Data


def is_rank() -> bool:
    """Whether a launcher such as torchrun started this process as one rank of several."""
    return "LOCAL_RANK" in os.environ


def check_machine(config: Config) -> None:
    """All checks below, in order.

    Raises:
        RunError: the first that fails, with what to type instead.
    """
    check_devices(config)
    check_choices(config)


def check_choices(config: Config) -> None:
    """All but the devices, which may be those of another machine.

    Raises:
        RunError: the first that fails, with what to type instead.
    """
    check_trackers(config)
    check_weights(config)
    data = check_data(config)
    shapes = check_model(config, data)
    check_pruning_fits(config, data, shapes)
    check_sharding(config, shapes)


def check_devices(config: Config) -> None:
    """As many devices of the kind as asked for, and as many ranks as a launcher started."""
    hardware = config.hardware
    started = int(os.environ.get("WORLD_SIZE", 1))
    if is_rank() and started != hardware.num_devices:
        raise HardwareError(
            f"hardware.num_devices={hardware.num_devices}: but WORLD_SIZE={started} ranks were started; "
            f"start as many, or add hardware.num_devices={started}"
        )
    if hardware.device is Device.cpu:
        return
    import torch  # only where a device has to be looked for

    found, has_mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if hardware.device is Device.mps or (hardware.device is Device.auto and found == 0 and has_mps):
        _check_mps(config, has_mps)
        return
    if hardware.device is Device.auto and found == 0:
        if hardware.precision is Precision.fp16:
            raise HardwareError(
                "hardware.precision=fp16: found no CUDA device, and a CPU has no fp16; use fp32 or bf16"
            )
        return
    # Of several machines each looks for its own.
    needed = int(os.environ.get("LOCAL_WORLD_SIZE", hardware.num_devices))
    if found < needed:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        where = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        count = "as many" if needed == hardware.num_devices else f"{needed} of them here,"
        raise HardwareError(
            f"hardware.num_devices={hardware.num_devices}: needs {count} CUDA devices, found {found}{where}; "
            "type hardware=cpu instead"
            + (f", or hardware.num_devices={found}" if found else "")
            + _small_gpt2(config)
        )


def _check_mps(config: Config, has_mps: bool) -> None:
    """Apple's GPU is there, and it is one device."""
    if not has_mps:
        raise HardwareError(
            "hardware.device=mps: this torch finds no GPU of Apple's; type hardware=cpu instead"
            + _small_gpt2(config)
        )
    if config.hardware.num_devices > 1:
        raise HardwareError(
            f"hardware.num_devices={config.hardware.num_devices}: Apple's GPU is one device; use 1, or "
            "hardware.device=cpu"
        )


def _small_gpt2(config: Config) -> str:
    """The end of a refusal, for those who wanted GPT-2."""
    is_gpt2 = config.model["_target_"].endswith(".GPT2")
    return " (for GPT-2 in minutes on a CPU: experiment=gpt2-shakespeare-cpu)" if is_gpt2 else ""


def check_trackers(config: Config) -> None:
    """The package of every chosen tracker is installed."""
    if missing := missing_packages(config.tracker):
        name, line = missing[0]
        raise TrackerError(f"tracker={name}: its package is not installed; {line}, or use tracker=none")


def check_weights(config: Config) -> None:
    """The file of `model.weights` is that of this model, by its header; before data are prepared for it."""
    if not config.model.get("weights"):
        return
    import torch

    from adamwprune.training.build import model_node, names_weights

    if names_weights(config):
        with torch.device("meta"):
            build(model_node(config), "model")()


def check_data(config: Config) -> "Data":
    """The data set is there, is what the configuration says, and fits its budget and pruning plan.

    A data set that has to be prepared first is prepared here.
    """
    data = build(config.data, "data", config.allow_targets)()
    steps_per_epoch = len(data.train) // config.trainer.global_batch_size
    steps = total_steps(config.trainer, steps_per_epoch, data)
    if problems := [*warmup_problems(config, steps), *plan_problems(config, steps)]:
        raise ConfigError(*problems)
    _try("lr_schedule", config.lr_schedule, config, 0, steps)
    if config.samples.tokens:
        from adamwprune.training.text_samples import check_prompts

        check_prompts(data.tokenizer, config.samples.prompts)
    return data


def check_model(config: Config, data: "Data") -> Sequence[Sequence[int]]:
    """One of our models takes the data and has weights to prune; their shapes.

    It is built and called without memory. A user's own model is left to the run: it may not be built twice.
    """
    if config.model["_target_"] in config.allow_targets:
        return []
    import numpy as np
    import torch

    from adamwprune.pruning.compatibility import check_scope
    from adamwprune.pruning.prunable import find_prunable
    from adamwprune.pruning.scopes.segments import NamedShape
    from adamwprune.training.build import model_node

    with torch.device("meta"):
        model = build(model_node(config), "model")()
    spread = np.linspace(0, len(data.train) - 1, 256).astype(np.int64)  # a set may be sorted by label
    inputs, targets = data.train.batch(spread, 0)
    try:
        outputs = model(inputs[:2].to("meta"))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model: does not take {data.name}, {tuple(inputs.shape[1:])}: {first_line(error)}"
        ) from None
    if int(targets.max()) >= outputs.shape[-1]:
        raise ConfigError(
            f"model: has {outputs.shape[-1]} outputs, but {data.name} has the label {int(targets.max())}"
        )
    prunable, _ = find_prunable(model, include=config.pruning.include, exclude=config.pruning.exclude)
    shapes = NamedShape.of(prunable)
    if config.pruning.scope is not None:
        _try("pruning.scope", config.pruning.scope, config, shapes, config.pruning.target_sparsity)
        scope = build(config.pruning.scope, "pruning.scope", config.allow_targets)
        check_scope(scope, shapes, config.pruning.target_sparsity or 0.0)
    return shapes


def _try(path: str, node: Mapping[str, Any], config: Config, *arguments: Any) -> None:
    """Call what a node names as the run will: a target that is there but plays another part is refused."""
    try:
        build(node, path, config.allow_targets)(*arguments)
    except TypeError as error:
        raise ConfigError(f"{path}._target_={node['_target_']}: cannot be used as {path} ({error})") from None


def check_pruning_fits(config: Config, data: "Data", shapes: Sequence[Sequence[int]]) -> None:
    """Criterion, schedule, mode and optimizer fit each other: a pruner of a tiny model tries it."""
    if config.pruning.criterion is None:
        return
    from torch import nn

    from adamwprune.optim.param_groups import param_groups
    from adamwprune.pruning import Pruner
    from adamwprune.pruning.compatibility import check_comparable, check_exchange

    parts = {
        part: build(getattr(config.pruning, part), f"pruning.{part}", config.allow_targets)
        for part in ("criterion", "schedule", "scope", "selection", "mode")
    }
    scope = parts.pop("scope")  # which may not fit so small a model
    steps = total_steps(config.trainer, len(data.train) // config.trainer.global_batch_size, data)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    groups = param_groups(model, weight_decay=0.0, decay_embeddings=False)
    optimizer = build(config.optimizer, "optimizer", config.allow_targets)(groups)
    plan = update_steps(config.pruning, steps)
    pruner = Pruner.over(
        10**6,  # so long that nothing is too early, but what is at step 0
        model,
        optimizer,
        **parts,
        **({} if plan["start_step"] else {"start_step": 0}),
        target_sparsity=0.5,
        initial_sparsity=0.5 if config.pruning.initial_sparsity else 0.0,
    )
    pruner.check_resets(plan["end_step"], steps)
    check_comparable(parts["criterion"], scope, optimizer)
    if shapes:
        sparsities = pruner.mode.sparsities(config.pruning.target_sparsity or 0.0)
        check_exchange(scope, shapes, sparsities, type(pruner.mode).__name__)


def check_sharding(config: Config, shapes: Sequence[Sequence[int]]) -> None:
    """What FSDP leaves out: parts of the pruning that need whole tensors, and fp16's loss scale."""
    hardware, pruning = config.hardware, config.pruning
    if hardware.parallel is not Parallel.fsdp or hardware.num_devices == 1:
        return
    if hardware.precision is Precision.fp16:
        raise ConfigError(
            "hardware.precision=fp16: its loss scale was not tried with hardware.parallel=fsdp; use bf16, or "
            "hardware.parallel=ddp"
        )
    if pruning.criterion is None:
        return
    import torch

    from adamwprune.pruning.scopes.blocks import require_whole_blocks
    from adamwprune.pruning.scoring import needs
    from adamwprune.pruning.selection.sorting import sorting
    from adamwprune.pruning.sharding import Shards
    from adamwprune.pruning.sources import Sources
    from adamwprune.pruning.state_view import StateView

    shards = Shards(world_size=hardware.num_devices)
    criterion, scope, selection = (
        build(getattr(pruning, part) or {}, f"pruning.{part}", config.allow_targets)
        for part in ("criterion", "scope", "selection")
    )
    if selection.func is sorting:
        sorting([], 0, shards)
    Sources(needs(criterion), {}, StateView(torch.optim.SGD([torch.zeros(1)])), shards)
    if shapes:
        require_whole_blocks(scope(shapes, pruning.target_sparsity), shards)
