"""Hundreds of paired runs at once: schedules, policies, placebos and oracles on the same seeds.

Every control is a rule for the learning rates of step t. The runs are `BatchedRuns`, which tests
hold equal to single runs under real torch optimizers and schedulers.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot import Policy
from lrpilot.loss import DIVERGENCE_FACTOR
from lrpilot.policy.controller import Controller
from lrpilot.schedulers.base import idle_optimizer
from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.task import NMFTask

Floats = NDArray[np.float64]
Actor = Callable[[NDArray[np.float32]], NDArray[np.float32]]

NUM_CURVE_POINTS = 100


@dataclass(frozen=True)
class Trial:
    """The outcome of one control on all seeds.

    Args:
        scores: log10(f(T) / f(0)) of each run; diverged runs count as log10 of
            `DIVERGENCE_FACTOR`.
        diverged: runs whose exact loss ended, or ever was at a recorded step, not finite or above
            `DIVERGENCE_FACTOR` times its start.
        curve: mean over runs of log10(f(t) / f(0)) at the recorded steps.
        fractions: mean over runs of log10(lr) at the recorded steps, in units of the cap if the
            task has one.
        decided: factor and action of a policy's decisions, (decisions, 2, runs); empty for other
            controls.
        objectives: f(0) and f(T) of each run, (2, runs).
        lrs: learning rates of every step, (T, runs).
        losses: observed losses of every step, (T, runs).
        seconds: of all runs together.
    """

    scores: Floats
    diverged: NDArray[np.bool_]
    steps: list[int]
    curve: list[float]
    fractions: list[float]
    decided: Floats
    objectives: Floats
    lrs: Floats
    losses: Floats
    seconds: float


class Control(ABC):
    """A rule for the learning rates of B runs; override `lrs`."""

    def start(self, runs: BatchedNMFRuns, total_steps: int) -> None:  # noqa: B027 (optional)
        """Prepare for new runs."""

    @abstractmethod
    def lrs(self, step: int, runs: BatchedNMFRuns, cap: Tensor | None) -> Tensor:
        """Learning rates of this step, of shape (B,), from its number and the cap."""

    def observe(self, losses: Tensor) -> None:  # noqa: B027 (optional)
        """Take the observed losses of the step."""


@dataclass
class ScheduleControl(Control):
    """lr = initial lr x s(t), s(t) a fixed schedule; by `mode` as it is or joined to the cap.

    Args:
        factors: s(t) of every step.
        initial_lr: learning rate ("raw", "clipped") or fraction of the cap ("fraction").
        mode: "raw"; "clipped": at most the cap; "fraction": s(t) x initial_lr x cap, at most it.
    """

    factors: Sequence[float]
    initial_lr: float
    mode: str

    def lrs(self, step: int, runs: BatchedNMFRuns, cap: Tensor | None) -> Tensor:
        """The learning rate of the schedule, joined to the cap."""
        lr = self.initial_lr * self.factors[step]
        if self.mode == "raw":
            return torch.full((runs.num_runs,), lr, device=runs.device)
        assert cap is not None
        if self.mode == "clipped":
            return cap.clamp(max=lr)
        return cap * min(1.0, lr)


@dataclass
class PolicyControl(Control):
    """A policy, or any actor with its specifications, decides once per interval.

    Args:
        policy: the specifications, and the actor unless one is given.
        actor: called as `actor(observations)`; returns actions of shape (B,).
        initial_lr: initial learning rate; unused if the policy's unit is the cap.
    """

    policy: Policy
    actor: Actor | None = None
    initial_lr: float = 1.0

    def start(self, runs: BatchedNMFRuns, total_steps: int) -> None:
        """Set all clocks to zero."""
        self.decided: list[tuple[Floats, Floats]] = []
        self._everyone = np.ones(runs.num_runs, np.bool_)
        self._memory = self.policy.initial_memory(runs.num_runs)
        self._decision_steps = set(self.policy.clock.decision_steps(total_steps))
        self._controller = Controller(
            self.policy.observation,
            self.policy.action,
            runs,
            clock=self.policy.clock,
            num_runs=runs.num_runs,
        )
        self._controller.reset(
            list(range(runs.num_runs)),
            total_steps=[total_steps] * runs.num_runs,
            interval_steps=[self.policy.clock.interval_steps(total_steps)] * runs.num_runs,
        )
        self._factor = torch.as_tensor(self._controller.factor, device=runs.device)

    def lrs(self, step: int, runs: BatchedNMFRuns, cap: Tensor | None) -> Tensor:
        """Decide if a decision is due; then the factor in its unit."""
        controller = self._controller
        if step in self._decision_steps:
            observations = controller.close_interval(self._everyone)
            if self.actor is None:
                actions = self.policy.act_batch(observations, self._memory)
            else:
                actions = self.actor(observations)
            controller.act(actions.astype(np.float64))
            self.decided.append((controller.factor, controller.previous_action))
            self._factor = torch.as_tensor(controller.factor, device=runs.device)
        if self.policy.action.unit == "cap":
            assert cap is not None
            return cap * self._factor
        return self.initial_lr * self._factor

    def observe(self, losses: Tensor) -> None:
        """Pass the losses on to the observer."""
        self._controller.step(losses, self._everyone)


class OracleControl(Control):
    """The exact best step along the direction that is taken, known to no algorithm."""

    def lrs(self, step: int, runs: BatchedNMFRuns, cap: Tensor | None) -> Tensor:
        """The best eta >= 0 of f(W - eta g_W, H - eta g_H), g the gradient to come."""
        return runs.best_lrs()


def run_trial(
    task: NMFTask,
    control: Control,
    *,
    seeds: Sequence[int],
    needs_cap: bool = True,
) -> Trial:
    """Run one control on all seeds at once.

    Args:
        task: the problem.
        control: the rule for the learning rates.
        seeds: one run each.
        needs_cap: whether to compute the cap at every step.
    """
    began = time.perf_counter()
    runs = task.start_batch(len(seeds))
    assert isinstance(runs, BatchedNMFRuns)
    runs.reset(list(range(len(seeds))), list(seeds))
    control.start(runs, task.total_steps)
    everyone = torch.ones(len(seeds), dtype=torch.bool, device=runs.device)
    start = runs.privileged_losses().double()
    recorded = {round(x) for x in np.linspace(0, task.total_steps, NUM_CURVE_POINTS + 1)}
    broken = torch.zeros_like(everyone)
    steps, curve, fractions = [], [], []
    all_lrs, all_losses = [], []

    def logs() -> Tensor:
        ratio = runs.privileged_losses().double() / start
        broken.logical_or_(~(ratio <= DIVERGENCE_FACTOR))
        return ratio.nan_to_num(nan=torch.inf).clamp(1e-30, DIVERGENCE_FACTOR).log10()

    for step in range(task.total_steps):
        cap = runs.cap()[0] if needs_cap else None
        lrs = control.lrs(step, runs, cap)
        if step in recorded:
            steps.append(step)
            curve.append(float(logs().mean()))
            fractions.append(float((lrs if cap is None else lrs / cap).double().log10().mean()))
        losses = runs.step(lrs, everyone)
        control.observe(losses)
        all_lrs.append(lrs.double().cpu().numpy())
        all_losses.append(losses.double().cpu().numpy())
    scores = logs()
    scores[broken] = math.log10(DIVERGENCE_FACTOR)
    return Trial(
        scores=scores.cpu().numpy(),
        diverged=broken.cpu().numpy(),
        steps=[*steps, task.total_steps],
        curve=[*curve, float(scores.mean())],
        fractions=fractions,
        decided=np.array(getattr(control, "decided", [])),
        objectives=torch.stack((start, runs.privileged_losses().double())).cpu().numpy(),
        lrs=np.stack(all_lrs),
        losses=np.stack(all_losses),
        seconds=time.perf_counter() - began,
    )


def schedule_factors(make: Callable[..., Any], total_steps: int) -> list[float]:
    """s(t) of a torch scheduler, by stepping it on an optimizer with learning rate 1."""
    optimizer = idle_optimizer(1.0)
    scheduler = make(optimizer, total_steps=total_steps)
    factors = []
    for _ in range(total_steps):
        factors.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return factors
