"""DAgger: a policy acts, experts say what they had done there, and it learns from all of that."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from lrpilot import ControlSettings, Policy
from lrpilot.agents.export import versions
from lrpilot.agents.imitation.actor import Actor
from lrpilot.agents.imitation.experts import Experts, decay_to_zero
from lrpilot.envs.episodes import Episodes
from lrpilot.envs.vec_lr_control import LRControlVecEnv
from lrpilot.tasks.task import Task

FIELDS = ("round", "num_states", "error", "return_mean", "num_episodes", "seconds")

_BATCH_SIZE = 3072
_LEARNING_RATE = 2e-3
_MAX_GRADIENT_NORM = 1.0
# so that experts which see no difference between the peaks count, too
_LEAST_STAKE = 0.05

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertEpisodes(Episodes):
    """The experts' trainings, in random order again and again, from random learning rates."""

    experts: Experts
    _queue: list[int] = field(default_factory=list)

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, Any]:
        """The next training; `expert` is the index of its expert."""
        if not self._queue:
            self._queue.extend(rng.permutation(len(self.experts)).tolist())
        index = self._queue.pop()
        chosen = {
            "task_seed": int(self.experts.task_seeds[index]),
            "total_steps": int(self.experts.total_steps[index]),
        }
        return {**super().draw(rng, {**chosen, **options}), "expert": index}


class Rollout(NamedTuple):
    """What B environments saw in S decisions."""

    observations: torch.Tensor
    """(S, B, features)."""
    wanted: torch.Tensor
    """Actions of the experts, (S, B)."""
    weights: torch.Tensor
    """(S, B)."""
    is_first: torch.Tensor
    """Whether it is the first decision of a run, (S, B)."""
    memory: torch.Tensor
    """Before the first of the decisions, (2, B, units)."""


class Classroom:
    """Environments in which a policy acts, and experts say what they had done.

    Args:
        env: the environments, whose episodes are those of `experts`.
        experts: at least one.
        peak_error: see `Experts.best_peaks`.
        rng: of the noise, and of who follows the experts.
    """

    def __init__(
        self, env: LRControlVecEnv, experts: Experts, *, peak_error: float, rng: np.random.Generator
    ) -> None:
        env.instance.episodes = ExpertEpisodes(env.task, env.settings, experts)
        self._env = env
        self._rng = rng
        self._peaks = experts.best_peaks(peak_error)
        self._stakes = experts.stakes() + _LEAST_STAKE
        self._observations = env.reset()
        self._is_first = np.ones(env.num_envs, np.bool_)
        self._memory: NDArray[np.float32] | None = None
        self.returns: list[float] = []
        self.errors: list[float] = []

    def roll_out(
        self, policy: Policy, num_steps: int, *, expert_share: float, noise: float
    ) -> Rollout:
        """Let the policy act, and in a share of the environments the experts.

        Args:
            policy: acts.
            num_steps: decisions of each environment.
            expert_share: chance of an environment that its expert acts.
            noise: standard deviation of what is added to all actions.
        """
        env = self._env
        if self._memory is None:
            self._memory = policy.initial_memory(env.num_envs)
        follows = self._rng.random(env.num_envs) < expert_share
        memory = torch.tensor(self._memory)
        parts = []
        self.returns, self.errors = [], []
        for _ in range(num_steps):
            wanted, weights = self._wanted()
            parts.append((self._observations.copy(), wanted, weights, self._is_first))
            chosen = policy.act_batch(self._observations, self._memory)
            self.errors.append(float(np.average((chosen - wanted) ** 2, weights=weights)))
            actions = np.where(follows, wanted, chosen)
            actions += noise * self._rng.standard_normal(env.num_envs)
            env.step_async(actions.clip(-1.0, 1.0).astype(np.float32)[:, None])
            self._observations, _, self._is_first, infos = env.step_wait()
            self._memory[:, self._is_first] = 0.0
            self.returns += [info["episode_return"] for info in infos if "episode_return" in info]
        seen, asked, weight, is_first = (np.stack(part) for part in zip(*parts, strict=True))
        return Rollout(
            torch.tensor(seen),
            torch.tensor(asked, dtype=torch.float32),
            torch.tensor(weight, dtype=torch.float32),
            torch.tensor(is_first),
            memory,
        )

    def _wanted(self) -> tuple[Floats, Floats]:
        """The actions of the experts, as far as one decision reaches, and their weights."""
        env = self._env
        index = np.array([episode["expert"] for episode in env.drawn_episodes])
        initial_lrs = np.array([episode["initial_lr"] for episode in env.drawn_episodes])
        progress = env.controller.progress
        actions: Floats = env.settings.action.action_for(
            self._peaks[index] * decay_to_zero(progress) / initial_lrs,
            multiplier=env.controller.multiplier,
            progress=progress,
        )
        return actions.clip(-1.0, 1.0), self._stakes[index]


def imitate(
    task: Task,
    settings: ControlSettings,
    experts: Experts,
    *,
    num_envs: int,
    num_rounds: int,
    steps_per_round: int,
    updates_per_round: int,
    lstm_units: int,
    hidden_sizes: Sequence[int],
    action_noise: float,
    peak_error: float,
    seed: int = 0,
    card: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    report: Callable[[Policy, str], None] = lambda policy, metrics: None,
) -> Policy:
    """Learn to bring the learning rate to where each training's expert has it, by DAgger.

    In round i, the policy controls the experts' trainings from random initial learning rates,
    but for a share 2^-i of the environments, where the experts act. In every state that is seen,
    the expert's action a* is noted: it brings the learning rate to the best peak times
    `decay_to_zero(p)`, as far as one decision reaches. Then the policy is fitted to all that were
    noted so far: Adam minimizes the mean of (a - a*)^2, weighted by what is at stake for the
    expert.

    Args:
        task: of the experts; batched.
        settings: what the policy sees and does; its horizons are those of the experts.
        experts: at least one.
        num_envs: trainings at the same time.
        num_rounds: how often the policy is fitted.
        steps_per_round: decisions of each environment in a round.
        updates_per_round: minibatches of about 3,000 states that it is fitted to.
        lstm_units: of an LSTM cell before the layers, so that the policy remembers; 0 for none.
        hidden_sizes: units of the layers.
        action_noise: standard deviation of noise in all actions, so that more is seen.
        peak_error: of `Experts.best_peaks`.
        seed: of the draws and the weights.
        card: what the policy file says besides.
        show_progress: whether to draw a progress bar.
        report: is given the policy and the rows of metrics so far (CSV) after every round.

    References:
        Ross et al. A reduction of imitation learning and structured prediction to no-regret online
        learning. AISTATS 2011.
    """
    env = LRControlVecEnv(task, num_envs, settings)
    env.seed(seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    settings = env.settings
    names = settings.observation.names
    actor = Actor(len(names), lstm_units=lstm_units, hidden_sizes=hidden_sizes)
    optimizer = torch.optim.Adam(actor.parameters(), lr=_LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.1, total_iters=num_rounds * updates_per_round
    )
    classroom = Classroom(env, experts, peak_error=peak_error, rng=rng)
    trained_on = {
        **(card or {}),
        "algorithm": "DAgger",
        "num_experts": len(experts),
        "seed": seed,
        "versions": versions(),
    }
    policy = actor.policy(settings, trained_on)
    rollouts: list[Rollout] = []
    metrics = io.StringIO()
    writer = csv.DictWriter(metrics, FIELDS)
    writer.writeheader()
    start = time.perf_counter()
    bar = tqdm(range(1, num_rounds + 1), unit=" rounds", disable=not show_progress)
    for k in bar:
        rollout = classroom.roll_out(
            policy, steps_per_round, expert_share=0.5**k, noise=action_noise
        )
        rollouts.append(rollout)
        whole = Rollout(*(torch.cat(parts, 1) for parts in zip(*rollouts, strict=True)))
        for _ in range(updates_per_round):
            _update(actor, optimizer, whole)
            decay.step()
        seen = whole.observations.flatten(0, 1)
        bounds = zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True)
        ranges = dict(zip(names, map(list, bounds), strict=True))
        policy = actor.policy(settings, {**trained_on, "feature_range": ranges})
        row = {
            "round": k,
            "num_states": whole.wanted.numel(),
            "error": float(np.mean(classroom.errors)),
            "return_mean": float(np.mean(classroom.returns)) if classroom.returns else "",
            "num_episodes": len(classroom.returns),
            "seconds": round(time.perf_counter() - start, 1),
        }
        writer.writerow(row)
        bar.set_postfix_str(f"error {row['error']:.3f}")
        report(policy, metrics.getvalue())
    env.close()
    return policy


def _update(actor: Actor, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    """One minibatch of whole sequences."""
    num_steps, num_sequences = rollout.wanted.shape
    index = torch.randint(num_sequences, (max(1, _BATCH_SIZE // num_steps),))
    wanted, weights, is_first = (
        part[:, index] for part in (rollout.wanted, rollout.weights, rollout.is_first)
    )
    actions = actor(rollout.observations[:, index], is_first, rollout.memory[:, index])
    loss = (weights * (actions - wanted).square()).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(actor.parameters(), _MAX_GRADIENT_NORM)
    optimizer.step()
