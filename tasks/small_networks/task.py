"""Random small networks on random data: thousands of different trainings for an agent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from lrpilot.tasks.networks.minibatches import MinibatchSampler
from lrpilot.tasks.runs import Closure, ClosureRun, OptimizerFactory
from lrpilot.tasks.small_networks.batch import BatchedSmallNetworks
from lrpilot.tasks.small_networks.problem import (
    ACTIVATIONS,
    DATA,
    NORMALIZATIONS,
    Dice,
    Setup,
    Split,
    draw_problem,
    draw_setup,
)
from lrpilot.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class RandomOptimizer:
    """SGD with momentum or Adam, drawn per run by `SmallNetworkTask`.

    Called like a torch optimizer's class, as by a run that draws nothing, it is SGD.

    Args:
        momentum: of SGD, in [0, 1).
        adam_share: share of the runs under Adam, in [0, 1].
        adam_lr_factor: Adam's learning rate over the one that is asked for, so that one range of
            learning rates suits both.

    Raises:
        ValueError: if an argument is out of range.
    """

    momentum: float = 0.9
    adam_share: float = 0.5
    adam_lr_factor: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"`momentum` must be in [0, 1), got {self.momentum}")
        if not 0.0 <= self.adam_share <= 1.0:
            raise ValueError(f"`adam_share` must be in [0, 1], got {self.adam_share}")
        if not self.adam_lr_factor > 0.0:
            raise ValueError(f"`adam_lr_factor` must be positive, got {self.adam_lr_factor}")

    def __call__(self, parameters: Iterable[Tensor], *, lr: float) -> Optimizer:
        """SGD with momentum."""
        return SGD(parameters, lr=lr, momentum=self.momentum)

    def draw(self, dice: Dice) -> tuple[OptimizerFactory, float]:
        """One of the two, and the factor of its learning rate."""
        if dice.uniform((0.0, 1.0)) < self.adam_share:
            return Adam, self.adam_lr_factor
        return partial(SGD, momentum=self.momentum), 1.0


@dataclass(frozen=True, kw_only=True)
class SmallNetworkTask(Task):
    """Classify by a small fully connected network; every seed is another network and data set.

    The task draws `num_setups` setups (depth, width, activation, normalization, inputs, classes,
    batch size, number of examples); runs of one setup are computed together, without padding. A
    run draws one of these, its data, label noise, optimizer, and the weights it starts from. Data
    are Gaussian inputs labelled by a random network ("teacher"), clusters ("mixture"), or random
    projections of some digits ("digits"); feature j is scaled by j^-a, the whole to variance 1,
    and some labels are replaced by random ones, in all splits alike. The loss is the mean
    cross-entropy in nats; the privileged loss is that of held-out data.

    Args:
        optimizer: a `RandomOptimizer`, or one optimizer for all runs.
        depth_range: hidden layers, uniform.
        width_range: units of a hidden layer, log-uniform.
        activations: some of "relu", "tanh" and "gelu".
        normalizations: some of "none" and "layer" (before the activation).
        dimension_range: inputs, log-uniform.
        classes_range: classes, at least 2, uniform.
        data: some of "teacher", "mixture" and "digits".
        batch_size_range: examples per step, log-uniform; epochs are shuffled, an incomplete batch
            is dropped.
        num_train_range: training examples, log-uniform.
        label_noise_range: share of random labels, uniform.
        spectrum_decay_range: a, uniform.
        num_privileged: held-out examples.
        num_setups: different setups.
        setup_seed: fixes them; another seed gives networks that no run of this task had.
        dtype: "float32" or "float64", of the network and of its data.

    Raises:
        ValueError: if an argument is out of range.
    """

    optimizer: OptimizerFactory = field(default_factory=RandomOptimizer)
    depth_range: Sequence[int] = (1, 5)
    width_range: Sequence[int] = (8, 64)
    activations: Sequence[str] = tuple(ACTIVATIONS)
    normalizations: Sequence[str] = NORMALIZATIONS
    dimension_range: Sequence[int] = (8, 64)
    classes_range: Sequence[int] = (2, 10)
    data: Sequence[str] = DATA
    batch_size_range: Sequence[int] = (8, 64)
    num_train_range: Sequence[int] = (512, 2048)
    label_noise_range: Sequence[float] = (0.0, 0.2)
    spectrum_decay_range: Sequence[float] = (0.0, 1.0)
    num_privileged: int = 256
    num_setups: int = 24
    setup_seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = {"depth": 1, "width": 1, "dimension": 1, "classes": 2, "batch_size": 1}
        for name, least in {**lowest, "num_train": self.batch_size_range[1]}.items():
            low, high = getattr(self, f"{name}_range")
            if not least <= low <= high:
                raise ValueError(
                    f"`{name}_range` must be {least} <= low <= high, got {(low, high)}"
                )
        for name, highest in (("label_noise_range", 1.0), ("spectrum_decay_range", 4.0)):
            low, high = getattr(self, name)
            if not 0.0 <= low <= high <= highest:
                raise ValueError(f"`{name}` must be in [0, {highest:g}], got {(low, high)}")
        known = {"activations": tuple(ACTIVATIONS), "normalizations": NORMALIZATIONS, "data": DATA}
        for name, names in known.items():
            if not getattr(self, name) or not set(getattr(self, name)) <= set(names):
                raise ValueError(f"`{name}` must be some of {names}, got {getattr(self, name)}")
        if "digits" in self.data and self.classes_range[1] > 10:
            raise ValueError(f"`classes_range` must end at 10 digits, got {self.classes_range[1]}")
        if self.num_privileged < 1:
            raise ValueError(f"`num_privileged` must be at least 1, got {self.num_privileged}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be float32 or float64, got {self.dtype!r}")
        if self.num_setups < 1:
            raise ValueError(f"`num_setups` must be at least 1, got {self.num_setups}")

    @cached_property
    def setups(self) -> list[Setup]:
        """What the runs draw from."""
        generator = torch.Generator().manual_seed(self.setup_seed)
        return [draw_setup(self, generator) for _ in range(self.num_setups)]

    def draw_setup(self, generator: torch.Generator) -> Setup:
        """The setup of a run: the first that its generator draws."""
        return self.setups[Dice(generator).integer((0, self.num_setups - 1))]

    def draw_optimizer(self, generator: torch.Generator) -> tuple[OptimizerFactory, float]:
        """The optimizer of a run, and its learning rate over the one that is asked for."""
        if isinstance(self.optimizer, RandomOptimizer):
            return self.optimizer.draw(Dice(generator))
        return self.optimizer, 1.0

    def start(self, seed: int) -> "SmallNetworkRun":
        """A new network on new data."""
        return SmallNetworkRun(self, seed)

    def start_batch(self, num_runs: int) -> BatchedSmallNetworks:
        """B runs as one computation.

        Raises:
            ValueError: if the optimizer cannot be batched.
        """
        return BatchedSmallNetworks(self, num_runs)


class SmallNetworkRun(ClosureRun):
    """One small network in training; `step(lr)` trains at lr times the optimizer's factor."""

    def __init__(self, task: SmallNetworkTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.problem = draw_problem(task, generator)
        self.model = self.problem.model
        optimizer, self.lr_factor = task.draw_optimizer(generator)
        super().__init__(
            self.model.parameters(),
            optimizer=optimizer,
            lr=task.base_lr * self.lr_factor,
            generator=generator,
        )
        self._seed = seed
        self._epoch = MinibatchSampler(
            len(self.problem.train.y), self.problem.setup.batch_size, generator
        )

    def step(self, lr: float | None = None) -> Tensor:
        """Make one optimizer step, at `lr` times the factor of the run's optimizer."""
        return super().step(None if lr is None else lr * self.lr_factor)

    def _draw_loss(self) -> Closure:
        index, train = self._epoch.next(), self.problem.train
        batch = Split(train.x.index_select(0, index), train.y.index_select(0, index))
        return lambda: self._loss(batch)

    def _loss(self, split: Split) -> Tensor:
        return functional.cross_entropy(self.model(split.x), split.y)

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """Cross-entropy on the held-out examples."""
        return float(self._loss(self.problem.held_out))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out and test examples."""
        metrics = {}
        for name in ("held_out", "test"):
            split: Split = getattr(self.problem, name)
            labels = self.model(split.x).argmax(1)
            metrics[f"{name}_loss"] = float(self._loss(split))
            metrics[f"{name}_accuracy"] = float((labels == split.y).double().mean())
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The state; the network's architecture and data are the seed's own."""
        return {
            **super().state_dict(),
            "seed": self._seed,
            **self._epoch.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task and seed.

        Raises:
            ValueError: if the seed is another.
        """
        if state["seed"] != self._seed:
            raise ValueError(
                f"`state` must be of a run of seed {self._seed}, which is another network, got "
                f"seed {state['seed']}"
            )
        super().load_state_dict(state)
        self._epoch.load_state_dict(state)
