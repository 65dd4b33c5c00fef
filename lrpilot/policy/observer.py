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
    add_to_recent,
    first_loss,
    gradient_feature,
    interval_loss,
    loss_features,
    lr_feature,
    lr_trend,
    recent_loss_features,
    relative_loss,
)
from lrpilot.policy.movement import MOVEMENTS, Movement, RecentMovement
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
        self._reads_gradient = "gradient" in spec.groups
        self._keeps_recent = not {"recent_loss", "recent_lr"}.isdisjoint(spec.groups)
        self._unread: list[tuple[Tensor, Numbers]] = []
        self.state: State = {name: self._of_all(value) for name, value in FIRST_STATE.items()}
        self._movements: dict[str, Movement] = {
            group: MOVEMENTS[group](sample) for group in spec.groups if group in MOVEMENTS
        }

    def _of_all(self, value: float) -> Numbers:
        return value if self.num_runs is None else np.full(self.num_runs, value)

    def reset(self, rows: list[int]) -> None:
        """Start the runs of these indices anew; their weights are already initial ones."""
        self.flush()
        for name, value in FIRST_STATE.items():
            self.state[name][rows] = value
        for movement in self._movements.values():
            movement.restart(rows)

    def mark_weights(self, active: Numbers = True) -> None:
        """Remember the weights of the active runs, four and two steps before a decision."""
        recent = self._movements["recent_movement"]
        assert isinstance(recent, RecentMovement)
        if self._draw_sample_anew():
            self._begin_movement()
        recent.mark(active)

    def _draw_sample_anew(self) -> bool:
        """Whether other parameters are trained than when the sample was read last."""
        reads = bool(self._movements) or self._reads_gradient
        return reads and isinstance(self.sample, ParameterSample) and self.sample.refresh()

    def _begin_movement(self) -> None:
        for movement in self._movements.values():
            movement.begin()
        self.state["gradient_norm"] = self._of_all(UNKNOWN)

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
        relative = relative_loss(loss, initial_loss)
        if self._keeps_recent:
            add_to_recent(state, relative, active)
        state["num_losses"], state["interval_mean"], state["interval_squares"] = add_to_moments(
            relative,
            active,
            state["num_losses"],
            state["interval_mean"],
            state["interval_squares"],
        )
        if self._brake is not None:
            self._brake.update(loss)

    def _require_scale(self, loss: Numbers, is_first: Numbers) -> None:
        is_wrong = is_first & (loss < 0.0)
        reads_loss = not {"loss", "recent_loss"}.isdisjoint(self.spec.groups)
        if reads_loss and not every(is_wrong ^ True):
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
        before = dict(state) if keeps_some else {}
        moved = {group: m.tensors() for group, m in self._movements.items()} if keeps_some else {}
        begins = self._draw_sample_anew()
        if begins:
            self._begin_movement()
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
                elif group == "recent_loss":
                    columns += recent_loss_features(state)
                elif group == "recent_lr":
                    columns += [lr_feature(factor), lr_trend(state, factor)]
                elif group in self._movements:
                    columns += self._movements[group].features(self._read, begins=begins)
                elif group == "gradient":
                    columns.append(0.0 if begins else self._gradient())
                else:
                    assert self._curvature is not None
                    columns.append(self._curvature() if self.state["num_losses"] else 0.0)
        columns = [clip(column, -FEATURE_LIMIT, FEATURE_LIMIT) for column in columns]
        state["last_interval_mean"] = interval_loss(state)
        state["num_losses"], state["interval_mean"] = self._of_all(0), self._of_all(0.0)
        state["interval_squares"] = self._of_all(0.0)
        if keeps_some:
            self.state = {name: where(active, v, before[name]) for name, v in self.state.items()}
            for group, movement in self._movements.items():
                movement.keep(active, moved[group])
        features = np.array(columns, np.float32)
        # row by row: the order decides how a product with the weights of a policy rounds
        return features if self.num_runs is None else np.ascontiguousarray(features.T)

    def _gradient(self) -> Numbers:
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
        state.update({group: m.state_dict() for group, m in self._movements.items()})
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
        for group, movement in self._movements.items():
            movement.load_state_dict(state[group])
        one = self.num_runs is None
        self.state = {n: state[n] if one else np.array(state[n]) for n in FIRST_STATE}
        if self._curvature is not None:
            self._curvature.load_state_dict(state["curvature"])


def _silence(num_runs: int | None) -> AbstractContextManager[Any]:
    # arrays pass through infinity and NaN, of which NumPy would warn; floats do not
    return nullcontext() if num_runs is None else np.errstate(all="ignore")


def _plain(value: Numbers) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
