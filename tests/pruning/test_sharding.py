"""Parameters spread over processes by FSDP2: the masks of one process, bit for bit, for counts alone."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.movement import movement
from adamwprune.pruning.criteria.random import random
from adamwprune.pruning.criteria.shuffled_state import shuffled_state
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.modes.soft import Soft
from adamwprune.pruning.modes.ste import StraightThrough
from adamwprune.pruning.scopes.block import block
from adamwprune.pruning.scopes.erk import erk
from adamwprune.pruning.scopes.global_ import global_
from adamwprune.pruning.scopes.layerwise import layerwise
from adamwprune.pruning.scopes.nm import nm
from adamwprune.pruning.scopes.row import row
from adamwprune.pruning.selection.keys import ScoreError
from adamwprune.pruning.selection.on_device import on_device
from adamwprune.pruning.selection.sorting import sorting
from adamwprune.pruning.selection.streaming import streaming
from adamwprune.pruning.sharding import ALONE, Shards, local, local_rows, own_rows, shards_of, share, whole
from tests.helpers.ranks import run_ranks
from tests.helpers.sharded import EVEN, FILLS, UNEVEN, Case, Messages, gathered, on_ranks, small_chunks

pytestmark = pytest.mark.timeout(400)

# (ranks, every how many-th case): starting ranks takes seconds, and so do all cases.
RANKS = [(2, 8), *(pytest.param((ranks, 1), marks=pytest.mark.slow) for ranks in (2, 4))]
BLOCK = partial(block, size=4)
SCOPES = {
    "layerwise": (layerwise, 0.9, UNEVEN),
    "global": (global_, 0.9, UNEVEN),
    "global l2": (partial(global_, normalize="l2"), 0.9, UNEVEN),
    "global capped": (partial(global_, max_layer_sparsity=0.95), 0.85, UNEVEN),
    "global capped l2": (partial(global_, normalize="l2", max_layer_sparsity=0.95), 0.85, UNEVEN),
    "erk": (erk, 0.9, UNEVEN),
    "erk capped": (partial(erk, max_layer_sparsity=0.95), 0.8, UNEVEN),
    "row": (row, 0.75, EVEN),
    "2:4": (nm, 0.5, EVEN),
    "block": (BLOCK, 0.75, EVEN),
}
CRITERIA = {
    "magnitude": magnitude,
    "state": state,
    "random": partial(random, seed=5),
    "movement": movement,
}
MODES = {"soft": partial(Soft, regrow_fraction=0.3), "ste": StraightThrough}
CHECKPOINTS = {
    "hard": Case(UNEVEN, "few values", {"criterion": movement, "scope": global_}),
    "ste": Case(UNEVEN, "few values", {"criterion": movement, "mode": StraightThrough}),
}


def cases(every: int) -> dict[str, Case]:
    """Every scope with every criterion, and what else there is; or but each `every`-th of them."""
    found = {}
    for i, (scope, criterion) in enumerate(itertools.product(SCOPES, CRITERIA)):
        if criterion == "random" and "l2" in scope:
            continue  # refused: these scores reach to infinity
        function, target, shapes = SCOPES[scope]
        fill = list(FILLS)[(i + i // len(FILLS)) % len(FILLS)]
        parts = {"scope": function, "criterion": CRITERIA[criterion]}
        parts["selection"] = on_device if criterion == "random" else streaming
        initial = 0.25 if scope in ("layerwise", "global", "2:4") else 0.0
        found[f"{scope}, {criterion}, {fill}"] = Case(shapes, fill, parts, target, initial)
    for fill, dtype in itertools.product(FILLS, (torch.float32, torch.bfloat16)):
        parts = {"scope": global_, "criterion": magnitude}
        found[f"global, {dtype}, {fill}"] = Case(UNEVEN, fill, parts, 0.9, 0.1, dtype, seed=4)
    for mode, (scope, (function, _, shapes)) in itertools.product(MODES, SCOPES.items()):
        if mode == "soft" and scope not in ("layerwise", "global", "row"):
            continue  # exchanges need room above the target
        parts = {"scope": function, "criterion": state, "mode": MODES[mode]}
        found[f"{scope}, {mode}"] = Case(shapes, "few values", parts, 0.7 if "erk" in scope else 0.5)
    return dict(list(found.items())[::every])


def prune_all(every):
    with small_chunks(256):
        return {name: case.facts() for name, case in cases(every).items()}


# --------------------------------------------------------------------------- what each rank does


def everything(every, stopped):
    """All that needs ranks, since starting them takes seconds."""
    return {
        "masks": prune_all(every),
        "messages": {name: messages(*parts) for name, parts in MESSAGES.items()},
        "stopped": {name: case.stopped() for name, case in CHECKPOINTS.items()},
        "resumed": {name: CHECKPOINTS[name].resumed(*files) for name, files in stopped.items()},
        "replicas": {name: replica(selection) for name, selection in REPLICAS.items()},
        "refused": {name: refusal(*parts) for name, parts in REFUSED.items()},
        "undefined": undefined(),
        "counts": CHECKPOINTS["hard"].pruner(spread_as="prunable").counts(),
    }


LARGE = [(640, 512), (512, 640)]
MESSAGES = {
    "streaming": (layerwise, streaming),
    "streaming, global": (global_, streaming),
    "on_device": (global_, on_device),
    "l2": (partial(global_, normalize="l2"), on_device),
    "row": (row, streaming),
}


def messages(scope, selection):
    """Bytes of each message during one selection, and of one for a whole weight."""
    parts = {"scope": scope, "selection": selection, "criterion": state}
    pruner = Case(LARGE, "few values", parts, 0.5).pruner()
    with Messages() as sent:
        pruner._ranking(1).prune_(0.5)
    with Messages() as control:
        gathered(pruner.prunable["layers.1.weight"])
    return sent.bytes, control.bytes


def sampled(tensors, count, shards):
    """The ancestor's selection of November 2025: a threshold from a sample that each rank draws itself."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    scores = torch.cat([torch.from_numpy(t.read(part)) for t in tensors for part in t.parts()])
    drawn = scores[torch.randint(scores.numel(), (scores.numel() // 10,), generator=generator)]
    total = sum(tensor.size for tensor in tensors)
    threshold = drawn.kthvalue(round(count / total * drawn.numel())).values
    for tensor in tensors:
        for part in tensor.parts():
            tensor.keep_(part, torch.from_numpy(tensor.read(part)) > threshold)
    return float(threshold)


REPLICAS = {"streaming": streaming, "sampled": sampled}


def replica(selection):
    """Hash of the masks of a model that every rank has whole, as under DDP."""
    pruner = Case(EVEN, "random", {"criterion": magnitude, "selection": selection}).pruner(spread_as="none")
    pruner._ranking(1).prune_(0.5)
    return pruner.mask_hash()


REFUSED = {
    "sorting": (Case(UNEVEN, "random", {"criterion": magnitude, "selection": sorting}), "all"),
    "shuffled": (Case(UNEVEN, "random", {"criterion": shuffled_state}), "all"),
    "blocks": (
        Case([(12, 8)], "random", {"criterion": magnitude, "scope": BLOCK}, 17 / 33),
        "all",
    ),
    "some": (Case(UNEVEN, "random", {"criterion": magnitude}), "some"),
}


def refusal(case, spread_as):
    """The message, on this rank."""
    try:
        pruner = case.pruner(spread_as=spread_as)
        pruner._ranking(1).prune_(0.5)
    except ConfigError as error:
        return str(error)
    return "accepted"


def undefined():
    """What this rank says of a weight that is NaN in the rows of the first one."""
    return {selection.__name__: _undefined(selection) for selection in (on_device, streaming)}


def _undefined(selection):
    parts = {"criterion": magnitude, "scope": global_, "selection": selection}
    pruner = Case(UNEVEN, "random", parts).pruner()
    if dist.get_rank() == 0:
        local(pruner.prunable["layers.3.weight"])[1, 2] = torch.nan
    try:
        (threshold,) = pruner._ranking(1).prune_(0.5)
        return float(threshold)
    except ScoreError as error:
        return str(error)


# ----------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module", params=RANKS, ids=str)
def ranks_and_every(request):
    return request.param


@pytest.fixture(scope="module")
def found(ranks_and_every):
    """What each rank found."""
    ranks, every = ranks_and_every
    stopped = {name: case.stopped() for name, case in CHECKPOINTS.items()}
    return run_ranks(on_ranks, ranks, everything, every, stopped, timeout=300)


def test_shards_get_the_masks_of_one_process_bit_for_bit(found, ranks_and_every):
    """Every scope with every criterion, ties over all ranks, short and empty shards; and what is counted."""
    alone = prune_all(ranks_and_every[1])
    assert all(len(facts["records"]) >= 2 for facts in alone.values())
    assert len({facts["hash"] for facts in alone.values()}) >= 0.8 * len(alone)  # no case is another's copy
    for rank in found:
        assert rank["masks"].keys() == alone.keys()
        for name in alone:
            assert rank["masks"][name] == alone[name], name


def test_a_checkpoint_goes_on_with_another_number_of_processes(found):
    """Masks, sums and dense weights in it are whole: from one to several, and from several to one."""
    for name, case in CHECKPOINTS.items():
        through = case.facts()
        del through["records"]
        for rank in found:
            resumed = rank["resumed"][name]
            assert {key: resumed[key] for key in through} == through
        assert len({rank["stopped"][name] for rank in found}) == 1
        back = case.resumed(*found[0]["stopped"][name])
        assert {key: back[key] for key in through} == through


def test_only_counts_travel_while_masks_are_chosen(found):
    """Two histograms a ranking, of 65,537 counts; the weights have 678,400 entries. With l2, sums of rows."""
    histogram = 8 * (2**16 + 1)
    most = {
        "streaming": histogram,
        "streaming, global": histogram,
        "on_device": 8 * 15,
        "l2": 8 * 641,
        "row": 16,
    }
    for rank in found:
        for name, (sent, control) in rank["messages"].items():
            assert 0 < max(sent) <= most[name], name
            assert max(control) >= 4 * 640 * 512 / len(found)  # that of the weight is seen
        assert sum(rank["messages"]["on_device"][0]) < 2000


def test_replicas_agree_without_a_message_and_the_ancestors_samples_do_not(found):
    """Each rank drew its own sample for a threshold there, so masks drifted apart."""
    assert len({rank["replicas"]["streaming"] for rank in found}) == 1
    assert len({rank["replicas"]["sampled"] for rank in found}) == len(found)


def test_what_shards_cannot_do_is_refused_on_every_rank(found):
    """Before a rank waits for another."""
    messages = {
        "sorting": "pruning.selection=sorting: the weights are sharded; use pruning/selection=streaming",
        "shuffled": "pruning.criterion: shuffles exp_avg_sq within whole tensors, but these are sharded",
        "blocks": "pruning.scope.size=4: each process has",
        "some": "pruning: parameters must all be sharded alike",
    }
    for rank in found:
        for name, message in messages.items():
            assert rank["refused"][name].startswith(message)


@pytest.mark.parametrize("selection", ["on_device", "streaming"])
def test_a_score_that_is_missing_on_one_rank_ends_all(found, selection):
    """It is exchanged, so no rank goes on or waits for ever; the one that has it names it."""
    assert "layers.3.weight is NaN at flat index" in found[0]["undefined"][selection]
    assert all(
        "NaN, of a weight that another process has" in rank["undefined"][selection] for rank in found[1:]
    )


def test_weights_that_are_not_sharded_are_counted_once(found):
    """Only the prunable layers are: the head, biases of it and the first convolution are on every rank."""
    assert all(rank["counts"] == CHECKPOINTS["hard"].pruner().counts() for rank in found)


@given(rows=st.integers(0, 50), world_size=st.integers(1, 9))
def test_rows_of_a_process_are_torchs_chunks(rows, world_size):
    """FSDP2 shards by torch.chunk: the last shards are short or empty."""
    chunks = torch.arange(rows).chunk(world_size)
    for rank in range(world_size):
        own = torch.arange(rows)[local_rows(rows, Shards(rank, world_size))]
        assert own.tolist() == (chunks[rank].tolist() if rank < len(chunks) else [])


def test_one_process_is_no_special_case():
    """No process group is needed, and nothing is copied."""
    weight = torch.randn(3, 4)
    assert shards_of([weight]) == ALONE
    assert own_rows(whole(weight, weight), weight).data_ptr() == weight.data_ptr()
    assert share(weight, ALONE).data_ptr() == weight.data_ptr()
    np.testing.assert_array_equal(ALONE.sum(np.array([3, 4])), [3, 4])
    np.testing.assert_array_equal(ALONE.gather(np.array([3, 4])), [[3, 4]])


def test_a_checkpoint_of_other_sums_is_refused():
    case = CHECKPOINTS["hard"]
    pruner = case.pruner()
    state = pruner.state_dict()
    state["sums"]["movement"] = {n: t[:-1] for n, t in state["sums"]["movement"].items()}
    with pytest.raises(CheckpointError, match="keeps other sums, or of other shapes"):
        pruner.load_state_dict(state)
