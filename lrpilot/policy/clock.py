"""The decision clock: how often a policy decides."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from lrpilot.arguments import require_count, require_fields
from lrpilot.policy.elementwise import Numbers, at_least, clip, floor, where

_LATER = {"growth": None, "least_interval": 1}
"""Fields that came with format 3 of policy files, and what they were before."""


def progress_of(num_steps: Numbers, total_steps: Numbers | None) -> Numbers:
    """t/T in [0, 1], and 0 where T is unknown.

    >>> progress_of(3, 12), progress_of(15, 12), progress_of(3, None)
    (0.25, 1.0, 0.0)
    """
    return 0.0 if total_steps is None else clip(num_steps / total_steps, 0.0, 1.0)


@dataclass(frozen=True)
class ClockSpec:
    """How often a policy decides.

    A run of T steps is cut into intervals of n = max(least_interval, round(T / num_decisions))
    optimizer steps. The first interval runs at the start factor; a decision follows every interval.

    With a `growth`, decisions come as often in the first steps of a long run as in those of a short
    one: the interval that begins after step t has floor(growth t) steps, at least `least_interval`
    and at most n.

    Args:
        num_decisions: intervals per run.
        horizon_range: smallest and largest T of the runs that the policy was trained on, steps.
        fixed_interval: steps of every interval, whatever T; None derives them from T.
        growth: length of an interval over the steps before it; None for intervals of one length.
        least_interval: fewest steps of an interval.

    Raises:
        ValueError: if a count is no whole number or below 1, the range is reversed, or `growth` is
            not positive.

    >>> ClockSpec(num_decisions=30).interval_steps(10_000)
    333
    """

    num_decisions: int = 30
    horizon_range: tuple[int, int] = (1, 1_000_000)
    fixed_interval: int | None = None
    growth: float | None = None
    least_interval: int = 1

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
        require_count("least_interval", self.least_interval)
        if self.growth is not None and not 0.0 < self.growth < math.inf:
            raise ValueError(f"`growth` must be positive, got {self.growth}")
        if not 1 <= low <= high:
            raise ValueError(f"`horizon_range` must be 1 <= low <= high, got {(low, high)}")

    def interval_steps(self, total_steps: int) -> int:
        """Optimizer steps per decision in a run of `total_steps`: the most, if intervals grow."""
        longest = round(total_steps / self.num_decisions)
        return self.fixed_interval or max(self.least_interval, longest)

    def next_interval(self, num_steps: Numbers, longest: Numbers) -> Numbers:
        """Steps of the interval that begins after so many steps (without those of a warm-up).

        Args:
            num_steps: t, of one run or of B.
            longest: n, from `interval_steps`.

        >>> clock = ClockSpec(growth=0.25, least_interval=5)
        >>> [clock.next_interval(t, 33) for t in (0, 40, 10_000)]
        [5, 10, 33]
        """
        if self.growth is None:
            return longest
        grown = at_least(self.least_interval, floor(self.growth * num_steps))
        return where(grown < longest, grown, longest)

    def foreign_horizon(self, total_steps: int) -> str | None:
        """What to say of a run whose length is outside `horizon_range`; None of another."""
        low, high = self.horizon_range
        if total_steps < 1 or low <= total_steps <= high:
            return None
        if total_steps < low:
            effect = "it has too few steps to find the learning rate"
        elif self.growth is None:
            effect = "its learning rates are likely to be too low"
        else:
            effect = "it was not trained for so long a run"
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

    def decision_steps(self, total_steps: int) -> list[int]:
        """After which steps of a run of `total_steps` a decision follows.

        >>> ClockSpec(num_decisions=4).decision_steps(12)
        [3, 6, 9]
        """
        longest = self.interval_steps(total_steps)
        steps = [self.next_interval(0, longest)]
        while steps[-1] < total_steps:
            steps.append(steps[-1] + self.next_interval(steps[-1], longest))
        return steps[:-1]

    def to_dict(self) -> dict[str, Any]:
        """The specification as it is stored in a policy file.

        What formats 1 and 2 lack is left out where it changes nothing, as in their fingerprints.
        """
        values = {**asdict(self), "horizon_range": list(self.horizon_range)}
        return {k: v for k, v in values.items() if k not in _LATER or v != _LATER[k]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The specification stored in a policy file."""
        values = {**_LATER, **values}
        require_fields(cls, values)
        return cls(**values)
