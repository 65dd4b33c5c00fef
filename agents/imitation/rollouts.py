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
from lrpilot.agents.imitation.experts import Experts
from lrpilot.agents.imitation.schedules import SCHEDULES
from lrpilot.envs.reward import has_diverged
from lrpilot.files import write_whole
from lrpilot.policy.controller import Controller
from lrpilot.tasks.task import Task

FOLDER = "rollouts"

# so that experts which see no difference between the peaks count, too
_LEAST_STAKE = 0.05
# schedules are 0 at the end
_LATEST = 0.9999

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
    schedule: str,
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
        schedule: that the experts follow, of `SCHEDULES`.
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
            peaks * SCHEDULES[schedule](progress) / initial_lrs,
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


def write_rollout(
    run_dir: Path, rollout: Rollout, settings: ControlSettings, schedule: str
) -> None:
    """Add a file to the rollouts of a run folder."""
    folder = run_dir / FOLDER
    tensors = {name: part.contiguous() for name, part in rollout._asdict().items()}
    metadata = {"control": _control(settings), "schedule": schedule}
    path = folder / f"{len(list(folder.glob('*.safetensors'))) + 1:04}.safetensors"
    write_whole(path, safetensors.torch.save(tensors, metadata))


def read_rollouts(run_dir: Path, settings: ControlSettings, schedule: str) -> list[Rollout]:
    """All rollouts of a run folder, in their order, with what experts of a schedule had done.

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
            metadata = file.metadata()
            if metadata["control"] != _control(settings):
                raise ValueError(
                    f"`rollouts_from` must have been seen and decided as {_control(settings)}, got "
                    f"{metadata['control']}"
                )
            rollout = Rollout(*(file.get_tensor(name) for name in Rollout._fields))
        if metadata["schedule"] != schedule:
            rollout = relabel(rollout, settings, metadata["schedule"], schedule)
        rollouts.append(rollout)
    return rollouts


def relabel(rollout: Rollout, settings: ControlSettings, given: str, schedule: str) -> Rollout:
    """What experts with the same peaks had done under another schedule.

    Where an action was not clipped, it tells the expert's peak, with p the progress and s the given
    schedule::

        log peak = alpha a* + log lr - log s(p)

    The median over a run serves where it was. A run whose actions were all clipped gets weight 0.
    What the anchor does within a step is left out: late in a run, where it matters, hardly any
    action is clipped.

    Raises:
        ValueError: if the policy does not see progress and learning rate, or if its action is no
            multiplier.
    """
    names = settings.observation.names
    if not {"progress", "log_lr"} <= set(names) or settings.action.kind != "multiplier":
        raise ValueError(
            f"`schedule` must be {given!r}, as that of the rollouts, unless the policy multiplies "
            f"and sees progress and log_lr, got {schedule!r}, {settings.action.kind!r} and {names}"
        )
    progress, log_lr = (
        rollout.observations[..., names.index(name)].double() for name in ("progress", "log_lr")
    )
    shares = ((progress + 1.0) / 2.0).clamp(max=_LATEST).numpy()
    before, after = (torch.as_tensor(np.log(SCHEDULES[name](shares))) for name in (given, schedule))
    alpha = settings.action.max_log_change
    log_factor = 2.0 * math.log(10.0) * log_lr
    is_free = rollout.wanted.abs() < 1.0
    peaks = torch.where(is_free, alpha * rollout.wanted + log_factor - before, math.nan)
    peak = peaks.nanmedian(0).values
    moved = rollout.wanted + (after - before) / alpha
    wanted = torch.where(is_free, moved, (peak + after - log_factor) / alpha).clamp(-1.0, 1.0)
    weights = rollout.weights.where(~wanted.isnan(), 0.0)
    return Rollout(rollout.observations, wanted.nan_to_num(0.0).float(), weights)


def _control(settings: ControlSettings) -> str:
    parts = settings.observation, settings.action, settings.clock
    return json.dumps([asdict(part) for part in parts], sort_keys=True)
