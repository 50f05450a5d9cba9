"""What must be true of this machine before a run is worth starting; nothing is created before.

Cheapest first: devices (exit 4), trackers (6), initial weights (5), data (3), then what only the
objects know: whether the model takes its shape, has the weights that patterns name, and whether
the optimizer keeps the state that the criterion scores by (2).
"""

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adamwprune.config import Config, Device, Parallel, Precision, update_steps
from adamwprune.errors import ConfigError, DataError, HardwareError, TrackerError
from adamwprune.explanations import first_line
from adamwprune.targets import build
from adamwprune.trackers.backend import missing_packages
from adamwprune.trackers.wandb_server import ENVIRONMENT_MODES
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
    check_compiler(config)
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
    started = _ranks_started()
    if is_rank() and started != hardware.num_devices:
        raise HardwareError(
            f"hardware.num_devices={hardware.num_devices}: but WORLD_SIZE={started} ranks were started; "
            f"start as many, or add hardware.num_devices={started}"
        )
    _check_launcher(started)
    if hardware.device is Device.cpu:
        return
    _check_workspace(config)
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
        where += "" if found else f": {_why_no_cuda()}"
        count = "as many" if needed == hardware.num_devices else f"{needed} of them here,"
        raise HardwareError(
            f"hardware.num_devices={hardware.num_devices}: needs {count} CUDA devices, found {found}{where}; "
            "type hardware=cpu instead"
            + (f", or hardware.num_devices={found}" if found else "")
            + _small_gpt2(config)
        )
    if hardware.precision is Precision.bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise HardwareError(
            f"hardware.precision=bf16: {torch.cuda.get_device_name()} has none; use fp32, fp16 or auto"
        )


# What a launcher tells each rank.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


def _ranks_started() -> int:
    """How many ranks a launcher says that it has started; 1 where there is none."""
    for name in (*_OF_RANKS, "MASTER_PORT"):
        if (value := os.environ.get(name, "0")) and not value.isdecimal():
            raise HardwareError(f"{name}={value}: must be a number; start ranks with torchrun, or unset it")
    return int(os.environ.get("WORLD_SIZE", 1))


def _check_launcher(started: int) -> None:
    """Whoever is told to be a rank of several is told which, and where they meet."""
    given = [name for name in _OF_RANKS if name in os.environ]
    needed = (*_OF_RANKS, *_MEETING) if started > 1 else ("LOCAL_RANK",)
    missing = [name for name in needed if name not in os.environ]
    if given and missing:
        said = " ".join(f"{name}={os.environ[name]}" for name in given)
        raise HardwareError(
            f"{said}: {', '.join(missing)} is missing; start ranks with torchrun, which sets all of "
            f"{', '.join((*_OF_RANKS, *_MEETING))}, or unset them"
        )
    if started > 1 and os.environ["RANK"] == "0":
        _check_meeting_port()


def _check_meeting_port() -> None:
    """Rank 0 listens at MASTER_PORT, but where torchrun does so for it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    port = int(os.environ["MASTER_PORT"])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise HardwareError(
                f"MASTER_PORT={port}: {getattr(error, 'strerror', error)}; another run may meet there: take "
                "another port, or start with torchrun --standalone, which takes a free one"
            ) from None


# torch lets deterministic CUDA kernels run with these (and with none: it then chooses by itself).
_WORKSPACES = (None, ":4096:8", ":16:8")


def _check_workspace(config: Config) -> None:
    """A variable of the user's that contradicts hardware.deterministic is not overwritten."""
    given = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if config.hardware.deterministic and given not in _WORKSPACES:
        raise HardwareError(
            f"CUBLAS_WORKSPACE_CONFIG={given}: not deterministic; unset it, set it to :4096:8 or :16:8, or "
            "add hardware.deterministic=false"
        )


def _why_no_cuda() -> str:
    """In torch's words, such as that the driver is too old."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        return first_line(error)
    return "none is visible"


def check_compiler(config: Config) -> None:
    """What torch.compile calls: a C++ compiler for the CPU, a C compiler for the kernels of a GPU.

    Raises:
        HardwareError: it is not there; torch would say so in the first step.
    """
    hardware = config.hardware
    if not hardware.compile:
        return
    is_cpu = hardware.device is Device.cpu
    variable, usual = ("CXX", ["g++", "clang++"]) if is_cpu else ("CC", ["gcc", "clang"])
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise HardwareError(
            f"hardware.compile=true: needs a compiler, found no {' or '.join(names)}; install one, name it "
            f"in {variable}, or use hardware.compile=false"
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
    asks_environment = config.tracker.get("wandb", {}).get("mode") == "auto"
    if asks_environment and (mode := os.environ.get("WANDB_MODE", "")) not in ("", *ENVIRONMENT_MODES):
        raise ConfigError(
            f"WANDB_MODE={mode}: must be one of {', '.join(ENVIRONMENT_MODES)}; unset it, or give "
            "tracker.wandb.mode"
        )


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
    _check_samples(data, inputs, targets, outputs.shape[-1])
    prunable, _ = find_prunable(model, include=config.pruning.include, exclude=config.pruning.exclude)
    shapes = NamedShape.of(prunable)
    if config.pruning.scope is not None:
        _try("pruning.scope", config.pruning.scope, config, shapes, config.pruning.target_sparsity)
        scope = build(config.pruning.scope, "pruning.scope", config.allow_targets)
        check_scope(scope, shapes, config.pruning.target_sparsity or 0.0)
    return shapes


def _check_samples(data: "Data", inputs: Any, targets: Any, outputs: int) -> None:
    """Finite inputs, and labels that the model has outputs for."""
    smallest, largest = int(targets.min()), int(targets.max())
    if smallest < 0:
        raise DataError(f"data: {data.name} has the label {smallest}; labels are numbers from 0")
    if largest >= outputs:
        raise DataError(
            f"model: has {outputs} outputs, but {data.name} has the label {largest}; leave out what sets "
            "model.num_classes or model.vocab_size: the data set them"
        )
    is_all = len(data.train) <= len(targets)
    if data.unit == "images" and (outputs == 1 or (is_all and smallest == largest)):
        raise DataError(
            f"data: {data.name} has the one class {smallest}, so there is nothing to learn; give two"
        )
    if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
        raise DataError(f"data: {data.name} has inputs that are NaN or infinite; clean them")


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
