"""Masks: zeroing exactly, packing, hashing, and refusing what does not belong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from adamwprune.errors import CheckpointError
from adamwprune.pruning.layout import flat, memory_order, zero_pruned_
from adamwprune.pruning.masks import Masks


def zeroed(tensor):
    """Whether each entry is exactly +0.0: all bits zero."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed", "strided"])
def test_pruned_entries_become_plus_zero_and_others_keep_their_bits(dtype, layout):
    """Whatever they hold: -0.0, infinities and NaN too, which multiplication would spoil."""
    torch.manual_seed(0)
    tensor = torch.randn(6, 5, 3, 2).to(dtype)
    tensor.view(-1)[:40:4] = torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan, -1.0] * 2).to(dtype)
    mask = torch.rand(6, 5, 3, 2) < 0.5
    if layout in ("channels_last", "mixed"):
        tensor = tensor.to(memory_format=torch.channels_last)
    if layout == "channels_last":
        mask = mask.to(memory_format=torch.channels_last)
    if layout == "strided":
        tensor = torch.stack([tensor, tensor], dim=-1)[..., 0]
    before = tensor.clone()
    zero_pruned_(tensor, mask)
    assert zeroed(tensor)[~mask].all()
    torch.testing.assert_close(tensor[mask], before[mask], rtol=0, atol=0, equal_nan=True)


def test_multiplication_would_not_do():
    """The control of the test above."""
    product = torch.tensor([-1.0, torch.inf]) * torch.tensor([False, False])
    assert not zeroed(product).any()


def test_a_mask_of_another_shape_is_an_error():
    """Never a silent half."""
    with pytest.raises(RuntimeError):
        zero_pruned_(torch.ones(3), torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 1)])
@pytest.mark.parametrize("kept", [True, False])
def test_scalars_and_empty_tensors_are_tensors(kept, shape):
    tensor = torch.full(shape, -2.0)
    zero_pruned_(tensor, torch.full(shape, kept))
    assert (tensor == (-2.0 if kept else 0.0)).all()
    assert zeroed(tensor).all() == (not kept or tensor.numel() == 0)


def test_flat_walks_memory_without_a_copy():
    tensor = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    order = memory_order(tensor)
    assert order == (0, 2, 3, 1)
    assert flat(tensor, order).data_ptr() == tensor.data_ptr()


def make(*shapes, pruned=0.5, seed=0):
    """Parameters with masks that prune some of their weights, which are zero."""
    torch.manual_seed(seed)
    parameters = {f"layer{i}.weight": Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    masks = Masks(parameters)
    for name, parameter in parameters.items():
        masks[name].copy_(torch.rand(parameter.shape) >= pruned)
        zero_pruned_(parameter, masks[name])
    masks.recount()
    return parameters, masks


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_survive_packing(shape, seed):
    parameters, masks = make(shape, seed=seed)
    loaded = Masks(parameters)
    loaded.load_state_dict(masks.state_dict())
    assert torch.equal(loaded["layer0.weight"], masks["layer0.weight"])
    assert loaded.pruned == masks.pruned == {"layer0.weight": int((~masks["layer0.weight"]).sum())}
    assert loaded.hash() == masks.hash()


def test_packed_masks_take_one_bit_a_weight():
    packed = make((7, 3), (80, 10))[1].state_dict()["packed"]
    assert {name: bits.numel() for name, bits in packed.items()} == {"layer0.weight": 3, "layer1.weight": 100}


def test_packing_does_not_depend_on_the_memory_format():
    parameters, masks = make((4, 3, 2, 2))
    other = Masks({n: Parameter(p.to(memory_format=torch.channels_last)) for n, p in parameters.items()})
    other.load_state_dict(masks.state_dict())
    assert other["layer0.weight"].stride() == (12, 1, 6, 3)
    assert other.hash() == masks.hash()


def test_hash_tells_masks_and_names_apart():
    parameters, masks = make((10, 10))
    renamed = Masks({"other.weight": parameters["layer0.weight"]})
    renamed["other.weight"].copy_(masks["layer0.weight"])
    before = masks.hash()
    assert len(before) == 16
    assert renamed.hash() != before
    masks["layer0.weight"][3, 3] ^= True
    assert masks.hash() != before


def test_damaged_masks_are_refused_and_change_nothing():
    parameters, masks = make((10, 10))
    state = masks.state_dict()
    state["packed"]["layer0.weight"][0] ^= 1
    loaded = Masks(parameters)
    with pytest.raises(CheckpointError, match="damaged"):
        loaded.load_state_dict(state)
    assert loaded["layer0.weight"].all()


def test_only_masks_that_prune_are_in_force():
    """A tensor without pruned weights costs no pass; counts are those of the last recount."""
    parameters, masks = make((6, 5), (4, 3), pruned=0.0)
    assert masks.in_force() == {}
    masks["layer1.weight"][0, 0] = False
    assert masks.in_force() == {}
    masks.recount()
    assert masks.in_force() == {id(parameters["layer1.weight"]): masks["layer1.weight"]}
    assert masks.pruned == {"layer0.weight": 0, "layer1.weight": 1}
    masks.revive_()
    assert masks.in_force() == {}
    assert masks["layer1.weight"].all()


def test_counts_tell_pruned_from_revived():
    """A weight under a mask that is not 0, whatever its size or sign."""
    parameters, masks = make((10, 10))
    pruned = int((~masks["layer0.weight"]).sum())
    assert masks.count() == {"layer0.weight": (pruned, 0)}
    with torch.no_grad():
        parameters["layer0.weight"][~masks["layer0.weight"]] = torch.tensor(
            [1e-45, -1.0, torch.nan] + [-0.0] * (pruned - 3)
        )
    assert masks.count() == {"layer0.weight": (pruned, 3)}


def test_masks_of_other_tensors_are_refused():
    state = make((10, 10))[1].state_dict()
    with pytest.raises(CheckpointError, match="names or sizes"):
        make((10, 11))[1].load_state_dict(state)


def test_masks_whose_weights_are_not_zero_are_refused():
    parameters, masks = make((10, 10))
    state = masks.state_dict()
    with torch.no_grad():
        parameters["layer0.weight"][~masks["layer0.weight"]] = 0.5
    with pytest.raises(CheckpointError, match=r"pruned weights of layer0\.weight are not 0"):
        Masks(parameters).load_state_dict(state)


def test_bits_are_in_logical_order_with_the_first_entry_highest():
    """The file format: what another reader has to know."""
    _, masks = make((3, 5))
    bits = np.packbits(masks["layer0.weight"].numpy().reshape(-1))
    np.testing.assert_array_equal(masks.state_dict()["packed"]["layer0.weight"].numpy(), bits)
