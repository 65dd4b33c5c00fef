"""Hundreds of small trainings, those of one setup as one tensor computation."""

import torch
from torch import Tensor

from lrpilot.tasks.networks.drawn import Drawn, DrawnGroups, DrawnRuns
from lrpilot.tasks.networks.stacked_optimizer import clip_norms
from lrpilot.tasks.small_trainings.layers import Layers
from lrpilot.tasks.small_trainings.problem import Instance, SmallTrainingProblem
from lrpilot.tasks.small_trainings.setup import Setup


class TrainingGroup(DrawnRuns):
    """The runs of one setup.

    Args:
        problem: what is drawn from.
        setup: the setup.
        num_runs: how many, at least 1.
    """

    def __init__(self, problem: SmallTrainingProblem, setup: Setup, num_runs: int) -> None:
        self._problem = problem
        self._setup = setup
        example = _as_drawn(problem.draw_instance(setup, torch.Generator()))
        super().__init__(
            example,
            optimizer=problem.optimizer,
            num_runs=num_runs,
            batch_size=setup.batch_size,
            device=problem.device,
        )

    def _draw(self, generator: torch.Generator) -> Drawn:
        self._problem.draw_setup(generator)
        return _as_drawn(self._problem.draw_instance(self._setup, generator))

    def _losses(
        self, rows: Tensor, parameters: list[Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        _, _, rates, smoothing, first = self._constants[rows].unsqueeze(2).unbind(1)
        dtype = self.parameters.dtype
        masks = None
        if self._setup.has_dropout:
            num_steps = self.optimizer.num_steps[rows]
            masks = self._setup.masks(first, num_steps, rates.to(dtype))
        everyone = len(rows) == self.num_runs
        statistics = self._buffers if everyone else [buffer[rows] for buffer in self._buffers]
        layers = Layers(parameters, statistics, masks=masks)
        losses = self._setup.losses(layers, inputs, targets, smoothing.squeeze(1).to(dtype))
        for buffer, new in zip(self._buffers, layers.new_statistics, strict=True):
            buffer[rows] = new
        return losses

    def _clipped(self, rows: Tensor, gradients: Tensor) -> Tensor:
        return clip_norms(gradients, self._constants[rows, 1:2].to(gradients.dtype))

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """Losses on the held-out examples."""
        layers = Layers(self._stacked(self.parameters), self._buffers, is_training=False)
        return self._setup.losses(layers, *self._data[2:])


class BatchedSmallTrainings(DrawnGroups):
    """B runs of a `SmallTrainingTask`; those of one setup are one computation.

    Args:
        problem: what is drawn from.
        num_runs: B, at least 1.

    Raises:
        ValueError: if the optimizer cannot be batched, or `num_runs` is below 1.
    """

    def __init__(self, problem: SmallTrainingProblem, num_runs: int) -> None:
        self._problem = problem
        super().__init__(problem.num_setups, num_runs, dtype=getattr(torch, problem.dtype))

    def _new_group(self, k: int, num_runs: int) -> TrainingGroup:
        return TrainingGroup(self._problem, self._problem.setups[k], num_runs)

    def _group_of(self, seed: int) -> int:
        return self._problem.draw_setup(torch.Generator().manual_seed(seed))


def _as_drawn(instance: Instance) -> Drawn:
    train, held_out = instance.train, instance.held_out
    return Drawn(
        model=instance.network,
        data=(train.x, train.y, held_out.x, held_out.y),
        optimizer=instance.optimizer.make,
        constants=(
            instance.optimizer.lr_factor,
            instance.max_gradient_norm,
            instance.dropout_rate,
            instance.smoothing,
            instance.first_mask,
        ),
    )
