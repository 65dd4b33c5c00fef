"""One factorization in progress."""

import math

import torch
from torch import Tensor

from lrpilot.state import state_fields
from lrpilot.tasks.nmf.draws import DRAWN_STEPS, Draws, draw_instance
from lrpilot.tasks.nmf.objective import Numbers, Objective
from lrpilot.tasks.nmf.problem import NMFProblem
from lrpilot.tasks.runs import Run


class NMFRun(Run):
    """One factorization in progress; the parameters are W (m x r) and H (r x n)."""

    # the instance is the seed's own
    _state_fields = state_fields(
        **Run._state_fields, instance="_instance", numbers="_numbers", position="_position"
    )

    def __init__(self, problem: NMFProblem, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._problem = problem
        self._instance = draw_instance(problem, generator).to(problem.device)
        self.objective = Objective(problem, self._instance)
        start = self.objective.project(self._instance.w, self._instance.h)
        self.w, self.h = map(torch.nn.Parameter, start)
        super().__init__(
            [self.w, self.h], optimizer=problem.optimizer, lr=problem.base_lr, generator=generator
        )
        self._draws = Draws(problem)
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        uniforms, normals = self._draws.draw([self.generator])
        uniforms, normals = (x[0].to(self._problem.device) for x in (uniforms, normals))
        self._numbers = self.objective.prepare(uniforms, normals)
        self._position = 0

    @property
    def matrix(self) -> Tensor:
        """V."""
        return self.objective.matrix

    @torch.no_grad()
    def _set_gradients(self) -> Tensor:
        if self._position == DRAWN_STEPS:
            self._draw()
        numbers = self._numbers.at(self._position)
        self._position += 1
        (self.w.grad, self.h.grad), loss = self.objective.noisy_gradients(self.w, self.h, numbers)
        if self._problem.update == "alternating":
            # optimizers leave a parameter without a gradient alone
            if self.num_steps % 2 == 0:
                self.h.grad = None
            else:
                self.w.grad = None
        return loss

    @torch.no_grad()
    def _project(self) -> None:
        w, h = self.objective.project(self.w, self.h)
        self.w.copy_(w)
        self.h.copy_(h)

    @torch.no_grad()
    def cap(self) -> tuple[float, str]:
        """The problem's cap for the next step."""
        moves_w = torch.tensor(self.num_steps % 2 == 0, device=self.w.device)
        eta, guarantee = self.objective.cap(self.w, self.h, moves_w)
        return float(eta), guarantee

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """The exact objective 1/2 ||V - W H||^2."""
        return float(self.objective.loss(self.w, self.h))

    def evaluate(self) -> dict[str, float]:
        """The exact objective, and ||V - W H|| / ||V||."""
        loss = self.privileged_loss()
        norm = float(self.matrix.norm())
        return {"held_out_loss": loss, "relative_error": math.sqrt(2 * loss) / norm}

    def _derive(self) -> None:
        self.objective = Objective(self._problem, self._instance)
        self._numbers = Numbers(*(x.to(self.w.device) for x in self._numbers))
