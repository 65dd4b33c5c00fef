"""DAgger: a policy acts, experts say what they had done there, and it learns from all of that."""

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lrpilot import ControlSettings, Policy
from lrpilot.agents.export import versions
from lrpilot.agents.imitation.actor import Actor
from lrpilot.agents.imitation.experts import Experts
from lrpilot.agents.imitation.mean import mean_policy
from lrpilot.agents.imitation.rollouts import Rollout, join, roll_out
from lrpilot.redaction import without_folders
from lrpilot.tasks.task import Task

FIELDS = ("round", "total_steps", "num_states", "error", "regret", "seconds")

_BATCH_SIZE = 3072
_LEARNING_RATE = 2e-3
_MAX_GRADIENT_NORM = 1.0


def imitate(
    task: Task,
    settings: ControlSettings,
    experts: Experts,
    *,
    num_runs: int,
    num_rounds: int,
    updates_per_round: int,
    lstm_units: int,
    hidden_sizes: Sequence[int],
    num_members: int,
    action_noise: float,
    peak_error: float,
    caution: float,
    schedule: str,
    seed: int = 0,
    init_from: Policy | None = None,
    earlier: Sequence[Rollout] = (),
    card: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    report: Callable[[Policy, str, Rollout], None] = lambda policy, metrics, rollout: None,
) -> Policy:
    """Learn to bring the learning rate to where each training's expert has it, by DAgger.

    In round i, the policy controls the experts' trainings of one horizon from random initial
    learning rates, but for a share 2^-i of the runs, in which the experts act. In every state that
    is seen, the expert's action a* is noted: it brings the learning rate to the best peak times
    the schedule at p, as far as one decision reaches. Then the policy is fitted to all that were
    noted so far: Adam minimizes the mean of (a - a*)^2, weighted by what is at stake for the
    expert, and by `caution` where a is above a*: what it learns is an expectile of a*, which is
    low where the state does not tell what is best.

    Args:
        task: of the experts; batched.
        settings: what the policy sees and does; its horizons are those of the experts.
        experts: at least one.
        num_runs: in each round.
        num_rounds: how often the policy is fitted.
        updates_per_round: minibatches of about 3,000 states that it is fitted to.
        lstm_units: of an LSTM cell before the layers, so that the policy remembers; 0 for none.
        hidden_sizes: units of the layers.
        num_members: how many networks learn, each from minibatches of its own; the policy acts as
            the mean of them.
        action_noise: standard deviation of noise in all actions, so that more is seen.
        peak_error: of `Experts.best_peaks`.
        caution: how much worse it is to be above the expert's action than below it; 1 for the mean.
        schedule: that the experts follow to the best peak, of `SCHEDULES`.
        seed: of the draws and the weights.
        init_from: policy that every member goes on from, of the same shapes, that sees and does the
            same; then no expert acts.
        earlier: what was noted in other imitations, of policies that saw and did the same; the
            policy is fitted to it before the first round, too, and no expert acts.
        card: what the policy file says besides.
        show_progress: whether to draw a progress bar.
        report: is given the policy, the rows of metrics so far (CSV), and what was noted in the
            round, after every round.

    References:
        Ross et al. A reduction of imitation learning and structured prediction to no-regret online
        learning. AISTATS 2011.

    Raises:
        ValueError: if `init_from` sees or does something else, or has other shapes.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    names = settings.observation.names
    actors = [
        Actor(len(names), lstm_units=lstm_units, hidden_sizes=hidden_sizes)
        for _ in range(num_members)
    ]
    if init_from is not None:
        for actor in actors:
            actor.load(init_from, settings)
    parameters = [parameter for actor in actors for parameter in actor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.1, total_iters=(num_rounds + bool(earlier)) * updates_per_round
    )
    given = without_folders(dict(card or {"task": {"name": task.name}}))
    trained_on: dict[str, Any] = {
        **given,
        "env": {**given.get("env", {}), **json.loads(json.dumps(asdict(settings)))},
        "algorithm": "DAgger",
        "num_experts": len(experts),
        "num_env_steps": 0,
        "num_inner_steps": 0,
        "num_earlier_env_steps": sum(rollout.wanted.numel() for rollout in earlier),
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
    }
    known_range: Mapping[str, Sequence[float]] = {}
    if init_from is not None:
        trained_on["init_from_fingerprint"] = init_from.fingerprint
        known_range = init_from.card.get("feature_range", {})
    rollouts = list(earlier)

    def fit() -> float:
        whole = join(rollouts)
        steps = range(updates_per_round)
        return float(np.mean([_update(actors, optimizer, whole, decay, caution) for _ in steps]))

    def mean() -> Policy:
        members = [actor.policy(settings, {}) for actor in actors]
        return mean_policy(members, dict(trained_on))

    if rollouts:
        fit()
    policy = mean()
    is_taught = init_from is None and not rollouts
    horizons: list[int] = []
    metrics = io.StringIO()
    writer = csv.DictWriter(metrics, FIELDS)
    writer.writeheader()
    start = time.perf_counter()
    bar = tqdm(range(1, num_rounds + 1), unit=" rounds", disable=not show_progress)
    for k in bar:
        if not horizons:
            horizons = rng.permutation(np.unique(experts.total_steps)).tolist()
        total_steps = horizons.pop()
        rollout, regrets = roll_out(
            task,
            settings,
            experts.of_horizon(total_steps),
            policy,
            num_runs=num_runs,
            peak_error=peak_error,
            schedule=schedule,
            expert_share=0.5**k if is_taught else 0.0,
            noise=action_noise,
            rng=rng,
        )
        rollouts.append(rollout)
        error = fit()
        trained_on["feature_range"] = _feature_range(rollouts, names, known_range)
        trained_on["num_env_steps"] += rollout.wanted.numel()
        trained_on["num_inner_steps"] += num_runs * total_steps
        policy = mean()
        row = {
            "round": k,
            "total_steps": total_steps,
            "num_states": trained_on["num_env_steps"],
            "error": round(error, 4),
            "regret": round(float(regrets.mean()), 4) if len(regrets) else "",
            "seconds": round(time.perf_counter() - start, 1),
        }
        writer.writerow(row)
        bar.set_postfix_str(f"error {row['error']}, regret {row['regret']}")
        report(policy, metrics.getvalue(), rollout)
    return policy


def _feature_range(
    rollouts: Sequence[Rollout], names: Sequence[str], known: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Least and greatest value of each feature that was seen, here or before."""
    seen = torch.cat([rollout.observations.flatten(0, 1) for rollout in rollouts])
    ranges = {}
    for name, *bounds in zip(names, seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True):
        bounds += known.get(name, [])
        ranges[name] = [min(bounds), max(bounds)]
    return ranges


def _update(
    actors: Sequence[Actor],
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    decay: torch.optim.lr_scheduler.LRScheduler,
    caution: float,
) -> float:
    """Fit every actor to some whole runs; returns their weighted mean squared error."""
    num_steps, num_runs = rollout.wanted.shape
    optimizer.zero_grad()
    errors = []
    for actor in actors:
        index = torch.randint(num_runs, (max(1, _BATCH_SIZE // num_steps),))
        observations, wanted, weights = (part[:, index] for part in rollout)
        excess = actor(observations) - wanted
        weights = torch.where(excess > 0.0, caution * weights, weights)
        loss = (weights * excess.square()).sum() / weights.sum().clamp(min=1e-6)
        loss.backward()
        nn.utils.clip_grad_norm_(actor.parameters(), _MAX_GRADIENT_NORM)
        errors.append(loss.item())
    optimizer.step()
    decay.step()
    return float(np.mean(errors))
