"""LRControlVecEnv: many inner training runs as one vectorized environment."""

import copy
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from lrpilot.envs.indices import selected
from lrpilot.envs.lr_control import LRControlEnv
from lrpilot.envs.reward import has_diverged, log_level
from lrpilot.policy.controller import Controller
from lrpilot.policy.settings import ControlSettings
from lrpilot.tasks.task import Task

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ARRAYS = (
    "_initial_lr",
    "_initial_privileged",
    "_log_level",
    "_num_capped",
    "_lrs",
    "_reward_scale",
)


class LRControlVecEnv(VecEnv):
    """B environments `LRControlEnv` as one tensor computation, for tasks that can be batched.

    Instance i, seeded with seed + i, starts the episodes and gives (to rounding) the
    observations and rewards that a single `LRControlEnv` with that seed gives. A finished
    instance starts its next episode at once; its last observation is in the info under
    `terminal_observation`. With a `reward_interval`, the privileged losses of all instances are
    computed when one of them is due.

    Args:
        task: the inner training problem, or the name of a shipped one; it must have `start_batch`.
        num_envs: B, at least 1.
        settings: as those of `LRControlEnv`.
        **arguments: as those of `LRControlEnv`.

    Raises:
        ValueError: if an argument is out of range, the task cannot be batched, or the curvature is
            to be observed.
    """

    def __init__(
        self,
        task: Task | str,
        num_envs: int,
        settings: ControlSettings | None = None,
        **arguments: Any,
    ) -> None:
        # answers the questions that SB3 asks of one environment
        self.instance = LRControlEnv(task, settings, **arguments)
        self.settings = self.instance.settings
        self.task = self.instance.task
        self.runs = self.task.start_batch(num_envs)
        super().__init__(num_envs, self.instance.observation_space, self.instance.action_space)
        self.render_mode = None
        self._next_seeds: list[int | None] = [None] * num_envs
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        groups = self.settings.observation.groups
        if "curvature" in groups:
            raise ValueError(
                "`observation` of batched runs must not have the group 'curvature', which is "
                f"measured one run at a time, got {list(groups)}"
            )
        self.controller = Controller(
            self.settings.observation,
            self.settings.action,
            self.runs,
            clock=self.settings.clock,
            num_runs=num_envs,
        )
        self._initial_lr = np.zeros(num_envs)
        self._initial_privileged = np.ones(num_envs)
        self._log_level = np.zeros(num_envs)
        self._num_capped = np.zeros(num_envs, np.int64)
        self._reward_scale = np.ones(num_envs)
        self._lrs = np.zeros(num_envs)
        self._guarantee = ""
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._episodes: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self._actions: Array | None = None

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed instance i with seed + i at the next reset."""
        self.seed_each(list(super().seed(seed)))
        return list(self._next_seeds)

    def seed_each(self, seeds: list[int | None]) -> None:
        """Seed each instance at the next reset; None leaves its generator as it is."""
        self._next_seeds = list(seeds)

    def reset(self) -> Array:
        """Start all episodes; returns observations of shape (B, features)."""
        for i, seed in enumerate(self._next_seeds):
            if seed is not None:
                self._rngs[i] = seeding.np_random(seed)[0]
        self._next_seeds = [None] * self.num_envs
        return self._start(list(range(self.num_envs)))

    def _start(self, rows: list[int]) -> Array:
        for row in rows:
            self._episodes[row] = self.instance.episodes.draw(self._rngs[row], {})
        drawn = [self._episodes[row] for row in rows]
        seeds = [episode["task_seed"] for episode in drawn]
        self.runs.reset(rows, seeds)
        horizons = [episode["total_steps"] for episode in drawn]
        intervals = [self.settings.clock.interval_steps(total) for total in horizons]
        self.controller.reset(rows, total_steps=horizons, interval_steps=intervals)
        self._initial_lr[rows] = [episode["initial_lr"] for episode in drawn]
        self._reward_scale[rows] = [self.task.reward_scale_of(seed) for seed in seeds]
        if self.settings.reward == "privileged":
            self._initial_privileged[rows] = self._privileged_losses()[rows]
        self._returns[rows] = 0.0
        self._lengths[rows] = 0
        started = np.zeros(self.num_envs, np.bool_)
        started[rows] = True
        self._train_interval(started)
        self._log_level[rows] = self._observe_log_level()[rows]
        return self.controller.close_interval(started)[rows]

    def _privileged_losses(self) -> Floats:
        losses: Floats = self.runs.privileged_losses().double().cpu().numpy()
        return losses

    def _train_interval(self, started: Mask) -> None:
        """Train one decision interval of the runs of this mask."""
        steps_left = np.where(started, self.controller.steps_to_decision(), 0.0)
        device = self.runs.device
        fraction = torch.as_tensor(self.controller.factor, device=device)
        wanted = torch.as_tensor(self._initial_lr * self.controller.factor, device=device)
        lrs = torch.as_tensor(self._lrs, device=device)
        num_capped = torch.zeros(self.num_envs, dtype=torch.int64, device=device)
        # all come to their decisions together, so that their weights are marked together
        for left in range(int(steps_left.max()), 0, -1):
            mask = steps_left >= left
            active = torch.as_tensor(mask, device=device)
            next_lrs = wanted
            if self.settings.use_cap:
                cap, self._guarantee = self.runs.cap()
                eta_max = cap.double()
                if self.settings.action.unit == "cap":
                    next_lrs = fraction * eta_max
                num_capped += active & (next_lrs >= eta_max)
                next_lrs = torch.minimum(next_lrs, eta_max)
            lrs = next_lrs if mask.all() else torch.where(active, next_lrs, lrs)
            self.controller.step(self.runs.step(lrs, active), mask)
        self._lrs = lrs.cpu().numpy()
        self._num_capped = np.where(started, num_capped.cpu().numpy(), self._num_capped)

    def _is_diverged(self) -> Mask:
        diverged: Mask = has_diverged(self.controller.observer, self.settings.divergence_factor)
        return diverged

    def _observe_log_level(self) -> Floats:
        level = self.controller.observer.interval_loss
        if self.settings.reward == "privileged":
            level = self._privileged_losses() / self._initial_privileged
        levels: Floats = log_level(level, self._is_diverged(), self.settings.divergence_factor)
        return levels

    def step_async(self, actions: Array) -> None:
        """Keep the actions, of shape (B, 1), for `step_wait`."""
        if np.shape(actions) != (self.num_envs, 1):
            raise ValueError(
                f"`actions` must have shape ({self.num_envs}, 1), got {np.shape(actions)}"
            )
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]:
        """Apply the actions and train one decision interval of every run."""
        if self._actions is None:
            raise RuntimeError("call `step_async(actions)` before `step_wait()`")
        self.controller.act(np.array(self._actions[:, 0], np.float64))
        self._actions = None
        everyone = np.ones(self.num_envs, np.bool_)
        self._train_interval(everyone)
        is_diverged = self._is_diverged()
        self._lengths += 1
        is_terminated = is_diverged | (self.controller.progress >= 1.0)
        is_truncated = ~is_terminated & (self._lengths == (self.settings.max_decisions or 0))
        is_done = is_terminated | is_truncated
        rewards = self._rewards(is_done | (self._lengths % self.settings.reward_interval == 0))
        observations = self.controller.close_interval(everyone)
        self._returns += rewards
        infos = self._infos(is_diverged)
        done_rows = is_done.nonzero()[0].tolist()
        for row in done_rows:
            infos[row]["episode_return"] = float(self._returns[row])
            infos[row]["episode_length"] = int(self._lengths[row])
            infos[row]["terminal_observation"] = observations[row].copy()
            infos[row]["TimeLimit.truncated"] = bool(is_truncated[row])
        if done_rows:
            observations[done_rows] = self._start(done_rows)
        return observations, rewards.astype(np.float32), is_done, infos

    def _rewards(self, is_due: Mask) -> Floats:
        """The rewards of the instances that are due for a measurement, 0 for the others."""
        if not is_due.any():
            return np.zeros(self.num_envs)
        log_level = np.where(is_due, self._observe_log_level(), self._log_level)
        rewards = self._reward_scale * (self._log_level - log_level)
        self._log_level = log_level
        return rewards

    def _infos(self, is_diverged: Mask) -> list[dict[str, Any]]:
        steps = self.controller.num_steps.tolist()
        capped: list[dict[str, Any]] = [{}] * self.num_envs
        if self.settings.use_cap:
            counts = self._num_capped.tolist()
            capped = [{"num_capped": n, "guarantee": self._guarantee} for n in counts]
        return [
            {**episode, "lr": lr, "num_steps": num_steps, "is_diverged": diverged, **bound}
            for episode, lr, num_steps, diverged, bound in zip(
                self._episodes, self._lrs.tolist(), steps, is_diverged.tolist(), capped, strict=True
            )
        ]

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the shared specification, once per instance."""
        return [getattr(self.instance, attr_name) for _ in selected(indices, self.num_envs)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the specification, for all instances together."""
        if len(selected(indices, self.num_envs)) != self.num_envs:
            raise ValueError("`indices` must name all instances: they share one specification")
        setattr(self.instance, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the shared specification, once per instance."""
        method = getattr(self.instance, method_name)
        return [method(*method_args, **method_kwargs) for _ in selected(indices, self.num_envs)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No instance is wrapped."""
        return [False for _ in selected(indices, self.num_envs)]

    def state_dict(self) -> dict[str, Any]:
        """The state of all episodes and generators, in plain values and copied tensors."""
        return {
            "rngs": [copy.deepcopy(rng.bit_generator.state) for rng in self._rngs],
            "episodes": [dict(episode) for episode in self._episodes],
            "runs": self.runs.state_dict(),
            "controller": self.controller.state_dict(),
            "arrays": {name: getattr(self, name).tolist() for name in _ARRAYS},
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment built with the same arguments."""
        for rng, rng_state in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = copy.deepcopy(rng_state)
        self._episodes = [dict(episode) for episode in state["episodes"]]
        self.runs.load_state_dict(state["runs"])
        self.controller.load_state_dict(state["controller"])
        for name in _ARRAYS:
            setattr(self, name, np.array(state["arrays"][name]))
        self._returns = np.array(state["returns"])
        self._lengths = np.array(state["lengths"])
