"""What the loop, checkpoints and pruning expect of an optimizer, of each of them."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import Parameter

from adamwprune.optim.param_groups import param_groups
from tests.optim import drive

NAMES = list(drive.ALL)
STATEFUL = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


class Network(nn.Module):
    """An embedding tied to the head, a hidden layer and a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.hidden(self.embedding(tokens))))


def build(name, model):
    return drive.make(name, param_groups(model, weight_decay=0.1, decay_embeddings=False))


def train(model, optimizer, steps):
    """Steps first, first + 1, ... with a learning rate set as the loop sets it, and a few spikes."""
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 200)
        optimizer.zero_grad()
        tokens = torch.randint(9, (16,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(tokens), (tokens + 1) % 9)
        (loss * (1000.0 if step % 17 == 16 else 1.0)).backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [1, 10, 33])
def test_goes_on_to_the_bit_from_a_checkpoint(name, stop):
    """Stopped in a first step, in a reset and within a cycle; loaded as weights only, over resets."""
    unbroken = Network()
    train(unbroken, build(name, unbroken), range(60))
    first = Network()
    optimizer = build(name, first)
    train(first, optimizer, range(stop))
    stream = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    second = Network()
    resumed = build(name, second)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(stop, 60))
    for p, q in zip(second.parameters(), unbroken.parameters(), strict=True):
        assert drive.same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_without_the_state_is_noticed(name):
    """Control of the test above: the weights alone do not go on to the bit."""
    unbroken, second = Network(), Network()
    optimizer = build(name, unbroken)
    train(unbroken, optimizer, range(33))
    second.load_state_dict(unbroken.state_dict())
    train(second, build(name, second), range(33, 60))
    train(unbroken, optimizer, range(33, 60))
    assert any(not torch.equal(p, q) for p, q in zip(second.parameters(), unbroken.parameters(), strict=True))


# ---------------------------------------------------------------------------------- pruning, mode hard


@pytest.mark.parametrize("name", [name for name in NAMES if name != "muon"])
def test_pruned_weights_stay_at_plus_zero(name):
    """1,205 steps over resets, spikes and weight decay, with weight, gradient and state at 0."""
    weight = drive.parameter(64)
    pruned = torch.arange(64) % 2 == 0
    with torch.no_grad():
        weight[pruned] = 0.0
    optimizer = drive.make(name, [weight], weight_decay=0.1)
    for grad in drive.random_grads(1205, 64):
        weight.grad = torch.from_numpy(grad).clone().masked_fill_(pruned, 0.0)
        optimizer.step()
    tensors = [
        weight.detach(),
        *(optimizer.state[weight][key] for key in STATEFUL if key in optimizer.state[weight]),
    ]
    assert len(tensors) >= 2
    for tensor in tensors:
        assert drive.same_bits(tensor[pruned], torch.zeros(32))
        assert (tensor[~pruned] != 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "muon"])
def test_a_moment_that_is_not_zeroed_moves_a_pruned_weight(name):
    """Control of the test above."""
    weight = drive.parameter(8)
    optimizer = drive.make(name, [weight])
    weight.grad = torch.ones(8)
    optimizer.step()
    with torch.no_grad():
        weight.zero_()
    weight.grad = torch.zeros(8)
    optimizer.step()
    assert (weight != 0).all()


# ------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", NAMES)
def test_a_tied_weight_is_stepped_once(name):
    """Like a plain parameter with the same gradient; the ancestor's moved twice."""
    model = Network()
    optimizer = build(name, model)
    plain = Parameter(model.embedding.weight.detach().clone())
    # The groups of a network exclude the tied weight from decay, and Muon hands it to AdamW.
    alone = drive.make("adamw" if name == "muon" else name, [plain], weight_decay=0.0)
    for step in range(15):
        model.zero_grad()
        tokens = torch.randint(9, (16,), generator=torch.Generator().manual_seed(step))
        model(tokens).square().mean().backward()
        for parameter in model.parameters():
            if parameter is not model.embedding.weight:
                parameter.grad = None  # so that no norm of all gradients is in between
        plain.grad = model.embedding.weight.grad.clone()
        if name == "muon":
            alone.param_groups[0].update(lr=1e-3, betas=(0.9, 0.95))
        optimizer.step()
        alone.step()
    assert torch.equal(model.embedding.weight, plain)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_a_gradient_are_left_alone(name):
    """No step, no decay, no state; then they begin with a first step of their own."""
    used, idle = drive.parameter(6).detach().view(2, 3), torch.ones(2, 3)
    used, idle = Parameter(used), Parameter(idle)
    optimizer = drive.make(name, [used, idle], weight_decay=0.1)
    for _ in range(12):
        used.grad = torch.ones(2, 3)
        optimizer.step()
    assert torch.equal(idle, torch.ones(2, 3))
    assert not optimizer.state.get(idle)
    idle.grad = torch.ones(2, 3)
    optimizer.step()
    assert not torch.equal(idle, torch.ones(2, 3))
    if "step" in optimizer.state[idle]:
        assert optimizer.state[idle]["step"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_not_written_to(name):
    """Whoever reads them after the step, such as regrowth by gradient, gets what backward left."""
    weight = Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = drive.make(name, [weight])
    for grad in drive.random_grads(40, 16, scale=1.0):
        weight.grad = torch.from_numpy(grad).view(4, 4).clone()
        optimizer.step()
        assert torch.equal(weight.grad, torch.from_numpy(grad).view(4, 4))


@pytest.mark.parametrize("name", NAMES)
def test_converges_on_a_quadratic(name):
    """300 steps on a sum of squares of different curvature bring it below a hundredth."""
    curvature = torch.logspace(-1, 0.5, 16).view(4, 4)
    weight = Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    start = (curvature * weight.detach().square()).sum()
    settings = {"lr": 0.1, "weight_decay": 0.0} | ({"reset_every": 100} if name in drive.OURS else {})
    optimizer = drive.make(name, [weight], **settings)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        loss = (curvature * weight.square()).sum()
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * start


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_is_called_with_gradients_and_its_loss_returned(name):
    """As torch's optimizers do."""
    weight = Parameter(torch.ones(3, 3))
    optimizer = drive.make(name, [weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert (weight != 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_hooks_fire_once_a_step(name):
    """A pruner may hang itself there."""
    weight = Parameter(torch.ones(3, 3))
    optimizer = drive.make(name, [weight])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for _ in range(2):
        weight.grad = torch.ones(3, 3)
        optimizer.step()
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_the_loss_scaler_skips_leave_no_trace(name):
    """fp16 overflows, the first step's among them: the same as without those steps, state included."""
    results = []
    for gradients in ([float("inf"), 1.0, float("inf"), 0.5, 2.0], [1.0, 0.5, 2.0]):
        weight = Parameter(torch.ones(3, 3))
        optimizer = drive.make(name, [weight])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for gradient in gradients:
            weight.grad = torch.full((3, 3), gradient) * scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        state = {name: torch.as_tensor(value) for name, value in optimizer.state[weight].items()}
        counts = [group.get("steps") for group in optimizer.param_groups]
        results.append((weight.detach(), state, counts))
    (first, first_state, first_counts), (second, second_state, second_counts) = results
    assert torch.equal(first, second)
    assert first_counts == second_counts
    assert first_state.keys() == second_state.keys()
    assert all(torch.equal(first_state[name], second_state[name]) for name in first_state)


@pytest.mark.parametrize("name", [*drive.OURS, "muon"])
def test_nothing_is_read_back_from_the_device(name):
    """Tensors on the meta device hold no numbers to read: any .item() or branch on one would raise."""
    params = [Parameter(torch.empty(shape, device="meta")) for shape in ((3, 4), (5,))]
    optimizer = drive.make(name, params)
    for _ in range(30):
        for parameter in params:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    assert optimizer.state[params[0]]


def test_the_check_above_notices_a_number_that_is_read():
    """Control of the test above."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device="meta").item()


@pytest.mark.parametrize("name", list(drive.OURS))
def test_large_tensors_are_stepped_in_pieces_as_if_whole(name, monkeypatch):
    """A tensor of 300 entries in pieces of 64, with others of odd sizes, to the bit."""
    results = []
    for piece in (64, 1 << 18):
        monkeypatch.setattr("adamwprune.optim.cohorts.CPU_PIECE", piece)
        weights = [drive.parameter(size) for size in (300, 3, 70, 64)]
        optimizer = drive.make(name, weights)
        for grad in drive.random_grads(45, 437):
            parts = np.split(grad, np.cumsum([300, 3, 70]))
            for weight, part in zip(weights, parts, strict=True):
                weight.grad = torch.from_numpy(part).clone()
            optimizer.step()
        results.append(torch.cat([weight.detach() for weight in weights]))
    if name == "ancestor":  # its norm is summed piece by piece
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)
    else:
        assert drive.same_bits(*results)
