"""Windows over token streams: shifted by one, disjoint targets, a pure function of their arguments."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.data.fingerprint import fingerprint
from adamwprune.data.tokenizer import Tokenizer
from adamwprune.data.tokens import TokenArray
from adamwprune.data.windows import TokenWindows, token_data
from adamwprune.errors import DataError

SEEDS = st.none() | st.integers(0, 2**32 - 1)


@given(length=st.integers(9, 400), block_size=st.integers(1, 4), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_windows_are_shifted_slices_that_share_no_target(length, block_size, seed, epoch):
    """Ids are their own positions, so targets must be inputs + 1, all different, and within the stream."""
    dataset = TokenWindows([np.arange(length, dtype=np.uint16)], block_size, seed=seed)
    inputs, targets = dataset.batch(np.arange(len(dataset)), epoch)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (len(dataset), block_size)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(targets.flatten().diff(), torch.ones(targets.numel() - 1, dtype=torch.int64))
    assert targets.max() < length
    # All but what the offset and a broken window may cost: under two windows.
    assert length - targets.numel() <= (1 if seed is None else 2) * block_size + 1


def test_count_does_not_depend_on_the_epoch_and_every_offset_fits():
    """40 tokens in blocks of 8: with any of the 8 offsets the last window still ends inside."""
    dataset = TokenWindows([np.arange(40, dtype=np.uint16)], 8, seed=3)
    assert len(dataset) == 39 // 8 - 1
    first = {int(dataset.batch(np.array([0]), epoch)[0][0, 0]) for epoch in range(200)}
    assert first == set(range(8))


def test_tokens_come_as_they_lie_in_a_file(tmp_path):
    """A mapped shard, read only, of ids up to the largest; against slices taken one by one."""
    ids = np.random.default_rng(0).integers(0, 65536, 999).astype("<u2")
    ids.tofile(tmp_path / "shard.bin")
    dataset = TokenWindows([np.memmap(tmp_path / "shard.bin", dtype="<u2", mode="r")], 10)
    indices = np.array([98, 0, 41, 41])
    inputs, targets = dataset.batch(indices, epoch=0)
    assert inputs.tolist() == [ids[10 * i : 10 * i + 10].tolist() for i in indices]
    assert targets.tolist() == [ids[10 * i + 1 : 10 * i + 11].tolist() for i in indices]


@pytest.mark.parametrize("length", [0, 1, 4])
def test_streams_shorter_than_a_window_are_empty(length):
    """And an index into them is an error."""
    dataset = TokenWindows([np.arange(length, dtype=np.uint16)], 4, seed=1)
    assert len(dataset) == 0
    with pytest.raises(IndexError):
        dataset.batch(np.array([0]), epoch=0)


@pytest.mark.parametrize(("files", "used"), [(1, 992), (4, 4 * 240), (12, 12 * 72)])
def test_tokens_that_many_files_cost_are_told(files, used, caplog):
    """1,008 tokens in blocks of 8: each file keeps back up to two; the record has what is left."""
    shards = [TokenArray.of(ids) for ids in np.split(np.arange(1008, dtype=np.uint16), files)]
    keys = {"vocab_size": 1008, "block_size": 8, "seed": 0, "tokenizer": None, "vocab_fix": "", "facts": {}}
    facts = token_data(name="mine", train=shards, val=shards[:1], **keys).facts
    assert (facts["train_tokens"], facts["train_tokens_used"]) == (1008, used)
    assert ("data.shard_tokens" in caplog.text) == (files > 1)
    assert (f"an epoch has {used:,} of its 1,008 tokens" in caplog.text) == (files > 1)


def test_batch_is_pure():
    """Order, grouping and repetition do not matter, and no caller can spoil the data through a batch."""
    dataset = TokenWindows([np.arange(1000, dtype=np.uint16)], 10, seed=7)
    indices = np.array([5, 2, 60, 2])
    inputs, targets = dataset.batch(indices, epoch=4)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    inputs.zero_()
    again, _ = dataset.batch(indices, epoch=4)
    single = torch.cat([dataset.batch(indices[i : i + 1], epoch=4)[0] for i in range(4)])
    assert torch.equal(again, single)
    assert not torch.equal(again, dataset.batch(indices, epoch=5)[0])


def test_fixed_windows_never_move():
    """Validation is the same in every epoch."""
    dataset = TokenWindows([np.arange(100, dtype=np.uint16)], 10)
    indices = np.arange(len(dataset))
    assert torch.equal(dataset.batch(indices, 0)[0], dataset.batch(indices, 9)[0])


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_is_an_error(index):
    """numpy would read from the end, or beyond the last window."""
    dataset = TokenWindows([np.arange(101, dtype=np.uint16)], 10)
    with pytest.raises(IndexError):
        dataset.batch(np.array([0, index]), epoch=0)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6), seed=SEEDS, epoch=st.integers(0, 9))
def test_several_arrays_are_their_windows_one_after_the_other(lengths, seed, epoch):
    """In any order of indices, across arrays, with arrays that are too short among them."""
    arrays = [100 * number + np.arange(length, dtype=np.uint16) for number, length in enumerate(lengths)]
    joined = TokenWindows(arrays, 5, seed=seed)
    parts = [TokenWindows([array], 5, seed=seed) for array in arrays]
    everything = torch.cat([part.batch(np.arange(len(part)), epoch)[0] for part in parts])
    assert len(joined) == len(everything)
    order = np.random.default_rng(0).permutation(len(joined))
    inputs, targets = joined.batch(order, epoch)
    assert torch.equal(inputs, everything[torch.from_numpy(order)])
    assert torch.equal(targets, inputs + 1)
    with pytest.raises(IndexError):
        joined.batch(np.array([len(joined)]), epoch)


def make(train=range(50), val=range(50), tokenizer=None, vocab_size=100, block_size=4, seed=0):
    arrays = ([TokenArray.of(np.array(part, dtype=np.uint16))] for part in (train, val))
    train_arrays, val_arrays = arrays
    return token_data(
        name="numbers",
        train=train_arrays,
        val=val_arrays,
        vocab_size=vocab_size,
        block_size=block_size,
        seed=seed,
        tokenizer=tokenizer,
        vocab_fix="50",
        facts={},
    )


def test_fingerprint_changes_with_any_token_the_split_and_the_tokenizer():
    """Equal data, equal fingerprint; whatever makes losses incomparable changes it."""
    same = make().fingerprint
    assert make(seed=9, block_size=8, vocab_size=64).fingerprint == same
    swapped = [1, 0, *range(2, 50)]
    others = [make(train=swapped), make(val=swapped), make(train=range(49)), make(tokenizer=Tokenizer())]
    assert len({same, *(data.fingerprint for data in others)}) == 5
    assert make(train=range(49), val=[49, *range(50)]).fingerprint != same


def test_fingerprint_keeps_parts_apart():
    """Names, kinds and shapes are hashed too: no two collections run together."""
    array = np.arange(6, dtype=np.uint8)
    parts = [{"a": array}, {"b": array}, {"a": array.reshape(2, 3)}, {"a": array.view(np.int8)}, {"a": "x"}]
    assert len({fingerprint(part) for part in parts}) == 5
    assert fingerprint({"a": array, "b": "x"}) == fingerprint({"b": "x", "a": array.copy()})
    assert fingerprint({"a": "xb"}) != fingerprint({"a": "x", "b": ""})


def test_token_without_a_row_in_the_vocabulary_is_refused():
    """With the largest id; the control fits exactly."""
    make(vocab_size=50)
    with pytest.raises(DataError, match=r"data.vocab_size=49: numbers contains token id 49; use 50"):
        make(vocab_size=49)


def test_parts_shorter_than_a_window_are_refused():
    """Training needs 2 blocks and a target, for its offsets; validation one; the limits themselves work."""
    make(train=range(9), val=range(5))
    with pytest.raises(
        DataError, match=r"data.block_size=4: numbers's training part has 8 tokens; use at most 3"
    ):
        make(train=range(8))
    with pytest.raises(DataError, match=r"validation part has 4 tokens; use at most 3"):
        make(val=range(4))
