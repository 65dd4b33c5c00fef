"""What was noted in runs that a policy controlled: states, and what the experts had done there."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from lrpilot import ControlSettings, Policy
from lrpilot.agents.imitation.control import train_controlled
from lrpilot.agents.imitation.experts import Experts, decay_to_zero
from lrpilot.envs.reward import has_diverged
from lrpilot.files import write_whole
from lrpilot.policy.controller import Controller
from lrpilot.tasks.task import Task

FOLDER = "rollouts"

# so that experts which see no difference between the peaks count, too
_LEAST_STAKE = 0.05

Array = NDArray[np.float32]
Floats = NDArray[np.float64]


class Rollout(NamedTuple):
    """What was seen in B runs of S decisions."""

    observations: torch.Tensor
    """(S, B, features)."""
    wanted: torch.Tensor
    """Actions of the experts, (S, B)."""
    weights: torch.Tensor
    """Of the states, (S, B); 0 after a divergence."""

    def padded(self, num_steps: int) -> "Rollout":
        """The same, followed by states of weight 0."""
        left = num_steps - len(self.wanted)
        return Rollout(*(torch.cat((part, part.new_zeros(left, *part.shape[1:]))) for part in self))


def roll_out(
    task: Task,
    settings: ControlSettings,
    experts: Experts,
    policy: Policy,
    *,
    num_runs: int,
    peak_error: float,
    expert_share: float,
    noise: float,
    rng: np.random.Generator,
) -> tuple[Rollout, Floats]:
    """Let a policy control whole trainings, and ask at every decision what their experts would do.

    Args:
        task: of the experts.
        settings: what the policy sees and does, and the range of initial learning rates.
        experts: all of one horizon.
        policy: acts.
        num_runs: B; each training runs about as often as the others.
        peak_error: see `Experts.best_peaks`.
        expert_share: chance of a run that its expert acts.
        noise: standard deviation of what is added to all actions.
        rng: of the initial learning rates, the noise, and of who acts.

    Returns:
        What was seen, and how much the log held-out loss at the end is above that of the best
        peak, of the runs in which the policy acted.

    Raises:
        ValueError: if the horizon is so short that nothing is decided.
    """
    total_steps = int(experts.total_steps[0])
    index = np.resize(rng.permutation(len(experts)), num_runs)
    peaks = experts.best_peaks(peak_error)[index]
    weights = experts.stakes()[index] + _LEAST_STAKE
    low, high = map(math.log, settings.initial_lr_factors)
    initial_lrs = task.base_lr * np.exp(rng.uniform(low, high, num_runs))
    follows = rng.random(num_runs) < expert_share
    memory = policy.initial_memory(num_runs)
    parts: list[tuple[Array, Floats, Floats]] = []

    def act(controller: Controller, observations: Array) -> Floats:
        nonlocal weights
        progress = controller.progress
        wanted = settings.action.action_for(
            peaks * decay_to_zero(progress) / initial_lrs,
            multiplier=controller.multiplier,
            progress=progress,
        ).clip(-1.0, 1.0)
        weights = weights * ~has_diverged(controller.observer, settings.divergence_factor)
        parts.append((observations.copy(), wanted, weights))
        actions: Floats = np.where(follows, wanted, policy.act_batch(observations, memory))
        return actions + noise * rng.standard_normal(num_runs)

    levels = train_controlled(
        task,
        act,
        observation=settings.observation,
        action=settings.action,
        clock=settings.clock,
        seeds=experts.task_seeds[index].tolist(),
        initial_lrs=initial_lrs,
        total_steps=total_steps,
    )
    if not parts:
        raise ValueError(
            f"`experts` must have horizons with a decision, got {total_steps} steps with none"
        )
    seen, asked, weight = (np.stack(part) for part in zip(*parts, strict=True))
    rollout = Rollout(
        torch.tensor(seen),
        torch.tensor(asked, dtype=torch.float32),
        torch.tensor(weight, dtype=torch.float32),
    )
    return rollout, (levels - experts.levels.min(1)[index])[~follows]


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """All runs of them, as long as the one with the most decisions."""
    longest = max(len(rollout.wanted) for rollout in rollouts)
    padded = [rollout.padded(longest) for rollout in rollouts]
    return Rollout(*(torch.cat(parts, 1) for parts in zip(*padded, strict=True)))


def write_rollout(run_dir: Path, rollout: Rollout, settings: ControlSettings) -> None:
    """Add a file to the rollouts of a run folder."""
    folder = run_dir / FOLDER
    tensors = {name: part.contiguous() for name, part in rollout._asdict().items()}
    content = safetensors.torch.save(tensors, {"control": _control(settings)})
    write_whole(folder / f"{len(list(folder.glob('*.safetensors'))) + 1:04}.safetensors", content)


def read_rollouts(run_dir: Path, settings: ControlSettings) -> list[Rollout]:
    """All rollouts of a run folder, in their order.

    Raises:
        ValueError: if there are none, or their policies saw or did something else, or decided at
            other times.
    """
    paths = sorted((run_dir / FOLDER).glob("*.safetensors"))
    if not paths:
        raise ValueError(f"`rollouts_from` must be run folders with {FOLDER}/, got {run_dir}")
    rollouts = []
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            control = file.metadata()["control"]
            if control != _control(settings):
                raise ValueError(
                    f"`rollouts_from` must have been seen and decided as {_control(settings)}, got "
                    f"{control}"
                )
            rollouts.append(Rollout(*(file.get_tensor(name) for name in Rollout._fields)))
    return rollouts


def _control(settings: ControlSettings) -> str:
    parts = settings.observation, settings.action, settings.clock
    return json.dumps([asdict(part) for part in parts], sort_keys=True)
