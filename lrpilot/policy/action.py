"""What a learning-rate policy does: an action in [-1, 1] becomes a bounded learning rate."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from lrpilot.arguments import require_fields, require_number
from lrpilot.policy.elementwise import Numbers, clip, cos, every, exp, log

ANCHORS = ("constant", "linear", "cosine")
KINDS = ("multiplier", "residual")
UNITS = ("initial_lr", "cap")
FACTOR_RANGE = (1e-30, 1e30)
"""The ends of any box, so that a learning rate times a factor in it stays a number."""


def anchor_factor(anchor: str, progress: Numbers) -> Numbers:
    """The trusted base schedule b(p) relative to the initial learning rate.

    constant: 1; linear: 1 - p; cosine: (1 + cos(pi p)) / 2.

    Args:
        anchor: one of `ANCHORS`.
        progress: p = t/T in [0, 1]; a float, or an array of B runs.

    >>> [anchor_factor("linear", p) for p in (0.0, 0.25, 1.0)]
    [1.0, 0.75, 0.0]
    """
    if anchor == "constant":
        return 1.0
    if anchor == "linear":
        return 1.0 - progress
    return (1.0 + cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ActionSpec:
    """How an action a in [-1, 1] sets the learning rate, once per decision.

    With b the anchor, p the progress and alpha = `max_log_change`, the factor lr / unit is::

        multiplier:  m <- clip(m exp(alpha a)),   factor = clip(b(p) m)
        residual:    factor = clip(b(p) exp(alpha a))

    where clip is to the box [`min_factor`, `max_factor`]. No action sets a raw learning rate.
    Before the first decision m = factor = `start_factor`. The unit is the initial learning rate,
    or the present value of a step-size cap, asked at every step; then the factor is at most 1.

    The defaults are those that agents are trained with (`conf/env`), and those of the policies
    that ship.

    Args:
        kind: "multiplier" (cumulative) or "residual" (around the anchor).
        anchor: base schedule b: "constant", "linear" or "cosine".
        max_log_change: alpha, the largest change of log lr that one decision makes.
        min_factor: lower end of the box, relative to the initial learning rate.
        max_factor: upper end of the box.
        start_factor: learning rate of the first interval over the unit.
        unit: "initial_lr" or "cap".

    Raises:
        ValueError: if an argument is outside its range.

    >>> spec = ActionSpec(max_log_change=math.log(2))
    >>> spec.apply(1.0, multiplier=0.5, progress=0.75)
    (0.25, 1.0)
    """

    kind: str = "multiplier"
    anchor: str = "linear"
    max_log_change: float = 1.0
    min_factor: float = 1e-4
    max_factor: float = 100.0
    start_factor: float = 0.03
    unit: str = "initial_lr"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}, got {self.kind!r}")
        if self.anchor not in ANCHORS:
            raise ValueError(f"`anchor` must be one of {ANCHORS}, got {self.anchor!r}")
        if self.unit not in UNITS:
            raise ValueError(f"`unit` must be one of {UNITS}, got {self.unit!r}")
        for name in ("max_log_change", "min_factor", "max_factor", "start_factor"):
            require_number(name, getattr(self, name))
        if self.unit == "cap" and self.max_factor > 1.0:
            raise ValueError(
                f"`max_factor` must be at most 1 in units of the cap, got {self.max_factor}"
            )
        if not 0.0 < self.max_log_change < 20.0:
            raise ValueError(f"`max_log_change` must be in (0, 20), got {self.max_log_change}")
        if not 0.0 < self.min_factor < math.inf:
            raise ValueError(f"`min_factor` must be positive, got {self.min_factor}")
        if not self.min_factor <= self.max_factor < math.inf:
            raise ValueError(
                f"`min_factor` must not exceed `max_factor`, got {self.min_factor} and "
                f"{self.max_factor}"
            )
        lowest, highest = FACTOR_RANGE
        if self.min_factor < lowest or self.max_factor > highest:
            raise ValueError(
                f"`min_factor` and `max_factor` must be in [{lowest:g}, {highest:g}], got "
                f"{self.min_factor} and {self.max_factor}"
            )
        if not self.min_factor <= self.start_factor <= self.max_factor:
            raise ValueError(
                f"`start_factor` must be in [{self.min_factor}, {self.max_factor}], got "
                f"{self.start_factor}"
            )

    @property
    def needs_progress(self) -> bool:
        """Whether the total number of steps must be known."""
        return self.anchor != "constant"

    def within(self, min_factor: float | None, max_factor: float | None) -> Self:
        """The same in another box; None leaves that end where it is."""
        low = self.min_factor if min_factor is None else min_factor
        high = self.max_factor if max_factor is None else max_factor
        start = max(low, min(high, self.start_factor))
        return replace(self, min_factor=low, max_factor=high, start_factor=start)

    def apply(
        self, action: Numbers, *, multiplier: Numbers, progress: Numbers
    ) -> tuple[Numbers, Numbers]:
        """The learning-rate factor that an action gives; for B runs, all are arrays (B,).

        Args:
            action: a in [-1, 1].
            multiplier: m before the action.
            progress: p in [0, 1].

        Returns:
            The factor lr / initial lr, and m after the action.

        Raises:
            ValueError: if an action is outside [-1, 1] or not a number.
        """
        if not every(abs(action) <= 1.0):
            raise ValueError(f"`action` must be in [-1, 1], got {action}")
        change = exp(self.max_log_change * action)
        if self.kind == "multiplier":
            change = multiplier = clip(multiplier * change, self.min_factor, self.max_factor)
        factor = anchor_factor(self.anchor, progress) * change
        return clip(factor, self.min_factor, self.max_factor), multiplier

    def action_for(self, factor: Numbers, *, multiplier: Numbers, progress: Numbers) -> Numbers:
        """The action that `apply` turns into this factor; beyond [-1, 1] if none does.

        Args:
            factor: the wanted lr / unit, positive and in the box.
            multiplier: m before the action.
            progress: p in [0, 1), where the anchor is positive.

        >>> spec = ActionSpec(max_log_change=math.log(2))
        >>> spec.action_for(0.25, multiplier=0.5, progress=0.75)
        1.0
        """
        change = factor / anchor_factor(self.anchor, progress)
        if self.kind == "multiplier":
            change = change / multiplier
        return log(change) / self.max_log_change

    def to_dict(self) -> dict[str, Any]:
        """The specification as it is stored in a policy file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The specification stored in a policy file."""
        require_fields(cls, values)
        return cls(**values)
