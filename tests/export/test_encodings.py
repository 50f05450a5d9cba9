"""Encodings: exact to the bit, of the size that is stated, refused where they do not fit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamwprune.export.encodings import ENCODINGS, Unsuitable, raw
from adamwprune.export.files import Encoded, equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.float8_e4m3fn]
SPECIAL = [-0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, 1e-45, 0.0, 1.0]


def sparse(shape, share, dtype=torch.float32, seed=0):
    """Random entries, some of them special, with a share of zeros."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator)
    special = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=generator)]
    tensor = torch.where(torch.rand(shape, generator=generator) < 0.3, special, tensor)
    if not dtype.is_floating_point:
        tensor = tensor.nan_to_num(0, 1, -1)
    return tensor.masked_fill(torch.rand(shape, generator=generator) < share, 0.0).to(dtype)


def two_of_four(shape, seed=0):
    """Random entries of which two or fewer of four along dimension 1 are not zero."""
    tensor = sparse(shape, 0.2, seed=seed).movedim(1, -1).contiguous()
    groups = tensor.view(-1, 4)
    generator = torch.Generator().manual_seed(seed)
    groups[torch.rand(groups.shape, generator=generator).argsort(dim=1) < 2] = 0.0
    return tensor.movedim(-1, 1)


def round_trip(tensor, name):
    encoded = Encoded(name, tuple(tensor.shape), ENCODINGS[name].encode(tensor))
    return {"w": encoded.decode()}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_bitmask_and_csr_give_every_bit_back(shape, share, dtype, seed):
    """-0.0, infinities and the payload of a NaN too, in any dtype and shape; bytes are compared."""
    tensor = sparse(shape, share, dtype, seed)
    assert equal(round_trip(tensor, "bitmask"), {"w": tensor})
    if len(shape) > 1:
        assert equal(round_trip(tensor, "csr"), {"w": tensor})


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 5),
    groups=st.integers(1, 5),
    kernel=st.sampled_from([(), (3,), (3, 2)]),
    seed=st.integers(0, 1000),
)
def test_two_of_four_gives_every_bit_back(outputs, groups, kernel, seed):
    """Linear and Conv weights, an odd number of groups, groups with fewer than two values."""
    tensor = two_of_four((outputs, 4 * groups, *kernel), seed)
    assert equal(round_trip(tensor, "2:4"), {"w": tensor})


@pytest.mark.parametrize("name", ENCODINGS)
def test_order_is_logical_whatever_the_strides(name):
    """The same parts from a channels_last weight; it comes back contiguous and equal."""
    tensor = two_of_four((4, 8, 3, 3)).contiguous()
    last = tensor.to(memory_format=torch.channels_last)
    assert last.stride() != tensor.stride()
    assert equal(ENCODINGS[name].encode(last), ENCODINGS[name].encode(tensor))
    assert equal(round_trip(last, name), {"w": tensor})
    assert round_trip(last, name)["w"].is_contiguous()


def test_comparing_values_would_lose_negative_zeros():
    """Control: what the bits are for. -0.0 equals 0 and is not kept by a comparison of values."""
    tensor = torch.tensor([-0.0, 0.0, 1.0])
    assert (tensor != 0).tolist() == [False, False, True]
    assert round_trip(tensor, "bitmask")["w"].signbit().tolist() == [True, False, False]
    rebuilt = torch.zeros(3).masked_scatter(tensor != 0, tensor[tensor != 0])
    assert not equal({"w": rebuilt}, {"w": tensor})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_parts_are_those_of_other_implementations():
    """Oracles: torch's own CSR (on entries without -0.0), NumPy's bits, and pairs picked one by one."""
    tensor = torch.randn(7, 20).masked_fill(torch.rand(7, 20) < 0.8, 0.0)
    ours, theirs = ENCODINGS["csr"].encode(tensor), tensor.to_sparse_csr()
    assert ours["crow"].tolist() == theirs.crow_indices().tolist()
    assert ours["col"].tolist() == theirs.col_indices().tolist()
    assert ours["values"].tolist() == theirs.values().tolist()

    bits = ENCODINGS["bitmask"].encode(tensor)["bits"].numpy()
    assert "".join(f"{byte:08b}" for byte in bits)[:140] == "".join(
        str(int(x != 0)) for x in tensor.flatten()
    )

    tensor = two_of_four((3, 12))
    parts = ENCODINGS["2:4"].encode(tensor)
    codes = [byte >> shift & 3 for byte in parts["places"].tolist() for shift in (0, 2, 4, 6)]
    for number, group in enumerate(tensor.reshape(-1, 4)):
        places = codes[2 * number : 2 * number + 2]
        assert places[0] < places[1]
        others = np.delete(raw(group).view(np.uint32), places)
        assert not others.any()
        np.testing.assert_array_equal(group[places], parts["values"][number])


@pytest.mark.parametrize(
    ("name", "size"),
    [("bitmask", 6000 / 8 + 4 * 600), ("csr", 4 * 61 + 8 * 600), ("2:4", 2.125 * 6000)],
)
def test_sizes_are_those_stated(name, size):
    """60 x 100 float32 at 90 %; the formulas of the module's docstring."""
    groups = torch.zeros(1500, 4)
    groups[:300, 1:3] = 1.0  # 600 values, two in a group
    parts = ENCODINGS[name].encode(groups.reshape(60, 100))
    assert sum(part.nbytes for part in parts.values()) == size


def test_two_of_four_says_why_not():
    """One group too many is enough, and so are inputs that four do not divide."""
    tensor = two_of_four((5, 8))
    tensor[3, :3] = 1.0
    with pytest.raises(Unsuitable, match="1 of 10 groups of 4 have 3 or more non-zeros"):
        ENCODINGS["2:4"].encode(tensor)
    with pytest.raises(Unsuitable, match="6 inputs, no multiple of 4"):
        ENCODINGS["2:4"].encode(torch.zeros(4, 6, 2, 2))
