"""SGD, Adam, AdamW: torch's own update, fused where it can be; decay groups and roles by identity."""

import pytest
import torch
from torch import nn

from adamwprune.optim.adam import adam
from adamwprune.optim.adamw import adamw
from adamwprune.optim.param_groups import group_table, param_groups
from adamwprune.optim.sgd import sgd


class Tied(nn.Module):
    """An embedding tied to the head, a norm, a block and a frozen weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.block = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.frozen(self.block(self.embedding(tokens)))))


def names(groups):
    return {group["name"]: group["names"] for group in groups}


def test_groups_by_identity():
    """Matrices decay; biases, norms and the tied embedding do not; each parameter once."""
    groups = param_groups(Tied(), weight_decay=0.1, decay_embeddings=False)
    assert names(groups) == {
        "decay": ["block.weight"],
        "no_decay": ["embedding.weight", "block.bias", "norm.weight", "norm.bias"],
    }
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_embeddings_decay_on_request():
    """The switch moves the tied weight, once."""
    groups = param_groups(Tied(), weight_decay=0.1, decay_embeddings=True)
    assert names(groups)["decay"] == ["embedding.weight", "block.weight"]


def test_roles_by_identity():
    """Each parameter's part in the network, beside its name; a head that is tied is an embedding."""
    model = Tied()
    first, second = param_groups(model, weight_decay=0.1, decay_embeddings=False)
    assert first["roles"] == ["hidden"]
    assert second["roles"] == ["embedding", "vector", "vector", "vector"]
    model.head.weight = nn.Parameter(torch.zeros(7, 4))
    groups = param_groups(model, weight_decay=0.1, decay_embeddings=False)
    roles = dict(zip(groups[0]["names"], groups[0]["roles"], strict=True))
    assert roles == {"block.weight": "hidden", "head.weight": "head"}


def test_group_table_counts_every_trained_parameter_once():
    """The table of the run record adds up."""
    model = Tied()
    table = group_table(param_groups(model, weight_decay=0.1, decay_embeddings=False))
    assert sum(row["parameters"] for row in table) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (adam, torch.optim.Adam, {"lr": 1e-2, "betas": [0.9, 0.95], "amsgrad": True}),
        (adamw, torch.optim.AdamW, {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-7}),
    ],
)
def test_equals_torch_on_hand_made_groups(ours, theirs, settings):
    """20 steps, parameters and state; fused against fused, so bitwise."""
    torch.manual_seed(0)
    first, second = Tied(), Tied()
    second.load_state_dict(first.state_dict())
    a = ours(param_groups(first, weight_decay=0.3, decay_embeddings=False), **settings)
    betas = {"betas": tuple(settings["betas"])} if "betas" in settings else {}
    no_decay = [second.embedding.weight, second.block.bias, second.norm.weight, second.norm.bias]
    b = theirs(
        [{"params": [second.block.weight], "weight_decay": 0.3}, {"params": no_decay, "weight_decay": 0.0}],
        fused=True,
        **{**settings, **betas},
    )
    tokens = torch.randint(7, (5,))
    for _ in range(20):
        for model, optimizer in ((first, a), (second, b)):
            optimizer.zero_grad()
            model(tokens).square().mean().backward()
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    for p, q in (
        (first.block.weight, second.block.weight),
        (first.embedding.weight, second.embedding.weight),
    ):
        assert a.state[p].keys() == b.state[q].keys()
        assert all(
            torch.equal(a.state[p][key], b.state[q][key]) for key in a.state[p] if a.state[p][key] is not None
        )


def test_a_tied_weight_moves_as_once():
    """The ancestor stepped it twice under its wrapper: 0.1095 instead of 0.0549."""
    model = Tied()
    before = model.embedding.weight.clone()
    optimizer = sgd(
        param_groups(model, weight_decay=0.0, decay_embeddings=False), lr=0.5, momentum=0.0, weight_decay=0.0
    )
    model(torch.arange(7)).sum().backward()
    gradient = model.embedding.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model.embedding.weight, before - 0.5 * gradient, rtol=1e-6, atol=1e-7)


# --------------------------------------------------------------------------------- fused or not

KINDS = {sgd: torch.optim.SGD, adam: torch.optim.Adam, adamw: torch.optim.AdamW}


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_is_fused_where_torch_is(ours, dtype):
    """On a CPU, every format of numbers that networks have."""
    assert ours([nn.Parameter(torch.zeros(2, dtype=dtype))]).param_groups[0]["fused"]


@pytest.mark.parametrize("ours", KINDS)
def test_is_not_fused_where_torch_is_not(ours):
    """Complex numbers, and a device without kernels: torch's own choice, where it would fail fused."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, dtype=torch.complex64)) for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    first, second = ours([weights[0]], lr=0.1), KINDS[ours]([weights[1]], **first_settings(ours))
    refused = KINDS[ours]([nn.Parameter(weights[0].detach().clone())], fused=True)
    refused.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="fused"):
        refused.step()
    for _ in range(3):
        for weight, optimizer in zip(weights, (first, second), strict=True):
            weight.grad = torch.randn(3, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
            optimizer.step()
    assert torch.equal(*weights)
    elsewhere = nn.Parameter(torch.empty(3, device="meta"))
    elsewhere.grad = torch.empty_like(elsewhere)
    optimizer = ours([elsewhere])
    optimizer.step()
    assert optimizer.param_groups[0]["fused"] is None


def first_settings(ours):
    """What ours gives to torch's, but for fused."""
    settings = {"lr": 0.1, "weight_decay": ours.__kwdefaults__["weight_decay"]}
    return settings | ({"momentum": 0.9} if ours is sgd else {})


def test_fused_sgd_takes_a_late_first_gradient():
    """Torch's own fails there; the result is that of the for-loop, to the bit."""
    results = []
    for make in (sgd, torch.optim.SGD):
        weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
        optimizer = make(weights, **settings) if make is sgd else make(weights, **settings, foreach=False)
        for step in range(5):
            weights[0].grad = torch.full((3,), 0.5)
            weights[1].grad = torch.full((3,), 0.25) if step >= 2 else None
            optimizer.step()
        results.append(torch.cat([weight.detach() for weight in weights]))
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    fused = torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True)
    weights[0].grad = None
    fused.step()
    weights[0].grad = torch.ones(3)
    with pytest.raises(TypeError, match="NoneType"):
        fused.step()
