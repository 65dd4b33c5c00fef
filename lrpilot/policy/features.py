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
    "last_displacement": 0.0,
    "gradient_norm": UNKNOWN,
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
    has_angle = is_finite & (moved > 0.0) & (old_moved > 0.0)
    cosine = across / where(has_angle, sqrt(moved) * sqrt(old_moved), 1.0)
    rho = sqrt(moved) / at_least(1e-30, sqrt(weight))
    ratio = at_least(1e-60, weight) / at_least(1e-60, old_weight)
    growth = log(at_least(1e-300, ratio)) / 2  # the ratio is 0 where old weights are infinite
    return [
        where(is_finite, 2 + log10(at_least(1e-12, rho)), FEATURE_LIMIT),
        where(has_angle, cosine, 0.0),
        where(is_finite, asinh(10 * growth) / 2, FEATURE_LIMIT),
    ]


def gradient_feature(norm: Numbers, old_norm: Numbers) -> tuple[Numbers, Numbers]:
    """The growth of a gradient norm over the last finite one, and the norm to remember."""
    is_finite, floored = isfinite(norm), at_least(1e-30, norm)
    growth = where(isnan(old_norm), 0.0, log(floored / old_norm) / 2)
    return where(is_finite, growth, FEATURE_LIMIT), where(is_finite, floored, old_norm)


def lr_feature(factor: Numbers) -> Numbers:
    """Half the decades between the learning rate and the initial one."""
    return log10(at_least(1e-30, factor)) / 2
