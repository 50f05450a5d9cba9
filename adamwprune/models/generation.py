"""Text from a language model: one token after the other, drawn from its own distribution.

Randomness comes from the generator that is given, never from torch's own, and the model is left in the mode
that it was in: training is the same, to the bit, with and without samples.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Tensor,
    *,
    block_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`prompts` (B, T) followed by `max_new_tokens` drawn tokens each: int64 (B, T + max_new_tokens).

    Each token is drawn from softmax(logits / temperature) over the `top_k` likeliest tokens (all by default).
    The model sees the last `block_size` tokens.

    Args:
        model: token ids (B, T) to logits (B, T, V).
        prompts: int64 on the model's device, T >= 1.
        block_size: the longest sequence that the model takes.
        max_new_tokens: how many to add to each.
        temperature: >= 0; 0 takes the likeliest token, the first of equal ones.
        top_k: >= 1.
        generator: on the CPU, where tokens are drawn, so that devices draw alike; needed unless temperature
            is 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(prompts, temperature, top_k, generator)
    modes = [(module, module.training) for module in model.modules()]  # parts of it may be frozen
    model.eval()
    try:
        tokens = prompts
        for _ in range(max_new_tokens):
            logits = model(tokens[:, -block_size:])[:, -1].float().cpu()
            drawn = _draw(logits, temperature, top_k, generator)
            tokens = torch.cat([tokens, drawn.to(tokens.device)], dim=1)
    finally:
        for module, mode in modes:
            module.training = mode
    return tokens


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token (B, 1) for each row of `logits` (B, V)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        values, kept = logits.topk(top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, values)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)


def _check(prompts: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> None:
    if prompts.dim() != 2 or not prompts.shape[1]:
        raise ValueError(f"prompts of shape {tuple(prompts.shape)}: must be (B, T) with T >= 1")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: must be >= 0")
    if temperature and generator is None:
        raise ValueError(f"temperature={temperature}: needs a generator, for torch's own belongs to training")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: must be >= 1")
