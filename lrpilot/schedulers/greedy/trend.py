"""TrendRule: which way the loss goes, told from its noise."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any

from lrpilot.schedulers.greedy.rules import Rule
from lrpilot.state import state_fields

MIN_BLOCKS = 20


def standard_error(n: int) -> float:
    """The standard deviation of Mann-Kendall's S of n values without trend or ties."""
    return math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def largest_z(n: int) -> float:
    """S over its standard error when all n values are in order; 0 for a single value.

    >>> round(largest_z(10), 2)
    4.02
    """
    return n * (n - 1) / 2 / standard_error(n) if n > 1 else 0.0


def split_window(window_size: int) -> tuple[int, int]:
    """Calls per block, and the blocks that hold a window.

    >>> split_window(10), split_window(50)
    ((1, 10), (2, 25))
    """
    block_size = max(1, window_size // MIN_BLOCKS)
    return block_size, -(-window_size // block_size)


class TrendRule(Rule):
    """Raises on a significant fall of the losses, lowers on a significant rise or on a plateau.

    The losses since the last verdict are averaged in blocks of b = max(1, window_size // 20), so
    that neighbours that resemble each other count less. Once `window_size` calls are there, every
    block is judged by the Mann-Kendall form of a slope over its standard error::

        S = sum over i < j of sign(y_j - y_i),    z = S / sqrt(n (n - 1) (2 n + 5) / 18)

    for n block means y. Without a trend z has mean 0 and standard deviation 1 whatever the
    distribution of the noise, a spike counts as one rank, and S is an exact integer. Then

    - fall: z < -significance: raise;
    - rise: z > significance: lower;
    - plateau: neither within `patience` calls after the first verdict could be: lower;
    - not finite: a loss is NaN or infinite: lower at once; it is not averaged.

    In mode "max" y is minus the metric. A fall or rise must also exceed the threshold, between
    the medians of the first and the last half. Every verdict starts a new window, since older
    losses belong to another learning rate; after a raise (lowering) `warmup` (`cooldown`) further
    calls raise (lower), too, whatever their losses, unless one is not finite.

    Noise that is correlated over more calls than a block has looks like a trend: feed losses, not
    their moving averages, or take a longer window.

    References:
        Mann. Nonparametric tests against trend. 1945.
        Kendall. Rank correlation methods. 1948.
    """

    _state_fields = state_fields(
        block_means="_blocks",
        open_block="_mean",
        num_in_block="_num_in_block",
        score="_score",
        further_moves="_num_moves_left",
        direction="_direction",
    )
    limiting_argument = "window_size"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._sign = 1 if self._is_min else -1
        self._significance: float = arguments["significance"]
        self._block_size, self._min_blocks = split_window(arguments["window_size"])
        self._max_blocks = self._min_blocks + -(-arguments["patience"] // self._block_size)

    def restart(self) -> None:
        """Forget all losses."""
        self._forget()
        self._num_moves_left = self._direction = 0

    def _forget(self) -> None:
        self._blocks: list[float] = []
        self._sorted: list[float] = []
        self._mean = 0.0
        self._num_in_block = self._score = 0

    def decide(self, loss: float) -> int:
        """Take a loss; 1 to raise the learning rate, -1 to lower it, 0 to leave it."""
        if loss - loss != 0.0:
            return self._move("not finite", loss, math.nan, -1)
        if self._num_moves_left:
            self._num_moves_left -= 1
            self.reason = ("warmup" if self._direction > 0 else "cooldown", loss, math.nan)
            return self._direction
        # the sum of two huge losses would be infinite
        self._mean += loss / self._block_size
        self._num_in_block += 1
        if self._num_in_block < self._block_size:
            return 0
        return self._close_block()

    def _close_block(self) -> int:
        blocks, ordered = self._blocks, self._sorted
        mean = self._mean
        self._mean = 0.0
        self._num_in_block = 0
        place = bisect_left(ordered, mean)
        self._score += place + bisect_right(ordered, mean) - len(ordered)
        ordered.insert(place, mean)
        blocks.append(mean)
        n = len(blocks)
        if n < self._min_blocks:
            return 0
        z = self._sign * self._score / standard_error(n)
        if abs(z) > self._significance and self._is_large():
            if z < 0.0:
                return self._move("fall", z, -self._significance, 1)
            return self._move("rise", z, self._significance, -1)
        if n >= self._max_blocks:
            return self._move("plateau", z, self._significance, -1)
        return 0

    def _move(self, rule: str, signal: float, threshold: float, direction: int) -> int:
        self.reason = (rule, signal, threshold)
        self._forget()
        self._direction = direction
        self._num_moves_left = self._holds[direction]
        return direction

    def _is_large(self) -> bool:
        half = len(self._blocks) // 2
        first = sorted(self._blocks[:half])[half // 2]
        last = sorted(self._blocks[-half:])[half // 2]
        return abs(first - last) > self._threshold * (abs(first) if self._is_relative else 1.0)

    @property
    def calls_per_move(self) -> int:
        """The fewest calls with finite losses that cause a move."""
        return self._min_blocks * self._block_size

    def count_moves(self, num_calls: int, direction: int) -> int:
        """The most moves of one direction that finite losses can cause in `num_calls` calls."""
        window = self.calls_per_move
        further = self._holds[direction]
        rounds, rest = divmod(num_calls, window + further)
        return rounds * (1 + further) + max(0, rest - window + 1)

    def _derive(self) -> None:
        self._sorted = sorted(self._blocks)
