"""GPT-2, from 124M to 1.5B parameters.

Radford et al., "Language models are unsupervised multitask learners" (2019), section 2.3: a
decoder-only transformer (arXiv:1706.03762) with LayerNorm before each branch and after the last
block, learned positions, the tanh approximation of GELU (arXiv:1606.08415, section 2) and one
matrix for token embedding and output (arXiv:1608.05859).

Parameter names are those of Hugging Face's GPT2LMHeadModel. Its Conv1D stores (in, out) where
nn.Linear stores (out, in): `load_hugging_face_` transposes.

Shapes: B sequences, T tokens, C = n_embd channels, H = n_head heads, V = vocab_size.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.ranges import Fraction, PositiveInt

# Suffixes of the matrices that Hugging Face stores transposed.
_CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")

# Causal masks that older versions saved as buffers. The dot matters: c_attn.bias is a parameter.
_CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")


class GPT2(nn.Module):
    """GPT-2: token ids to next-token logits.

    124,439,808 parameters for vocab_size 50257, block_size 1024 and 12 layers, 12 heads, 768
    channels; the tied matrix counts once. `dropout` is the rate after the embeddings, on the
    attention weights and after each branch; `bias` gives the linear layers and norms one.

    Raises ConfigError where the heads do not divide `n_embd`.
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
    ) -> None:
        super().__init__()
        if n_embd % n_head:
            near = max(n_embd - n_embd % n_head, n_head)
            raise ConfigError(
                f"model.n_embd={n_embd}: must be a multiple of model.n_head={n_head}; use {near}"
            )
        self.transformer = Transformer(vocab_size, block_size, n_layer, n_head, n_embd, dropout, bias)
        # On meta, since the tied weight replaces it: else 154 MB are filled to be thrown away.
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False, device="meta")
        self.lm_head.weight = self.transformer.wte.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw matrices from N(0, 0.02^2), those that end a branch from N(0, 0.02^2 / 2L).

        L blocks add 2L branches to the residual stream: so its variance does not grow with L.
        """
        branch_std = 0.02 / math.sqrt(2 * len(self.transformer.h))
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=branch_std if name.endswith(".c_proj.weight") else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of `tokens` (B, T), int64, T <= block_size.

        Raises ValueError where T is larger.
        """
        return self.lm_head(self.transformer(tokens))

    def flops_per_token(self) -> int:
        """Floating-point operations of forward and backward for one token of a full block.

        6 N + 12 L C T (PaLM, arXiv:2204.02311, appendix B). N is every parameter but the position
        embeddings, which are added, never multiplied; the tied matrix counts once, as the output.
        Attention counts in full although half of it is masked: the convention behind MFU.
        """
        position = self.transformer.wpe.weight
        n = sum(parameter.numel() for parameter in self.parameters()) - position.numel()
        block_size, n_embd = position.shape
        return 6 * n + 12 * len(self.transformer.h) * n_embd * block_size


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
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(Block(n_embd, n_head, dropout, bias) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (B, T, C) of `tokens` (B, T)."""
        length, block_size = tokens.shape[1], self.wpe.num_embeddings
        if length > block_size:
            raise ValueError(f"{length} tokens: must be at most model.block_size={block_size}; crop them")
        # A slice, not a lookup: positions are consecutive, and its gradient needs no scatter.
        x = self.drop(self.wte(tokens) + self.wpe.weight[:length])
        for block in self.h:
            x = block(x)
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


@torch.no_grad()
def load_hugging_face_(model: GPT2, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the weights of a Hugging Face GPT2LMHeadModel or GPT2Model into `model`.

    Names may lack the prefix `transformer.`, as in the published files; the output matrix may be
    absent, for it is the embedding. Everything is checked before anything is copied.

    Raises CheckpointError where a weight is missing, unknown, of another shape, or not tied.
    """
    prefix = "" if any(name.startswith("transformer.") for name in state_dict) else "transformer."
    theirs = {
        name if name.startswith("lm_head.") else prefix + name: tensor
        for name, tensor in state_dict.items()
        if not name.endswith(_CAUSAL_MASKS)
    }
    ours = dict(model.named_parameters())  # the tied matrix once, as transformer.wte.weight
    head = theirs.pop("lm_head.weight", None)
    _check_fit(ours, theirs)
    if head is not None and not torch.equal(head, theirs["transformer.wte.weight"]):
        raise CheckpointError(
            "Hugging Face weights: lm_head.weight differs from transformer.wte.weight, but GPT2 ties them; "
            "drop lm_head.weight to use the embedding for both"
        )
    for name, parameter in ours.items():
        parameter.copy_(theirs[name].t() if name.endswith(_CONV1D) else theirs[name])


def _check_fit(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in ours if name not in theirs]
    problems += [f"{name} is unknown to the model" for name in theirs if name not in ours]
    for name in (name for name in ours if name in theirs):
        shape, allowed = tuple(theirs[name].shape), tuple(ours[name].shape)
        if name.endswith(_CONV1D):
            allowed = allowed[::-1]
        if shape != allowed:
            problems.append(f"{name} has shape {shape}, the model needs {allowed}")
    if problems:
        count = f" (1 of {len(problems)} problems)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"Hugging Face weights: {problems[0]}{count}; build GPT2 with the sizes of their config.json"
        )
