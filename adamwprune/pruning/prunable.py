"""Which parameters may be pruned: weights of Linear and Conv layers, with the usual exceptions.

Dense stay embeddings and what is tied to them, the output head (the last Linear), the first
Conv, norms and biases. A tied weight is one parameter, found by identity.
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from adamwprune.errors import ConfigError


def find_prunable(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[dict[str, Parameter], dict[str, str]]:
    """Prunable parameters by name, and the reason why each other parameter is not.

    Args:
        model: the model without wrappers (DDP, torch.compile), whose names are the user's.
        include: name patterns (fnmatch) of weights to prune although the default leaves them out.
        exclude: name patterns of weights to leave alone; exclude wins over include.

    Raises:
        ConfigError: a pattern that matches no weight (parameters with two dimensions or more).
    """
    names = _names(model)
    weights = [alias for parameter, aliases in names for alias in aliases if parameter.dim() >= 2]
    _check_patterns("include", include, weights)
    _check_patterns("exclude", exclude, weights)
    reasons = _default_reasons(model)
    prunable, excluded = {}, {}
    for parameter, aliases in names:
        reason = reasons.get(id(parameter), "not the weight of a Linear or Conv layer")
        if _matches(aliases, exclude):
            reason = "pruning.exclude"
        elif parameter.dim() < 2:
            reason = "bias, norm or scale"
        elif _matches(aliases, include):
            reason = ""
        if reason:
            excluded[aliases[0]] = reason
        else:
            prunable[aliases[0]] = parameter
    return prunable, excluded


def _names(model: nn.Module) -> list[tuple[Parameter, list[str]]]:
    """Each parameter once, with all of its names; a tied weight has several."""
    found: dict[int, tuple[Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), (parameter, []))[1].append(name)
    return list(found.values())


def _default_reasons(model: nn.Module) -> dict[int, str]:
    """Parameter id -> why it stays dense; "" for the weights that are pruned by default."""
    modules = list(model.modules())
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    convs = [module for module in modules if isinstance(module, _ConvNd)]
    embeddings = [module for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    # In this order, so that a tied weight ends with the strongest reason.
    reasons = {id(module.weight): "" for module in linears + convs}
    reasons.update({id(module.weight): "first convolution" for module in convs[:1]})
    reasons.update({id(module.weight): "output head" for module in linears[-1:]})
    reasons.update({id(module.weight): "embedding, or tied to one" for module in embeddings})
    return reasons


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_patterns(key: str, patterns: Sequence[str], weights: Sequence[str]) -> None:
    for pattern in patterns:
        if not _matches(weights, [pattern]):
            nearest = difflib.get_close_matches(pattern, weights, n=3, cutoff=0.0)
            raise ConfigError(
                f"pruning.{key}={pattern}: matches no weight of the model; nearest: {', '.join(nearest)}"
            )
