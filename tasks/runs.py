"""Run: one training in progress; and BatchedRuns: many of them as one computation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrpilot.arguments import require_count
from lrpilot.state import Stateful, state_fields

OptimizerFactory = Callable[..., Optimizer]


Closure = Callable[[], Tensor]
"""Computes a loss of shape (), with its graph."""


def backpropagate(closure: Closure) -> Tensor:
    """Compute a loss and its gradients; returns the loss, detached."""
    loss = closure()
    loss.backward()
    return loss.detach()


class Run(Stateful, ABC):
    """One training in progress, driven by `step(lr)` or by a scheduler on `optimizer`.

    Every random draw of a run comes from its own generator; two runs of one seed are identical.

    Args:
        parameters: what is trained.
        optimizer: called as `optimizer(parameters, lr=...)`.
        lr: initial learning rate.
        generator: source of minibatches and noise.
    """

    _state_fields = state_fields("parameters", "optimizer", "generator", "num_steps")

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
    def _set_gradients(self) -> Tensor:
        """Draw a minibatch and set the `.grad` of each parameter, which is None before.

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
        loss = self._set_gradients()
        self.optimizer.step()
        self._project()
        self.num_steps += 1
        return loss

    def _project(self) -> None:
        """Return to the feasible set after a step."""

    def cap(self) -> tuple[float, str]:
        """The largest certified learning rate of the next step, and the guarantee's name.

        Raises:
            ValueError: if the task has no cap.
        """
        raise ValueError(f"`cap` must be asked of a task that has one, got {type(self).__name__}")

    def scale_batch_size(self, factor: float) -> None:
        """Draw minibatches of `factor` times as many examples, rounded, from the next step on.

        It is a disturbance of a run, and no part of its state.

        Raises:
            ValueError: if the run draws no minibatches whose size can change, or there are fewer
                examples.
        """
        raise ValueError(
            "`scale_batch_size` must be asked of a run whose minibatches can have another size, "
            f"got {type(self).__name__}"
        )

    def shift_labels(self, shift: int) -> None:
        """Rename the classes of all data, from the next step on: y becomes (y + shift) mod C.

        Held-out and test examples have the new classes, too. It is a disturbance of a run, and no
        part of its state.

        Raises:
            ValueError: if the run does not classify.
        """
        raise ValueError(
            f"`shift_labels` must be asked of a run that classifies, got {type(self).__name__}"
        )

    @abstractmethod
    def privileged_loss(self) -> float:
        """The noise-free or held-out loss that only a simulator knows; never the test split."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Metrics of the final state; the only place that touches the test split."""


class ClosureRun(Run):
    """A run whose minibatch loss can be computed again: by a line search, or for its curvature."""

    _differentiate: Callable[[Closure], Tensor] = staticmethod(backpropagate)
    _closure: Closure

    @abstractmethod
    def _draw_loss(self) -> Closure:
        """Draw a minibatch; returns the closure of its loss, which gives the same at each call."""

    def _set_gradients(self) -> Tensor:
        self._closure = self._draw_loss()
        return self._differentiate(self._closure)

    def repeat_loss(self) -> Tensor:
        """The loss of the last step's minibatch at the present parameters, with its graph."""
        return self._closure()

    def differentiate_with(self, differentiate: Callable[[Closure], Tensor]) -> None:
        """Replace what sets the gradients of the steps to come, such as by a line search.

        Args:
            differentiate: called with the closure of a step's loss; sets the gradients and returns
                the loss, detached. The default is `backpropagate`.
        """
        self._differentiate = differentiate


def as_closure_run(run: Run) -> ClosureRun:
    """The run itself, of which the loss of a minibatch is asked again.

    Raises:
        ValueError: if its loss cannot be computed again.
    """
    if not isinstance(run, ClosureRun):
        raise ValueError(
            f"`run` must be one whose loss a closure repeats, got {type(run).__name__}"
        )
    return run


class BatchedRuns(Stateful, ABC):
    """B independent runs of one task, advanced as one computation.

    Run i draws from its own generator what the `Run` of the same seed draws, and equals it to
    rounding. Vectors have shape (B,) and live on `device`.

    Args:
        num_runs: B, at least 1.
        device: where the runs live.
    """

    def __init__(self, num_runs: int, *, device: str = "cpu") -> None:
        require_count("num_runs", num_runs)
        self.num_runs = num_runs
        self.device = device

    @abstractmethod
    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""

    @abstractmethod
    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs (a mask); returns the minibatch losses before it."""

    def cap(self) -> tuple[Tensor, str]:
        """The largest certified learning rate of each run's next step, and the guarantee.

        Raises:
            ValueError: if the runs have no cap.
        """
        raise ValueError(f"`cap` must be asked of runs that have one, got {type(self).__name__}")

    @abstractmethod
    def privileged_losses(self) -> Tensor:
        """Each run's privileged loss."""

    @abstractmethod
    def weights(self) -> Tensor:
        """Each run's sampled parameter entries, (B, entries), copied."""

    @abstractmethod
    def gradients(self) -> Tensor:
        """The last gradients of these entries, (B, entries)."""
