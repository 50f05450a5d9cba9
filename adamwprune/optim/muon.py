"""Muon for the hidden matrices, AdamW for the rest, as one optimizer.

    hidden matrices   b += (1 - momentum) (g - b);   u = g + momentum (b - g) (nesterov) or b
                      w *= 1 - lr weight_decay;   w -= lr * scale * NS(u)
    the rest          AdamW with adam_lr

NS are ns_steps Newton-Schulz iterations in bfloat16, which bring all singular values near 1. Hidden
matrices are the weights with exactly two dimensions but embeddings, what is tied to one, and the
output head (roles of param_groups.py); convolutions go to AdamW. Both updates are torch's own.

Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon, as torch.optim.Muon computes it;
scale match_rms_adamw: Liu et al., arXiv 2502.16982.

The update of an entry depends on its whole matrix, so an entry whose weight, gradient and momentum
are 0 moves all the same: pruned weights come back under mode hard. Use a mode that masks the
weights after each step.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamwprune.errors import ConfigError
from adamwprune.optim.cohorts import Group, loss_of
from adamwprune.optim.fused import fused
from adamwprune.ranges import Fraction, NonNegative, Positive, Range


class Muon(Optimizer):
    """Muon and AdamW over the parameter groups; a group's own `weight_decay` wins.

    Each group becomes up to two, named NAME/muon and NAME/adamw, each with a learning rate of its own.
    State: `momentum_buffer` of hidden matrices; `exp_avg`, `exp_avg_sq` and `step` of the rest.

    Args:
        groups: those of param_groups.py; in a list of parameters every matrix counts as hidden.
        lr: learning rate of the hidden matrices.
        momentum, nesterov, ns_steps: as above.
        adjust_lr: scale; match_rms_adamw = .2 sqrt(larger side), so that AdamW's lr and weight decay
            fit; original = sqrt(max(1, rows / columns)), whose usual lr is .02.
        weight_decay: decoupled, times the group's own learning rate.
        adam_lr, betas, eps: AdamW's, for the rest.

    Raises:
        ConfigError: there is no hidden matrix.
    """

    def __init__(
        self,
        groups: Iterable[Group] | Iterable[Tensor],
        *,
        lr: Positive = 1e-3,
        momentum: Fraction = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Range(least=1, most=99)] = 5,
        adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        weight_decay: NonNegative = 0.1,
        adam_lr: Positive = 1e-3,
        betas: tuple[Fraction, Fraction] = (0.9, 0.95),
        eps: Positive = 1e-8,
    ) -> None:
        halves = list(_split(groups))
        matrices = [group for group in halves if group["algorithm"] == "muon"]
        rest = [group for group in halves if group["algorithm"] == "adamw"]
        if not matrices:
            raise ConfigError(
                "optimizer=muon: the model has no hidden weight with two dimensions; choose optimizer=adamw"
            )
        self._parts: dict[str, Optimizer] = {
            "muon": torch.optim.Muon(
                matrices,
                lr=lr,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr,
                weight_decay=weight_decay,
            )
        }
        if rest:
            self._parts["adamw"] = torch.optim.AdamW(
                rest,
                lr=adam_lr,
                betas=(betas[0], betas[1]),
                eps=eps,
                weight_decay=weight_decay,
                fused=fused(torch.optim.AdamW, rest),
            )
        # The two have filled the groups with their settings. From here on groups and states are ours.
        super().__init__(halves, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for algorithm, part in self._parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            part.step()
        return loss


def _named(groups: Iterable[Group] | Iterable[Tensor]) -> list[Group]:
    """The groups, and one of the tensors that are in none."""
    given = list(groups)
    named = [item for item in given if isinstance(item, dict)]
    loose = [item for item in given if not isinstance(item, dict)]
    return [*named, {"name": "all", "params": loose}] if loose else named


def _split(groups: Iterable[Group] | Iterable[Tensor]) -> Iterator[Group]:
    """Each group's hidden matrices, then its other parameters, as groups that say who steps them."""
    for group in _named(groups):
        params = list(group["params"])
        roles = group.get("roles", ["hidden"] * len(params))
        is_matrix = [p.ndim == 2 and role == "hidden" for p, role in zip(params, roles, strict=True)]
        for algorithm, wanted in (("muon", True), ("adamw", False)):
            chosen = [i for i, found in enumerate(is_matrix) if found is wanted]
            if chosen:
                parallel: Group = {
                    key: [group[key][i] for i in chosen]
                    for key in ("params", "names", "roles")
                    if key in group
                }
                yield {**group, **parallel, "name": f"{group['name']}/{algorithm}", "algorithm": algorithm}
