"""GPT-2, from 124M to 1.5B parameters.

Radford et al., "Language models are unsupervised multitask learners" (2019), section 2.3: a
decoder-only transformer (arXiv:1706.03762) with LayerNorm before each branch and after the last
block, learned positions, the tanh approximation of GELU (arXiv:1606.08415, section 2) and one
matrix for token embedding and output (arXiv:1608.05859).

Parameter names are those of Hugging Face's GPT2LMHeadModel, whose files the key `weights` reads.

Shapes: B sequences, T tokens, C = n_embd channels, H = n_head heads, V = vocab_size.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.models.hugging_face import EMBEDDING, from_hugging_face
from adamwprune.models.weights import load_file_
from adamwprune.ranges import Fraction, PositiveInt


class GPT2(nn.Module):
    """GPT-2: token ids to next-token logits.

    124,439,808 parameters for vocab_size 50257, block_size 1024 and 12 layers, 12 heads, 768
    channels; the tied matrix counts once. `dropout` is the rate after the embeddings, on the
    attention weights and after each branch; `bias` gives the linear layers and norms one.

    `pad_vocab_to_multiple_of` adds rows of zeros to the tied matrix, up to a multiple: matrix products are
    faster at 50,304 = 786 x 64 rows than at 50,257. Nothing else changes: their logits are cut off, so that
    loss and gradients are those of the vocabulary alone, and the rows stay 0.

    `activation_checkpointing` keeps the input of each block and computes the block again in the backward
    pass (arXiv:1604.06174): same gradients to the bit, a third more work, memory as below.

    `weights` is a file with the initial weights, see weights.py: Hugging Face's or ours.

    Raises ConfigError where the heads do not divide `n_embd`, CheckpointError where `weights` do not fit.
    """

    def __init__(
        self,
        *,
        vocab_size: PositiveInt,
        block_size: PositiveInt,
        n_layer: PositiveInt,
        n_head: PositiveInt,
        n_embd: PositiveInt,
        dropout: Fraction,
        bias: bool = True,
        pad_vocab_to_multiple_of: PositiveInt = 1,
        activation_checkpointing: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if n_embd % n_head:
            near = max(n_embd - n_embd % n_head, n_head)
            raise ConfigError(
                f"model.n_embd={n_embd}: must be a multiple of model.n_head={n_head}; use {near}"
            )
        self.vocab_size = vocab_size
        self.transformer = Transformer(
            vocab_size, block_size, n_layer, n_head, n_embd, dropout, bias, activation_checkpointing
        )
        self.reset_parameters()
        # After the draws, so that padding changes no weight; the output matrix on meta, for it is replaced.
        rows = -(-vocab_size // pad_vocab_to_multiple_of) * pad_vocab_to_multiple_of
        self.transformer.pad_vocabulary_(rows)
        self.lm_head = nn.Linear(n_embd, rows, bias=False, device="meta")
        self.lm_head.weight = self.transformer.wte.weight
        if weights is not None:
            load_file_(self, weights, self._convert)

    def reset_parameters(self) -> None:
        """Draw matrices from N(0, 0.02^2), those that end a branch from N(0, 0.02^2 / 2L).

        L blocks add 2L branches to the residual stream: so its variance does not grow with L. Rows that pad
        the vocabulary are 0.
        """
        branch_std = 0.02 / math.sqrt(2 * len(self.transformer.h))
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=branch_std if name.endswith(".c_proj.weight") else 0.02)
        nn.init.zeros_(self.transformer.wte.weight.detach()[self.vocab_size :])

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of `tokens` (B, T), int64, T <= block_size.

        Raises ValueError where T is larger.
        """
        # A view; without padding of the whole, which costs nothing in the backward pass either.
        return self.lm_head(self.transformer(tokens))[..., : self.vocab_size]

    def flops_per_token(self) -> int:
        """Floating-point operations of forward and backward for one token of a full block.

        6 N + 12 L C T (PaLM, arXiv:2204.02311, appendix B). N is every parameter but the position
        embeddings, which are added, never multiplied; the tied matrix counts once, as the output.
        Attention counts in full although half of it is masked: the convention behind MFU. What a vocabulary's
        padding and recomputed blocks add is no work of the model, and does not count.
        """
        block_size, n_embd = self.transformer.wpe.weight.shape
        padding = self.lm_head.out_features - self.vocab_size
        n = sum(parameter.numel() for parameter in self.parameters()) - (block_size + padding) * n_embd
        return 6 * n + 12 * len(self.transformer.h) * n_embd * block_size

    def _convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a file in our layout, with the padding of this model instead of none.

        Raises:
            CheckpointError: rows of the file that would be padding here are not 0, as padding of ours is.
        """
        ours, rows = from_hugging_face(state), self.lm_head.out_features
        embedding = ours.get(EMBEDDING)
        if embedding is None or len(embedding) not in (self.vocab_size, rows):
            return ours
        trained = 0 if embedding.is_meta else int(embedding[self.vocab_size :].any(dim=1).sum())
        if trained:
            raise CheckpointError(
                f"{EMBEDDING} has {len(embedding)} rows, {trained} of them trained beyond data.vocab_size="
                f"{self.vocab_size}: they would be cut off; use data.vocab_size={len(embedding)}"
            )
        ours[EMBEDDING] = F.pad(embedding[: self.vocab_size], (0, 0, 0, rows - self.vocab_size))
        return ours


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm: (B, T) token ids to (B, T, C) features."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float,
        bias: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(Block(n_embd, n_head, dropout, bias) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd, bias=bias)

    def pad_vocabulary_(self, rows: int) -> None:
        """Add rows of zeros to the token embedding, up to `rows`."""
        vocabulary = self.wte.weight.detach()
        if rows > len(vocabulary):
            self.wte.weight = nn.Parameter(F.pad(vocabulary, (0, 0, 0, rows - len(vocabulary))))
            self.wte.num_embeddings = rows

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (B, T, C) of `tokens` (B, T)."""
        length, block_size = tokens.shape[1], self.wpe.num_embeddings
        if length > block_size:
            raise ValueError(f"{length} tokens: must be at most model.block_size={block_size}; crop them")
        # A slice, not a lookup: positions are consecutive, and its gradient needs no scatter.
        x = self.drop(self.wte(tokens) + self.wpe.weight[:length])
        recomputes = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.h:
            # It restores the random generators for the second pass: dropout drops the same.
            x = checkpoint(block, x, use_reentrant=False) if recomputes else block(x)
        return self.ln_f(x)


class Block(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attn = Attention(n_embd, n_head, dropout, bias)
        self.ln_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = MLP(n_embd, dropout, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    """Causal self-attention: softmax(q k^T / sqrt(C / H)) v in each of H heads."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        # Views all the way; unbound in this order, their gradients join in a single copy.
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, C / H)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, T, C / H)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two linear layers, 4 C hidden channels, tanh-approximated GELU."""

    def __init__(self, n_embd: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))
