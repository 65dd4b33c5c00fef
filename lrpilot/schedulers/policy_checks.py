"""What `PolicyLR` refuses or warns of: foreign horizons, states and losses that explode.

Every `stacklevel` counts from these functions, so that the warning names the user's line.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from lrpilot.arguments import require_count
from lrpilot.policy.actor import Policy
from lrpilot.policy.brake import Brake
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.familiarity import Familiarity


def interval_of(clock: ClockSpec, total_steps: int | None, interval_steps: int | None) -> int:
    """Steps per decision: those that are given, or the clock's; warns if they are foreign to it."""
    is_known = warn_of_horizon(clock, total_steps, stacklevel=4)
    if interval_steps is None:
        return clock.interval_steps(total_steps or clock.horizon_range[1])
    problem = clock.foreign_interval(interval_steps)
    if is_known and interval_steps >= 1 and problem is not None:
        warnings.warn(problem, UserWarning, stacklevel=3)
    return interval_steps


def warn_of_horizon(clock: ClockSpec, total_steps: int | None, *, stacklevel: int) -> bool:
    """Whether the policy was trained on runs of this length; else a warning says so."""
    problem = None if total_steps is None else clock.foreign_horizon(total_steps)
    if problem is not None:
        warnings.warn(problem, UserWarning, stacklevel=stacklevel)
    return problem is None


def warn_past_horizon(policy: Policy, total_steps: int) -> None:
    """Say that a step is past the end of the run, if that matters to the policy."""
    if policy.action.needs_progress or policy.observation.needs_progress:
        warnings.warn(
            f"step {total_steps} + 1 is past `total_steps` = {total_steps}: progress stays 1 and "
            "the learning rate where the schedule ended; make the scheduler with all steps of the "
            "run, or call `extend(total_steps)`",
            UserWarning,
            stacklevel=3,
        )


def warn_of_alarm(brake: Brake, known_alarms: int, *, step: int, stacklevel: int = 3) -> None:
    """Say the first alarm of the brake; the later ones are in the log alone."""
    if known_alarms == 0:
        warnings.warn(
            f"{brake.describe(step)}. The learning rate is cut to a tenth (later alarms are in "
            '`log` alone, as "brake"); `Guard(scheduler, model=model)` also puts the weights back',
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def warn_of_outside(familiarity: Familiarity, *, step: int) -> None:
    """Say, the first time, that a run has left what its policy was trained on."""
    if (familiarity.num_left, familiarity.num_outside) == (1, familiarity.patience + 1):
        warnings.warn(
            f"after step {step}, `{familiarity.feature}` has been outside the range of the "
            f"policy's training for {familiarity.num_outside} decisions: its multiplier stays, and "
            'the anchor schedule goes on, until it is back (`log` has each time, as "outside")',
            RuntimeWarning,
            stacklevel=6,
        )


def require_longer(known: int | None, total_steps: int) -> None:
    """Refuse a horizon that extends none."""
    if known is None:
        raise ValueError("`total_steps` must have been given to be extended")
    require_count("total_steps", total_steps)
    if total_steps <= known:
        raise ValueError(f"`total_steps` must be above {known} to extend it, got {total_steps}")


def require_losses_alone(policy: Policy) -> None:
    """Refuse a policy that observes what only a training has."""
    of_training = ("movement", "gradient", "curvature")
    missing = [group for group in of_training if group in policy.observation.groups]
    if missing:
        raise ValueError(
            f"`policy` must observe losses alone to be simulated, got one with {missing}; train "
            "one with env.observation.groups=[progress,loss,lr], or run this one in a training"
        )


def require_same(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse a state of another policy, interval, horizon or warm-up."""
    # the horizon first, since the interval follows it
    for name, own in mine.items():
        if state[name] == own:
            continue
        cure = ""
        if name == "total_steps" and own and state[name] and own > state[name]:
            cure = (
                f": to make the run longer, make the scheduler with `total_steps` = "
                f"{state[name]}, load the state, and call `extend({own})`"
            )
        raise ValueError(
            f"`state_dict` must have `{name}` = {own!r} like this scheduler, got "
            f"{state[name]!r}{cure}"
        )
