"""The features of `ObservationSpec` from what is measured of a run, or of B runs at once.

Every function takes floats for one run and arrays of shape (B,) for B runs (`elementwise`).
"""

import math
from collections.abc import Mapping

from lrpilot.policy.elementwise import (
    Numbers,
    asinh,
    at_least,
    clip,
    every,
    isfinite,
    isnan,
    log,
    log10,
    sqrt,
    where,
)
from lrpilot.policy.observation import FEATURE_LIMIT

LOSS_FLOOR = 1e-8
LOSS_CEILING = 1e4
LONG_DECAY = 0.8
NOISE_DECAY = 0.7

RECENT_CEILING = 10.0
FAST, SLOW = 1 / 4, 1 / 16
"""Weight of the newest loss in the means over about four and about sixteen steps."""
FAST_ERROR, SLOW_ERROR = 0.264, 0.18
"""Standard errors of fast - slow and slow - growing mean: independent losses of variance 1."""

UNKNOWN = math.nan
FIRST_STATE: Mapping[str, float] = {
    "initial_loss": UNKNOWN,
    "num_nonfinite": 0,
    # of the present interval: losses, their mean, and the sum of squared deviations from it
    "num_losses": 0,
    "interval_mean": 0.0,
    "interval_squares": 0.0,
    # at the end of the last interval
    "last_interval_mean": 1.0,
    "mean": 1.0,
    "mean_variance": 0.0,
    "log_mean": 0.0,
    "noise_variance": 0.0,
    "long_slope": UNKNOWN,
    "gradient_norm": UNKNOWN,
    # of all steps
    "num_steps": 0,
    "last_loss": 1.0,
    "fast_sum": 0.0,
    "slow_sum": 0.0,
    "growing_sum": 0.0,
    "jump_sum": 0.0,
    "lr_sum": 0.0,
    "lr_steps": 0,
}
"""What is remembered of a run, at its start. Losses are relative to the first one."""

State = dict[str, Numbers]


def first_loss(initial_loss: Numbers, loss: Numbers, active: Numbers) -> Numbers:
    """The first positive loss of the active runs, which may be this one; NaN before there is one.

    It is what all losses are relative to.
    """
    is_first = active & isnan(initial_loss) & isfinite(loss) & (loss > 0.0)
    return where(is_first, loss, initial_loss)


def relative_loss(loss: Numbers, initial_loss: Numbers) -> Numbers:
    """The loss over the first one, in [-1e4, 1e4]; 1e4 if it is not finite, 1 without a first."""
    ratio = loss / initial_loss
    if type(ratio) is float and -LOSS_CEILING < ratio < LOSS_CEILING:
        return ratio  # so it is at nearly every step of one run
    ratio = clip(ratio, -LOSS_CEILING, LOSS_CEILING)
    return where(isfinite(loss), where(isnan(initial_loss), 1.0, ratio), LOSS_CEILING)


def add_to_moments(
    x: Numbers, active: Numbers, count: Numbers, mean: Numbers, squares: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Count, mean and sum of squared deviations with one more value of the active runs.

    References:
        B. P. Welford, "Note on a method for calculating corrected sums of squares and products",
        1962.
    """
    count = count + active
    change = (x - mean) * active
    mean = mean + change / (count + (count == 0))
    return count, mean, squares + change * (x - mean)


def interval_loss(state: State) -> Numbers:
    """Mean loss since the last decision, over the first loss; 1e4 bounds it."""
    has_loss = state["num_losses"] > 0
    return where(has_loss, state["interval_mean"], state["last_interval_mean"])


def loss_features(state: State) -> tuple[list[Numbers], State]:
    """The features of the losses of an interval, and what the interval changes in the state."""
    count, mean, old_slope = state["num_losses"], state["interval_mean"], state["long_slope"]
    has_loss, is_first = count > 0, isnan(old_slope)
    change = mean - state["mean"]
    # with one loss an interval, successive changes are all that tells the noise
    variance = where(
        count > 1, state["interval_squares"] / at_least(1, count - 1), change * change / 2
    )
    noise_variance = state["noise_variance"]
    noise_variance = where(
        is_first, variance, noise_variance + (1 - NOISE_DECAY) * (variance - noise_variance)
    )
    mean_variance = noise_variance / at_least(1, count)
    floored = at_least(LOSS_FLOOR, mean)
    log_mean = log(floored)
    slope = log_mean - state["log_mean"]
    long_slope = where(is_first, slope, old_slope + (1 - LONG_DECAY) * (slope - old_slope))
    error = sqrt(mean_variance + state["mean_variance"])
    features = [
        log_mean / 2,
        asinh(10 * slope) / 2,
        asinh(10 * long_slope) / 2,
        asinh(change / at_least(1e-12, error)) / 2,
        1 + log10(sqrt(noise_variance) / floored + 1e-4) / 2,
    ]
    changed = {
        "mean": mean,
        "mean_variance": mean_variance,
        "log_mean": log_mean,
        "noise_variance": noise_variance,
        "long_slope": long_slope,
    }
    if every(has_loss):
        return features, changed
    known_slope = asinh(10 * where(is_first, 0.0, old_slope)) / 2
    without = (state["log_mean"] / 2, 0.0, known_slope, 0.0, 0.0)
    return (
        [where(has_loss, a, b) for a, b in zip(features, without, strict=True)],
        {name: where(has_loss, value, state[name]) for name, value in changed.items()},
    )


def add_to_recent(state: State, loss: Numbers, active: Numbers) -> None:
    """Take one more loss x_i of the active runs, over the first one, into their sums in `state`.

    Of decays d = 3/4, 15/16: sum d^(t-i) x_i; of the growing mean: sum i x_i; of the noise:
    sum (15/16)^(t-i) (x_i - x_{i-1})^2.
    """
    loss = clip(loss, -RECENT_CEILING, RECENT_CEILING) * active
    jump = loss - state["last_loss"] * active
    fast, slow = 1.0 - FAST * active, 1.0 - SLOW * active
    state["num_steps"] = num_steps = state["num_steps"] + active
    state["last_loss"] = state["last_loss"] + jump
    state["fast_sum"] = state["fast_sum"] * fast + loss
    state["slow_sum"] = state["slow_sum"] * slow + loss
    state["growing_sum"] = state["growing_sum"] + num_steps * loss
    state["jump_sum"] = state["jump_sum"] * slow + jump * jump


def recent_loss_features(state: State) -> list[Numbers]:
    """The features of the group recent_loss; they change nothing in the state."""
    steps = at_least(1.0, state["num_steps"])
    share_fast, share_slow = 1.0 - (1.0 - FAST) ** steps, 1.0 - (1.0 - SLOW) ** steps
    fast, slow = state["fast_sum"] * FAST / share_fast, state["slow_sum"] * SLOW / share_slow
    growing = state["growing_sum"] / (steps * (steps + 1.0) / 2.0)
    noise = sqrt(state["jump_sum"] * SLOW / share_slow / 2.0)
    level, least_noise = at_least(LOSS_FLOOR, slow), at_least(1e-12, noise)
    log_slow = log(level)
    features = [
        log_slow / 2,
        asinh(10 * (log(at_least(LOSS_FLOOR, fast)) - log_slow)) / 2,
        asinh(10 * (log_slow - log(at_least(LOSS_FLOOR, growing)))) / 2,
        asinh((fast - slow) / (FAST_ERROR * least_noise)) / 2,
        asinh((slow - growing) / (SLOW_ERROR * least_noise)) / 2,
        1 + log10(noise / level + 1e-4) / 2,
    ]
    is_known = state["num_steps"] > 0
    return [where(is_known, feature, 0.0) for feature in features]


def lr_trend(state: State, factor: Numbers) -> Numbers:
    """Decades between the present learning rate and its mean over the steps, weighted by i.

    The factor has been the same since the last decision; `state` is brought up to now.
    """
    log_factor, before, now = log10(at_least(1e-30, factor)), state["lr_steps"], state["num_steps"]
    weight = now * (now + 1.0) / 2.0
    state["lr_sum"] = state["lr_sum"] + log_factor * (weight - before * (before + 1.0) / 2.0)
    state["lr_steps"] = now
    return where(now > 0, log_factor - state["lr_sum"] / at_least(1.0, weight), 0.0)


def recent_movement_features(
    moved: Numbers,
    weight: Numbers,
    first: Numbers,
    second: Numbers,
    across: Numbers,
    start: Numbers,
) -> list[Numbers]:
    """The features of the displacement d = d' + d'' over the last four steps.

    Args:
        moved: ||d||^2.
        weight: ||w||^2.
        first: ||d'||^2, of the first two steps.
        second: ||d''||^2, of the last two.
        across: <d', d''>.
        start: ||w_0||^2, at the start of the run.
    """
    is_finite = isfinite(moved) & isfinite(weight) & isfinite(start) & isfinite(across)
    return [
        _displacement(moved, weight, is_finite),
        _cosine(across, first, second, is_finite),
        _growth(weight, start, is_finite),
    ]


def _displacement(moved: Numbers, weight: Numbers, is_finite: Numbers) -> Numbers:
    rho = sqrt(moved) / at_least(1e-30, sqrt(weight))
    return where(is_finite, 2 + log10(at_least(1e-12, rho)), FEATURE_LIMIT)


def _cosine(across: Numbers, first: Numbers, second: Numbers, is_finite: Numbers) -> Numbers:
    has_angle = is_finite & (first > 0.0) & (second > 0.0)
    cosine = across / where(has_angle, sqrt(first) * sqrt(second), 1.0)
    return where(has_angle, cosine, 0.0)


def _growth(weight: Numbers, old_weight: Numbers, is_finite: Numbers) -> Numbers:
    ratio = at_least(1e-60, weight) / at_least(1e-60, old_weight)
    growth = log(at_least(1e-300, ratio)) / 2  # the ratio is 0 where old weights are infinite
    return where(is_finite, asinh(10 * growth) / 2, FEATURE_LIMIT)


def movement_features(
    moved: Numbers, weight: Numbers, old_weight: Numbers, old_moved: Numbers, across: Numbers
) -> list[Numbers]:
    """The features of a displacement d_k, with d_0 = 0.

    Args:
        moved: ||d_k||^2.
        weight: ||w_k||^2.
        old_weight: ||w_{k-1}||^2.
        old_moved: ||d_{k-1}||^2.
        across: <d_k, d_{k-1}>.
    """
    is_finite = isfinite(moved) & isfinite(weight) & isfinite(old_weight)
    is_finite = is_finite & isfinite(old_moved) & isfinite(across)
    return [
        _displacement(moved, weight, is_finite),
        _cosine(across, moved, old_moved, is_finite),
        _growth(weight, old_weight, is_finite),
    ]


def gradient_feature(norm: Numbers, old_norm: Numbers) -> tuple[Numbers, Numbers]:
    """The growth of a gradient norm over the last finite one, and the norm to remember."""
    is_finite, floored = isfinite(norm), at_least(1e-30, norm)
    growth = where(isnan(old_norm), 0.0, log(floored / old_norm) / 2)
    return where(is_finite, growth, FEATURE_LIMIT), where(is_finite, floored, old_norm)


def lr_feature(factor: Numbers) -> Numbers:
    """Half the decades between the learning rate and the initial one."""
    return log10(at_least(1e-30, factor)) / 2
