"""The record of one mask update: what changed, where, and how far it is from plain magnitude.

Jaccard is |A and B| / |A or B| of pruned sets A, of this update, and B, of a magnitude update of the
same masks to the same sparsity. Near 1 the criterion does nothing. Weights that were pruned
before are 0 and in both sets under hard masks, so `jaccard_magnitude_new` compares only what
this update added.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from adamwprune.pruning.masks import Masks, pack, unpack
from adamwprune.pruning.sharding import Shards


@dataclass(frozen=True)
class MaskUpdate:
    """What one update of the masks did."""

    step: int
    planned: float  # sparsity that the schedule asks for
    sparsity: float  # pruned / prunable
    pruned: int  # weights pruned by now
    newly_pruned: int
    regrown: int
    churn: float  # share of the prunable weights whose mask changed
    jaccard_magnitude: float  # of all pruned weights
    jaccard_magnitude_new: float  # of those that this update pruned; NaN where it pruned none
    layer_unseen: Mapping[str, int]  # live weights whose second moment is 0: no gradient ever reached them
    dead_rows: int  # output units of all layers without a live weight
    dead_columns: int  # inputs without a live weight
    mask_hash: str
    milliseconds: float  # to choose the masks and to apply them
    record_milliseconds: float  # to find out the above
    counts: Mapping[str, int]  # parameters: total, prunable, nonzero, nonzero_prunable, pruned
    layer_sparsity: Mapping[str, float]
    layer_dead_rows: Mapping[str, int]
    layer_dead_columns: Mapping[str, int]
    # Highest pruned score of each segment, by its first tensor; NaN where none was due.
    thresholds: Mapping[str, float]

    @property
    def unseen(self) -> int:
        """Live weights of all layers that no gradient ever reached."""
        return sum(self.layer_unseen.values())

    def row(self) -> dict[str, Any]:
        """Numbers for metrics.jsonl and the trackers."""
        scalars = {
            "prune/pruned": self.pruned,
            "prune/nonzero": self.counts["nonzero"],
            "prune/newly_pruned": self.newly_pruned,
            "prune/regrown": self.regrown,
            "prune/churn": self.churn,
            "prune/jaccard_magnitude": self.jaccard_magnitude,
            "prune/jaccard_magnitude_new": self.jaccard_magnitude_new,
            "prune/unseen": self.unseen,
            "prune/dead_rows": self.dead_rows,
            "prune/dead_columns": self.dead_columns,
            "perf/mask_update_ms": self.milliseconds,
        }
        return scalars | {f"sparsity/{name}": value for name, value in self.layer_sparsity.items()}

    def event(self) -> dict[str, Any]:
        """Everything, for mask_updates.jsonl; what is measured has names that begin with perf/."""
        values = asdict(self) | {"unseen": self.unseen}
        values["perf/milliseconds"] = values.pop("milliseconds")
        values["perf/record_milliseconds"] = values.pop("record_milliseconds")
        del values["step"]
        return values


def record(
    parameters: Mapping[str, Tensor],
    masks: Masks,
    before: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] | None,
    shards: Shards,
    *,
    comparing: float,
    **facts: Any,
) -> MaskUpdate:
    """Count what an update changed.

    Args:
        parameters: the prunable ones, by name.
        masks: theirs, as they are now.
        before: as they were, packed (snapshot).
        reference: as magnitude would have chosen them; None where magnitude chose.
        shards: over which processes the tensors are spread.
        comparing: seconds that the choice by magnitude took.
        facts: fields of MaskUpdate that are known.
    """
    started = time.perf_counter()
    layers = {
        name: _changes(before[name], masks[name], reference[name] if reference else masks[name], shards)
        for name in parameters
    }
    everything = {
        field.name: sum(getattr(c, field.name) for c in layers.values()) for field in fields(_Changes)
    }
    prunable = sum(parameter.numel() for parameter in parameters.values())
    changed = everything["newly_pruned"] + everything["regrown"]
    return MaskUpdate(
        sparsity=everything["pruned"] / prunable,
        pruned=everything["pruned"],
        newly_pruned=everything["newly_pruned"],
        regrown=everything["regrown"],
        churn=changed / prunable,
        jaccard_magnitude=_share(everything["both"], everything["either"]),
        jaccard_magnitude_new=_share(everything["both_new"], everything["either_new"]),
        dead_rows=everything["dead_rows"],
        dead_columns=everything["dead_columns"],
        mask_hash=masks.hash(),
        layer_sparsity={name: c.pruned / parameters[name].numel() for name, c in layers.items()},
        layer_dead_rows={name: c.dead_rows for name, c in layers.items()},
        layer_dead_columns={name: c.dead_columns for name, c in layers.items()},
        record_milliseconds=1e3 * (comparing + time.perf_counter() - started),
        **facts,
    )


def snapshot(masks: Masks, names: Iterable[str]) -> dict[str, Tensor]:
    """This process's masks packed to bits, to be compared with later ones."""
    return {name: pack(masks[name]) for name in names}


@dataclass(frozen=True)
class _Changes:
    """Counts of one whole tensor."""

    pruned: int
    newly_pruned: int
    regrown: int
    both: int  # pruned here and by magnitude
    either: int
    both_new: int  # the same among what was live before
    either_new: int
    dead_rows: int
    dead_columns: int


def _changes(before: Tensor, after: Tensor, reference: Tensor, shards: Shards) -> _Changes:
    """Counts by passes of NumPy over bools, 6 times as fast on a CPU as torch's."""
    was_live, live, by_magnitude = (
        mask.cpu().numpy() for mask in (unpack(before, after.shape), after, reference)
    )
    size, lived, lives = live.size, np.count_nonzero(was_live), np.count_nonzero(live)
    stayed = np.count_nonzero(was_live & live)
    in_any, in_both = live | by_magnitude, live & by_magnitude  # live by one of the two, by each of them
    kernels = live.reshape((*live.shape[:2], math.prod(live.shape[2:])))
    has_weights: np.ndarray = np.any(kernels, axis=2)  # (rows, columns)
    counts = shards.sum(
        np.array(
            [
                size - lives,
                lived - stayed,
                lives - stayed,
                size - np.count_nonzero(in_any),
                size - np.count_nonzero(in_both),
                lived - np.count_nonzero(was_live & in_any),
                lived - np.count_nonzero(was_live & in_both),
                np.count_nonzero(~np.any(has_weights, axis=1)),
            ]
        )
    )
    live_columns = shards.sum(np.any(has_weights, axis=0).astype(np.int64))
    dead_columns = np.count_nonzero(live_columns == 0)
    return _Changes(*(int(count) for count in (*counts, dead_columns)))


def _share(part: int, total: int) -> float:
    return part / total if total else math.nan
