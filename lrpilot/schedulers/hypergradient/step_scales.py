"""StepScales: an optimizer's step, multiplied tensor by tensor or entry by entry."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrpilot.loss import read_numbers
from lrpilot.state import Stateful, state_fields


class StepScales(Stateful):
    """Factors s that turn an optimizer's step into w_{t-1} + s (w_t - w_{t-1}).

    `factors` are those that change, `applied` the same within their ceilings.

    Args:
        parameters: the parameters, whose indices the methods take.
        per_entry: one factor per entry, else one per tensor; all are 1 first.

    >>> w = torch.ones(2)
    >>> scales = StepScales([w], per_entry=False)
    >>> is_bound = scales.add({0: torch.tensor(1.0)}, low=0.5, high=1.5)
    >>> scales.hold([0])
    >>> w -= 0.2  # the optimizer's step
    >>> scales.apply()
    >>> w
    tensor([0.7000, 0.7000])
    """

    _state_fields = state_fields("factors", ceilings="_ceilings")

    def __init__(self, parameters: Sequence[Tensor], *, per_entry: bool) -> None:
        self._parameters = parameters
        self._per_entry = per_entry
        self._held: dict[int, Tensor] = {}
        self.factors: list[Tensor] = []
        self.add_parameters()

    def add_parameters(self) -> None:
        """Give a factor to the parameters at the end of the list that have none."""
        self.factors = self.factors + [
            torch.ones(
                p.shape if self._per_entry else (),
                # increments would drown in the rounding of half precision
                dtype=torch.promote_types(p.dtype, torch.float32),
                device=p.device,
            )
            for p in self._parameters[len(self.factors) :]
        ]
        self.limit(None)

    def add(self, changes: dict[int, Tensor], *, low: float, high: float) -> bool:
        """Change factors, and clamp them to [low, high]; whether a ceiling binds.

        No factor is raised past its ceiling.
        """
        factors = [self.factors[i] for i in changes]
        ceilings = self._ceilings
        if ceilings is not None:
            tops = torch._foreach_clamp_min(factors, [ceilings[i] for i in changes])
        torch._foreach_add_(factors, list(changes.values()))
        torch._foreach_clamp_min_(factors, low)
        torch._foreach_clamp_max_(factors, high)
        is_bound = self.limit(ceilings)
        if is_bound:
            torch._foreach_minimum_(factors, tops)
        return is_bound

    def limit(self, ceilings: Sequence[float] | None) -> bool:
        """Apply no factor above its parameter's ceiling from now on; whether one is above it."""
        self._ceilings = ceilings
        self.applied = self.factors
        if ceilings is None:
            return False
        largest = read_numbers(
            [factor.amax() if factor.numel() else factor.new_zeros(()) for factor in self.factors]
        )
        if all(factor <= ceiling for factor, ceiling in zip(largest, ceilings, strict=True)):
            return False
        self.applied = list(torch._foreach_clamp_max(self.factors, list(ceilings)))
        return True

    def hold(self, indices: Iterable[int]) -> None:
        """Copy these parameters before the optimizer's step."""
        self._held = {i: self._parameters[i].clone() for i in indices}

    def apply(self) -> None:
        """Multiply the step that the held parameters have made since."""
        held, self._held = self._held, {}
        if held:
            parameters = [self._parameters[i] for i in held]
            steps = torch._foreach_sub(parameters, list(held.values()))
            # as an excess over the step made, so that a factor of 1 changes nothing
            excesses = torch._foreach_sub([self.applied[i] for i in held], 1.0)
            torch._foreach_addcmul_(parameters, steps, excesses)

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError if the factors have other shapes."""
        mine = [tuple(p.shape) if self._per_entry else () for p in self._parameters]
        theirs = [tuple(factor.shape) for factor in state["factors"]]
        if theirs != mine:
            raise ValueError(f"`state_dict` must have scales of shapes {mine}, got {theirs}")

    def _derive(self) -> None:
        self.limit(self._ceilings)
