"""What a learning-rate policy sees: dimensionless features of a training run."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.arguments import require_count, require_fields
from lrpilot.loss import check_loss_tensor, read_loss, read_numbers
from lrpilot.policy.brake import Brake
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.parameter_sample import ParameterSample

FEATURES: dict[str, tuple[str, ...]] = {
    "progress": ("progress",),
    "loss": ("log_loss", "short_slope", "long_slope", "slope_significance", "relative_noise"),
    "lr": ("log_lr", "previous_action"),
    "movement": ("displacement", "displacement_cosine", "weight_growth"),
    "gradient": ("gradient_growth",),
}
"""The groups that are on by default."""
OPTIONAL_FEATURES: dict[str, tuple[str, ...]] = {"curvature": ("edge_distance",)}
"""The groups that cost gradients of their own."""
_ALL_FEATURES = FEATURES | OPTIONAL_FEATURES
FEATURE_LIMIT = 5.0

LOSS_FLOOR = 1e-8
LOSS_CEILING = 1e4
LONG_DECAY = 0.8
NOISE_DECAY = 0.7


@dataclass(frozen=True)
class ObservationSpec:
    """Which features a policy sees, in which order.

    All features are dimensionless and lie in [-5, 5]. With r the minibatch loss divided by the
    first loss of the run, m_k its mean over decision interval k (floored at 1e-8), s_k^2 its
    variance (an exponential average, .7, over intervals), se_k^2 = s_k^2 / steps, w_k the sampled
    parameter entries at the end of interval k, d_k = w_k - w_{k-1}, and g_k their gradient:

    ========== =================== ====================================================
    group      feature             value
    ========== =================== ====================================================
    progress   progress            2 t/T - 1; stays 1 past the end
    loss       log_loss            log(m_k) / 2
    loss       short_slope         asinh(10 (log m_k - log m_{k-1})) / 2
    loss       long_slope          the same of an exponential average (.8) of the slope
    loss       slope_significance  asinh((m_k - m_{k-1}) / sqrt(se_k^2 + se_{k-1}^2)) / 2
    loss       relative_noise      1 + log10(s_k / m_k + 1e-4) / 2
    lr         log_lr              log10(lr / initial lr) / 2
    lr         previous_action     in [-1, 1]
    movement   displacement        2 + log10(||d_k|| / ||w_k||)
    movement   displacement_cosine <d_k, d_{k-1}> / (||d_k|| ||d_{k-1}||)
    movement   weight_growth       asinh(10 log(||w_k|| / ||w_{k-1}||)) / 2
    gradient   gradient_growth     log(||g_k|| / ||g_{k-1}||) / 2
    curvature  edge_distance       log10(lr / eta_max), the largest stable lr; see
                                   `EdgeDistance`; 0 after an interval without a step
    ========== =================== ====================================================

    Args:
        groups: the groups of features that are switched on; by default all but curvature, which
            needs a loss that can be computed anew, and costs some gradients per decision.
        num_entries: how many parameter entries are sampled for movement and gradient.

    Raises:
        ValueError: if a group is unknown or given twice, or `num_entries` is no whole number of
            at least 1.

    >>> ObservationSpec(groups=("progress", "lr")).names
    ('progress', 'log_lr', 'previous_action')
    """

    groups: tuple[str, ...] = tuple(FEATURES)
    num_entries: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise ValueError(f"`groups` must name each group once, got {list(self.groups)}")
        for group in self.groups:
            if group not in _ALL_FEATURES:
                raise ValueError(f"`groups` must be among {list(_ALL_FEATURES)}, got {group!r}")
        require_count("num_entries", self.num_entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The features in their order."""
        return tuple(name for group in self.groups for name in _ALL_FEATURES[group])

    @property
    def needs_progress(self) -> bool:
        """Whether the total number of steps must be known."""
        return "progress" in self.groups

    def to_dict(self) -> dict[str, Any]:
        """The specification as it is stored in a policy file."""
        return {**asdict(self), "groups": list(self.groups)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The specification stored in a policy file."""
        require_fields(cls, values)
        return cls(**values)


class Observer:
    """Turns the losses and parameters of one run into observations.

    `update` takes the loss of every step at O(1) cost; `observe` closes a decision interval.
    Losses of a device other than the CPU stay there until the interval closes.

    Where other parameters are trained than at the last decision (`ParameterSample`), the movement
    features begin anew: the last displacement is repeated, the others are 0, and so is
    gradient_growth.

    Args:
        spec: the features.
        parameters: the optimizer's parameters; read only by the groups movement and gradient.
        curvature: measures for the group curvature.
        brake: is given every loss when it is read.

    Raises:
        ValueError: if the group curvature is on, and nothing measures it.
    """

    def __init__(
        self,
        spec: ObservationSpec,
        parameters: Iterable[Tensor],
        *,
        curvature: EdgeDistance | None = None,
        brake: Brake | None = None,
    ) -> None:
        if "curvature" in spec.groups and curvature is None:
            raise ValueError(
                "`curvature` is required: the policy observes it; give a function that returns "
                "the loss on a batch"
            )
        self.spec = spec
        self._curvature = curvature if "curvature" in spec.groups else None
        self._brake = brake
        self.sample = ParameterSample(parameters, spec.num_entries)
        self._reads_movement = "movement" in spec.groups
        self._reads_gradient = "gradient" in spec.groups
        self.initial_loss: float | None = None
        self.num_nonfinite = 0
        self._pending: list[Tensor] = []
        self._log_mean = 0.0
        self._mean = 1.0
        self._last_interval_mean = 1.0
        self._mean_variance = 0.0
        self._noise_variance = 0.0
        self._long_slope: float | None = None
        self._last_displacement = 0.0
        self._begin_movement()
        self._clear_interval()

    def _begin_movement(self) -> None:
        self._weights: Tensor | None = self.sample.values() if self._reads_movement else None
        self._displacement: Tensor | None = None
        self._weight_square = (
            0.0 if self._weights is None else float(self._weights.dot(self._weights))
        )
        self._displacement_square = 0.0
        self._gradient_norm: float | None = None

    def _clear_interval(self) -> None:
        self._count = 0
        self._interval_mean = 0.0
        self._interval_m2 = 0.0

    def update(self, loss: float | Tensor) -> None:
        """Take the minibatch loss of one optimizer step.

        Args:
            loss: a number, or a tensor or array of one element. NaN and infinities count as 1e4
                times the first loss.

        Raises:
            TypeError: if `loss` is not a real number.
            ValueError: if it has several elements, or is negative before any positive loss
                while the loss is observed.
        """
        if isinstance(loss, Tensor) and not loss.is_cpu:
            check_loss_tensor(loss)
            # reading the value now would wait for the device at every step
            self._pending.append(loss.detach().reshape(()).to(torch.float64, copy=True))
        else:
            self._add(read_loss(loss))

    def _add(self, value: float) -> None:
        if not math.isfinite(value):
            self.num_nonfinite += 1
            ratio = LOSS_CEILING
        elif self.initial_loss is None:
            if value < 0.0 and "loss" in self.spec.groups:
                raise ValueError(
                    f"`loss` must be positive at the start, since features are logarithms "
                    f"relative to it, got {value}"
                )
            if value > 0.0:
                self.initial_loss = value
            ratio = 1.0
        else:
            ratio = max(-LOSS_CEILING, min(LOSS_CEILING, value / self.initial_loss))
        if self._brake is not None:
            self._brake.update(value)
        self._count += 1
        delta = ratio - self._interval_mean
        self._interval_mean += delta / self._count
        self._interval_m2 += delta * (ratio - self._interval_mean)

    def flush(self) -> None:
        """Read the losses that are still on a device."""
        if self._pending:
            pending, self._pending = self._pending, []
            for value in read_numbers(pending):
                self._add(value)

    @property
    def interval_loss(self) -> float:
        """Mean loss since the last decision, over the first loss; 1e4 bounds it."""
        self.flush()
        return self._interval_mean if self._count else self._last_interval_mean

    def observe(
        self, *, progress: float, factor: float, previous_action: float
    ) -> NDArray[np.float32]:
        """Close the interval and return its observation.

        Args:
            progress: t/T, the share of the run that is done.
            factor: learning rate over initial learning rate.
            previous_action: the last action, in [-1, 1].

        Returns:
            float32 array of shape (len(spec.names),).
        """
        self.flush()
        values: list[float] = []
        begins = (self._reads_movement or self._reads_gradient) and self.sample.refresh()
        if begins:
            self._begin_movement()
        weights, gradient = (None, None) if begins else self._read_sample()
        for group in self.spec.groups:
            if group == "progress":
                values.append(2.0 * min(progress, 1.0) - 1.0)
            elif group == "loss":
                values.extend(self._loss_features())
            elif group == "lr":
                values.append(math.log10(max(factor, 1e-30)) / 2)
                values.append(previous_action)
            elif group == "movement":
                values.extend(self._movement_features(weights, begins=begins))
            elif group == "gradient":
                values.append(0.0 if begins else self._gradient_feature(gradient))
            else:
                assert self._curvature is not None
                values.append(self._curvature() if self._count else 0.0)
        self._last_interval_mean = self.interval_loss
        self._clear_interval()
        limit = FEATURE_LIMIT
        return np.array([max(-limit, min(limit, value)) for value in values], dtype=np.float32)

    def _loss_features(self) -> tuple[float, ...]:
        count = self._count
        if count == 0:
            return self._log_mean / 2, 0.0, math.asinh(10 * (self._long_slope or 0.0)) / 2, 0.0, 0.0
        mean = self._interval_mean
        change = mean - self._mean
        # with one loss an interval, successive changes are all that tells the noise
        variance = self._interval_m2 / (count - 1) if count > 1 else change * change / 2
        if self._long_slope is None:
            self._noise_variance = variance
        else:
            self._noise_variance += (1 - NOISE_DECAY) * (variance - self._noise_variance)
        mean_variance = self._noise_variance / count
        floored = max(mean, LOSS_FLOOR)
        log_mean = math.log(floored)
        slope = log_mean - self._log_mean
        if self._long_slope is None:
            self._long_slope = slope
        else:
            self._long_slope += (1 - LONG_DECAY) * (slope - self._long_slope)
        error = math.sqrt(mean_variance + self._mean_variance)
        significance = change / max(error, 1e-12)
        noise = math.sqrt(self._noise_variance) / floored
        self._mean, self._mean_variance, self._log_mean = mean, mean_variance, log_mean
        return (
            log_mean / 2,
            math.asinh(10 * slope) / 2,
            math.asinh(10 * self._long_slope) / 2,
            math.asinh(significance) / 2,
            1 + math.log10(noise + 1e-4) / 2,
        )

    def _read_sample(self) -> tuple[Tensor | None, Tensor | None]:
        """The sampled entries and their gradients, where they are observed."""
        if self._reads_movement and self._reads_gradient:
            return self.sample.values_and_gradient()
        return (
            self.sample.values() if self._reads_movement else None,
            self.sample.gradient() if self._reads_gradient else None,
        )

    def _movement_features(self, new: Tensor | None, *, begins: bool) -> tuple[float, float, float]:
        if begins:
            return self._last_displacement, 0.0, 0.0
        assert self._weights is not None
        assert new is not None
        old_weight, old_moved = self._weight_square, self._displacement_square
        displacement = new - self._weights
        products = [displacement.dot(displacement), new.dot(new)]
        if self._displacement is not None:
            products.append(displacement.dot(self._displacement))
        moved, weight, *rest = read_numbers(products)
        self._weights, self._weight_square = new, weight
        self._displacement, self._displacement_square = displacement, moved
        if not all(map(math.isfinite, (moved, weight, old_weight, old_moved, *rest))):
            return FEATURE_LIMIT, 0.0, FEATURE_LIMIT
        cosine = 0.0
        if rest and moved > 0.0 and old_moved > 0.0:
            cosine = rest[0] / (math.sqrt(moved) * math.sqrt(old_moved))
        rho = math.sqrt(moved) / max(math.sqrt(weight), 1e-30)
        growth = math.log(max(weight, 1e-60) / max(old_weight, 1e-60)) / 2
        self._last_displacement = 2 + math.log10(max(rho, 1e-12))
        return self._last_displacement, cosine, math.asinh(10 * growth) / 2

    def _gradient_feature(self, gradient: Tensor | None) -> float:
        assert gradient is not None
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            return FEATURE_LIMIT
        norm = max(norm, 1e-30)
        previous = self._gradient_norm
        self._gradient_norm = norm
        return 0.0 if previous is None else math.log(norm / previous) / 2

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        self.flush()
        state = {name: getattr(self, name) for name in self._state_names()}
        copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        measured = {} if self._curvature is None else {"curvature": self._curvature.state_dict()}
        return copied | measured | {"sample": self.sample.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an observer of the same specification and model."""
        self._pending = []
        self.sample.load_state(state["sample"])
        # a checkpoint read with `map_location="cpu"` returns to the device of the parameters
        device = "cpu" if self._weights is None else self._weights.device
        for name in self._state_names():
            value = state[name]
            setattr(self, name, value.to(device, copy=True) if isinstance(value, Tensor) else value)
        if self._curvature is not None:
            self._curvature.load_state_dict(state["curvature"])

    @staticmethod
    def _state_names() -> tuple[str, ...]:
        return (
            "initial_loss",
            "num_nonfinite",
            "_log_mean",
            "_mean",
            "_last_interval_mean",
            "_mean_variance",
            "_noise_variance",
            "_long_slope",
            "_weights",
            "_displacement",
            "_weight_square",
            "_displacement_square",
            "_gradient_norm",
            "_last_displacement",
            "_count",
            "_interval_mean",
            "_interval_m2",
        )
