"""The direction of an optimizer's last step, read from its state.

A step is w_t = w_{t-1} - lr u. The functions give u for torch's SGD (momentum, dampening,
Nesterov), Adam and AdamW (AMSGrad), with weight decay, which is part of u. Nothing is read off a
difference of weights, so u is exact for tiny learning rates and known for lr = 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from lrpilot.state import Stateful, state_fields


def adam_directions(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[float],
    *,
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """Adam's direction m^ / (sqrt(v^) + eps), m^ = m / (1 - b1^t) and v^ = v / (1 - b2^t).

    m, v (with AMSGrad its running maximum) and t, from 1, are those of every parameter.

    >>> m, v = torch.tensor([0.5]), torch.tensor([0.25])
    >>> adam_directions([m], [v], [1], betas=(0.5, 0.75), eps=1.0)  # m^ = v^ = 1
    [tensor([0.5000])]
    """
    corrections = [1 - betas[0] ** step for step in steps]
    scales = [c / math.sqrt(1 - betas[1] ** s) for c, s in zip(corrections, steps, strict=True)]
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_mul_(denominators, scales)
    torch._foreach_add_(denominators, [c * eps for c in corrections])
    return list(torch._foreach_div(exp_avgs, denominators))


def add_decay(
    directions: list[Tensor],
    parameters: list[Tensor],
    *,
    weight_decay: float,
    lrs: Sequence[float | Tensor],
) -> list[Tensor]:
    """The direction a + d w_{t-1}, from w_t = w_{t-1} - lr (a + d w_{t-1}) after the step.

    Eliminating w_{t-1}, which the optimizer has overwritten, it is (a + d w_t) / (1 - lr d), with
    the learning rate of every parameter, a number or a tensor.

    >>> # w_{t-1} = 2, a = 1, d = 0.1, lr = 0.5: the direction is 1.2 and w_t = 1.4
    >>> add_decay([torch.ones(1)], [torch.tensor([1.4])], weight_decay=0.1, lrs=[0.5])
    [tensor([1.2000])]
    """
    sums = torch._foreach_add(directions, parameters, alpha=weight_decay)
    divisors: list[Any] = [1 - weight_decay * lr for lr in lrs]
    torch._foreach_div_(sums, divisors)
    return list(sums)


def needs_gradients(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether the optimizer's state alone does not tell its last direction."""
    return isinstance(optimizer, SGD) and (group["momentum"] == 0 or group["nesterov"])


def late_decay(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """The weight decay that no state of the optimizer holds, so `add_decay` must.

    >>> optimizer = torch.optim.AdamW([torch.zeros(1)], weight_decay=0.1)
    >>> late_decay(optimizer, optimizer.param_groups[0])
    0.1
    """
    if isinstance(optimizer, SGD):
        is_late = needs_gradients(optimizer, group)
    else:
        is_late = isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False)
    return float(group["weight_decay"]) if is_late else 0.0


def read_directions(
    optimizer: Optimizer,
    group: dict[str, Any],
    parameters: list[Tensor],
    gradients: list[Tensor],
) -> list[Tensor]:
    """The direction of the last step without its `late_decay`, for the parameters that it moved.

    `gradients` is what it descended, and read only if the group `needs_gradients`.
    """
    states = [optimizer.state.get(p, {}) for p in parameters]
    if isinstance(optimizer, SGD):
        if group["momentum"] == 0:
            return gradients
        buffers = [state["momentum_buffer"] for state in states]
        if group["nesterov"]:
            return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
        return buffers
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    return adam_directions(
        [state["exp_avg"] for state in states],
        [state[second] for state in states],
        torch.stack([state["step"] for state in states]).tolist(),
        betas=(float(group["betas"][0]), float(group["betas"][1])),
        eps=group["eps"],
    )


class LastStep(Stateful):
    """The gradients of the next step and the directions of the last one.

    Both are dictionaries by the index of the parameter, counted over all groups. Kept are only
    the learning rates, which parameters moved, and the gradients that SGD itself does not keep.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> last_step = LastStep(optimizer)
    >>> w.grad = torch.tensor([3.0])
    >>> last_step.remember(last_step.gradients(), [0.1])
    >>> optimizer.step()
    >>> last_step.directions()
    {0: tensor([3.])}
    """

    _state_fields = state_fields(moved="_moved", kept="_kept", lrs="_lrs")

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters: list[Tensor] = []
        self.group_of: list[int] = []
        self.add_groups()
        self.forget()

    def add_groups(self) -> None:
        """Take in the groups that the optimizer has and this does not know, at its end."""
        known = self.group_of[-1] + 1 if self.group_of else 0
        for k, group in enumerate(self.optimizer.param_groups[known:], known):
            self.parameters += group["params"]
            self.group_of += [k] * len(group["params"])

    def forget(self) -> None:
        """Know nothing of the steps before."""
        self._moved: list[int] = []
        self._kept: dict[int, Tensor] = {}
        self._lrs: list[float] = []

    def gradients(self) -> dict[int, Tensor]:
        """What the optimizer is about to descend; a sparse gradient is a ValueError."""
        maximize = [group["maximize"] for group in self.optimizer.param_groups]
        # a GradScaler leaves the scale to fused optimizers
        scale = getattr(self.optimizer, "grad_scale", None)
        gradients = {}
        for i, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise ValueError("`optimizer` must have dense gradients, got a sparse one")
            if scale is not None:
                gradient = gradient / scale
            gradients[i] = -gradient if maximize[self.group_of[i]] else gradient
        return gradients

    def remember(self, gradients: dict[int, Tensor], lrs: list[float]) -> None:
        """Prepare for a step with these gradients and learning rates, one per group."""
        groups = self.optimizer.param_groups
        needed = [needs_gradients(self.optimizer, group) for group in groups]
        self._moved = list(gradients)
        # copies: some implementations of Nesterov's step write into the gradient
        self._kept = {i: g.clone() for i, g in gradients.items() if needed[self.group_of[i]]}
        self._lrs = list(lrs)

    def directions(self, scales: Sequence[Tensor] = ()) -> dict[int, Tensor]:
        """The directions of the remembered step, for the parameters that it moved.

        `scales` is what the step of every parameter was multiplied by, if anything.
        """
        optimizer = self.optimizer
        members: list[list[int]] = [[] for _ in optimizer.param_groups]
        for i in self._moved:
            # nothing is known if the state of the optimizer was not loaded with this one, or was
            # dropped by a rollback
            group = optimizer.param_groups[self.group_of[i]]
            is_stateless = isinstance(optimizer, SGD) and group["momentum"] == 0
            if i in self._kept if is_stateless else optimizer.state.get(self.parameters[i]):
                members[self.group_of[i]].append(i)
        result: dict[int, Tensor] = {}
        for k, (group, indices) in enumerate(zip(optimizer.param_groups, members, strict=True)):
            if not indices:
                continue
            parameters = [self.parameters[i] for i in indices]
            kept = [self._kept[i] for i in indices if i in self._kept]
            found = read_directions(optimizer, group, parameters, kept)
            if decay := late_decay(optimizer, group):
                lrs = [self._lrs[k] * (scales[i] if scales else 1.0) for i in indices]
                found = add_decay(found, parameters, weight_decay=decay, lrs=lrs)
            result.update(zip(indices, found, strict=True))
        return result

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError if it has moved more parameters than the optimizer holds now."""
        self.add_groups()
        if any(i >= len(self.parameters) for i in state["moved"]):
            raise ValueError(
                f"`state_dict` must be of {len(self.parameters)} parameters like this scheduler, "
                f"got one that has moved number {max(state['moved'])}"
            )

    def _derive(self) -> None:
        self._kept = {i: g.to(self.parameters[i].device) for i, g in self._kept.items()}
