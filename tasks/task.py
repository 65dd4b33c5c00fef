"""Task: what is trained, of which a seed starts one run."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, overload

from lrpilot.arguments import require_count
from lrpilot.tasks.runs import BatchedRuns, OptimizerFactory, Run

_T = TypeVar("_T")


class shared_property(Generic[_T]):
    """A property that is computed once for a task and all its copies by `Task.at_lr`.

    It must not depend on the learning rate, nor on the optimizer.
    """

    def __init__(self, find: Callable[[Any], _T]) -> None:
        self._find = find
        self.__doc__ = find.__doc__

    @overload
    def __get__(self, task: None, owner: type[Any]) -> Self: ...

    @overload
    def __get__(self, task: "Task", owner: type[Any]) -> _T: ...

    def __get__(self, task: "Task | None", owner: type[Any]) -> Self | _T:
        """The value, which is computed if none of the copies was asked for it."""
        if task is None:
            return self
        found, name = _found_by(task), self._find.__name__
        if name not in found:
            found[name] = self._find(task)
        value: _T = found[name]
        return value


def _found_by(task: "Task") -> dict[str, Any]:
    found: dict[str, Any] = task.__dict__.setdefault("_found", {})
    return found


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is trained: model, data, loss, optimizer and horizon.

    Args:
        name: short name, as in `conf/task/`.
        optimizer: called as `optimizer(parameters, lr=...)`; a torch optimizer class or a
            `functools.partial` of one.
        base_lr: initial learning rate.
        total_steps: default horizon T, optimizer steps.
        reward_scale: multiplies the rewards of an environment, so that a good run returns about
            3 in every task: agents learn badly from returns that are small beside the random
            values of an untrained critic.

    Raises:
        ValueError: as by every task, if an argument is out of range, or by `start`, if a size is
            above what the data has.
        lrpilot.tasks.data.archives.DataError: by `start`, if files are missing or unreadable.
    """

    name: str
    optimizer: OptimizerFactory
    base_lr: float
    total_steps: int
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("base_lr", "reward_scale"):
            self._require(name, getattr(self, name) > 0.0, "be positive")
        self._require_counts("total_steps")

    def _require_counts(self, *names: str) -> None:
        """Refuse an argument of these names that is no whole number of at least 1."""
        for name in names:
            require_count(name, getattr(self, name))

    def _require(self, name: str, is_met: bool, constraint: str) -> None:
        """Refuse the argument of this name unless the constraint ("be positive") is met."""
        if not is_met:
            raise ValueError(f"`{name}` must {constraint}, got {getattr(self, name)!r}")

    @abstractmethod
    def start(self, seed: int) -> Run:
        """A new run; the seed fixes its initial state, its minibatches and its noise."""

    def at_lr(self, lr: float, optimizer: OptimizerFactory | None = None) -> Self:
        """This task with another initial learning rate; what it has loaded or drawn is shared.

        Args:
            lr: the initial learning rate.
            optimizer: replaces the task's.

        Raises:
            ValueError: if the learning rate is not positive.
        """
        task = copy.copy(self)
        object.__setattr__(task, "_found", _found_by(self))
        object.__setattr__(task, "base_lr", lr)
        object.__setattr__(task, "optimizer", optimizer or self.optimizer)
        Task.__post_init__(task)
        return task

    def __getstate__(self) -> dict[str, Any]:
        """Without what it found, which may be a whole matrix: another process finds it, too."""
        return {name: value for name, value in vars(self).items() if name != "_found"}

    def member_of_seed(self, seed: int) -> "Task":
        """The task whose run `start(seed)` is: this one, unless it is a mixture of several."""
        return self

    def reward_scale_of(self, seed: int) -> float:
        """What multiplies the rewards of the run of this seed."""
        return self.reward_scale

    def members(self) -> Sequence["Task"]:
        """All tasks that `member_of_seed` may return."""
        return (self,)

    def steps_per_epoch(self) -> int:
        """Optimizer steps in which a run goes through its training examples once.

        Raises:
            ValueError: if the task has no epochs of one length.
        """
        raise ValueError(f"`task` must be one with epochs of one length, got {self.name!r}")

    def start_batch(self, num_runs: int) -> BatchedRuns:
        """B runs as one computation, not yet started.

        Raises:
            ValueError: if the task cannot be batched.
        """
        raise ValueError(f"`task` must be one that can be batched, got {self.name!r}")
