"""LRControlEnv: one inner training run as a Gymnasium environment."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.envs.episodes import FIRST_EVALUATION_SEED, Episodes
from lrpilot.loss import read_numbers
from lrpilot.policy.action import ActionSpec
from lrpilot.policy.brake import DIVERGENCE_FACTOR
from lrpilot.policy.controller import ClockSpec, Controller
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.observation import FEATURE_LIMIT, ObservationSpec
from lrpilot.tasks.runs import Run, as_closure_run
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

__all__ = ["FIRST_EVALUATION_SEED", "LRControlEnv"]

Array = NDArray[np.float32]

REWARDS = ("privileged", "training")
LEVEL_FLOOR = 1e-8


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
        observation: what is seen; default all features.
        action: what an action does.
        num_decisions: decision intervals per run.
        interval_steps: optimizer steps per decision; default T / `num_decisions`, rounded.
        horizon_factors: range of T over the task's `total_steps`, or over `num_epochs` epochs.
        initial_lr_factors: range of the initial learning rate over the task's `base_lr`.
        reward: "privileged" or "training".
        divergence_factor: loss relative to the start above which a run counts as diverged.
        use_cap: whether the task's cap bounds the learning rate (always, if it is its unit).
        num_epochs: T in passes through the training examples, instead of the task's
            `total_steps`; a decision is then due every `num_epochs` / `num_decisions` epochs.
        reward_interval: decisions between two measurements of y.
        max_decisions: decisions after which an episode is truncated; default never.

    Raises:
        ValueError: if an argument is out of range, or a task has no epochs of one length.

    Version history: v0, first.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(
        self,
        task: Task | str,
        *,
        observation: ObservationSpec | None = None,
        action: ActionSpec | None = None,
        num_decisions: int = 30,
        interval_steps: int | None = None,
        horizon_factors: Sequence[float] = (1.0, 1.0),
        initial_lr_factors: Sequence[float] = (0.03, 30.0),
        reward: str = "privileged",
        divergence_factor: float = DIVERGENCE_FACTOR,
        use_cap: bool = False,
        num_epochs: float | None = None,
        reward_interval: int = 1,
        max_decisions: int | None = None,
    ) -> None:
        if reward not in REWARDS:
            raise ValueError(f"`reward` must be one of {REWARDS}, got {reward!r}")
        if not 1.0 < divergence_factor < math.inf:
            raise ValueError(f"`divergence_factor` must exceed 1, got {divergence_factor}")
        for name, count in (
            ("interval_steps", interval_steps),
            ("reward_interval", reward_interval),
            ("max_decisions", max_decisions),
        ):
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}")
        self.task = task = load_task(task)
        self.episodes = Episodes(
            task=task,
            horizon_factors=tuple(horizon_factors),
            initial_lr_factors=tuple(initial_lr_factors),
            num_epochs=num_epochs,
        )
        if interval_steps is not None:
            num_decisions = max(1, round(self.episodes.longest / interval_steps))
        self.observation = observation or ObservationSpec()
        self.action = action or ActionSpec()
        self.clock = ClockSpec(
            num_decisions=num_decisions,
            horizon_range=self.episodes.horizon_range,
            fixed_interval=interval_steps,
        )
        self.reward = reward
        self.reward_interval = reward_interval
        self.max_decisions = max_decisions
        self.divergence_factor = divergence_factor
        self.use_cap = use_cap or self.action.unit == "cap"
        self.render_mode = None
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = spaces.Box(
            -FEATURE_LIMIT, FEATURE_LIMIT, (len(self.observation.names),), np.float32
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start a new run and train its first interval."""
        super().reset(seed=seed)
        self._start(self.episodes.draw(self.np_random, options or {}))
        self._initial_privileged_loss = (
            self.run.privileged_loss() if self.reward == "privileged" else 1.0
        )
        self._return = 0.0
        self._num_decisions = 0
        losses = self._train_interval()
        is_diverged = self._is_diverged(losses)
        self._log_level = self._observe_log_level(is_diverged)
        return self.controller.observation(), self._info(losses, is_diverged)

    def _start(self, episode: dict[str, Any]) -> None:
        self._episode = episode
        task = self.task.member_of_seed(episode["task_seed"])
        self._reward_scale = task.reward_scale
        self.run: Run = task.at_lr(episode["initial_lr"]).start(episode["task_seed"])
        total_steps = episode["total_steps"]
        curvature = None
        if "curvature" in self.observation.groups:
            curvature = EdgeDistance(
                self.run.optimizer,
                as_closure_run(self.run).repeat_loss,
                model=getattr(self.run, "model", None),
            )
        self.controller = Controller(
            self.observation,
            self.action,
            parameters=self.run.parameters,
            interval_steps=self.clock.interval_steps(total_steps),
            total_steps=total_steps,
            curvature=curvature,
        )

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Apply the action and train one decision interval."""
        if not hasattr(self, "controller"):
            raise RuntimeError("call `reset()` before `step()`")
        value = np.asarray(action, dtype=np.float64)
        if value.shape != (1,):
            raise ValueError(f"`action` must have shape (1,), got {value.shape}")
        self.controller.act(float(value[0]))
        losses = self._train_interval()
        is_diverged = self._is_diverged(losses)
        self._num_decisions += 1
        terminated = is_diverged or self.controller.progress >= 1.0
        truncated = not terminated and self._num_decisions == self.max_decisions
        reward = 0.0
        if terminated or truncated or self._num_decisions % self.reward_interval == 0:
            log_level = self._observe_log_level(is_diverged)
            reward = self._reward_scale * (self._log_level - log_level)
            self._log_level = log_level
        self._return += reward
        observation = self.controller.observation()
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
            if self.use_cap or not losses:
                self._lr = self._next_lr()
            losses.append(run.step(self._lr))
            decision_due = controller.step(losses[-1])
        return read_numbers(losses)

    def _next_lr(self) -> float:
        lr: float = self._episode["initial_lr"] * self.controller.factor
        if not self.use_cap:
            return lr
        eta_max, self._guarantee = self.run.cap()
        if self.action.unit == "cap":
            lr = self.controller.factor * eta_max
        self._num_capped += lr >= eta_max
        return min(lr, eta_max)

    def _is_diverged(self, losses: list[float]) -> bool:
        level = self.controller.observer.interval_loss
        return level > self.divergence_factor or not all(map(math.isfinite, losses))

    def _observe_log_level(self, is_diverged: bool) -> float:
        if is_diverged:
            return math.log(self.divergence_factor)
        if self.reward == "training":
            level = self.controller.observer.interval_loss
        else:
            level = self.run.privileged_loss() / self._initial_privileged_loss
        if not math.isfinite(level):
            level = self.divergence_factor
        return math.log(max(LEVEL_FLOOR, min(self.divergence_factor, level)))

    def _info(self, losses: list[float], is_diverged: bool) -> dict[str, Any]:
        info = {
            **self._episode,
            "losses": losses,
            "lr": self._lr,
            "num_steps": self.run.num_steps,
            "is_diverged": is_diverged,
        }
        if self.use_cap:
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
