"""FactorLR: schedulers that multiply all initial learning rates by one factor."""

import math

from lrpilot.caps.cap import ask_cap
from lrpilot.schedulers.base import AdaptiveLR


class FactorLR(AdaptiveLR):
    """Every group's learning rate is its initial one times a factor, and below the cap.

    Where somebody else changes the learning rates too, as in a chain, they are multiplied by the
    change of the factor. With `is_unit_cap` the factor is one of the cap itself.
    """

    is_unit_cap = False
    _applied = 1.0

    @property
    def factor(self) -> float:
        """The learning rate over the initial one, after warm-up, brake and cap."""
        return self._applied

    def _join(self, lrs: list[float]) -> list[float]:
        if self.is_unit_cap:
            return super()._join(lrs)
        return [lr * self._applied for lr in lrs]

    def _capped(self, before: float | None, factor: float) -> list[float]:
        """The learning rates at this factor, shortened by the cap."""
        self.bound_by = None
        if self.is_unit_cap:
            return self._fractions_of_cap(factor)
        lrs = self._scaled(before, factor)
        if self.cap is not None:
            eta_max, guarantee = ask_cap(self.cap)
            if max(lrs) > eta_max:
                self.bound_by = guarantee
                factor *= eta_max / max(lrs)
                # the products may round above the cap by a last digit
                while max(lrs := self._scaled(before, factor)) > eta_max:
                    factor = math.nextafter(factor, 0.0)
        self._applied = factor
        return lrs

    def _fractions_of_cap(self, factor: float) -> list[float]:
        assert self.cap is not None
        eta_max, guarantee = ask_cap(self.cap)
        if factor >= 1.0:
            self.bound_by = guarantee
        self._applied = factor
        largest = max(float(base) for base in self.base_lrs)
        return [factor * eta_max * (float(base) / largest) for base in self.base_lrs]

    def _scaled(self, before: float | None, factor: float) -> list[float]:
        """The learning rates when the factor changes from `before` (None: starts) to `factor`.

        From 0, at which the changes of others are lost, it starts anew.
        """
        return [
            float(base) * factor
            # exact, and free of rounding drift, unless somebody else sets the learning rate too
            if not before or bool(group["lr"] == float(base) * before)
            else float(group["lr"]) * (factor / before)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]
