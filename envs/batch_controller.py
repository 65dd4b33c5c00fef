"""The decision loops of many runs at once: `lrpilot.Controller` in array form."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.action import ActionSpec
from lrpilot.observation import (
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
}
_TENSORS = (
    "total_steps",
    "interval_steps",
    "factor",
    "_multiplier",
    "_weights",
    "_displacement",
)


class BatchController:
    """Counts steps, gathers losses and applies actions for B runs on one device.

    It computes what B objects of `lrpilot.Controller` compute, to rounding; a test holds the two
    together. Vectors have shape (B,) and are float64.

    Args:
        observation: what is observed.
        action: what an action does.
        read_weights: returns the sampled parameter entries, (B, num_entries), as a new tensor.
        read_gradients: returns their gradients, (B, num_entries).
        num_runs: B.
        device: where the runs live.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        read_weights: Callable[[], Tensor],
        read_gradients: Callable[[], Tensor],
        num_runs: int,
        device: str = "cpu",
    ) -> None:
        self.spec = observation
        self.action = action
        self._read_weights = read_weights
        self._read_gradients = read_gradients
        ones = torch.ones(num_runs, dtype=torch.float64, device=device)
        self.state = {name: ones * value for name, value in _START.items()}
        self.total_steps = ones.clone()
        self.interval_steps = ones.clone()
        self.factor = ones * action.start_factor
        self._multiplier = self.factor.clone()
        reads_movement = "movement" in observation.groups
        self._weights = read_weights() if reads_movement else torch.zeros(num_runs, 0)
        self._displacement = torch.zeros_like(self._weights)

    def reset(self, rows: Tensor, *, total_steps: Tensor, interval_steps: Tensor) -> None:
        """Start the runs of these indices anew; their weights are already initial ones."""
        for name, value in _START.items():
            self.state[name][rows] = value
        self.factor[rows] = self.action.start_factor
        self._multiplier[rows] = self.action.start_factor
        self.total_steps[rows] = total_steps.to(self.total_steps)
        self.interval_steps[rows] = interval_steps.to(self.interval_steps)
        if "movement" in self.spec.groups:
            self._weights[rows] = self._read_weights()[rows]

    @property
    def progress(self) -> Tensor:
        """t/T in [0, 1]."""
        return (self.state["num_steps"] / self.total_steps).clamp(max=1.0)

    def steps_to_decision(self) -> Tensor:
        """Steps until each run's next decision or its end, whichever comes first."""
        done = self.state["num_steps"]
        to_decision = self.interval_steps - done % self.interval_steps
        return torch.minimum(to_decision, self.total_steps - done)

    def observe(self, losses: Tensor, active: Tensor) -> None:
        """Take the minibatch losses of one step of the active runs, and count the step."""
        s = self.state
        value = losses.double()
        is_first = s["initial_loss"].isnan() & value.isfinite() & (value > 0.0)
        initial_loss = torch.where(is_first, value, s["initial_loss"])
        ratio = (value / initial_loss).clamp(-LOSS_CEILING, LOSS_CEILING)
        ratio = torch.where(value.isfinite(), ratio, LOSS_CEILING).nan_to_num(nan=1.0)
        count = s["count"] + 1
        delta = ratio - s["interval_mean"]
        mean = s["interval_mean"] + delta / count
        new = {
            "initial_loss": initial_loss,
            "count": count,
            "interval_mean": mean,
            "interval_m2": s["interval_m2"] + delta * (ratio - mean),
            "num_steps": s["num_steps"] + 1,
        }
        if bool(active.all()):
            s.update(new)
        else:
            s.update({name: torch.where(active, value, s[name]) for name, value in new.items()})

    @property
    def interval_loss(self) -> Tensor:
        """Mean loss since the last decision over the first loss."""
        s = self.state
        return torch.where(s["count"] > 0, s["interval_mean"], s["last_interval_mean"])

    def observation(self, active: Tensor) -> NDArray[np.float32]:
        """Close the intervals of the active runs; returns an array (B, number of features)."""
        before = dict(self.state)
        old_weights, old_displacement = self._weights, self._displacement
        s = self.state
        columns: list[Tensor] = []
        for group in self.spec.groups:
            if group == "progress":
                columns.append(2 * self.progress - 1)
            elif group == "loss":
                columns += self._loss_features()
            elif group == "lr":
                columns += [self.factor.clamp(min=1e-30).log10() / 2, s["previous_action"]]
            elif group == "movement":
                columns += self._movement_features()
            else:
                columns.append(self._gradient_feature())
        s["last_interval_mean"] = self.interval_loss
        for name in ("count", "interval_mean", "interval_m2"):
            s[name] = torch.zeros_like(s[name])
        if not bool(active.all()):
            self.state = {name: torch.where(active, s[name], before[name]) for name in s}
            self._weights = torch.where(active[:, None], self._weights, old_weights)
            self._displacement = torch.where(active[:, None], self._displacement, old_displacement)
        table = torch.stack(columns, dim=1).nan_to_num(nan=FEATURE_LIMIT)
        observation: NDArray[np.float32] = (
            table.clamp(-FEATURE_LIMIT, FEATURE_LIMIT).float().cpu().numpy()
        )
        return observation

    def _loss_features(self) -> list[Tensor]:
        s = self.state
        count = s["count"]
        change = s["interval_mean"] - s["mean"]
        variance = torch.where(
            count > 1, s["interval_m2"] / (count - 1).clamp(min=1.0), change.square() / 2
        )
        is_first = s["long_slope"].isnan()
        smoothed = s["noise_variance"] + (1 - NOISE_DECAY) * (variance - s["noise_variance"])
        noise_variance = torch.where(is_first, variance, smoothed)
        mean_variance = noise_variance / count.clamp(min=1.0)
        floored = s["interval_mean"].clamp(min=LOSS_FLOOR)
        log_mean = floored.log()
        slope = log_mean - s["log_mean"]
        long_slope = torch.where(
            is_first, slope, s["long_slope"] + (1 - LONG_DECAY) * (slope - s["long_slope"])
        )
        error = (mean_variance + s["mean_variance"]).sqrt()
        features = [
            log_mean / 2,
            (10 * slope).asinh() / 2,
            (10 * long_slope).asinh() / 2,
            (change / error.clamp(min=1e-12)).asinh() / 2,
            1 + (noise_variance.sqrt() / floored + 1e-4).log10() / 2,
        ]
        s["mean"], s["mean_variance"], s["log_mean"] = s["interval_mean"], mean_variance, log_mean
        s["noise_variance"], s["long_slope"] = noise_variance, long_slope
        return features

    def _movement_features(self) -> list[Tensor]:
        old, new = self._weights, self._read_weights()
        displacement = new - old

        def inner(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(dim=1).double()

        moved, weight, old_weight = (
            inner(displacement, displacement),
            inner(new, new),
            inner(old, old),
        )
        before = inner(self._displacement, self._displacement)
        across = inner(displacement, self._displacement)
        has_cosine = (self.state["num_moves"] > 0) & (moved > 0) & (before > 0)
        cosine = torch.where(has_cosine, across / (moved.sqrt() * before.sqrt()), 0.0)
        rho = moved.sqrt() / weight.sqrt().clamp(min=1e-30)
        growth = (weight.clamp(min=1e-60) / old_weight.clamp(min=1e-60)).log() / 2
        is_finite = moved.isfinite() & weight.isfinite() & old_weight.isfinite()
        is_finite &= (self.state["num_moves"] == 0) | (across.isfinite() & before.isfinite())
        self._weights, self._displacement = new, displacement
        self.state["num_moves"] = self.state["num_moves"] + 1
        return [
            torch.where(is_finite, 2 + rho.clamp(min=1e-12).log10(), FEATURE_LIMIT),
            torch.where(is_finite, cosine, 0.0),
            torch.where(is_finite, (10 * growth).asinh() / 2, FEATURE_LIMIT),
        ]

    def _gradient_feature(self) -> Tensor:
        s = self.state
        norm = torch.linalg.vector_norm(self._read_gradients(), dim=1).double()
        norm = torch.where(norm.isfinite(), norm.clamp(min=1e-30), torch.nan)
        growth = (norm / s["gradient_norm"]).log() / 2
        feature = torch.where(s["gradient_norm"].isnan(), 0.0, growth)
        feature = torch.where(norm.isnan(), FEATURE_LIMIT, feature)
        s["gradient_norm"] = torch.where(norm.isnan(), s["gradient_norm"], norm)
        return feature

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return {name: value.clone() for name, value in {**self.state, **tensors}.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        self.state = {name: state[name].clone() for name in _START}
        for name in _TENSORS:
            setattr(self, name, state[name].clone())

    def act(self, actions: NDArray[np.float32]) -> None:
        """Apply one action in [-1, 1] per run.

        Raises:
            ValueError: if an action is outside [-1, 1] or not a number.
        """
        spec = self.action
        action = torch.as_tensor(actions, dtype=torch.float64, device=self.factor.device)
        if not bool((action.abs() <= 1.0).all()):
            raise ValueError(f"`actions` must be in [-1, 1], got {actions}")
        change = (spec.max_log_change * action).exp()
        if spec.kind == "multiplier":
            self._multiplier = (self._multiplier * change).clamp(spec.min_factor, spec.max_factor)
            change = self._multiplier
        if spec.anchor == "linear":
            change = change * (1 - self.progress)
        elif spec.anchor == "cosine":
            change = change * (1 + (math.pi * self.progress).cos()) / 2
        self.factor = change.clamp(spec.min_factor, spec.max_factor)
        self.state["previous_action"] = action
