"""The decision clock: how often a policy decides."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from lrpilot.arguments import require_count, require_fields
from lrpilot.policy.elementwise import Numbers, clip


def progress_of(num_steps: Numbers, total_steps: Numbers | None) -> Numbers:
    """t/T in [0, 1], and 0 where T is unknown.

    >>> progress_of(3, 12), progress_of(15, 12), progress_of(3, None)
    (0.25, 1.0, 0.0)
    """
    return 0.0 if total_steps is None else clip(num_steps / total_steps, 0.0, 1.0)


def is_due(num_steps: Numbers, interval_steps: Numbers, warmup_steps: int = 0) -> Numbers:
    """Whether a decision follows step `num_steps`: at the ends of intervals after the warm-up.

    >>> [step for step in range(12) if is_due(step, 4, 2)]
    [6, 10]
    """
    elapsed = num_steps - warmup_steps
    return (elapsed > 0) & (elapsed % interval_steps == 0)


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

    def foreign_horizon(self, total_steps: int) -> str | None:
        """What to say of a run whose length is outside `horizon_range`; None of another."""
        low, high = self.horizon_range
        if total_steps < 1 or low <= total_steps <= high:
            return None
        effect = (
            "its learning rates are likely to be too low"
            if total_steps > high
            else "it has too few steps to find the learning rate"
        )
        return (
            f"`total_steps` = {total_steps} is outside [{low}, {high}], the lengths of the runs "
            f"that the policy was trained on: {effect}; use a policy that was trained on such "
            "runs, or compare with a schedule that needs none"
        )

    def foreign_interval(self, interval_steps: int) -> str | None:
        """What to say of an interval that no run of the `horizon_range` has; None of another."""
        low, high = map(self.interval_steps, self.horizon_range)
        if low <= interval_steps <= high:
            return None
        return (
            f"`interval_steps` = {interval_steps} is outside the range [{low}, {high}] that the "
            "policy was trained on"
        )

    def to_dict(self) -> dict[str, Any]:
        """The specification as it is stored in a policy file."""
        return {**asdict(self), "horizon_range": list(self.horizon_range)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The specification stored in a policy file."""
        require_fields(cls, values)
        return cls(**values)
