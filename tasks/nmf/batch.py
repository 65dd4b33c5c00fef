"""Hundreds of factorizations as one tensor computation."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import sample_positions
from lrpilot.state import state_fields
from lrpilot.tasks.nmf.caps import line_oracle
from lrpilot.tasks.nmf.draws import DRAWN_STEPS, Draws, Instance, draw_instance
from lrpilot.tasks.nmf.objective import Exact, Numbers, Objective
from lrpilot.tasks.nmf.problem import NMFProblem
from lrpilot.tasks.runs import BatchedRuns


class BatchedNMFRuns(BatchedRuns):
    """B factorizations under plain SGD as one computation."""

    _state_fields = state_fields(
        *("w", "h", "_num_steps", "_instance", "_gradients"),
        numbers="_numbers",
        generators="_generators",
    )

    def __init__(self, problem: NMFProblem, num_runs: int) -> None:
        super().__init__(num_runs, device=problem.device)
        self._problem = problem
        (m, n), r = problem.shape, problem.rank

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(num_runs, *shape, device=self.device)

        sizes = torch.ones(num_runs, 2, dtype=torch.int64, device=self.device)
        self._instance = Instance(zeros(m, n), zeros(m, r), zeros(r, n), sizes, zeros())
        self.w, self.h = self._instance.w.clone(), self._instance.h.clone()
        self._generators = [torch.Generator() for _ in range(num_runs)]
        self._draws = Draws(problem)
        self._numbers: Numbers | None = None
        self._position = np.full(num_runs, DRAWN_STEPS)
        self._num_steps = torch.zeros(num_runs, dtype=torch.int64, device=self.device)
        self._gradients = self.w, self.h
        self._exact: Exact | None = None
        self._sample = sample_positions(problem.rank * (m + n), ObservationSpec().num_entries)

    @torch.no_grad()
    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        instances = [
            draw_instance(self._problem, self._generators[row].manual_seed(seed))
            for row, seed in zip(rows, seeds, strict=True)
        ]
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        for name, kept in vars(self._instance).items():
            drawn = [getattr(instance, name) for instance in instances]
            kept[index] = torch.stack(drawn).to(self.device) if drawn else kept[index]
        self.objective = Objective(self._problem, self._instance)
        start_w, start_h = self.objective.project(self._instance.w, self._instance.h)
        self.w[index], self.h[index] = start_w[index], start_h[index]
        self._exact = None
        self._position[rows] = DRAWN_STEPS
        self._num_steps[index] = 0

    def _next_numbers(self, active: NDArray[np.bool_]) -> Numbers:
        """The random numbers of each run's next step."""
        exhausted = (active & (self._position == DRAWN_STEPS)).nonzero()[0]
        if len(exhausted):
            self._draw(exhausted)
        assert self._numbers is not None
        first = self._position[0]
        if first < DRAWN_STEPS and (self._position == first).all():
            return self._numbers.at((slice(None), first))
        position = torch.as_tensor(self._position.clip(max=DRAWN_STEPS - 1), device=self.device)
        return self._numbers.at((torch.arange(self.num_runs, device=self.device), position))

    def _draw(self, rows: NDArray[np.int64]) -> None:
        uniforms, normals = self._draws.draw([self._generators[row] for row in rows])
        index = torch.as_tensor(rows, device=self.device)
        uniforms, normals = uniforms.to(self.device), normals.to(self.device)
        numbers = self.objective.prepare(uniforms, normals, rows=index)
        if len(rows) == self.num_runs:
            self._numbers = numbers
        else:
            if self._numbers is None:
                shapes = [(self.num_runs, *x.shape[1:]) for x in numbers]
                self._numbers = Numbers(*map(torch.Tensor.new_zeros, numbers, shapes))
            for kept, new in zip(self._numbers, numbers, strict=True):
                kept[index] = new
        self._position[rows] = 0

    @torch.no_grad()
    def best_lrs(self) -> Tensor:
        """The best learning rate of each run along its next, noisy direction: an oracle's."""
        numbers = self._next_numbers(np.ones(self.num_runs, np.bool_))
        direction, _ = self.objective.noisy_gradients(
            self.w, self.h, numbers, exact=self._known_exact()
        )
        return line_oracle(self.w, self.h, self.objective.matrix, direction)

    @torch.no_grad()
    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the observed losses before it."""
        active_runs = active.cpu().numpy()
        numbers = self._next_numbers(active_runs)
        self._position += active_runs
        (grad_w, grad_h), losses = self.objective.noisy_gradients(
            self.w, self.h, numbers, exact=self._known_exact()
        )
        if self._problem.update == "alternating":
            moves_w = (self._num_steps % 2 == 0)[:, None, None]
            grad_w, grad_h = grad_w * moves_w, grad_h * ~moves_w
        rates = -lrs.to(self.w.dtype)[:, None, None]
        w, h = self.objective.project(
            torch.addcmul(self.w, rates, grad_w), torch.addcmul(self.h, rates, grad_h)
        )
        if not active_runs.all():
            moves = active[:, None, None]
            w, h = torch.where(moves, w, self.w), torch.where(moves, h, self.h)
            grad_w = torch.where(moves, grad_w, self._gradients[0])
            grad_h = torch.where(moves, grad_h, self._gradients[1])
        self.w, self.h, self._gradients, self._exact = w, h, (grad_w, grad_h), None
        self._num_steps += active
        return losses

    def _known_exact(self) -> Exact | None:
        """What is exact at the present state, computed once for cap and step."""
        if self._exact is None and self._problem.noise != "minibatch":
            self._exact = self.objective.exact(self.w, self.h)
        return self._exact

    @torch.no_grad()
    def cap(self) -> tuple[Tensor, str]:
        """The problem's cap for each run's next step."""
        return self.objective.cap(
            self.w, self.h, self._num_steps % 2 == 0, exact=self._known_exact()
        )

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """The exact objectives 1/2 ||V - W H||^2."""
        return self.objective.loss(self.w, self.h)

    def weights(self) -> Tensor:
        """W and H, flattened (or their sample)."""
        return self._read(self.w, self.h)

    def gradients(self) -> Tensor:
        """The last gradients of these entries."""
        return self._read(*self._gradients)

    def _read(self, w: Tensor, h: Tensor) -> Tensor:
        entries = torch.cat([w.flatten(1), h.flatten(1)], dim=1)
        return entries if self._sample is None else entries[:, self._sample]

    def state_dict(self) -> dict[str, Any]:
        """The state, with the problems and the numbers that are drawn but not used."""
        return {**super().state_dict(), "position": self._position.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._position = np.array(state["position"])
        if self._numbers is not None:
            self._numbers = Numbers(*(x.to(self.device) for x in self._numbers))
        self.objective = Objective(self._problem, self._instance)
        self._exact = None
