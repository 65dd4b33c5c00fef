"""DAgger: a policy acts, experts say what they had done there, and it learns from all of that."""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from lrpilot import ControlSettings, Policy
from lrpilot.agents.export import versions
from lrpilot.agents.imitation.experts import Expert, decay_to_zero
from lrpilot.envs.episodes import Episodes
from lrpilot.envs.vec_lr_control import LRControlVecEnv
from lrpilot.tasks.task import Task

FIELDS = ("round", "num_examples", "error", "return_mean", "num_episodes", "seconds")

_BATCH_SIZE = 2048
_LEARNING_RATE = 2e-3
# so that experts which see no difference between the peaks count, too
_LEAST_STAKE = 0.05

Array = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertEpisodes(Episodes):
    """The experts' trainings, in random order again and again, from random learning rates."""

    experts: Sequence[Expert] = ()
    _queue: list[int] = field(default_factory=list)

    def draw(self, rng: np.random.Generator, options: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """The next training; `expert` is the index of its expert."""
        if not self._queue:
            self._queue.extend(rng.permutation(len(self.experts)).tolist())
        index = self._queue.pop()
        expert = self.experts[index]
        chosen = {"task_seed": expert.task_seed, "total_steps": expert.total_steps}
        return {**super().draw(rng, {**chosen, **options}), "expert": index}


def imitate(
    task: Task,
    settings: ControlSettings,
    experts: Sequence[Expert],
    *,
    num_envs: int,
    num_rounds: int,
    steps_per_round: int,
    updates_per_round: int,
    hidden_sizes: Sequence[int],
    action_noise: float,
    seed: int = 0,
    init_from: Policy | None = None,
    card: dict[str, Any] | None = None,
    show_progress: bool = True,
    report: Callable[[Policy, str], None] = lambda policy, metrics: None,
) -> Policy:
    """Learn to bring the learning rate to where each training's expert has it, by DAgger.

    In round i, the policy controls the experts' trainings from random initial learning rates,
    but for a share 2^-(i+1) of the environments, where the experts act. In every state that is
    seen, the expert's action a* is noted, which brings the learning rate to peak_lr times
    `decay_to_zero(p)`, as far as one decision reaches. Then the policy is fitted to all that were
    noted so far: the weighted mean of (a - a*)^2 is minimized by Adam. An expert's weight is its
    stake.

    Args:
        task: of the experts; batched.
        settings: what the policy sees and does; its horizons are those of the experts.
        experts: at least one.
        num_envs: trainings at the same time.
        num_rounds: how often the policy is fitted.
        steps_per_round: decisions of each environment in a round.
        updates_per_round: minibatches of 2048 states that it is fitted to.
        hidden_sizes: units of the layers.
        action_noise: standard deviation of noise in all actions, so that more is seen.
        seed: of the draws and the weights.
        init_from: policy to start with; it must see and do the same. Then no expert acts.
        card: what the policy file says besides.
        show_progress: whether to draw a progress bar.
        report: is given the policy and the rows of metrics so far (CSV) after every round.

    References:
        Ross et al. A reduction of imitation learning and structured prediction to no-regret online
        learning. AISTATS 2011.

    Raises:
        ValueError: if there is no expert, or `init_from` sees or does something else.
    """
    if not experts:
        raise ValueError("`experts` must hold at least one expert, got none")
    env = LRControlVecEnv(task, num_envs, settings)
    settings = env.settings
    if init_from is not None:
        for name in ("observation", "action", "clock"):
            wanted, given = getattr(settings, name), getattr(init_from, name)
            if name != "clock" and wanted != given:
                raise ValueError(f"`init_from` must have the {name} {wanted}, got {given}")
    env.instance.episodes = ExpertEpisodes(task, settings, experts)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = _network([len(settings.observation.names), *hidden_sizes, 1])
    if init_from is not None:
        _load(network, init_from)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    stakes = np.array([expert.stake for expert in experts]) + _LEAST_STAKE
    peaks = np.array([expert.peak_lr for expert in experts])
    seen: list[Array] = []
    wanted_actions: list[Array] = []
    weights: list[Array] = []
    metrics = io.StringIO()
    writer = csv.DictWriter(metrics, FIELDS)
    writer.writeheader()
    trained_on = {
        **(card or {}),
        "algorithm": "DAgger",
        "num_experts": len(experts),
        "seed": seed,
        "versions": versions(),
    }

    def exported() -> Policy:
        more = {}
        if seen:
            low, high = np.min([x.min(0) for x in seen], 0), np.max([x.max(0) for x in seen], 0)
            bounds = zip(low.tolist(), high.tolist(), strict=True)
            more["feature_range"] = dict(
                zip(settings.observation.names, map(list, bounds), strict=True)
            )
        return _policy(network, settings, {**trained_on, **more})

    start = time.perf_counter()
    env.seed(seed)
    observations = env.reset()
    bar = tqdm(
        total=num_rounds * steps_per_round * num_envs,
        unit=" env steps",
        disable=not show_progress,
        mininterval=0.5,
    )
    for k in range(num_rounds):
        policy = exported()
        follows = rng.random(num_envs) < (0.5 ** (k + 1) if init_from is None else 0.0)
        returns: list[float] = []
        errors = []
        for _ in range(steps_per_round):
            index = np.array([episode["expert"] for episode in env.drawn_episodes])
            initial_lrs = np.array([episode["initial_lr"] for episode in env.drawn_episodes])
            progress = env.controller.progress
            wanted = settings.action.action_for(
                peaks[index] * decay_to_zero(progress) / initial_lrs,
                multiplier=env.controller.multiplier,
                progress=progress,
            ).clip(-1.0, 1.0)
            seen.append(observations.copy())
            wanted_actions.append(wanted.astype(np.float32))
            weights.append(stakes[index].astype(np.float32))
            actions = policy.act_batch(observations)
            errors.append(np.average((actions - wanted) ** 2, weights=stakes[index]))
            actions = np.where(follows, wanted, actions)
            actions = actions + action_noise * rng.standard_normal(num_envs)
            env.step_async(actions.clip(-1.0, 1.0).astype(np.float32)[:, None])
            observations, _, _, infos = env.step_wait()
            returns += [info["episode_return"] for info in infos if "episode_return" in info]
            bar.update(num_envs)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1.0 - 0.8 * k / num_rounds)
        _fit(network, optimizer, seen, wanted_actions, weights, num_updates=updates_per_round)
        row = {
            "round": k + 1,
            "num_examples": len(seen) * num_envs,
            "error": float(np.mean(errors)),
            "return_mean": float(np.mean(returns)) if returns else "",
            "num_episodes": len(returns),
            "seconds": round(time.perf_counter() - start, 1),
        }
        writer.writerow(row)
        bar.set_postfix_str(f"error {row['error']:.3f}")
        report(exported(), metrics.getvalue())
    bar.close()
    env.close()
    return exported()


def _network(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _linear(network: nn.Sequential) -> list[nn.Linear]:
    return [module for module in network if isinstance(module, nn.Linear)]


def _load(network: nn.Sequential, policy: Policy) -> None:
    mine = [tuple(module.weight.T.shape) for module in _linear(network)]
    given = [weight.shape for weight, _ in policy.layers]
    if policy.is_recurrent or mine != given:
        raise ValueError(f"`init_from` must have layers of shapes {mine}, got {given}")
    with torch.no_grad():
        for module, (weight, bias) in zip(_linear(network), policy.layers, strict=True):
            module.weight.copy_(torch.tensor(weight).T)
            module.bias.copy_(torch.tensor(bias))


def _policy(network: nn.Sequential, settings: ControlSettings, card: dict[str, Any]) -> Policy:
    layers = [
        (module.weight.detach().numpy().T, module.bias.detach().numpy())
        for module in _linear(network)
    ]
    return Policy(layers, settings.observation, settings.action, settings.clock, card=card)


def _fit(
    network: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    seen: Sequence[Array],
    wanted: Sequence[Array],
    weights: Sequence[Array],
    *,
    num_updates: int,
) -> None:
    x, y, w = (torch.tensor(np.concatenate(parts)) for parts in (seen, wanted, weights))
    mean_weight = w.mean()
    for _ in range(num_updates):
        index = torch.randint(len(x), (_BATCH_SIZE,))
        errors = (network(x[index])[:, 0] - y[index]).square()
        loss = (w[index] * errors).mean() / mean_weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
