"""Initial weights from a file: what the key `model.weights` names.

    .safetensors         Hugging Face's format, and that of our checkpoints and exports
    .pth, .pt, .bin      a dictionary of tensors as torch.save writes it; read as data, never as code

A model with this key calls `load_file_` last in its constructor. On the meta device there is no memory to
load into: names, shapes and dtypes alone are compared, from the header of the file, so that a wrong file
is refused before a run begins. A half-loaded model would train: everything is compared before anything is
copied.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adamwprune.errors import CheckpointError

State = dict[str, Tensor]

PICKLES = (".pth", ".pt", ".bin")
# How many batches a BatchNorm saw: no part of what it computes, and absent from files of before torch 0.4.1,
# torchvision's among them. Such a counter stays 0.
_COUNTER = ".num_batches_tracked"


def load_file_(model: nn.Module, file: str, convert: Callable[[State], State] = dict) -> None:
    """Copy the weights and buffers in `file` into `model`; on the meta device, compare them only.

    The model then says in `weights_file` what it was loaded from: path and SHA-256, for the run record.

    Args:
        model: as its constructor made it.
        file: path of the file; `~` is the home folder.
        convert: from the names and layouts of the file to those of the model.

    Raises:
        CheckpointError: no such file, not readable as data, or not the weights of this model.
    """
    path = Path(file).expanduser()
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    try:
        weights = convert(_read(path, header_only=is_meta))
        load_(model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"model.weights={file}: {error}") from None
    if not is_meta:
        model.weights_file = {"path": str(path.resolve()), "sha256": _sha256(path)}


@torch.no_grad()
def load_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into `model`, a tied weight under its first name; meta tensors are compared only.

    Raises:
        CheckpointError: a name is missing or unknown, or a tensor does not fit.
    """
    own = _tensors(model)
    problems = list(_misfits(own, weights))
    if problems:
        more = f" (1 of {len(problems)} problems)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{problems[0]}{more}; these are the weights of another model, give the keys of model= that they "
            "were trained with"
        )
    for name, tensor in weights.items():
        if not tensor.is_meta:
            own[name].copy_(tensor)


def _tensors(model: nn.Module) -> State:
    """Parameters and buffers by name; a tied weight once, under its first name."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if names.setdefault(id(tensor), name) == name}


def _misfits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps `theirs` from being copied into `ours`, one text each."""
    for name, own in ours.items():
        tensor = theirs.get(name)
        if tensor is None:
            if not name.endswith(_COUNTER):
                yield f"{name} is missing"
        elif tensor.shape != own.shape:
            yield f"{name} has shape {tuple(tensor.shape)}, the model needs {tuple(own.shape)}"
        elif not _fits(tensor.dtype, own.dtype):
            yield f"{name} is {tensor.dtype}, which {own.dtype} cannot hold exactly"
        elif not (tensor.is_meta or tensor.isfinite().all()):
            yield f"{name} has values that are not finite"
    yield from (f"{name} is unknown to the model" for name in theirs if name not in ours)


def _fits(theirs: torch.dtype, ours: torch.dtype) -> bool:
    """Whether each value of one type is one of the other: half precision fits float32."""
    is_alike = theirs.is_floating_point == ours.is_floating_point
    return is_alike and torch.promote_types(theirs, ours) == ours


# ---------------------------------------------------------------------------------------- read


def _read(path: Path, *, header_only: bool) -> State:
    """The tensors of a file by name; on the meta device where the header is enough."""
    if path.is_dir():
        raise CheckpointError("is a folder; give the file of weights in it, such as model.safetensors")
    if not path.is_file():
        raise CheckpointError("there is no such file")
    if path.suffix not in (".safetensors", *PICKLES):
        raise CheckpointError(f"must end in .safetensors, {', '.join(PICKLES[:-1])} or {PICKLES[-1]}")
    return _read_safetensors(path, header_only) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path, header_only: bool) -> State:
    try:
        with safe_open(path, framework="pt") as stream:
            names = stream.keys()
            if not header_only:
                return {name: stream.get_tensor(name) for name in names}
            return {name: _described(stream.get_slice(name)) for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"damaged, or no safetensors file ({error})") from None


# The dtypes of weights, as a safetensors header writes them.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool}


def _described(entry: object) -> Tensor:
    """A tensor without memory of an entry's shape and type."""
    return torch.empty(entry.get_shape(), dtype=_DTYPES[entry.get_dtype()], device="meta")


def _read_pickle(path: Path) -> State:
    try:
        # A mapped file is read where tensors are used; only zip files, torch's format since 1.6, can be.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # pickle, zipfile and torch each have their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"not readable as tensors without running code ({reason})") from None
    is_state = isinstance(content, dict) and all(isinstance(tensor, Tensor) for tensor in content.values())
    if not is_state:
        raise CheckpointError("must hold a dictionary from names to tensors, as model.state_dict() is")
    return dict(content)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
