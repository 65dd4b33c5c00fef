"""What changes in the middle of a run, so that a schedule that was fixed before it is wrong."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.optim import Optimizer

from lrpilot.tasks.runs import Run


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """A change that no scheduler is told of; this class itself changes nothing.

    Of T steps, those from step t_0 = ceil(`share` T) on are disturbed, counted from 0.

    Args:
        share: share of the steps that come before, in (0, 1).

    Raises:
        ValueError: if `share` is out of range.

    >>> Disturbance().name, Disturbance().first_step(15)
    ('none', 8)
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"`share` must be in (0, 1), got {self.share}")

    @property
    def name(self) -> str:
        """As in tables."""
        return "none"

    def first_step(self, total_steps: int) -> int:
        """t_0, the first disturbed step of a run of so many."""
        return math.ceil(self.share * total_steps)

    def begin(self, run: Run) -> None:
        """Change the run; called once, before step t_0.

        Raises:
            ValueError: if the run cannot be disturbed so; it names the run's class.
        """

    @contextmanager
    def around_step(self, optimizer: Optimizer) -> Iterator[None]:
        """What every disturbed step is made in."""
        yield


UNDISTURBED = Disturbance()


@dataclass(frozen=True, kw_only=True)
class BatchSizeChange(Disturbance):
    """Minibatches have `factor` times as many examples; see `Run.scale_batch_size`.

    Args:
        factor: positive and not 1.

    >>> BatchSizeChange(factor=0.125).name
    'batch size x 0.125 at 0.5 T'
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_change("factor", self.factor)

    @property
    def name(self) -> str:
        """As in tables."""
        return f"batch size x {self.factor:g} at {self.share:g} T"

    def begin(self, run: Run) -> None:
        """Change the size of minibatches."""
        run.scale_batch_size(self.factor)


@dataclass(frozen=True, kw_only=True)
class LabelShift(Disturbance):
    """Class y becomes (y + `shift`) mod C in all data; see `Run.shift_labels`.

    What is measured at the end is how well the network has learned the new labels.

    Args:
        shift: at least 1.

    >>> LabelShift().name
    'labels + 1 at 0.5 T'
    """

    shift: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift < 1:
            raise ValueError(f"`shift` must be at least 1, got {self.shift}")

    @property
    def name(self) -> str:
        """As in tables."""
        return f"labels + {self.shift} at {self.share:g} T"

    def begin(self, run: Run) -> None:
        """Rename the classes."""
        run.shift_labels(self.shift)


@dataclass(frozen=True, kw_only=True)
class LRScaling(Disturbance):
    """The optimizer steps at `multiple` times the learning rate that its scheduler has set.

    So it is for whoever rescales a loss under plain SGD, or all learning rates. Before and after
    every step the scheduler finds its own learning rate.

    Args:
        multiple: positive and not 1.

    >>> LRScaling(multiple=10).name
    'lr x 10 at 0.5 T'
    """

    multiple: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_change("multiple", self.multiple)

    @property
    def name(self) -> str:
        """As in tables."""
        return f"lr x {self.multiple:g} at {self.share:g} T"

    @contextmanager
    def around_step(self, optimizer: Optimizer) -> Iterator[None]:
        """Multiply the learning rates, and put them back.

        Raises:
            ValueError: if they were set within the step, as by a line search.
        """
        lrs = [group["lr"] for group in optimizer.param_groups]
        multiplied = [lr * self.multiple for lr in lrs]
        for group, lr in zip(optimizer.param_groups, multiplied, strict=True):
            group["lr"] = lr
        yield
        found = [group["lr"] for group in optimizer.param_groups]
        if found != multiplied:
            raise ValueError(
                f"`disturbance` must not be {self.name!r} where a scheduler sets the learning "
                f"rate within the step, got {found} instead of {multiplied} after it"
            )
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr


def _require_change(name: str, value: float) -> None:
    if not 0.0 < value < math.inf or value == 1.0:
        raise ValueError(f"`{name}` must be positive, finite and not 1, got {value}")
