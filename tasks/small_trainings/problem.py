"""Which trainings the runs draw from: all that a `SmallTrainingTask` is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lrpilot.arguments import require_count
from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.runs import OptimizerFactory
from lrpilot.tasks.small_networks.instance import NUM_TEST, Dice, Split
from lrpilot.tasks.small_trainings.data import draw_examples
from lrpilot.tasks.small_trainings.families import FAMILIES, SIZES
from lrpilot.tasks.small_trainings.optimizer import DrawnOptimizer, OptimizerDraws
from lrpilot.tasks.small_trainings.setup import BATCH_SIZES, NUM_MASKS, Network, Setup, draw_setup
from lrpilot.tasks.task import shared_property

_VALUE_NOISE = (0.0, 0.5)
_INIT_SCALES = (0.5, 2.0)
_DROPOUT_RATES = (0.05, 0.3)
_SMOOTHING = 0.1


class Instance(NamedTuple):
    """What one run trains, how, and its network before the first step."""

    setup: Setup
    train: Split
    held_out: Split
    test: Split
    network: Network
    optimizer: DrawnOptimizer
    max_gradient_norm: float
    """Infinite where gradients are not clipped."""
    dropout_rate: float
    smoothing: float
    first_mask: float
    """Where the run begins in the table of random numbers for dropout."""


@dataclass(frozen=True, kw_only=True)
class SmallTrainingProblem(DeviceTask):
    """Trainings of many kinds, each of a small network; every seed is another one.

    The task draws `num_setups` setups, equally many of each family. A setup is what fixes the
    shapes of tensors and what is computed of them: the network, its inputs and loss, batch size (8
    to 256, log-uniform) and number of training examples, and whether there is dropout. Runs of one
    setup are computed together.

    | family      | networks                                  | trained on                      |
    |-------------|-------------------------------------------|---------------------------------|
    | mlp         | no, layer or batch normalization          | vectors: classes, values        |
    | cnn         | no, batch or group normalization          | images: classes, values         |
    | transformer | normalized before or after each block     | patches: classes, values;       |
    |             |                                           | symbols: classes, the next one  |
    | rnn         | plain, GRU or LSTM                        | as transformers                 |
    | gpt         | transformers whose weights begin at a     | text: the next character;       |
    |             | standard deviation of .02, biases at 0    | symbols: the next; patches:     |
    |             |                                           | classes                         |
    | lenet       | plain convolutions that halve the image,  | images: classes                 |
    |             | hidden layers                             |                                 |

    A run draws one of the setups, and by itself: data (scikit-learn's digits, Python's manual, or
    synthetic ones, see `draw_examples`), their noise, the scale of the initial weights (0.5 to 2,
    log-uniform), the optimizer, gradient clipping (half of the runs, to norm 1), dropout (0.05 to
    0.3 in setups that have it) and label smoothing (0.1 for a fifth). The loss is the mean
    cross-entropy in nats or squared error; the privileged loss is that of held-out data, without
    smoothing.

    Args:
        optimizer: `OptimizerDraws`, or one optimizer for all runs.
        families: some of "mlp", "cnn", "transformer", "rnn", "gpt" and "lenet".
        sizes: some of "small" (500 to 10,000 parameters) and "wide" (10,000 to 100,000, which cost
            up to ten times as much), of the family gpt up to six and of lenet up to four times as
            many; with both, half of each family's setups are wide.
        num_train_range: training examples, log-uniform. With few, a long run learns them by
            heart, and the best that it can do is to stop.
        label_noise_range: share of random labels, uniform.
        num_privileged: held-out examples.
        num_setups: different setups.
        setup_seed: fixes them; another seed gives setups that no run of this task had.
        dtype: "float32" or "float64", of the networks and of their data.

    Raises:
        ValueError: if an argument is out of range.
    """

    optimizer: OptimizerFactory = field(default_factory=OptimizerDraws)
    families: Sequence[str] = tuple(FAMILIES)
    sizes: Sequence[str] = ("small",)
    num_train_range: Sequence[int] = (2048, 16384)
    label_noise_range: Sequence[float] = (0.0, 0.1)
    num_privileged: int = 128
    num_setups: int = 48
    setup_seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        is_met = bool(self.families) and set(self.families) <= set(FAMILIES)
        self._require("families", is_met, f"be some of {tuple(FAMILIES)}")
        is_met = bool(self.sizes) and set(self.sizes) <= set(SIZES)
        self._require("sizes", is_met, f"be some of {tuple(SIZES)}")
        fewest, most = self.num_train_range
        is_met = BATCH_SIZES[1] <= fewest <= most
        self._require("num_train_range", is_met, f"be {BATCH_SIZES[1]} <= low <= high")
        low, high = self.label_noise_range
        self._require("label_noise_range", 0.0 <= low <= high <= 1.0, "be in [0, 1]")
        self._require("dtype", self.dtype in ("float32", "float64"), "be float32 or float64")
        require_count("num_privileged", self.num_privileged)
        require_count("num_setups", self.num_setups)

    @shared_property
    def setups(self) -> list[Setup]:
        """What the runs draw from."""
        dice = Dice(torch.Generator().manual_seed(self.setup_seed))
        kinds = [(family, size) for size in self.sizes for family in self.families]
        return [
            draw_setup(dice, *kinds[k % len(kinds)], self.num_train_range)
            for k in range(self.num_setups)
        ]

    def draw_setup(self, generator: torch.Generator) -> int:
        """The index of a run's setup: the first that its generator draws."""
        return Dice(generator).integer((0, self.num_setups - 1))

    def draw_instance(self, setup: Setup, generator: torch.Generator) -> Instance:
        """All that a run of this setup draws besides, drawn on the CPU and moved to the device."""
        dice = Dice(generator)
        is_regression = setup.ends.loss == "values"
        noise = dice.uniform(_VALUE_NOISE if is_regression else self.label_noise_range)
        init_scale = dice.log_uniform(_INIT_SCALES)
        optimizer = DrawnOptimizer(self.optimizer, 1.0)
        if isinstance(self.optimizer, OptimizerDraws):
            optimizer = self.optimizer.draw(dice)
        max_gradient_norm = 1.0 if dice.uniform((0.0, 1.0)) < 0.5 else float("inf")
        dropout_rate = dice.uniform(_DROPOUT_RATES) if setup.has_dropout else 0.0
        smoothing = _SMOOTHING if dice.uniform((0.0, 1.0)) < 0.2 and not is_regression else 0.0
        first_mask = float(dice.integer((0, NUM_MASKS - 1)))
        sizes = setup.num_train, self.num_privileged, NUM_TEST
        x, y = draw_examples(setup.ends, sizes, generator, noise=noise)
        dtype = getattr(torch, self.dtype)
        x, y = (part.to(dtype) if part.is_floating_point() else part for part in (x, y))
        x, y = x.to(self.device), y.to(self.device)
        train, held_out, test = map(Split, x.split(sizes), y.split(sizes))
        network = Network(setup, generator, init_scale=init_scale, dtype=dtype).to(self.device)
        return Instance(
            setup,
            train,
            held_out,
            test,
            network,
            optimizer,
            max_gradient_norm,
            dropout_rate,
            smoothing,
            first_mask,
        )
