"""GPT-2's tokens: the published ones, from the asset alone."""

import numpy as np
import pytest

from adamwprune.data import bpe
from adamwprune.errors import DataError


@pytest.fixture(scope="module")
def encoding():
    return bpe.gpt2_encoding()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [31373, 995]),
        (
            "Hello, world! It's GPT-2 — naïve café",
            [15496, 11, 995, 0, 632, 338, 402, 11571, 12, 17, 851, 41492, 40304],
        ),
        ("", []),
    ],
)
def test_golden_ids(encoding, text, ids):
    """Ids as GPT-2's own encoder gives them."""
    (tokens,) = bpe.encode(encoding, [text], end_of_text=False)
    assert tokens.tolist() == ids
    assert tokens.dtype == np.uint16


def test_end_of_text_is_appended_and_never_spelled_out(encoding):
    """A document that contains the special token's text cannot end itself: seven plain tokens."""
    (tokens,) = bpe.encode(encoding, ["<|endoftext|>"], end_of_text=True)
    assert tokens[-1] == bpe.END_OF_TEXT
    assert len(tokens) == 8
    assert bpe.END_OF_TEXT not in tokens[:-1]


def test_documents_are_encoded_in_order_and_decode_to_themselves(encoding):
    """Threads share the work, yet every document comes back at its place."""
    documents = [f"document {number}: " + "naïve café " * number for number in range(50)]
    encoded = bpe.encode(encoding, documents, end_of_text=False)
    assert [encoding.decode(tokens.tolist()) for tokens in encoded] == documents


def test_no_cache_folder_is_touched(monkeypatch, tmp_path):
    """tiktoken writes to its cache on a miss; we never get that far."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    bpe.encode(bpe.gpt2_encoding(), ["hello world"], end_of_text=True)
    assert not list(tmp_path.iterdir())


def test_other_table_is_refused(monkeypatch):
    """The table has its own hash, which names the tokenizer in run records."""
    monkeypatch.setattr(bpe, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="GPT-2's is 0000"):
        bpe.gpt2_encoding()
