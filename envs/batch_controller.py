"""The decision loops of many runs at once: `lrpilot.Controller` in array form."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.action import ActionSpec
from lrpilot.policy.observation import (
    FEATURE_LIMIT,
    LONG_DECAY,
    LOSS_CEILING,
    LOSS_FLOOR,
    NOISE_DECAY,
    ObservationSpec,
)

# state of one run at its start
_START = {
    "num_steps": 0.0,
    "previous_action": 0.0,
    "initial_loss": math.nan,
    "count": 0.0,
    "interval_mean": 0.0,
    "interval_m2": 0.0,
    "log_mean": 0.0,
    "mean": 1.0,
    "last_interval_mean": 1.0,
    "mean_variance": 0.0,
    "noise_variance": 0.0,
    "long_slope": math.nan,
    "gradient_norm": math.nan,
    "num_moves": 0.0,
    "num_nonfinite": 0.0,
}
_ARRAYS = ("total_steps", "interval_steps", "factor", "_multiplier")
_TENSORS = ("_weights", "_displacement")

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class BatchController:
    """Counts steps, gathers losses and applies actions for B runs on one device.

    It computes what B objects of `lrpilot.Controller` compute, to rounding; a test holds the two
    together. Vectors have shape (B,); those of the decision loop are float64 arrays of the host,
    since hundreds of numbers are handled faster there than on any device. Losses stay on their
    device until the interval closes.

    Args:
        observation: what is observed.
        action: what an action does.
        read_weights: returns the sampled parameter entries, (B, num_entries), as a new tensor.
        read_gradients: returns their gradients, (B, num_entries).
        num_runs: B.

    Raises:
        ValueError: if the curvature is to be observed.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        read_weights: Callable[[], Tensor],
        read_gradients: Callable[[], Tensor],
        num_runs: int,
    ) -> None:
        if "curvature" in observation.groups:
            raise ValueError(
                "`observation` of batched runs must not have the group 'curvature', which is "
                f"measured one run at a time, got {list(observation.groups)}"
            )
        self.spec = observation
        self.action = action
        self._read_weights = read_weights
        self._read_gradients = read_gradients
        self.state = {name: np.full(num_runs, value) for name, value in _START.items()}
        self.total_steps = np.ones(num_runs)
        self.interval_steps = np.ones(num_runs)
        self.factor = np.full(num_runs, action.start_factor)
        self._multiplier = self.factor.copy()
        self._pending: list[tuple[Tensor, Mask]] = []
        reads_movement = "movement" in observation.groups
        self._weights = read_weights() if reads_movement else torch.zeros(num_runs, 0)
        self._displacement = torch.zeros_like(self._weights)

    def reset(self, rows: list[int], *, total_steps: list[int], interval_steps: list[int]) -> None:
        """Start the runs of these indices anew; their weights are already initial ones."""
        self._flush()
        for name, value in _START.items():
            self.state[name][rows] = value
        self.factor[rows] = self.action.start_factor
        self._multiplier[rows] = self.action.start_factor
        self.total_steps[rows] = total_steps
        self.interval_steps[rows] = interval_steps
        if "movement" in self.spec.groups:
            self._weights[rows] = self._read_weights()[rows]

    @property
    def progress(self) -> Floats:
        """t/T in [0, 1]."""
        return np.minimum(self.state["num_steps"] / self.total_steps, 1.0)

    def steps_to_decision(self) -> Floats:
        """Steps until each run's next decision or its end, whichever comes first."""
        done = self.state["num_steps"]
        to_decision = self.interval_steps - done % self.interval_steps
        steps: Floats = np.minimum(to_decision, self.total_steps - done)
        return steps

    def observe(self, losses: Tensor, active: Mask) -> None:
        """Take the minibatch losses of one step of the active runs, and count the step."""
        self._pending.append((losses, active))
        self.state["num_steps"] += active

    def _flush(self) -> None:
        if self._pending:
            losses, masks = zip(*self._pending, strict=True)
            self._pending = []
            values = torch.stack(losses).double().cpu().numpy()
            for value, active in zip(values, masks, strict=True):
                self._add(value, active)

    def _add(self, value: Floats, active: Mask) -> None:
        s = self.state
        is_finite = np.isfinite(value)
        s["num_nonfinite"] += active & ~is_finite
        is_before = np.isnan(s["initial_loss"])
        is_refused = active & is_before & is_finite & (value < 0.0)
        if "loss" in self.spec.groups and is_refused.any():
            run = int(is_refused.argmax())
            raise ValueError(
                f"`loss` must be positive at the start, since features are logarithms relative "
                f"to it, got {value[run]} in run {run}"
            )
        is_first = is_before & is_finite & (value > 0.0)
        initial_loss = np.where(is_first, value, s["initial_loss"])
        ratio = np.clip(value / initial_loss, -LOSS_CEILING, LOSS_CEILING)
        ratio = np.where(is_finite, ratio, LOSS_CEILING)
        ratio[np.isnan(ratio)] = 1.0
        count = s["count"] + 1
        delta = ratio - s["interval_mean"]
        mean = s["interval_mean"] + delta / count
        new = {
            "initial_loss": initial_loss,
            "count": count,
            "interval_mean": mean,
            "interval_m2": s["interval_m2"] + delta * (ratio - mean),
        }
        for name, array in new.items():
            s[name] = array if active.all() else np.where(active, array, s[name])

    @property
    def interval_loss(self) -> Floats:
        """Mean loss since the last decision over the first loss."""
        self._flush()
        s = self.state
        return np.where(s["count"] > 0, s["interval_mean"], s["last_interval_mean"])

    @property
    def num_nonfinite(self) -> Floats:
        """Losses of the run that were not finite."""
        self._flush()
        return self.state["num_nonfinite"]

    def observation(self, active: Mask) -> NDArray[np.float32]:
        """Close the intervals of the active runs; returns an array (B, number of features)."""
        self._flush()
        before = dict(self.state)
        old_weights, old_displacement = self._weights, self._displacement
        s = self.state
        columns: list[Floats] = []
        with np.errstate(all="ignore"):
            for group in self.spec.groups:
                if group == "progress":
                    columns.append(2 * self.progress - 1)
                elif group == "loss":
                    columns += self._loss_features()
                elif group == "lr":
                    columns.append(np.log10(np.maximum(self.factor, 1e-30)) / 2)
                    columns.append(s["previous_action"])
                elif group == "movement":
                    columns += self._movement_features()
                else:
                    columns.append(self._gradient_feature())
        s["last_interval_mean"] = self.interval_loss
        for name in ("count", "interval_mean", "interval_m2"):
            s[name] = np.zeros_like(s[name])
        if not active.all():
            self.state = {name: np.where(active, s[name], before[name]) for name in s}
            keep = torch.as_tensor(active, device=old_weights.device)[:, None]
            self._weights = torch.where(keep, self._weights, old_weights)
            self._displacement = torch.where(keep, self._displacement, old_displacement)
        table = np.nan_to_num(np.stack(columns, axis=1), nan=FEATURE_LIMIT)
        return table.clip(-FEATURE_LIMIT, FEATURE_LIMIT).astype(np.float32)

    def _loss_features(self) -> list[Floats]:
        """The features, and the state of the runs that made a step since the last decision."""
        s = self.state
        count = s["count"]
        has_loss = count > 0
        change = s["interval_mean"] - s["mean"]
        variance = np.where(
            count > 1, s["interval_m2"] / np.maximum(count - 1, 1.0), np.square(change) / 2
        )
        is_first = np.isnan(s["long_slope"])
        smoothed = s["noise_variance"] + (1 - NOISE_DECAY) * (variance - s["noise_variance"])
        noise_variance = np.where(is_first, variance, smoothed)
        mean_variance = noise_variance / np.maximum(count, 1.0)
        floored = np.maximum(s["interval_mean"], LOSS_FLOOR)
        log_mean = np.log(floored)
        slope = log_mean - s["log_mean"]
        long_slope = np.where(
            is_first, slope, s["long_slope"] + (1 - LONG_DECAY) * (slope - s["long_slope"])
        )
        error = np.sqrt(mean_variance + s["mean_variance"])
        features = [
            log_mean / 2,
            np.arcsinh(10 * slope) / 2,
            np.arcsinh(10 * long_slope) / 2,
            np.arcsinh(change / np.maximum(error, 1e-12)) / 2,
            1 + np.log10(np.sqrt(noise_variance) / floored + 1e-4) / 2,
        ]
        old_slope = np.where(is_first, 0.0, s["long_slope"])
        idle = [s["log_mean"] / 2, 0.0, np.arcsinh(10 * old_slope) / 2, 0.0, 0.0]
        new = {
            "mean": s["interval_mean"],
            "mean_variance": mean_variance,
            "log_mean": log_mean,
            "noise_variance": noise_variance,
            "long_slope": long_slope,
        }
        for name, array in new.items():
            s[name] = np.where(has_loss, array, s[name])
        return [np.where(has_loss, a, b) for a, b in zip(features, idle, strict=True)]

    def _movement_features(self) -> list[Floats]:
        old, new = self._weights, self._read_weights()
        displacement, previous = new - old, self._displacement
        pairs = (
            (displacement, displacement),
            (new, new),
            (old, old),
            (previous, previous),
            (displacement, previous),
        )
        products = torch.stack([(a * b).sum(dim=1) for a, b in pairs])
        moved, weight, old_weight, before, across = products.double().cpu().numpy()
        has_moved = self.state["num_moves"] > 0
        has_cosine = has_moved & (moved > 0) & (before > 0)
        cosine = np.where(has_cosine, across / (np.sqrt(moved) * np.sqrt(before)), 0.0)
        rho = np.sqrt(moved) / np.maximum(np.sqrt(weight), 1e-30)
        growth = np.log(np.maximum(weight, 1e-60) / np.maximum(old_weight, 1e-60)) / 2
        is_finite = np.isfinite(moved) & np.isfinite(weight) & np.isfinite(old_weight)
        is_finite &= ~has_moved | (np.isfinite(across) & np.isfinite(before))
        self._weights, self._displacement = new, displacement
        self.state["num_moves"] = self.state["num_moves"] + 1
        return [
            np.where(is_finite, 2 + np.log10(np.maximum(rho, 1e-12)), FEATURE_LIMIT),
            np.where(is_finite, cosine, 0.0),
            np.where(is_finite, np.arcsinh(10 * growth) / 2, FEATURE_LIMIT),
        ]

    def _gradient_feature(self) -> Floats:
        s = self.state
        norm = torch.linalg.vector_norm(self._read_gradients(), dim=1).double().cpu().numpy()
        norm = np.where(np.isfinite(norm), np.maximum(norm, 1e-30), np.nan)
        growth = np.log(norm / s["gradient_norm"]) / 2
        feature = np.where(np.isnan(s["gradient_norm"]), 0.0, growth)
        feature = np.where(np.isnan(norm), FEATURE_LIMIT, feature)
        s["gradient_norm"] = np.where(np.isnan(norm), s["gradient_norm"], norm)
        return feature

    def state_dict(self) -> dict[str, Any]:
        """Plain lists of all arrays, and copies of all tensors."""
        self._flush()
        arrays = {**self.state, **{name: getattr(self, name) for name in _ARRAYS}}
        return {
            **{name: array.tolist() for name, array in arrays.items()},
            **{name: getattr(self, name).clone() for name in _TENSORS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._pending = []
        self.state = {name: np.array(state[name]) for name in _START}
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name]))
        for name in _TENSORS:
            setattr(self, name, state[name].to(getattr(self, name).device, copy=True))

    def act(self, actions: NDArray[np.float32]) -> None:
        """Apply one action in [-1, 1] per run.

        Raises:
            ValueError: if an action is outside [-1, 1] or not a number.
        """
        spec = self.action
        action = np.asarray(actions, np.float64)
        if not (np.abs(action) <= 1.0).all():
            raise ValueError(f"`actions` must be in [-1, 1], got {actions}")
        change = np.exp(spec.max_log_change * action)
        if spec.kind == "multiplier":
            change = (self._multiplier * change).clip(spec.min_factor, spec.max_factor)
            self._multiplier = change
        if spec.anchor == "linear":
            change = change * (1 - self.progress)
        elif spec.anchor == "cosine":
            change = change * (1 + np.cos(math.pi * self.progress)) / 2
        self.factor = change.clip(spec.min_factor, spec.max_factor)
        self.state["previous_action"] = action
