"""Masking and the norm in one pass, against masks and torch's norm one after the other."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from adamwprune.pruning import gradients as module
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.gradients import mask_, mask_and_norm_, norm_of
from adamwprune.pruning.layout import CHUNK
from adamwprune.pruning.modes.hard import Hard
from adamwprune.pruning.modes.soft import Soft
from adamwprune.pruning.modes.ste import StraightThrough
from tests.pruning import drive
from tests.pruning.drive import same, with_

# The sum of squares of a chunk is rounded in float32: off by up to 7e-6 (of bfloat16 values, whose roundings
# agree), and the norm by half of that. Tensors of up to a chunk are summed in float64.
CLOSE = {"rtol": 5e-6, "atol": 0.0}
SHAPES = [
    (7,),
    (33, 65),
    (6, 5, 3, 2),
    (CHUNK // 18 + 1, 2, 3, 3),
    (0, 4),
    (CHUNK + 5,),
    (3, CHUNK // 2 + 1),
    (),
]


def make(layout, dtype, seed=0):
    """Gradients with masks; every third has none, as parameters that are not pruned."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for i, shape in enumerate(SHAPES):
        gradient = torch.randn(shape, generator=generator).to(dtype)
        mask = torch.rand(shape, generator=generator) < 0.4
        if layout in ("channels_last", "mixed") and gradient.dim() == 4:
            gradient = gradient.to(memory_format=torch.channels_last)
            mask = mask.to(memory_format=torch.channels_last) if layout == "channels_last" else mask
        if layout == "strided" and gradient.dim():
            gradient = torch.stack([gradient, gradient], dim=-1)[..., 0]
        pairs.append((gradient, None if i % 3 == 1 else mask))
    return pairs


def one_after_the_other(pairs):
    """Norm and masked gradients the plain way, in float64."""
    masked = [g.clone() if m is None else g.masked_fill(~m, 0.0) for g, m in pairs]
    return get_total_norm([gradient.double() for gradient in masked]), masked


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_pass_equals_masking_and_then_torchs_norm(dtype, layout):
    """For all layouts and formats, scalars and empty tensors: gradients but for the sign of 0."""
    pairs = make(layout, dtype)
    norm, masked = one_after_the_other(pairs)
    torch.testing.assert_close(mask_and_norm_(pairs).double(), norm, **CLOSE)
    for (gradient, _), expected in zip(pairs, masked, strict=True):
        assert torch.equal(gradient, expected)


def test_formats_may_be_mixed():
    pairs = [
        pair for dtype in (torch.float32, torch.bfloat16, torch.float64) for pair in make("mixed", dtype)
    ]
    norm, _ = one_after_the_other(pairs)
    torch.testing.assert_close(mask_and_norm_(pairs).double(), norm, **CLOSE)


def test_a_large_tensor_is_summed_as_well_as_a_small_one():
    """Control: torch's norm on a CPU adds 4e6 squares in float32, and is off by more than ours may be."""
    gradient = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    exact = gradient.double().norm()
    torch.testing.assert_close(mask_and_norm_([(gradient, None)]).double(), exact, **CLOSE)
    assert abs(get_total_norm([gradient]).double() / exact - 1) > CLOSE["rtol"]


def test_the_norm_does_not_depend_on_the_order_of_tensors():
    pairs = make("contiguous", torch.float32)
    dense = [(gradient, None) for gradient, _ in pairs]
    assert mask_and_norm_(dense) == mask_and_norm_(dense[::-1])


def test_without_pruned_weights_nothing_is_written():
    """And without gradients 0."""
    pairs = [(gradient, None) for gradient, _ in make("mixed", torch.float32)]
    before = [gradient.clone() for gradient, _ in pairs]
    mask_and_norm_(pairs)
    assert all(same(gradient, kept) for (gradient, _), kept in zip(pairs, before, strict=True))
    assert mask_and_norm_([]) == 0.0


@pytest.mark.parametrize("value", [-0.0, 2.0, -2.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("layout", ["contiguous", "mixed", "large"])
def test_what_a_mask_hides_becomes_0_and_is_seen_if_it_is_not_finite(layout, value):
    """0 of either sign; 0 * inf is NaN, and so is the norm."""
    shape = (4, 3, 2, CHUNK) if layout == "large" else (4, 3, 2, 2)
    gradient, mask = torch.ones(shape), torch.ones(shape, dtype=torch.bool)
    if layout == "mixed":
        gradient = gradient.to(memory_format=torch.channels_last)
    mask[1, 1, 1, 1] = False
    gradient[1, 1, 1, 1] = value
    with warnings.catch_warnings():  # no word of NumPy's about 0 * inf: it is meant
        warnings.simplefilter("error")
        norm = mask_and_norm_([(gradient, mask)])
    if math.isfinite(value):
        assert gradient[1, 1, 1, 1] == 0.0
        torch.testing.assert_close(norm, torch.tensor(math.sqrt(gradient.numel() - 1)), rtol=1e-6, atol=0.0)
    else:
        assert norm.isnan()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed", "strided"])
@pytest.mark.parametrize("value", [-0.0, -1.0, math.inf, math.nan])
def test_masking_alone_leaves_plus_zero_to_the_bit(layout, value):
    """Whatever was there; live entries and gradients without a mask keep every bit."""
    pairs = make(layout, torch.float32)
    for gradient, mask in pairs:
        if mask is not None:
            gradient.masked_fill_(~mask, value)
    before = [gradient.clone() for gradient, _ in pairs]
    mask_(pairs)
    for (gradient, mask), old in zip(pairs, before, strict=True):
        assert same(gradient, old if mask is None else old.masked_fill(~mask, 0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_formats_see_it_too(dtype):
    """The overflow of an fp16 backward pass, under a mask."""
    gradient = torch.tensor([1.0, math.inf], dtype=dtype)
    assert mask_and_norm_([(gradient, torch.tensor([True, False]))]).isnan()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_lives_and_is_not_finite_is_in_the_norm(value):
    """The control: a mask elsewhere hides nothing of it."""
    gradient, mask = torch.ones(9), torch.arange(9) > 3
    gradient[5] = value
    assert not mask_and_norm_([(gradient, mask)]).isfinite()


def test_half_formats_have_norms_beyond_their_range():
    """Control: torch's is of the gradients' own format, in which 1,000 entries of 60,000 are infinite."""
    gradient = torch.full((1000,), 60000.0, dtype=torch.float16)
    assert get_total_norm([gradient]).isinf()
    torch.testing.assert_close(mask_and_norm_([(gradient, None)]).double(), gradient.double().norm(), **CLOSE)


@pytest.mark.parametrize(("size", "value"), [(1, 1.3e154), (CHUNK + 1, 2.1e151)])
def test_sums_beyond_float64_are_infinite_as_torchs(size, value):
    """The sum of a small tensor's squares, or that of chunks, of which each is finite."""
    gradients = [torch.full((size,), value, dtype=torch.float64) for _ in range(3)]
    assert get_total_norm(gradients).isinf()
    assert mask_and_norm_([(gradient, None) for gradient in gradients]).isinf()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed", "strided"])
def test_an_accelerators_way_finds_the_same(layout):
    """What is done off the CPU, done on it: gradients bitwise, norms to what torch's own is off on a CPU."""
    chunked, whole = make(layout, torch.float32), make(layout, torch.float32)
    expected, found = mask_and_norm_(chunked), module._mask_and_norm_by_tensor_(whole)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(chunked, whole, strict=True))


# --------------------------------------------------------------------------------- bytes (A15)


class Passes:
    """Elements that chunks take out of each gradient, in memory order."""

    def __init__(self, monkeypatch):
        self.sizes, self.elements = [], 0
        real = module.parts

        def parts(size):
            for part in real(size):
                self.sizes.append(part.stop - part.start)
                self.elements += part.stop - part.start
                yield part

        monkeypatch.setattr(module, "parts", parts)


def test_each_gradient_is_walked_once_in_pieces_that_stay_in_cache(monkeypatch):
    """A15: a pass over g reads 4 bytes and a mask byte and writes 4; no second pass over memory.

    The norm alone, which clipping pays anyhow, reads 4. So masking adds 5 bytes a prunable weight,
    less than the 9 of a bool pass of its own (pruning.md, section 5).
    """
    passes = Passes(monkeypatch)
    pairs = make("contiguous", torch.float32)
    total = sum(gradient.numel() for gradient, _ in pairs)
    mask_and_norm_(pairs)
    assert passes.elements == sum(g.numel() for g, _ in pairs if g.numel() > CHUNK)  # the others fit in cache
    assert max(passes.sizes) == CHUNK
    written = sum(gradient.numel() for gradient, mask in pairs if mask is not None)
    read = 4 * total + written  # floats, and a byte of each mask
    assert (read + 4 * written - 4 * total) / written == 5


class Operations(TorchDispatchMode):
    """Torch operations by name, and the elements that they wrote in new tensors."""

    def __init__(self):
        super().__init__()
        self.names, self.largest_copy = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.name())
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in inputs:
            self.largest_copy = max(self.largest_copy, result.numel())
        return result


def test_no_copy_of_a_gradient_is_made():
    """Masked in place, squared where it lies: no new tensor larger than the norm."""
    gradient = torch.randn(3 * CHUNK)
    mask = torch.rand(3 * CHUNK) < 0.5
    with Operations() as operations:
        mask_and_norm_([(gradient, mask)])
    assert operations.largest_copy <= 2
    with Operations() as control:
        gradient.mul_(mask.to(gradient.dtype))
    assert control.largest_copy == gradient.numel()


def test_a_steady_hard_step_touches_nothing_but_gradients():
    """After the last update after_step does no operation at all, and masking none but on gradients."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 65)
    drive.backward(model, 66)
    own = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    own |= {pruner.masks[name].untyped_storage().data_ptr() for name in pruner.prunable}
    touched = []

    class Touched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            touched.extend(t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor))
            return function(*args, **(kwargs or {}))

    with Touched():
        pruner.mask_grads_()
    assert set(touched) <= own
    with Operations() as operations:
        assert pruner.after_step(66) is None
    assert operations.names == []


# ------------------------------------------------------------------------------------ of the pruner


@pytest.mark.parametrize("mode", ["hard", "soft", "ste"])
def test_masking_with_norms_equals_masking_alone(mode):
    """Also in modes whose masks do not apply to gradients: soft leaves them, ste adds its decay to them."""
    kinds = {"hard": {}, "soft": {"mode": Soft}, "ste": {"mode": with_(StraightThrough, decay=0.1)}}
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused", betas=(0.9, 0.9))
    pruner = drive.pruner_of(model, optimizer, criterion=state, **kinds[mode])
    drive.train(model, optimizer, pruner, 1, 45)
    results = []
    for with_norms in (False, True):
        optimizer.zero_grad()
        drive.backward(model, 46)
        plain = [p.grad.clone() for p in model.parameters()]
        if with_norms:
            norm = pruner.mask_and_norm_grads_()
            torch.testing.assert_close(norm, norm_of([p.grad for p in model.parameters()]), **CLOSE)
        else:
            pruner.mask_grads_()
        results.append([p.grad.clone() for p in model.parameters()])
        differs = not all(torch.equal(a, b) for a, b in zip(plain, results[-1], strict=True))
        assert differs is (mode != "soft")
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Shifted(Hard):
    """A mode that both edits gradients and masks them."""

    def edit_grads_(self):
        for parameter in self.parameters.values():
            parameter.grad.add_(1.0)


@pytest.mark.parametrize("with_norm", [False, True])
def test_what_a_mode_does_to_gradients_comes_before_its_masks_and_is_never_left_out(with_norm):
    """Live gradients are shifted by 1, pruned ones 0, whichever way the loop clips."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer, mode=Shifted)
    drive.train(model, optimizer, pruner, 1, 45)
    optimizer.zero_grad()
    drive.backward(model, 46)
    before = {name: p.grad.clone() for name, p in pruner.prunable.items()}
    (pruner.mask_and_norm_grads_ if with_norm else pruner.mask_grads_)()
    for name, parameter in pruner.prunable.items():
        mask = pruner.masks[name]
        assert torch.equal(parameter.grad, torch.where(mask, before[name] + 1.0, 0.0))
        assert not mask.all()


def test_parameters_without_gradient_are_left_out():
    """Frozen ones, and layers that took no part in the step."""
    model = drive.network()
    model[0].weight.requires_grad_(False)
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 60, clip="ours")
    pruner.verify(60)
    model[2].weight.grad = None
    norm = pruner.mask_and_norm_grads_()
    live = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(norm, norm_of(live), **CLOSE)
    nn.Module.zero_grad(model)
    assert pruner.mask_and_norm_grads_() == 0.0


def test_masking_does_not_change_how_numpy_converts_elsewhere():
    """The smaller buffer is that of the pass, also where a pass fails."""
    before = np.getbufsize()
    mask_and_norm_(make("contiguous", torch.float32))
    assert np.getbufsize() == before
    with pytest.raises(RuntimeError):
        mask_and_norm_([(torch.ones(3), torch.ones(4, dtype=torch.bool))])
    assert np.getbufsize() == before
