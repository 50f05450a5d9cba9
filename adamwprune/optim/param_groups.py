"""Which parameters decay, and what each is to the network: by identity, from the unwrapped model.

Decay: weights with two or more dimensions. No decay: biases, norms and everything else with
one dimension; embeddings, and what is tied to them, unless `decay_embeddings`. A tied weight
stands in one group once. The table of groups goes into the run record.

Roles, for optimizers that treat hidden matrices in a way of their own:

    embedding   the weight of an Embedding, and what is tied to it, such as GPT-2's head
    head        the weight of the last Linear layer
    hidden      every other weight with two or more dimensions
    vector      biases, norms and everything else with one dimension
"""

from typing import Any

from torch import nn


def param_groups(model: nn.Module, *, weight_decay: float, decay_embeddings: bool) -> list[dict[str, Any]]:
    """Two groups for an optimizer: `decay` with `weight_decay`, `no_decay` with 0.

    Frozen parameters are left out. Each group carries its `name`, and the `names` and `roles` of its
    parameters in their order.
    """
    groups: dict[str, dict[str, Any]] = {
        "decay": {"name": "decay", "weight_decay": weight_decay, "params": [], "names": [], "roles": []},
        "no_decay": {"name": "no_decay", "weight_decay": 0.0, "params": [], "names": [], "roles": []},
    }
    special = _embeddings_and_head(model)
    for name, parameter in model.named_parameters():  # a tied weight comes once
        if not parameter.requires_grad:
            continue
        role = special.get(id(parameter), "hidden") if parameter.ndim >= 2 else "vector"
        decays = role in ("hidden", "head") or (role == "embedding" and decay_embeddings)
        group = groups["decay" if decays else "no_decay"]
        for key, value in (("params", parameter), ("names", name), ("roles", role)):
            group[key].append(value)
    return [group for group in groups.values() if group["params"]]


def _embeddings_and_head(model: nn.Module) -> dict[int, str]:
    """Parameter id -> role of the two kinds of weights that are not hidden."""
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, nn.Linear)][-1:]
    embeddings = [module for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    # In this order: a head that is tied to an embedding is one.
    return {id(module.weight): "head" for module in heads} | {
        id(module.weight): "embedding" for module in embeddings
    }


def group_table(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups as plain values for the run record: name, decay, tensors, parameters, names."""
    return [
        {
            "name": group["name"],
            "weight_decay": group["weight_decay"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "names": list(group["names"]),
        }
        for group in groups
    ]
