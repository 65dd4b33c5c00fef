"""The rules of GreedyLR: after every loss, raise the learning rate, lower it, or leave it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lrpilot.state import Stateful, state_fields


class Rule(Stateful, ABC):
    """Decides from one loss after the other; override `restart`, `decide` and `count_moves`.

    `reason` is (rule, signal, threshold) of the last move, as in `Decision`.

    Args:
        arguments: those of `GreedyLR`, resolved.
    """

    limiting_argument: ClassVar[str]
    """The argument that says how many calls a move takes."""
    reason = ("", math.nan, math.nan)

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._is_min = arguments["mode"] == "min"
        self._is_relative = arguments["threshold_mode"] == "rel"
        self._threshold: float = arguments["threshold"]
        self._holds: dict[int, int] = {-1: arguments["cooldown"], 1: arguments["warmup"]}
        self.restart()

    @abstractmethod
    def restart(self) -> None:
        """Forget all losses."""

    def restart_after_reset(self) -> None:
        """Forget all losses, since the initial learning rates were just restored."""
        self.restart()

    @abstractmethod
    def decide(self, loss: float) -> int:
        """Take a loss; 1 to raise the learning rate, -1 to lower it, 0 to leave it."""

    @property
    @abstractmethod
    def calls_per_move(self) -> int:
        """The fewest calls with finite losses that cause a move."""

    @abstractmethod
    def count_moves(self, num_calls: int, direction: int) -> int:
        """The most moves of one direction that finite losses can cause in `num_calls` calls."""


class TransformersRule(Rule):
    """More than `patience` good calls in a row raise, more than `patience` bad ones lower.

    A call is good if the metric beats the best so far by the threshold. After a raise (lowering)
    the next `warmup` (`cooldown`) calls are not looked at. Arguments as in `GreedyLR`; nothing is
    checked, and sums and comparisons are those of Hugging Face's class, in its order.
    """

    _state_fields = state_fields(
        *("best", "num_good", "num_bad"),
        cooldown_left="_cooldown_left",
        warmup_left="_warmup_left",
        recent_losses="_recent",
        sum_of_recent="_sum",
    )
    limiting_argument = "patience"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._patience: float = arguments["patience"]
        self._is_smooth: bool = arguments["smooth"]
        self._window_size: int = arguments["window_size"]

    def restart(self) -> None:
        """Forget all losses."""
        self.best = math.inf if self._is_min else -math.inf
        self.num_good = self.num_bad = self._cooldown_left = self._warmup_left = 0
        self._sum = 0.0
        self._recent: list[float] = []

    def restart_after_reset(self) -> None:
        """Forget all losses; the cooldown of the lowering that ended in the reset begins."""
        self.restart()
        self._cooldown_left = self._holds[-1]

    def decide(self, loss: float) -> int:
        """Take a loss; 1 to raise the learning rate, -1 to lower it, 0 to leave it."""
        if self._is_smooth:
            loss = self._smoothed(loss)
        if self._cooldown_left > 0 or self._warmup_left > 0:
            if self._cooldown_left > 0:
                self._cooldown_left -= 1
            else:
                self._warmup_left -= 1
            self.num_bad = self.num_good = 0
            return 0
        self._count(loss)
        return self._judge()

    def _count(self, loss: float) -> None:
        if self._is_better(loss):
            self.best = loss
            self.num_good += 1
            self.num_bad = 0
        else:
            self.num_bad += 1
            self.num_good = 0

    def _judge(self) -> int:
        if self.num_good > self._patience:
            self.reason = ("better", float(self.num_good), float(self._patience))
            self._warmup_left = self._holds[1]
            self.num_good = 0
            return 1
        if self.num_bad > self._patience:
            self.reason = ("not better", float(self.num_bad), float(self._patience))
            self._cooldown_left = self._holds[-1]
            self.num_bad = 0
            return -1
        return 0

    def _is_better(self, loss: float) -> bool:
        if self._is_min:
            if self._is_relative:
                return loss < self.best * (1.0 - self._threshold)
            return loss < self.best - self._threshold
        if self._is_relative:
            return loss > self.best * (1.0 + self._threshold)
        return loss > self.best + self._threshold

    def _smoothed(self, loss: float) -> float:
        self._recent.append(loss)
        self._sum += loss
        if len(self._recent) > self._window_size:
            self._sum -= self._recent.pop(0)
        return self._sum / len(self._recent)

    @property
    def calls_per_move(self) -> int:
        """The fewest calls with finite losses that cause a move."""
        return math.floor(max(0, self._patience)) + 1

    def count_moves(self, num_calls: int, direction: int) -> int:
        """The most moves of one direction that finite losses can cause in `num_calls` calls."""
        hold = max(0, self._holds[direction])
        return (num_calls + hold) // (self.calls_per_move + hold)


class PaperRule(TransformersRule):
    """As `TransformersRule`, with the holds of the authors' code and sound comparisons.

    In a cooldown the best still updates and only bad calls are not counted, in a warmup only good
    ones. The threshold is relative to the magnitude of the best, so that it has the same meaning
    for negative metrics; a loss that is not finite is bad, and left out of the smoothing.
    """

    def decide(self, loss: float) -> int:
        """Take a loss; 1 to raise the learning rate, -1 to lower it, 0 to leave it."""
        if self._is_smooth and math.isfinite(loss):
            loss = self._smoothed(loss)
        self._count(loss)
        if self._cooldown_left > 0:
            self._cooldown_left -= 1
            self.num_bad = 0
        if self._warmup_left > 0:
            self._warmup_left -= 1
            self.num_good = 0
        return self._judge()

    def _is_better(self, loss: float) -> bool:
        if not math.isfinite(loss) or math.isinf(self.best):
            return math.isfinite(loss)
        gain = self.best - loss if self._is_min else loss - self.best
        return gain > self._threshold * (abs(self.best) if self._is_relative else 1.0)

    def _smoothed(self, loss: float) -> float:
        self._recent = [*self._recent, loss][-self._window_size :]
        # a fresh sum: a spike leaves no rounding error behind
        return sum(self._recent) / len(self._recent)
