"""Text samples: prompts that any data set's ids can say, and a run that does not notice them."""

import numpy as np
import pytest
import torch

from adamwprune.config import Precision
from adamwprune.data.tokenizer import Tokenizer
from adamwprune.errors import ConfigError
from adamwprune.models.gpt2 import GPT2
from adamwprune.training.precision import Autocast
from adamwprune.training.text_samples import check_prompts, write_texts

TEXT = "Hello, world! It's GPT-2 — naïve café"
IDS = [15496, 11, 995, 0, 632, 338, 402, 11571, 12, 17, 851, 41492, 40304]  # published tokens


def test_text_becomes_ids_and_text_again():
    """GPT-2's own ids, and renumbered ones: the place in the ascending list of those that occur."""
    assert Tokenizer().encode(TEXT) == IDS
    assert Tokenizer().decode(IDS) == TEXT
    vocab_map = np.unique([*IDS, 50256]).astype(np.uint16)
    renumbered = Tokenizer(vocab_map)
    assert renumbered.encode(TEXT) == [sorted(vocab_map.tolist()).index(i) for i in IDS]
    assert renumbered.decode(renumbered.encode(TEXT)) == TEXT


def test_what_a_model_may_draw_can_be_read():
    """Half a character, padding of the vocabulary, an end of text."""
    assert Tokenizer().decode([40304, 50256, 447]) == " café<|endoftext|>\N{REPLACEMENT CHARACTER}"
    assert Tokenizer().decode([995, 50300]) == " world\N{REPLACEMENT CHARACTER}"
    assert Tokenizer(np.array([995], np.uint16)).decode([0, 1]) == " world\N{REPLACEMENT CHARACTER}"


def test_prompts_are_checked_before_the_run():
    """With the key and the token."""
    few = Tokenizer(np.array([11, 995, 15496], np.uint16))
    check_prompts(few, ["Hello, world"])
    for tokenizer, prompts, message in (
        (few, ["Hello there"], r"^samples\.prompts=\[Hello there\]: the token ' there' does not occur"),
        (few, ["\N{SNOWMAN}"], "does not occur"),
        (few, [""], "is empty"),
        (few, [], r"samples\.prompts=\[\]: nothing to continue"),
        (None, ["Hello"], "the data set is no text"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_prompts(tokenizer, prompts)


def test_training_is_the_same_with_and_without_samples():
    """Bitwise, with dropout, which draws from torch's generator; equal weights write equal texts."""

    def trained(samples: bool):
        torch.manual_seed(0)
        model = GPT2(vocab_size=3, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.5).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        tokens, texts = torch.tensor([[0, 1, 2, 0, 1, 2]]), []
        for _ in range(4):
            if samples:
                for seed in (1, 1, 2):
                    texts.append(written(model, seed))
            logits = model(tokens[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict(), texts

    def written(model, seed):
        return write_texts(
            model,
            Tokenizer(np.array([11, 995, 15496], np.uint16)),
            ["Hello", ", world"],
            tokens=12,
            temperature=1.0,
            top_k=None,
            block_size=8,
            seed=seed,
            autocast=Autocast(Precision.fp32, "cpu"),
        )

    without, _ = trained(samples=False)
    with_samples, texts = trained(samples=True)
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_samples.items())
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0].startswith("Hello")
    assert texts[0][1].startswith(", world")
