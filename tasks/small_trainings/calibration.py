"""How far short trainings of each setup come, so that their rewards can weigh alike."""

import torch

from lrpilot.tasks.small_trainings.batch import TrainingGroup
from lrpilot.tasks.small_trainings.problem import SmallTrainingProblem
from lrpilot.tasks.small_trainings.setup import Setup

_NUM_STEPS = 200
_NUM_SEEDS = 3
_LR_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
_BOUNDS = (0.2, 5.0)


def typical_gain(problem: SmallTrainingProblem, setup: Setup) -> float:
    """The decrease of the log held-out loss in trainings of a setup, within 0.2 and 5.

    It is the mean of three runs of 200 steps, under a linear decay to 0 from the best of five
    learning rates: 0.1 to 10 times `base_lr`. A run that diverges, or ends above its first loss,
    counts as 0.

    Args:
        problem: what is drawn from.
        setup: one of its setups.
    """
    seeds = [seed for seed in range(_NUM_SEEDS) for _ in _LR_FACTORS]
    group = TrainingGroup(problem, setup, len(seeds))
    group.reset(list(range(len(seeds))), seeds)
    first = group.privileged_losses()
    initial_lrs = problem.base_lr * torch.tensor(_LR_FACTORS * _NUM_SEEDS, dtype=torch.float64)
    initial_lrs = initial_lrs.to(problem.device)
    everyone = torch.ones(len(seeds), dtype=torch.bool, device=problem.device)
    for step in range(_NUM_STEPS):
        group.step(initial_lrs * (1.0 - step / _NUM_STEPS), everyone)
    gains = (first / group.privileged_losses()).log().nan_to_num(0.0, neginf=0.0).clamp(min=0.0)
    best = float(gains.view(_NUM_SEEDS, len(_LR_FACTORS)).mean(0).max())
    return min(max(best, _BOUNDS[0]), _BOUNDS[1])
