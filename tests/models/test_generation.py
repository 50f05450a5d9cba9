"""Text: drawn from the model's own distribution, and training never notices."""

import pytest
import torch
from torch import nn

from adamwprune.models.generation import generate
from adamwprune.models.gpt2 import GPT2


class Table(nn.Module):
    """Logits of the next token from a table, (V, V); remembers how many tokens it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.lengths = []

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        return self.logits[tokens]


def successor(size=5):
    """After token i comes i + 1, for certain."""
    return Table(100 * torch.eye(size).roll(1, 1))


def drawn(model, prompts, seed=0, **options):
    options = {"block_size": 4, "max_new_tokens": 3, **options}
    return generate(model, torch.tensor(prompts), generator=torch.Generator().manual_seed(seed), **options)


def test_each_token_follows_the_last():
    """Prompts first, then what the model says, row by row."""
    expected = [[0, 1, 2, 3, 4], [3, 4, 0, 1, 2]]
    for temperature in (0.0, 1.0):
        assert drawn(successor(), [[0, 1], [3, 4]], temperature=temperature).tolist() == expected


def test_the_model_sees_the_last_block_alone():
    """A longer sequence would be refused."""
    model = successor()
    drawn(model, [[0, 1]], max_new_tokens=5)
    assert model.lengths == [2, 3, 4, 4, 4]


def test_tokens_are_drawn_from_the_softmax():
    """20,000 draws: three sigma is 0.011. Temperature sharpens, top-k cuts."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    table = Table(logits.expand(4, 4).clone())
    prompts = [[0]] * 20_000

    def shares(**options):
        tokens = drawn(table, prompts, max_new_tokens=1, **options)[:, 1]
        return torch.bincount(tokens, minlength=4) / len(prompts)

    torch.testing.assert_close(shares(), logits.softmax(0), rtol=0, atol=0.011)
    torch.testing.assert_close(shares(temperature=0.5), (2 * logits).softmax(0), rtol=0, atol=0.011)
    kept = torch.tensor([1.0, -torch.inf, -torch.inf, 0.5]).softmax(0)
    torch.testing.assert_close(shares(top_k=2), kept, rtol=0, atol=0.011)
    assert shares(top_k=1).tolist() == [1.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(shares(top_k=9), shares())


def test_training_does_not_notice():
    """Modes, weights, gradients and torch's generator are as before; a failing model's mode too."""
    torch.manual_seed(0)
    model = GPT2(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.5)
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    options = {"block_size": 8, "max_new_tokens": 12, "temperature": 0.8, "top_k": 5}
    first, second, other = (drawn(model, [[1, 2]], seed=seed, **options).tolist() for seed in (7, 7, 8))
    assert first == second  # dropout was off
    assert first != other
    assert len(first[0]) == 14
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(IndexError):
        drawn(model, [[99]])
    assert [module.training for module in model.modules()] == modes
    torch.rand(1)  # the control: a draw moves the generator
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([1, 2], {}, r"shape \(2,\): must be \(B, T\)"),
        ([[]], {}, "T >= 1"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0: must be >= 0"),
        ([[1]], {"top_k": 0}, "top_k=0: must be >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        drawn(successor(), prompts, **options)


def test_torchs_own_generator_is_never_used():
    """It belongs to training; the likeliest token needs none."""
    with pytest.raises(ValueError, match="needs a generator"):
        generate(successor(), torch.tensor([[0]]), block_size=4, max_new_tokens=1)
    likeliest = generate(successor(), torch.tensor([[0]]), block_size=4, max_new_tokens=1, temperature=0)
    assert likeliest.tolist() == [[0, 1]]
