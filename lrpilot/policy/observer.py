"""Observer: from the losses, weights and gradients of training runs to what a policy sees."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.loss import check_loss_tensor, read_loss, read_numbers
from lrpilot.policy.brake import Brake
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.elementwise import Numbers, clip, every, isfinite, isnan, where
from lrpilot.policy.features import (
    FIRST_STATE,
    UNKNOWN,
    State,
    add_to_moments,
    first_loss,
    gradient_feature,
    interval_loss,
    loss_features,
    lr_feature,
    movement_features,
    relative_loss,
)
from lrpilot.policy.observation import FEATURE_LIMIT, ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample, Sample


class Observer:
    """Gathers what is measured of one run, or of B runs at once, and gives their features.

    `add_loss` takes the losses of every step; `close_interval` ends a decision interval. Losses of
    B runs, and of a device other than the CPU, are read when the interval closes.

    Where other parameters are trained than at the last decision (`ParameterSample`), the movement
    features begin anew: the last displacement is repeated; the others, and gradient_growth, are 0.

    Args:
        spec: the features.
        sample: what is read by the groups movement and gradient.
        num_runs: B; None for one run, whose losses and features have no dimension of runs.
        curvature: measures for the group curvature.
        brake: of one run; is given every loss when it is read.

    Raises:
        ValueError: if the group curvature is on, and nothing measures it.
    """

    def __init__(
        self,
        spec: ObservationSpec,
        sample: Sample,
        *,
        num_runs: int | None = None,
        curvature: EdgeDistance | None = None,
        brake: Brake | None = None,
    ) -> None:
        if "curvature" in spec.groups and curvature is None:
            raise ValueError(
                "`curvature` is required: the policy observes it; give a function that returns the "
                "loss on a batch"
            )
        self.spec = spec
        self.sample = sample
        self.num_runs = num_runs
        self._curvature = curvature if "curvature" in spec.groups else None
        self._brake = brake
        self._reads_movement = "movement" in spec.groups
        self._reads_gradient = "gradient" in spec.groups
        self._unread: list[tuple[Tensor, Numbers]] = []
        self.state: State = {name: self._of_all(value) for name, value in FIRST_STATE.items()}
        self._weights: Tensor | None = None
        self._displacement: Tensor | None = None
        self._begin_movement()

    def _of_all(self, value: float) -> Numbers:
        return value if self.num_runs is None else np.full(self.num_runs, value)

    def _begin_movement(self) -> None:
        if self._reads_movement:
            self._weights = self.sample.weights()
            self._displacement = torch.zeros_like(self._weights)

    def reset(self, rows: list[int]) -> None:
        """Start the runs of these indices anew; their weights are already initial ones."""
        self.flush()
        for name, value in FIRST_STATE.items():
            self.state[name][rows] = value
        if self._weights is not None and self._displacement is not None:
            self._weights[rows] = self.sample.weights()[rows]
            self._displacement[rows] = 0.0

    def add_loss(self, loss: float | Tensor, active: Numbers = True) -> None:
        """Take the minibatch losses of one optimizer step.

        Args:
            loss: a number, or a tensor or array of one element; of B runs, a tensor (B,). NaN and
                infinities count as 1e4 times the first loss.
            active: which of B runs have made the step.

        Raises:
            TypeError: if `loss` is not a real number.
            ValueError: if it has several elements, or is negative before any positive loss
                while the loss is observed.
        """
        if self.num_runs is None:
            if not isinstance(loss, Tensor) or loss.is_cpu:
                self._add(read_loss(loss), True)
                return
            check_loss_tensor(loss)
            # reading the value now would wait for the device at every step
            loss = loss.detach().reshape(()).to(torch.float64, copy=True)
        assert isinstance(loss, Tensor)
        self._unread.append((loss, active))

    def _add(self, loss: Numbers, active: Numbers) -> None:
        state = self.state
        initial_loss, is_finite = state["initial_loss"], isfinite(loss)
        is_new = isnan(initial_loss)
        if is_new is not False:  # an array, or the beginning of one run
            self._require_scale(loss, active & is_new & is_finite)
            state["initial_loss"] = initial_loss = first_loss(initial_loss, loss, active)
        if is_finite is not True:
            state["num_nonfinite"] = state["num_nonfinite"] + (active & (is_finite ^ True))
        state["num_losses"], state["interval_mean"], state["interval_squares"] = add_to_moments(
            relative_loss(loss, initial_loss),
            active,
            state["num_losses"],
            state["interval_mean"],
            state["interval_squares"],
        )
        if self._brake is not None:
            self._brake.update(loss)

    def _require_scale(self, loss: Numbers, is_first: Numbers) -> None:
        is_wrong = is_first & (loss < 0.0)
        if "loss" in self.spec.groups and not every(is_wrong ^ True):
            if run := "" if self.num_runs is None else f" in run {np.argmax(is_wrong)}":
                loss = loss[np.argmax(is_wrong)]
            raise ValueError(
                "`loss` must be positive at the start, since features are logarithms relative to "
                f"it, got {loss}{run}"
            )

    def flush(self) -> None:
        """Read the losses that are still to be read."""
        if self._unread:
            losses, masks = zip(*self._unread, strict=True)
            self._unread = []
            with _silence(self.num_runs):
                for loss, active in zip(self._read(losses), masks, strict=True):
                    self._add(loss, active)

    @property
    def interval_loss(self) -> Numbers:
        """Mean loss since the last decision, over the first loss; 1e4 bounds it."""
        self.flush()
        return interval_loss(self.state)

    @property
    def num_nonfinite(self) -> Numbers:
        """Losses of the run that were not finite."""
        self.flush()
        return self.state["num_nonfinite"]

    def close_interval(
        self,
        *,
        progress: Numbers,
        factor: Numbers,
        previous_action: Numbers,
        active: Numbers = True,
    ) -> NDArray[np.float32]:
        """End the interval of the active runs, and return what their policy sees.

        Args:
            progress: t/T, the share of the run that is done.
            factor: learning rate over initial learning rate.
            previous_action: the last action, in [-1, 1].
            active: whose state is kept; the others' is left as it is.

        Returns:
            float32 array of shape (len(spec.names),), or (B, len(spec.names)).
        """
        self.flush()
        state = self.state
        keeps_some = active is not True and not active.all()
        before = (dict(state) if keeps_some else {}), self._weights, self._displacement
        reads = self._reads_movement or self._reads_gradient
        begins = reads and isinstance(self.sample, ParameterSample) and self.sample.refresh()
        columns: list[Numbers] = []
        with _silence(self.num_runs):
            for group in self.spec.groups:
                if group == "progress":
                    columns.append(2.0 * clip(progress, 0.0, 1.0) - 1.0)
                elif group == "loss":
                    of_loss, changed = loss_features(state)
                    columns += of_loss
                    state.update(changed)
                elif group == "lr":
                    columns += [lr_feature(factor), previous_action]
                elif group == "movement":
                    columns += self._movement(begins=begins)
                elif group == "gradient":
                    columns.append(self._gradient(begins=begins))
                else:
                    assert self._curvature is not None
                    columns.append(self._curvature() if self.state["num_losses"] else 0.0)
        columns = [clip(column, -FEATURE_LIMIT, FEATURE_LIMIT) for column in columns]
        state["last_interval_mean"] = interval_loss(state)
        state["num_losses"], state["interval_mean"] = self._of_all(0), self._of_all(0.0)
        state["interval_squares"] = self._of_all(0.0)
        if keeps_some:
            self.state = {name: where(active, v, before[0][name]) for name, v in self.state.items()}
            self._weights = _rows(active, self._weights, before[1])
            self._displacement = _rows(active, self._displacement, before[2])
        features = np.array(columns, np.float32)
        # row by row: the order decides how a product with the weights of a policy rounds
        return features if self.num_runs is None else np.ascontiguousarray(features.T)

    def _movement(self, *, begins: bool) -> list[Numbers]:
        if begins:
            self._begin_movement()
            return [self.state["last_displacement"], 0.0, 0.0]
        new, old, previous = self.sample.weights(), self._weights, self._displacement
        assert old is not None
        assert previous is not None
        displacement = new - old
        pairs = (displacement, displacement), (new, new), (old, old), (previous, previous)
        products = [_inner(a, b) for a, b in (*pairs, (displacement, previous))]
        self._weights, self._displacement = new, displacement
        features = movement_features(*self._read(products))
        self.state["last_displacement"] = features[0]
        return features

    def _gradient(self, *, begins: bool) -> Numbers:
        if begins:
            self.state["gradient_norm"] = UNKNOWN
            return 0.0
        norm = torch.linalg.vector_norm(self.sample.gradients(), dim=-1)
        (value,) = self._read([norm])
        feature, self.state["gradient_norm"] = gradient_feature(value, self.state["gradient_norm"])
        return feature

    def _read(self, numbers: Sequence[Tensor]) -> list[Numbers]:
        """Numbers of one run, or of B runs, in one transfer to the host."""
        if self.num_runs is None:
            return read_numbers(numbers)
        return list(torch.stack(list(numbers)).double().cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        self.flush()
        state: dict[str, Any] = {name: _plain(value) for name, value in self.state.items()}
        if self._weights is not None and self._displacement is not None:
            state["weights"] = self._weights.clone()
            state["displacement"] = self._displacement.clone()
        if self._curvature is not None:
            state["curvature"] = self._curvature.state_dict()
        if isinstance(self.sample, ParameterSample):
            state["sample"] = self.sample.state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an observer of the same specification and model."""
        self._unread = []
        if isinstance(self.sample, ParameterSample):
            self.sample.load_state(state["sample"])
        if self._weights is not None:
            # a checkpoint read with `map_location="cpu"` returns to the device of the parameters
            device = self._weights.device
            self._weights = state["weights"].to(device, copy=True)
            self._displacement = state["displacement"].to(device, copy=True)
        one = self.num_runs is None
        self.state = {n: state[n] if one else np.array(state[n]) for n in FIRST_STATE}
        if self._curvature is not None:
            self._curvature.load_state_dict(state["curvature"])


def _silence(num_runs: int | None) -> AbstractContextManager[Any]:
    # arrays pass through infinity and NaN, of which NumPy would warn; floats do not
    return nullcontext() if num_runs is None else np.errstate(all="ignore")


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return a.dot(b) if a.ndim == 1 else (a * b).sum(dim=1)


def _rows(active: NDArray[np.bool_], new: Tensor | None, old: Tensor | None) -> Tensor | None:
    if new is None or old is None:
        return None
    return torch.where(torch.as_tensor(active, device=new.device)[:, None], new, old)


def _plain(value: Numbers) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
