"""Which networks and data the runs draw from: all that a `SmallNetworkTask` is told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lrpilot.arguments import require_count
from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.runs import OptimizerFactory
from lrpilot.tasks.small_networks.instance import (
    ACTIVATIONS,
    DATA,
    NORMALIZATIONS,
    NUM_TEST,
    Dice,
    Instance,
    Setup,
    Split,
    make_network,
)
from lrpilot.tasks.task import shared_property


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
class SmallNetworkProblem(DeviceTask):
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
    data: Sequence[str] = tuple(DATA)
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
            self._require(f"{name}_range", least <= low <= high, f"be {least} <= low <= high")
        for name, highest in (("label_noise_range", 1.0), ("spectrum_decay_range", 4.0)):
            low, high = getattr(self, name)
            self._require(name, 0.0 <= low <= high <= highest, f"be in [0, {highest:g}]")
        known = {"activations": ACTIVATIONS, "normalizations": NORMALIZATIONS, "data": DATA}
        for name, names in known.items():
            chosen = getattr(self, name)
            is_met = bool(chosen) and set(chosen) <= set(names)
            self._require(name, is_met, f"be some of {tuple(names)}")
        if "digits" in self.data and self.classes_range[1] > 10:
            raise ValueError(f"`classes_range` must end at 10 digits, got {self.classes_range[1]}")
        self._require("dtype", self.dtype in ("float32", "float64"), "be float32 or float64")
        require_count("num_privileged", self.num_privileged)
        require_count("num_setups", self.num_setups)

    @shared_property
    def setups(self) -> list[Setup]:
        """What the runs draw from."""
        generator = torch.Generator().manual_seed(self.setup_seed)
        return [self._new_setup(Dice(generator)) for _ in range(self.num_setups)]

    def _new_setup(self, dice: Dice) -> Setup:
        return Setup(
            depth=dice.integer(self.depth_range),
            width=dice.log_uniform_integer(self.width_range),
            activation=dice.choice(self.activations),
            normalization=dice.choice(self.normalizations),
            dimension=dice.log_uniform_integer(self.dimension_range),
            num_classes=dice.integer(self.classes_range),
            batch_size=dice.log_uniform_integer(self.batch_size_range),
            num_train=dice.log_uniform_integer(self.num_train_range),
        )

    def draw_setup(self, generator: torch.Generator) -> Setup:
        """The setup of a run: the first that its generator draws."""
        return self.setups[Dice(generator).integer((0, self.num_setups - 1))]

    def draw_instance(self, setup: Setup, generator: torch.Generator) -> Instance:
        """Data and a network of this setup, drawn on the CPU and moved to the device."""
        dice = Dice(generator)
        dimension, num_classes = setup.dimension, setup.num_classes
        sizes = setup.num_train, self.num_privileged, NUM_TEST
        x, y = DATA[dice.choice(self.data)](sizes, dimension, num_classes, generator)
        label_noise = dice.uniform(self.label_noise_range)
        is_noisy = torch.rand(len(y), generator=generator) < label_noise
        y = torch.where(is_noisy, torch.randint(num_classes, (len(y),), generator=generator), y)
        x = x * torch.arange(1, dimension + 1).pow(-dice.uniform(self.spectrum_decay_range))
        dtype = getattr(torch, self.dtype)
        x = (x / x[: setup.num_train].square().mean().sqrt()).to(dtype)
        parts = x.to(self.device).split(sizes), y.to(self.device).split(sizes)
        train, held_out, test = map(Split, *parts)
        network = make_network(setup, generator, dtype).to(self.device)
        return Instance(setup, train, held_out, test, network)

    def draw_optimizer(self, generator: torch.Generator) -> tuple[OptimizerFactory, float]:
        """The optimizer of a run, and its learning rate over the one that is asked for."""
        if isinstance(self.optimizer, RandomOptimizer):
            return self.optimizer.draw(Dice(generator))
        return self.optimizer, 1.0
