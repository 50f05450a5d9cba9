"""From a run's checkpoint to its exported files, each a pure function of that checkpoint.

RUN/export/step_00001000/dense.safetensors     weights with their zeros
                         dense.json            counts, and the non-zeros of each tensor
                         bitmask.safetensors   and so on: see encodings.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adamwprune import run_directory
from adamwprune.errors import CheckpointError
from adamwprune.export.files import DENSE, Export, encode, write
from adamwprune.training import checkpoint


@dataclass(frozen=True)
class Source:
    """Weights of a checkpoint whose checksums were verified, and whose they are."""

    directory: Path  # of the run
    record: dict[str, Any]  # run.json
    checkpoint: checkpoint.Checkpoint

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as they were evaluated; a tied weight once."""
        return self.checkpoint.evaluated

    @property
    def prunable(self) -> list[str]:
        """Names of the weights that the run could prune."""
        return list(self.record["pruning"]["prunable"])

    def counts(self) -> dict[str, Any]:
        """Whose weights these are; zeros / entries of the prunable ones, and non-zeros of all."""
        prunable = {name: self.weights[name] for name in self.prunable}
        return {
            "run": self.record["name"],
            "run_id": self.record["run_id"],
            "step": self.checkpoint.step,
            "sparsity": 1.0 - _nonzero(prunable) / max(1, _entries(prunable)),
            "nonzero": _nonzero(self.weights),
            "entries": _entries(self.weights),
        }


def _nonzero(weights: Mapping[str, Tensor]) -> int:
    return sum(int(tensor.count_nonzero()) for tensor in weights.values())


def _entries(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def open_run(directory: Path, step: int | None = None) -> Source:
    """The checkpoint of `step` of the run in `directory`; by default the newest that is whole.

    Raises:
        CheckpointError: there is no such run or checkpoint, or it is damaged.
    """
    if (directory / "sweep.jsonl").exists():
        raise CheckpointError(f"{directory}: a sweep; export its runs one by one, such as {directory / '0'}")
    record = run_directory.read_json(directory / run_directory.RECORD) if directory.is_dir() else {}
    if not {"run_id", "name", "pruning"} <= record.keys():
        raise CheckpointError(
            f"{directory}: no run there ({run_directory.RECORD} is missing, not ours, or of a run that never "
            "began); give the folder of a run, such as outputs/DATE/TIME_NAME"
        )
    return Source(directory, record, _load(directory / "checkpoints", step))


def _load(root: Path, step: int | None) -> checkpoint.Checkpoint:
    if step is None:
        return checkpoint.load_newest(root)
    found = dict(checkpoint.steps_on_disk(root))
    if step not in found:
        steps = ", ".join(map(str, sorted(found))) or "none"
        raise CheckpointError(f"--checkpoint {step}: {root} has the steps {steps}; give one of them")
    if problem := checkpoint.find_problem(found[step]):
        raise CheckpointError(f"--checkpoint {step}: {problem}; give another step")
    return checkpoint.load(found[step], step)


# -------------------------------------------------------------------------------------- export


@dataclass(frozen=True)
class Row:
    """What became of one format.

    Attributes:
        size: bytes of the file; None where none was written.
        encoded, tried: tensors that became smaller, of how many.
    """

    format: str
    size: int | None
    encoded: int
    tried: int
    note: str


def export(source: Source, formats: Sequence[str], folder: Path) -> list[Row]:
    """Write each format that makes some tensor smaller, and dense always, into `folder`.

    Raises:
        ConfigError: a file of the same name and other content is there.
        DiskError: the file system refuses.
    """
    counts = source.counts()
    facts = {key: str(value) for key, value in counts.items()}
    rows = []
    for name in formats:
        # A bit mask is worth its while in any tensor; the others are for matrices that were pruned.
        candidates = source.weights if name == "bitmask" else source.prunable
        exported = encode(source.weights, name, candidates=candidates, facts=facts)
        size = None
        if name == DENSE or exported.encoded:
            file = folder / file_name(name)
            write(exported, file, weights=source.weights)
            size = file.stat().st_size
        tried = 0 if name == DENSE else len(candidates)
        rows.append(Row(name, size, len(exported.encoded), tried, _note(exported, source.prunable)))
    if DENSE in formats:
        run_directory.write_json(folder / "dense.json", counts | {"tensors": _describe(source.weights)})
    return rows


def file_name(encoding: str) -> str:
    """`2-4.safetensors` for 2:4."""
    return f"{encoding.replace(':', '-')}.safetensors"


def _note(exported: Export, prunable: list[str]) -> str:
    """Why prunable tensors stayed as they are: the first one's reason, and how many more have one."""
    reasons = [f"{name}: {exported.reasons[name]}" for name in prunable if name in exported.reasons]
    more = [f"{len(reasons) - 1} more"] if len(reasons) > 1 else []
    return "; ".join(reasons[:1] + more)


def _describe(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "entries": tensor.numel(),
            "nonzero": int(tensor.count_nonzero()),
        }
        for name, tensor in weights.items()
    }
