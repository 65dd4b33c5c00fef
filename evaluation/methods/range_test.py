"""LR range test: a short sweep of the learning rate that chooses the peak of the run after it."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lrpilot import D2ZLR
from lrpilot.arguments import require_count, require_within
from lrpilot.loss import read_loss
from lrpilot.schedulers.factor import FactorLR
from lrpilot.state import state_fields
from lrpilot.tasks.runs import Run

FEWEST_TEST_STEPS = 5
"""A shorter sweep says nothing: then there is none."""
STOP_FACTOR = 4.0
"""A loss of so many times the first one ends the sweep, before it is one that is not finite."""
SMOOTHING = 0.7


def tenth_of_lowest(factors: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the learning rate at which the smoothed loss of a range test is lowest.

    The losses l_i are smoothed to s_i, the mean of l_0, ..., l_i with weights 0.7^(i - j).

    Args:
        factors: rising; learning rates over the initial one.
        losses: of the steps at these factors, as many.

    >>> tenth_of_lowest([0.01, 0.1, 1.0, 10.0, 100.0], [2.0, 2.0, 1.0, 1.0, 9.0])
    1.0
    """
    total = weight = 0.0
    smoothed = []
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1.0
        smoothed.append(total / weight)
    return factors[smoothed.index(min(smoothed))] / 10.0


class RangeTestLR(FactorLR):
    """A range test of N steps, then linear decay to zero over the T - N steps that are left.

    In the test step i has the initial learning rate times low (high / low)^(i / (N - 1)), which
    rises exponentially; it ends after N = `test_share` T steps, or earlier at a loss of four times
    the first one. Then the run is put back to its start, weights, optimizer and minibatches, and
    trains by `D2ZLR` with the peak `tenth_of_lowest`. The steps of the test are steps of the run: T
    in all.

    The other common rule, the steepest descent of the loss over log lr, chooses several times more:
    in a test of 30 steps the loss lags behind the learning rate, and digits did not train at it.

    Args:
        optimizer: of the run; its learning rates are those with the factor 1.
        total_steps: T, the steps of test and training together.
        run: what is trained, at its start.
        test_share: N / T in [0, 1); where N is below 5 there is no test, and the peak is the
            initial learning rate.
        min_factor: low.
        max_factor: high.

    Raises:
        ValueError: if an argument is out of range, or the run has another optimizer.

    References:
        Smith. Cyclical learning rates for training neural networks. 2017 (arXiv 2015): the test,
        of which he reads two learning rates by eye. Howard and Gugger. fastai: A layered API for
        deep learning. 2020: a tenth of the minimum.
    """

    _state_fields = state_fields(
        applied_factor="_applied", losses="_losses", peak_factor="peak_factor", start="_at_start"
    )
    _settings = ("total_steps", "num_test_steps", "min_factor", "max_factor")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        run: Run,
        test_share: float = 0.1,
        min_factor: float = 1e-3,
        max_factor: float = 1e3,
    ) -> None:
        require_count("total_steps", total_steps)
        require_within("test_share", test_share, "[0, 1)")
        require_within("min_factor", min_factor, "(0, inf)")
        require_within("max_factor", max_factor, f"({min_factor}, inf)")
        if run.optimizer is not optimizer:
            raise ValueError("`run` must have the optimizer that is given, got another one")
        self.total_steps = total_steps
        self.num_test_steps = int(test_share * total_steps)
        self.min_factor = min_factor
        self.max_factor = max_factor
        self.peak_factor: float | None = None
        """What the test has chosen, over the initial learning rate; None until then."""
        if self.num_test_steps < FEWEST_TEST_STEPS:
            self.peak_factor = 1.0
        self._run = run
        self._losses: list[float] = []
        self._curve: list[float] = []
        self._at_start: dict[str, Any] | None = None
        super().__init__(optimizer)

    def step(self, loss: float | Tensor | None = None) -> None:
        """Set the learning rates of the next step; in the test the loss of the last one is needed.

        Args:
            loss: as of `AdaptiveLR.step`.

        Raises:
            TypeError: if there is none in the test.
        """
        if self.peak_factor is None:
            self._losses.append(read_loss(loss))
        super().step()

    def _start(self, *, at_milestone: bool) -> list[float]:
        if self.peak_factor is None:
            self._at_start = self._run.state_dict()
        return self._capped(None, self._factor())

    def _next_lrs(self) -> list[float]:
        before: float | None = self._applied
        if self.peak_factor is None and self._is_over():
            self._choose()
            before = None  # the optimizer is that of the start
        return self._capped(before, self._factor())

    def _factor(self) -> float:
        if self.peak_factor is None:
            return self._test_factor(self.last_epoch)
        num_tested = len(self._losses)
        if not self._curve:  # N is known from here on
            self._curve = D2ZLR.simulate(total_steps=self.total_steps - num_tested)
        return (
            self.peak_factor * self._curve[min(self.last_epoch - num_tested, len(self._curve) - 1)]
        )

    def _test_factor(self, i: int) -> float:
        share = i / (self.num_test_steps - 1)
        return self.min_factor * math.pow(self.max_factor / self.min_factor, share)

    def _is_over(self) -> bool:
        is_low = self._losses[-1] <= STOP_FACTOR * self._losses[0]
        return not is_low or len(self._losses) == self.num_test_steps

    def _choose(self) -> None:
        """Choose the peak, and put the run back to its start."""
        assert self._at_start is not None
        factors = [self._test_factor(i) for i in range(len(self._losses))]
        self.peak_factor = tenth_of_lowest(factors, self._losses)
        self.record(
            "range test", self._losses[-1], math.nan, self.peak_factor * float(self.base_lrs[0])
        )
        self._run.load_state_dict(self._at_start)
        self._at_start = None
