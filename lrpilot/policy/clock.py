"""The decision clock: how often a policy decides."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from lrpilot.arguments import require_count, require_fields


@dataclass(frozen=True)
class ClockSpec:
    """How often a policy decides.

    A run of T steps is cut into intervals of max(1, round(T / num_decisions)) optimizer steps.
    The first interval runs at the start factor; a decision follows every interval.

    Args:
        num_decisions: intervals per run.
        horizon_range: smallest and largest T of the runs that the policy was trained on, steps.
        fixed_interval: steps of every interval, whatever T; None derives them from T.

    Raises:
        ValueError: if a count is no whole number or below 1, or the range is reversed.

    >>> ClockSpec(num_decisions=30).interval_steps(10_000)
    333
    """

    num_decisions: int = 30
    horizon_range: tuple[int, int] = (1, 1_000_000)
    fixed_interval: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon_range", tuple(self.horizon_range))
        require_count("num_decisions", self.num_decisions)
        if len(self.horizon_range) != 2:
            raise ValueError(f"`horizon_range` must be two numbers, got {self.horizon_range}")
        low, high = self.horizon_range
        for horizon in (low, high):
            require_count("horizon_range", horizon, least=0)
        if self.fixed_interval is not None:
            require_count("fixed_interval", self.fixed_interval)
        if not 1 <= low <= high:
            raise ValueError(f"`horizon_range` must be 1 <= low <= high, got {(low, high)}")

    def interval_steps(self, total_steps: int) -> int:
        """Optimizer steps per decision in a run of `total_steps`."""
        return self.fixed_interval or max(1, round(total_steps / self.num_decisions))

    def to_dict(self) -> dict[str, Any]:
        """The specification as it is stored in a policy file."""
        return {**asdict(self), "horizon_range": list(self.horizon_range)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The specification stored in a policy file."""
        require_fields(cls, values)
        return cls(**values)
