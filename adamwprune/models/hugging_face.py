"""GPT-2 in Hugging Face's files: their names, layouts and config.json, to ours and back.

Names are the same (transformers, GPT2LMHeadModel), layouts are not: its Conv1D stores (in, out) where
nn.Linear stores (out, in), so four matrices of each block are transposed. Published files lack the prefix
`transformer.` and the output matrix, which is the embedding; older ones also hold causal masks as buffers.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adamwprune.errors import CheckpointError

if TYPE_CHECKING:
    from adamwprune.models.gpt2 import GPT2

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
END_OF_TEXT = 50256  # in GPT-2's vocabulary of 50,257

# Suffixes of the matrices that are stored transposed; the first one's shape tells whether they are.
_CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")

# Causal masks that older versions saved as buffers. The dot matters: c_attn.bias is a parameter.
_CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under our names, in our layout, the output matrix left out.

    A file in our own layout, such as a checkpoint's, stays as it is: c_attn maps C channels to 3 C, so its
    shape tells (in, out) from (out, in).

    Raises:
        CheckpointError: the output matrix is not the embedding.
    """
    ours = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in state.items()
        if not name.endswith(_CAUSAL_MASKS)
    }
    head, embedding = ours.pop(HEAD, None), ours.get(EMBEDDING)
    is_known = head is not None and embedding is not None and not head.is_meta
    if is_known and not torch.equal(head, embedding):
        raise CheckpointError(
            f"{HEAD} differs from {EMBEDDING}, but GPT2 ties them; drop {HEAD} to use the embedding for both"
        )
    return {name: _transposed(name, tensor) for name, tensor in ours.items()} if _is_theirs(ours) else ours


def _is_theirs(state: Mapping[str, Tensor]) -> bool:
    shapes = [tensor.shape for name, tensor in state.items() if name.endswith(_CONV1D[0])]
    return any(len(shape) == 2 and shape[0] < shape[1] for shape in shapes)


def _transposed(name: str, tensor: Tensor) -> Tensor:
    return tensor.t() if name.endswith(_CONV1D) and tensor.dim() == 2 else tensor


def to_hugging_face(model: "GPT2") -> dict[str, Tensor]:
    """The weights as GPT2LMHeadModel saves them: new tensors on the CPU, no padding of the vocabulary.

    Where the model has no biases theirs are 0, for GPT2LMHeadModel always has them.
    """
    weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    weights[EMBEDDING] = weights[EMBEDDING][: model.vocab_size]
    for name, weight in [*weights.items()] if model.transformer.ln_f.bias is None else ():
        if name.endswith(_CONV1D) or weight.dim() == 1:
            weights[name.removesuffix("weight") + "bias"] = torch.zeros(len(weight), dtype=weight.dtype)
    return {name: _transposed(name, weight).contiguous().clone() for name, weight in weights.items()}


def config_json(model: "GPT2") -> dict[str, Any]:
    """Their config.json of `model`; token 50256 ends a text where the vocabulary is GPT-2's."""
    transformer = model.transformer
    end_of_text = END_OF_TEXT if model.vocab_size == END_OF_TEXT + 1 else None
    dropout = transformer.drop.p
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": transformer.wpe.num_embeddings,
        "n_embd": transformer.wpe.embedding_dim,
        "n_layer": len(transformer.h),
        "n_head": transformer.h[0].attn.n_head,
        "activation_function": "gelu_new",  # the tanh approximation
        "layer_norm_epsilon": transformer.ln_f.eps,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "resid_pdrop": dropout,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": str(transformer.wpe.weight.dtype).removeprefix("torch."),
    }
