"""Task and Run: what is trained, and one training in progress."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

OptimizerFactory = Callable[..., Optimizer]


def backpropagate(closure: Callable[[], Tensor]) -> Tensor:
    """Compute a loss and its gradients; returns the loss, detached."""
    loss = closure()
    loss.backward()
    return loss.detach()


class Run(ABC):
    """One training in progress, driven by `step(lr)` or by a scheduler on `optimizer`.

    Every random draw of a run comes from its own generator; two runs of one seed are identical.

    Args:
        parameters: what is trained.
        optimizer: called as `optimizer(parameters, lr=...)`.
        lr: initial learning rate.
        generator: source of minibatches and noise.
    """

    backward: Callable[[Callable[[], Tensor]], Tensor]
    """Differentiates the closure of a step's loss; only runs whose loss a closure repeats have it.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        optimizer: OptimizerFactory,
        lr: float,
        generator: torch.Generator,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer(self.parameters, lr=lr)
        self.generator = generator
        self.num_steps = 0

    @abstractmethod
    def _backward(self) -> Tensor:
        """Draw a minibatch and set each `.grad`, which is None.

        Returns:
            The minibatch loss, detached, of shape ().
        """

    def step(self, lr: float | None = None) -> Tensor:
        """Make one optimizer step.

        Args:
            lr: learning rate of this step; None leaves the optimizer's.

        Returns:
            The minibatch loss of the forward pass before the step, detached, of shape ().
        """
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        for parameter in self.parameters:
            # what `optimizer.zero_grad()` does, which takes a twentieth of a small network's step
            parameter.grad = None
        loss = self._backward()
        self.optimizer.step()
        self._project()
        self.num_steps += 1
        return loss

    def keep_closure(self) -> Callable[[], Tensor]:
        """From now on, keep the closure of each step's loss.

        Returns:
            A function that computes the loss of the last step's minibatch anew, with its graph.

        Raises:
            ValueError: if no closure repeats the run's loss.
        """
        if not hasattr(self, "backward"):
            raise ValueError(
                f"`run` must be one whose loss a closure repeats, got {type(self).__name__}"
            )
        backward = self.backward
        kept: list[Callable[[], Tensor]] = []

        def keep(closure: Callable[[], Tensor]) -> Tensor:
            kept[:] = [closure]
            return backward(closure)

        self.backward = keep
        return lambda: kept[0]()

    def _project(self) -> None:  # noqa: B027 (most problems are unconstrained)
        """Return to the feasible set after a step."""

    def cap(self) -> tuple[float, str]:
        """The largest certified learning rate of the next step, and the guarantee's name.

        Raises:
            ValueError: if the task has no cap.
        """
        raise ValueError(f"`cap` must be asked of a task that has one, got {type(self).__name__}")

    @abstractmethod
    def privileged_loss(self) -> float:
        """The noise-free or held-out loss that only a simulator knows; never the test split."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Metrics of the final state; the only place that touches the test split."""

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        return {
            "parameters": [parameter.detach().clone() for parameter in self.parameters],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
        self.num_steps = state["num_steps"]


class BatchedRuns(ABC):
    """B independent runs of one task, advanced as one computation.

    Run i draws from its own generator what a single `Run` of the same seed draws, and equals it
    to rounding. Vectors have shape (B,) and live on `device`.

    Args:
        num_runs: B, at least 1.
        device: where the runs live.
    """

    def __init__(self, num_runs: int, *, device: str = "cpu") -> None:
        if num_runs < 1:
            raise ValueError(f"`num_runs` must be at least 1, got {num_runs}")
        self.num_runs = num_runs
        self.device = device

    @abstractmethod
    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""

    @abstractmethod
    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs (a mask); returns the minibatch losses before it."""

    @abstractmethod
    def cap(self) -> tuple[Tensor, str]:
        """The largest certified learning rate of each run's next step, and the guarantee."""

    @abstractmethod
    def privileged_losses(self) -> Tensor:
        """Each run's privileged loss."""

    @abstractmethod
    def weights(self) -> Tensor:
        """Each run's sampled parameter entries, (B, entries), copied."""

    @abstractmethod
    def gradients(self) -> Tensor:
        """The last gradients of these entries, (B, entries)."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is trained: model, data, loss, optimizer and horizon.

    Args:
        name: short name, as in `conf/task/`.
        optimizer: called as `optimizer(parameters, lr=...)`; a torch optimizer class or a
            `functools.partial` of one.
        base_lr: default initial learning rate.
        total_steps: default horizon T, optimizer steps.
        reward_scale: multiplies the rewards of an environment, so that a good run returns about
            3 in every task: agents learn badly from returns that are small beside the random
            values of an untrained critic.

    Raises:
        ValueError: if `base_lr` or `reward_scale` is not positive, or `total_steps` is below 1.
    """

    name: str
    optimizer: OptimizerFactory
    base_lr: float
    total_steps: int
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("base_lr", "reward_scale"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {self.total_steps}")

    @abstractmethod
    def start(self, seed: int) -> Run:
        """A new run; the seed fixes its initial state, its minibatches and its noise."""

    def of_seed(self, seed: int) -> "Task":
        """The task whose run `start(seed)` is: this one, unless it is a mixture."""
        return self

    def members(self) -> Sequence["Task"]:
        """The tasks that `of_seed` chooses from."""
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
