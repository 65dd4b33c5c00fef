"""LRControlEnv: one inner training run as a Gymnasium environment."""

import copy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.envs.episodes import FIRST_EVALUATION_SEED, Episodes, settings_for
from lrpilot.envs.reward import has_diverged, log_level
from lrpilot.loss import read_numbers
from lrpilot.policy.controller import Controller
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.observation import FEATURE_LIMIT
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.policy.settings import ControlSettings
from lrpilot.tasks.runs import Run, as_closure_run
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

__all__ = ["FIRST_EVALUATION_SEED", "LRControlEnv"]

Array = NDArray[np.float32]


class LRControlEnv(gymnasium.Env[Array, Array]):
    """Control the learning rate of one training run.

    **Action space.** `Box(-1, 1, (1,), float32)`. The action multiplies the learning rate; its
    exact meaning, and the box that it cannot leave, are those of `lrpilot.ActionSpec`.

    **Observation space.** `Box(-5, 5, (n,), float32)`, the n features of
    `lrpilot.ObservationSpec` in their order. With the groups that are on by default:

    ===== =================== ============================================================
    index feature             meaning
    ===== =================== ============================================================
    0     progress            share of the run that is done, -1 to 1
    1     log_loss            log loss relative to the start
    2     short_slope         change of the log loss over the last interval
    3     long_slope          its exponential average
    4     slope_significance  change of the loss over its standard error
    5     relative_noise      standard deviation of the loss over its mean
    6     log_lr              log learning rate relative to the start
    7     previous_action     the last action
    8     displacement        movement of the weights over their norm, log scale
    9     displacement_cosine cosine of successive movements
    10    weight_growth       change of the log weight norm
    11    gradient_growth     change of the log gradient norm
    ===== =================== ============================================================

    The group curvature adds edge_distance, log10 of the learning rate over the largest stable one
    on the last minibatch, at the cost of about eight steps per decision.

    **Reward.** log y_{k-1} - log y_k times the task's `reward_scale`, the improvement of the log
    loss over the decision interval, so that an episode's return is the log improvement over all
    its decisions. y is the loss relative to the start, kept in [1e-8, `divergence_factor`]: the
    run's privileged loss at the interval's end (`reward="privileged"`: noise-free, or on fixed
    held-out data) or the mean training loss of the interval (`reward="training"`). Never the test
    split.
    With `reward_interval` = m, y is measured at every m-th decision and at the last one; the
    others are rewarded 0, so that the return is the same, and the privileged loss costs an m-th.

    **Start.** A task seed below 2^30, an initial learning rate (log-uniform around the task's
    default) and a horizon T (log-uniform) are drawn; the first interval is trained at the start
    factor, since before it there is nothing to see. `reset(options=...)` fixes any of
    `task_seed`, `initial_lr` and `total_steps` (or `num_epochs`) instead. In a `MixtureTask` the
    seed also draws the task, which has its own default learning rate, horizon and reward scale.

    **Episode end.** Terminated when T optimizer steps are done (the horizon is part of the task
    and is observed, so values must not be bootstrapped), or when the run diverged: a loss that
    is not finite, or an interval's mean loss above `divergence_factor` times the first loss.
    Then y counts as `divergence_factor`, a finite penalty, and the observation is finite.
    Truncated after `max_decisions` decisions, if the run is not at its end: an agent learns on the
    first part of a long run, whose horizon it observes, and values must be bootstrapped.

    **Info.** `losses` (minibatch loss of each step of the interval), `lr`, `num_steps`,
    `is_diverged`, `initial_lr`, `total_steps`, `task_seed`, `task` (the name of the one that is
    trained); under a cap also `num_capped` (steps of the interval that it bound) and `guarantee`
    (its name); at the end `episode_return` and `episode_length` (decisions), beside which
    the wrappers of Gymnasium and SB3 that record episodes work as usual.

    Args:
        task: the inner training problem, or the name of a shipped one, as in `conf/task`.
        settings: what is seen, done and rewarded, and how often.
        **arguments: fields of `lrpilot.ControlSettings`, instead of `settings` or to change them.

    Raises:
        ValueError: if an argument is out of range, or a task has no epochs of one length.

    Version history: v0, first.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(
        self, task: Task | str, settings: ControlSettings | None = None, **arguments: Any
    ) -> None:
        self.task = load_task(task)
        settings = replace(settings or ControlSettings(), **arguments)
        self.settings = settings_for(self.task, settings)
        self.episodes = Episodes(self.task, self.settings)
        self.render_mode = None
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = spaces.Box(
            -FEATURE_LIMIT, FEATURE_LIMIT, (len(self.settings.observation.names),), np.float32
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start a new run and train its first interval."""
        super().reset(seed=seed)
        self._start(self.episodes.draw(self.np_random, options or {}))
        self._initial_privileged_loss = (
            self.run.privileged_loss() if self.settings.reward == "privileged" else 1.0
        )
        self._return = 0.0
        self._num_decisions = 0
        losses = self._train_interval()
        is_diverged = has_diverged(self.controller.observer, self.settings.divergence_factor)
        self._log_level = self._observe_log_level(is_diverged)
        return self.controller.close_interval(), self._info(losses, is_diverged)

    def _start(self, episode: dict[str, Any]) -> None:
        self._episode = episode
        task = self.task.member_of_seed(episode["task_seed"])
        self._reward_scale = self.task.reward_scale_of(episode["task_seed"])
        self.run: Run = task.at_lr(episode["initial_lr"]).start(episode["task_seed"])
        total_steps = episode["total_steps"]
        curvature = None
        if "curvature" in self.settings.observation.groups:
            curvature = EdgeDistance(
                self.run.optimizer,
                as_closure_run(self.run).repeat_loss,
                model=getattr(self.run, "model", None),
            )
        self.controller = Controller(
            self.settings.observation,
            self.settings.action,
            ParameterSample(self.run.parameters, self.settings.observation.num_entries),
            interval_steps=self.settings.clock.interval_steps(total_steps),
            clock=self.settings.clock,
            total_steps=total_steps,
            curvature=curvature,
        )

    def step(
        self, action: NDArray[np.floating[Any]]
    ) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Apply the action and train one decision interval."""
        if not hasattr(self, "controller"):
            raise RuntimeError("call `reset()` before `step()`")
        value = np.asarray(action, dtype=np.float64)
        if value.shape != (1,):
            raise ValueError(f"`action` must have shape (1,), got {value.shape}")
        self.controller.act(float(value[0]))
        losses = self._train_interval()
        is_diverged = has_diverged(self.controller.observer, self.settings.divergence_factor)
        self._num_decisions += 1
        terminated = is_diverged or self.controller.progress >= 1.0
        truncated = not terminated and self._num_decisions == self.settings.max_decisions
        reward = 0.0
        if terminated or truncated or self._num_decisions % self.settings.reward_interval == 0:
            log_level = self._observe_log_level(is_diverged)
            reward = self._reward_scale * (self._log_level - log_level)
            self._log_level = log_level
        self._return += reward
        observation = self.controller.close_interval()
        info = self._info(losses, is_diverged)
        if terminated or truncated:
            info |= {"episode_return": self._return, "episode_length": self._num_decisions}
        return observation, reward, terminated, truncated, info

    def _train_interval(self) -> list[float]:
        controller, run = self.controller, self.run
        losses: list[Tensor] = []
        decision_due = False
        self._num_capped = 0
        total_steps = self._episode["total_steps"]
        while not decision_due and run.num_steps < total_steps:
            if self.settings.use_cap or not losses:
                self._lr = self._next_lr()
            losses.append(run.step(self._lr))
            decision_due = controller.step(losses[-1])
        return read_numbers(losses)

    def _next_lr(self) -> float:
        lr: float = self._episode["initial_lr"] * self.controller.factor
        if not self.settings.use_cap:
            return lr
        eta_max, self._guarantee = self.run.cap()
        if self.settings.action.unit == "cap":
            lr = self.controller.factor * eta_max
        self._num_capped += lr >= eta_max
        return min(lr, eta_max)

    def _observe_log_level(self, is_diverged: bool) -> float:
        level = self.controller.observer.interval_loss
        if self.settings.reward == "privileged" and not is_diverged:
            level = self.run.privileged_loss() / self._initial_privileged_loss
        value: float = log_level(level, is_diverged, self.settings.divergence_factor)
        return value

    def _info(self, losses: list[float], is_diverged: bool) -> dict[str, Any]:
        info = {
            **self._episode,
            "losses": losses,
            "lr": self._lr,
            "num_steps": self.run.num_steps,
            "is_diverged": is_diverged,
        }
        if self.settings.use_cap:
            info |= {"num_capped": self._num_capped, "guarantee": self._guarantee}
        return info

    def state_dict(self) -> dict[str, Any]:
        """The state of the episode and of the generator, in plain values and copied tensors."""
        return {
            "np_random": copy.deepcopy(self.np_random.bit_generator.state),
            "episode": dict(self._episode),
            "run": self.run.state_dict(),
            "controller": self.controller.state_dict(),
            "log_level": self._log_level,
            "initial_privileged_loss": self._initial_privileged_loss,
            "return": self._return,
            "num_decisions": self._num_decisions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment built with the same arguments."""
        self.np_random.bit_generator.state = copy.deepcopy(state["np_random"])
        self._start(dict(state["episode"]))
        self.run.load_state_dict(state["run"])
        self.controller.load_state_dict(state["controller"])
        self._log_level = state["log_level"]
        self._initial_privileged_loss = state["initial_privileged_loss"]
        self._return = state["return"]
        self._num_decisions = state["num_decisions"]
