"""What a language model writes at an evaluation: the same prompts each time, so that progress can be read.

Each prompt has a random generator of its own, started from the run's seed. So samples of two steps differ by
the weights alone, and training is the same, to the bit, with and without them.
"""

from collections.abc import Sequence

import torch
from torch import nn

from adamwprune.data.tokenizer import Tokenizer
from adamwprune.errors import ConfigError
from adamwprune.models.generation import generate
from adamwprune.training.precision import Autocast


def write_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    tokens: int,
    temperature: float,
    top_k: int | None,
    block_size: int,
    seed: int,
    autocast: Autocast,
) -> list[str]:
    """Each prompt followed by `tokens` tokens of the model's own.

    Where the model is spread over ranks, every rank has to call it; all get the same texts.

    Args:
        model: unwrapped, as it is evaluated.
        tokenizer: of the data set that it is trained on.
        prompts: texts of a token or more.
        tokens: how many to add to each.
        temperature: see `generate`.
        top_k: see `generate`.
        block_size: tokens that the model takes.
        seed: of the draws.
        autocast: of the run.

    Raises:
        ConfigError: a prompt needs a token that the data set does not have.
    """
    device = next(model.parameters()).device
    texts = []
    for prompt in prompts:
        with autocast():
            ids = generate(
                model,
                torch.tensor([tokenizer.encode(prompt)], device=device),
                block_size=block_size,
                max_new_tokens=tokens,
                temperature=temperature,
                top_k=top_k,
                generator=torch.Generator().manual_seed(seed),
            )
        texts.append(tokenizer.decode(ids[0].tolist()))
    return texts


def check_prompts(tokenizer: Tokenizer | None, prompts: Sequence[str]) -> None:
    """Refuse, before the run, what could not be continued.

    Raises:
        ConfigError: the data set has no text, or not the tokens of a prompt.
    """
    if tokenizer is None:
        raise ConfigError("samples.tokens: the data set is no text; use samples.tokens=0")
    if not prompts:
        raise ConfigError("samples.prompts=[]: nothing to continue; give a text, or use samples.tokens=0")
    for prompt in prompts:
        try:
            ids = tokenizer.encode(prompt)
        except ConfigError as error:
            raise ConfigError(f"samples.prompts=[{prompt}]: {error}; use another text") from None
        if not ids:
            raise ConfigError("samples.prompts: a prompt is empty; give each a word or more")
