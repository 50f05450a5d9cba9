"""Which parameters decay: groups by parameter identity, taken from the unwrapped model.

Decay: weights with two or more dimensions. No decay: biases, norms and everything else with
one dimension; embeddings, and what is tied to them, unless `decay_embeddings`. A tied weight
stands in one group once. The table of groups goes into the run record.
"""

from typing import Any

from torch import nn


def param_groups(model: nn.Module, *, weight_decay: float, decay_embeddings: bool) -> list[dict[str, Any]]:
    """Two groups for an optimizer: `decay` with `weight_decay`, `no_decay` with 0.

    Frozen parameters are left out. Each group carries its `name` and the `names` of its parameters.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    groups = {
        "decay": {"name": "decay", "weight_decay": weight_decay, "params": [], "names": []},
        "no_decay": {"name": "no_decay", "weight_decay": 0.0, "params": [], "names": []},
    }
    for name, parameter in model.named_parameters():  # a tied weight comes once
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and (decay_embeddings or id(parameter) not in embeddings)
        group = groups["decay" if decays else "no_decay"]
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in groups.values() if group["params"]]


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
