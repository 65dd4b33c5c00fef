"""Random small trainings of many kinds: what an agent learns from to control any training."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lrpilot.state import state_fields
from lrpilot.tasks.networks.minibatches import MinibatchSampler
from lrpilot.tasks.networks.task import scaled_size
from lrpilot.tasks.runs import Closure, ClosureRun
from lrpilot.tasks.small_networks.instance import Split
from lrpilot.tasks.small_trainings.batch import BatchedSmallTrainings
from lrpilot.tasks.small_trainings.calibration import typical_gain
from lrpilot.tasks.small_trainings.layers import Layers
from lrpilot.tasks.small_trainings.problem import SmallTrainingProblem
from lrpilot.tasks.small_trainings.setup import NUM_MASKS


@dataclass(frozen=True, kw_only=True)
class SmallTrainingTask(SmallTrainingProblem):
    """Every seed is another small training; see `SmallTrainingProblem`.

    Args:
        calibrate: whether the rewards of a setup's runs are divided by its `typical_gain`, so that
            all setups weigh alike. The gains of all setups are measured when the first is asked
            for: by about a minute's training, the same in all processes.
    """

    calibrate: bool = True

    def reward_scale_of(self, seed: int) -> float:
        """`reward_scale`, divided by the typical gain of the run's setup."""
        if not self.calibrate:
            return self.reward_scale
        return self.reward_scale / self._gains[self.draw_setup(torch.Generator().manual_seed(seed))]

    @cached_property
    def _gains(self) -> list[float]:
        return [typical_gain(self, setup) for setup in self.setups]

    def start(self, seed: int) -> "SmallTrainingRun":
        """A new network on new data."""
        return SmallTrainingRun(self, seed)

    def start_batch(self, num_runs: int) -> BatchedSmallTrainings:
        """B runs as one computation.

        Raises:
            ValueError: if the optimizer cannot be batched.
        """
        return BatchedSmallTrainings(self, num_runs)


class SmallTrainingRun(ClosureRun):
    """One small training; `step(lr)` trains at lr times the optimizer's factor."""

    _state_fields = state_fields(
        seed="_seed", statistics="_statistics", epoch="_epoch", **ClosureRun._state_fields
    )

    def __init__(self, task: SmallTrainingTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        setup = task.setups[task.draw_setup(generator)]
        self.instance = task.draw_instance(setup, generator)
        make, self.lr_factor = self.instance.optimizer
        super().__init__(
            self.instance.network.parameters(),
            optimizer=make,
            lr=task.base_lr * self.lr_factor,
            generator=generator,
        )
        self._seed = seed
        self._statistics = list(self.instance.network.buffers())
        self._epoch = MinibatchSampler(setup.num_train, setup.batch_size, generator)

    def step(self, lr: float | None = None) -> Tensor:
        """Make one optimizer step, at `lr` times the factor of the run's optimizer."""
        return super().step(None if lr is None else lr * self.lr_factor)

    def scale_batch_size(self, factor: float) -> None:
        """Draw minibatches of another size; what is left of the epoch is cut into such.

        Raises:
            ValueError: if there are fewer examples, or dropout would need more random numbers than
                its table holds.
        """
        setup = self.instance.setup
        batch_size = scaled_size(setup.batch_size, factor)
        if setup.has_dropout and batch_size * setup.blueprint.num_dropped > NUM_MASKS:
            raise ValueError(
                f"`factor` must leave dropout at most {NUM_MASKS} random numbers a step, got "
                f"{factor}"
            )
        self._epoch.resize(batch_size)
        self.instance = self.instance._replace(setup=replace(setup, batch_size=batch_size))

    def shift_labels(self, shift: int) -> None:
        """Rename the classes, or the next symbols, of all data.

        Raises:
            ValueError: if the run of this seed predicts values.
        """
        ends = self.instance.setup.ends
        if ends.loss == "values":
            raise ValueError(
                "`shift_labels` must be asked of a run that classifies, got a small training that "
                f"predicts values, of seed {self._seed}"
            )

        def shifted(split: Split) -> Split:
            return Split(split.x, (split.y + shift) % ends.num_outputs)

        train, held_out, test = self.instance.train, self.instance.held_out, self.instance.test
        self.instance = self.instance._replace(
            train=shifted(train), held_out=shifted(held_out), test=shifted(test)
        )

    def _layers(self, *, masks: Tensor | None = None, is_training: bool) -> Layers:
        parameters = [parameter.unsqueeze(0) for parameter in self.parameters]
        statistics = [buffer.unsqueeze(0) for buffer in self._statistics]
        return Layers(parameters, statistics, masks=masks, is_training=is_training)

    def _draw_loss(self) -> Closure:
        setup, instance = self.instance.setup, self.instance
        batch = instance.train.select(self._epoch.next())
        dtype = self.parameters[0].dtype
        numbers = instance.first_mask, float(self.num_steps), instance.dropout_rate
        device = self.parameters[0].device
        first, done, rate = torch.tensor(numbers, dtype=torch.float64, device=device).view(3, 1, 1)
        masks = setup.masks(first, done, rate.to(dtype)) if setup.has_dropout else None
        smoothing = torch.tensor([instance.smoothing], dtype=dtype, device=device)
        is_first = True

        def closure() -> Tensor:
            nonlocal is_first
            layers = self._layers(masks=masks, is_training=True)
            losses = setup.losses(layers, *_as_one(batch), smoothing)
            if is_first:
                for buffer, new in zip(self._statistics, layers.new_statistics, strict=True):
                    buffer.copy_(new.squeeze(0))
            is_first = False
            return losses.squeeze(0)

        return closure

    def _set_gradients(self) -> Tensor:
        loss = super()._set_gradients()
        if math.isfinite(self.instance.max_gradient_norm):
            nn.utils.clip_grad_norm_(self.parameters, self.instance.max_gradient_norm)
        return loss

    @torch.no_grad()
    def _held_out(self, split: Split) -> tuple[float, float | None]:
        """Loss and, unless values are predicted, accuracy."""
        setup = self.instance.setup
        inputs, targets = _as_one(split)
        layers = self._layers(is_training=False)
        outputs = setup.family.outputs(layers, inputs, setup.ends)
        loss = float(setup.losses_of(outputs, targets))
        if setup.ends.loss == "values":
            return loss, None
        return loss, float((outputs.argmax(-1) == targets).double().mean())

    def privileged_loss(self) -> float:
        """Loss on the held-out examples."""
        return self._held_out(self.instance.held_out)[0]

    def evaluate(self) -> dict[str, float]:
        """Loss and, unless values are predicted, accuracy on the held-out and test examples."""
        metrics = {}
        for name in ("held_out", "test"):
            loss, accuracy = self._held_out(getattr(self.instance, name))
            metrics[f"{name}_loss"] = loss
            if accuracy is not None:
                metrics[f"{name}_accuracy"] = accuracy
        return metrics

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task and seed.

        Raises:
            ValueError: if the seed is another.
        """
        if state["seed"] != self._seed:
            raise ValueError(
                f"`state` must be of a run of seed {self._seed}, which is another training, got "
                f"seed {state['seed']}"
            )
        super().load_state_dict(state)


def _as_one(split: Split) -> tuple[Tensor, Tensor]:
    """Inputs and targets (1, examples, ...)."""
    return split.x.unsqueeze(0), split.y.unsqueeze(0)
