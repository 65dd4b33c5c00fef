"""The optimizer of a small training: drawn for each run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lrpilot.tasks.runs import OptimizerFactory
from lrpilot.tasks.small_networks.instance import Dice

KINDS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")
_DECAY_SHARE = 0.5
_DECAYS = {
    "sgd": (1e-5, 3e-3),
    "momentum": (1e-5, 3e-3),
    "nesterov": (1e-5, 3e-3),
    "adam": (1e-6, 1e-3),
    "adamw": (1e-3, 0.3),
    "rmsprop": (1e-6, 1e-3),
}


class DrawnOptimizer(NamedTuple):
    """What was drawn."""

    make: OptimizerFactory
    lr_factor: float
    """A usual learning rate of it, over one of plain SGD."""


@dataclass(frozen=True, kw_only=True)
class OptimizerDraws:
    """One of the optimizers that people use, with usual constants, drawn for each run.

    | kind                 | constants                                  | usual learning rate    |
    |----------------------|--------------------------------------------|------------------------|
    | sgd                  |                                            | 0.2                    |
    | momentum, nesterov   | momentum from 0.8 to 0.99                  | 0.4 (1 - momentum)     |
    | adam, adamw          | betas of 0.9 or 0.95, and of 0.95 to 0.999 | 0.003                  |
    | rmsprop              | alpha of 0.9, 0.95 or 0.99                 | 0.002                  |

    Half of the runs have weight decay, log-uniform. The learning rate that is asked for is that
    of plain SGD; the others' is in proportion. Called like a torch optimizer's class, as by a run
    that draws nothing, it is plain SGD.

    Args:
        kinds: some of "sgd", "momentum", "nesterov", "adam", "adamw" and "rmsprop".

    Raises:
        ValueError: if a kind is not one of these, or there is none.
    """

    kinds: Sequence[str] = KINDS

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"`kinds` must be some of {KINDS}, got {tuple(self.kinds)}")

    def __call__(self, parameters: Iterable[Tensor], *, lr: float) -> Optimizer:
        """Plain SGD."""
        return SGD(parameters, lr=lr)

    def draw(self, dice: Dice) -> DrawnOptimizer:
        """One of the kinds."""
        kind = dice.choice(self.kinds)
        decay = 0.0
        if dice.uniform((0.0, 1.0)) < _DECAY_SHARE:
            decay = dice.log_uniform(_DECAYS[kind])
        if kind == "sgd":
            return DrawnOptimizer(partial(SGD, weight_decay=decay), 1.0)
        if kind in ("momentum", "nesterov"):
            momentum = 1.0 - dice.log_uniform((0.01, 0.2))
            make = partial(SGD, momentum=momentum, weight_decay=decay, nesterov=kind == "nesterov")
            return DrawnOptimizer(make, 2.0 * (1.0 - momentum))
        if kind == "rmsprop":
            alpha = (0.9, 0.95, 0.99)[dice.integer((0, 2))]
            return DrawnOptimizer(partial(RMSprop, alpha=alpha, weight_decay=decay), 0.01)
        betas = (0.9, 0.95)[dice.integer((0, 1))], (0.95, 0.98, 0.99, 0.999)[dice.integer((0, 3))]
        kind_of = Adam if kind == "adam" else AdamW
        return DrawnOptimizer(partial(kind_of, betas=betas, weight_decay=decay), 0.015)
