"""The shipped texts, held to the published counts and hashes of their token streams."""

import math

import numpy as np
import pytest
import torch

from adamwprune.data import bpe
from adamwprune.data.text import shakespeare, sotu
from adamwprune.errors import DataError


def stream(dataset, block_size):
    """The tokens that fixed windows cover, put together again."""
    inputs, targets = dataset.batch(np.arange(len(dataset)), epoch=0)
    assert inputs.shape == (len(dataset), block_size)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    return torch.cat([inputs.flatten(), targets[-1, -1:]]).numpy()


def test_shakespeare_has_the_published_tokens():
    """Counts and stream hash of the specification; the split is 90/10 by token, no end of text."""
    data = shakespeare(vocab_size=50257, block_size=64, seed=0)
    assert data.facts["tokens_sha256"] == "bea71b186cd94e90504be3e77947e64cf9da3e21361df05599ae0d0692ddbe6c"
    assert (data.facts["train_tokens"], data.facts["val_tokens"]) == (324_219, 36_025)
    assert len(data.train) == 324_218 // 64 - 1
    assert len(data.val) == 36_024 // 64
    assert (data.metric, data.unit, data.units_per_sample, data.test) == ("perplexity", "tokens", 64, None)


def test_sotu_has_the_published_tokens():
    """Counts and stream hash of the specification; whole addresses, 50256 after each, last 14 held out."""
    data = sotu(vocab_size=50257, block_size=16, seed=0)
    assert data.facts["tokens_sha256"] == "92c7b17ff6aa5c46c50a7dd1d5d554b89089deb1e7c038a3412400f3ac8cd578"
    assert data.facts["val_tokens"] == 106_851 + 14
    assert data.facts["train_tokens"] + data.facts["val_tokens"] == 1_032_515 + 123
    validation = stream(data.val, 16)
    assert len(validation) == 106_865  # blocks of 16 divide it without rest
    assert np.count_nonzero(validation == bpe.END_OF_TEXT) == 14
    assert validation[-1] == bpe.END_OF_TEXT


@pytest.mark.parametrize(("corpus", "size"), [(shakespeare, 12_030), (sotu, 22_213)])
def test_remapped_ids_are_gapless_and_stand_for_the_same_text(corpus, size):
    """Remapping is a bijection onto 0..size-1 that keeps the order of ids: undo it and nothing changed."""
    plain = corpus(vocab_size=50257, block_size=100, seed=0)
    remapped = corpus(vocab_size=size, block_size=100, seed=0, remap_vocab=True)
    old, new = stream(plain.val, 100), stream(remapped.val, 100)
    assert new.max() < size
    assert np.array_equal(np.unique(old, return_inverse=True)[1], np.unique(new, return_inverse=True)[1])
    assert remapped.facts["vocab_map_sha256"] is not None
    assert remapped.fingerprint != plain.fingerprint
    assert remapped.facts["train_tokens"] == plain.facts["train_tokens"]


def test_remapped_validation_text_has_the_published_yardsticks():
    """In nats: uniform 9.40 = ln 12,030, and 6.49 for the training unigrams, to the published digits."""
    data = shakespeare(vocab_size=12_030, block_size=100, seed=0, remap_vocab=True)
    # Add-one smoothing, since 505 ids of the validation text do not occur in training.
    train, _ = data.train.batch(np.arange(len(data.train)), epoch=0)
    counts = np.bincount(train.flatten().numpy(), minlength=12_030) + 1
    unigram = -np.log(counts / counts.sum())[stream(data.val, 100)].mean()
    assert math.log(12_030) == pytest.approx(9.40, abs=0.01)
    assert unigram == pytest.approx(6.49, abs=0.1)


def test_vocabulary_that_does_not_fit_is_refused_with_both_keys():
    """The message has the value that works, with and without remapping; padding is no error."""
    with pytest.raises(DataError, match=r"data.vocab_size=12030.*token id 50255.*50257.*remap_vocab=true"):
        shakespeare(vocab_size=12_030, block_size=64, seed=0)
    with pytest.raises(DataError, match=r"data.vocab_size=50257.*remap_vocab=true.*data.vocab_size=12030"):
        shakespeare(vocab_size=50_257, block_size=64, seed=0, remap_vocab=True)
    shakespeare(vocab_size=50_304, block_size=64, seed=0)


def test_block_longer_than_the_text_is_refused():
    """The validation part is the shorter one, and 36,024 the longest context it has a target for."""
    with pytest.raises(DataError, match=r"data.block_size=36025.*36025 tokens; use at most 36024"):
        shakespeare(vocab_size=50257, block_size=36_025, seed=0)
    assert len(shakespeare(vocab_size=50257, block_size=36_024, seed=0).val) == 1


def test_seed_moves_training_windows_and_nothing_else():
    """Runs of a study differ in their windows, never in content, split or validation."""
    one, two = (shakespeare(vocab_size=50257, block_size=64, seed=seed) for seed in (1, 2))
    indices = np.arange(8)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.val.batch(indices, 0)[0], two.val.batch(indices, 5)[0])
    assert not torch.equal(one.train.batch(indices, 0)[0], two.train.batch(indices, 0)[0])
