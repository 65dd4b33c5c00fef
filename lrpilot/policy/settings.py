"""ControlSettings: how the learning rate of a training is controlled, in one value."""

import math
from dataclasses import dataclass, field

from lrpilot.arguments import require_count
from lrpilot.loss import DIVERGENCE_FACTOR
from lrpilot.policy.action import ActionSpec
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec

REWARDS = ("privileged", "training")


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """What is seen, done and rewarded, and how often.

    The configuration makes one, environments run by it, and agents write the part that a scheduler
    needs (`observation`, `action`, `clock`) into the policy file.

    Args:
        observation: what is seen; default all features but the curvature.
        action: what an action does.
        num_decisions: decision intervals per run.
        interval_steps: optimizer steps per decision; default T / `num_decisions`, rounded.
        interval_growth: growth of the intervals in the first steps of a run (`ClockSpec`).
        horizon_factors: range of T over the task's `total_steps`, or over `num_epochs` epochs.
        initial_lr_factors: range of the initial learning rate over the task's `base_lr`.
        reward: "privileged" or "training".
        divergence_factor: loss relative to the start above which a run counts as diverged.
        use_cap: whether the task's cap bounds the learning rate (always, if it is its unit).
        num_epochs: T in passes through the training examples, instead of the task's
            `total_steps`; a decision is then due every `num_epochs` / `num_decisions` epochs.
        reward_interval: decisions between two measurements of what is rewarded.
        max_decisions: decisions after which an episode is truncated; default never.
        horizon_range: smallest and largest T, steps; environments derive it from their task.

    Raises:
        ValueError: if an argument is out of range.

    >>> ControlSettings(num_decisions=20).clock.interval_steps(600)
    30
    """

    observation: ObservationSpec = field(default_factory=ObservationSpec)
    action: ActionSpec = field(default_factory=ActionSpec)
    num_decisions: int = 30
    interval_steps: int | None = None
    interval_growth: float | None = None
    horizon_factors: tuple[float, float] = (1.0, 1.0)
    initial_lr_factors: tuple[float, float] = (0.03, 30.0)
    reward: str = "privileged"
    divergence_factor: float = DIVERGENCE_FACTOR
    use_cap: bool = False
    num_epochs: float | None = None
    reward_interval: int = 1
    max_decisions: int | None = None
    horizon_range: tuple[int, int] = (1, 1_000_000)

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"`reward` must be one of {REWARDS}, got {self.reward!r}")
        if not 1.0 < self.divergence_factor < math.inf:
            raise ValueError(f"`divergence_factor` must exceed 1, got {self.divergence_factor}")
        for name in ("interval_steps", "reward_interval", "max_decisions"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("horizon_factors", "initial_lr_factors"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high < math.inf:
                raise ValueError(f"`{name}` must be 0 < low <= high, got {(low, high)}")
            object.__setattr__(self, name, (low, high))
        object.__setattr__(self, "use_cap", self.use_cap or self.action.unit == "cap")
        _ = self.clock  # refuses a wrong number of decisions, or range of horizons

    @property
    def clock(self) -> ClockSpec:
        """How often a decision is due."""
        return ClockSpec(
            num_decisions=self.num_decisions,
            horizon_range=self.horizon_range,
            fixed_interval=self.interval_steps,
            growth=self.interval_growth,
            least_interval=self.observation.least_interval,
        )
