"""What was noted in runs that a policy controlled: states, and what the experts had done there."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch

from lrpilot import ControlSettings
from lrpilot.files import write_whole

FOLDER = "rollouts"


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
