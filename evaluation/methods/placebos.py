"""Controls that look like a policy but lack what it claims: training, feedback, or both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lrpilot import Policy
from lrpilot.evaluation.runs.grid import Result, Scheduler, deployed
from lrpilot.policy.action import anchor_factor
from lrpilot.tasks.runs import Run

Floats = NDArray[np.float64]

STATIC_MULTIPLIERS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""What the static placebo's multiplier is chosen from."""


def untrained(policy: Policy, seed: int) -> Policy:
    """The policy with freshly drawn weights of the same scale as an untrained SB3 actor."""
    rng = np.random.default_rng(seed)
    lstm = None
    if policy.lstm is not None:
        bound = 2.0 / math.sqrt(len(policy.lstm[1]))  # 1 / sqrt(units), for four gates
        gates, shift = (rng.uniform(-bound, bound, x.shape) for x in policy.lstm)
        lstm = gates.astype(np.float32), shift.astype(np.float32)
    layers = []
    for i, (weight, bias) in enumerate(policy.layers):
        is_last = i == len(policy.layers) - 1
        rows, columns = weight.shape
        q, _ = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
        orthogonal = q if rows >= columns else q.T
        gain = 0.01 if is_last else np.sqrt(2.0)
        layers.append(((gain * orthogonal).astype(np.float32), np.zeros_like(bias)))
    return replace(policy, layers=layers, lstm=lstm, card={})


@dataclass(frozen=True)
class Recording:
    """What a policy did on some seeds, and what no policy does best on them.

    Args:
        curves: initial learning rate -> lr / initial lr at every step, geometric mean over seeds;
            empty where every seed is another training, with a learning rate of its own.
        actions: all actions.
        multipliers: initial learning rate -> the best multiplier of `static`; empty where `curves`
            is, or none was looked for.
    """

    curves: Mapping[float, Sequence[float]]
    actions: Sequence[float]
    multipliers: Mapping[float, float] = field(default_factory=dict)


def recording_of(results: Sequence[Result], total_steps: int) -> Recording:
    """What a policy did in these runs, whose seeds should be used for nothing else.

    A run that broke off keeps its last learning rate to the end.

    Args:
        results: runs of the policy.
        total_steps: horizon of all of them.
    """
    logs: dict[float, list[Floats]] = {}
    for result in results:
        lrs = np.array(result.lrs) / result.row["initial_lr"]
        whole = np.log(np.pad(lrs, (0, total_steps - len(lrs)), mode="edge"))
        logs.setdefault(result.row["initial_lr"], []).append(whole)
    curves = {lr: np.exp(np.mean(of_lr, axis=0)).tolist() for lr, of_lr in logs.items()}
    return Recording(curves, [action for result in results for action in result.actions])


def follow(optimizer: Optimizer, factors: Sequence[float], total_steps: int) -> LambdaLR:
    """The initial learning rate times the factor of each step.

    Raises:
        ValueError: if there is no factor for every step.
    """
    if len(factors) != total_steps:
        raise ValueError(f"`curves` must hold {total_steps} steps, got {len(factors)}")
    return LambdaLR(optimizer, lambda t: factors[min(t, total_steps - 1)])


def replay(
    optimizer: Optimizer, *, total_steps: int, curves: Mapping[float, Sequence[float]]
) -> LambdaLR:
    """The policy's mean schedule at this initial learning rate: its habit without feedback.

    Args:
        optimizer: its learning rate must be among those of `curves`.
        total_steps: the length of the curves.
        curves: as in `Recording`.

    Raises:
        ValueError: if there is no curve for this initial learning rate and horizon.
    """
    return follow(optimizer, curves[_key_of(optimizer, curves, "curves")], total_steps)


def _key_of(optimizer: Optimizer, values: Mapping[float, object], name: str) -> float:
    """The key that is the optimizer's learning rate, to rounding."""
    lr = float(optimizer.param_groups[0]["lr"])
    key = next((key for key in values if math.isclose(key, lr)), None)
    if key is None:
        raise ValueError(f"`{name}` must hold one for lr {lr}, got {list(values)}")
    return key


def mean_schedule(
    optimizer: Optimizer, *, total_steps: int, curves: Mapping[float, Sequence[float]]
) -> LambdaLR:
    """One schedule, the geometric mean of the policy's curves over all initial learning rates."""
    curve = np.exp(np.mean([np.log(curve) for curve in curves.values()], axis=0)).tolist()
    return follow(optimizer, curve, total_steps)


def static(optimizer: Optimizer, *, total_steps: int, multiplier: float, anchor: str) -> LambdaLR:
    """lr_t = initial lr x m x b(t / T), with a multiplier m that nothing changes.

    Args:
        optimizer: its learning rate is the initial one.
        total_steps: T.
        multiplier: m.
        anchor: the base schedule b of the policy's actions; see `anchor_factor`.
    """
    anchors = [float(anchor_factor(anchor, t / total_steps)) for t in range(total_steps)]
    return follow(optimizer, [multiplier * factor for factor in anchors], total_steps)


def best_static(
    optimizer: Optimizer, *, total_steps: int, multipliers: Mapping[float, float], anchor: str
) -> LambdaLR:
    """`static` at the multiplier of this initial learning rate: one good choice, and no feedback.

    Args:
        optimizer: its learning rate must be among those of `multipliers`.
        total_steps: T.
        multipliers: as in `Recording`.
        anchor: of the policy's actions.

    Raises:
        ValueError: if there is no multiplier for this initial learning rate.
    """
    multiplier = multipliers[_key_of(optimizer, multipliers, "multipliers")]
    return static(optimizer, total_steps=total_steps, multiplier=multiplier, anchor=anchor)


def random_walk(
    optimizer: Optimizer, *, total_steps: int, run: Run, policy: Policy, actions: Sequence[float]
) -> LambdaLR:
    """Actions drawn, from the run's seed, from those that the policy took at any time.

    They pass through the policy's own action specification and clock.
    """
    rng = np.random.default_rng(run.generator.initial_seed())
    decision_steps = set(policy.clock.decision_steps(total_steps))
    factor = multiplier = policy.action.start_factor
    curve = []
    for t in range(total_steps):
        if t in decision_steps:
            factor, multiplier = policy.action.apply(
                float(rng.choice(actions)), multiplier=multiplier, progress=t / total_steps
            )
        curve.append(factor)
    return follow(optimizer, curve, total_steps)


def placebos_of(policy: Policy, recording: Recording, *, seed: int = 0) -> dict[str, Scheduler]:
    """The placebos of a policy, by name, as `Method.make`; those that the recording allows.

    Args:
        policy: the learned policy.
        recording: what it did on seeds that are used for nothing else.
        seed: of the untrained policy's weights.
    """
    curves, multipliers = recording.curves, recording.multipliers
    placebos: dict[str, Scheduler] = {}
    if curves:
        placebos["placebo: replay"] = partial(replay, curves=curves)
        placebos["placebo: mean schedule"] = partial(mean_schedule, curves=curves)
    if multipliers:
        placebos["placebo: static best multiplier"] = partial(
            best_static, multipliers=multipliers, anchor=policy.action.anchor
        )
    placebos["placebo: untrained"] = partial(deployed, policy=untrained(policy, seed))
    placebos["placebo: random walk"] = partial(
        random_walk, policy=policy, actions=recording.actions
    )
    return placebos
