"""Transfer of an NMF policy to other problems, and how often capped runs diverge."""

from collections.abc import Sequence

import numpy as np
import torch

from lrpilot import Policy
from lrpilot.evaluation.experiments.nmf.experiment import run_schedule
from lrpilot.evaluation.experiments.nmf.trials import PolicyControl, run_trial
from lrpilot.evaluation.methods.schedules import linear
from lrpilot.evaluation.report import format_interval
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.loss import DIVERGENCE_FACTOR
from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.task import NMFTask

# rises of the loss below this share of the start are rounding in float32
ROUNDING = 1e-6


def transfer_row(name: str, task: NMFTask, policy: Policy, *, seeds: Sequence[int]) -> list[str]:
    """The policy beside the linear schedule over the whole cap, on the same runs."""
    learned = run_trial(task, PolicyControl(policy), seeds=seeds)
    fixed = run_schedule(task, linear, 1.0, "fraction", seeds)
    scores = (learned.scores, fixed.scores, learned.scores - fixed.scores)
    intervals = [format_interval(list(values)) for values in scores]
    return [name, str(len(seeds)), *intervals, str(int(learned.diverged.sum()))]


def count_diverged(task: NMFTask, *, num_runs: int, hold: int, name: str) -> list[str]:
    """Run at a random fraction of the cap, refreshed every `hold` steps, and count failures.

    Args:
        task: the problem, with a cap.
        num_runs: how many runs.
        hold: steps for which a cap is used; a certificate holds for one.
        name: of the row.
    """
    runs = task.start_batch(num_runs)
    assert isinstance(runs, BatchedNMFRuns)
    runs.reset(list(range(num_runs)), list(evaluation_seeds(num_runs)))
    rng = np.random.default_rng(0)
    fractions = np.exp(rng.uniform(np.log(0.01), 0.0, size=num_runs))
    fraction = torch.from_numpy(fractions).to(runs.device)
    everyone = torch.ones(num_runs, dtype=torch.bool, device=runs.device)
    start = runs.privileged_losses().double()
    before, highest = start, torch.ones_like(start)
    rose = torch.zeros_like(everyone)
    guarantee = "none"
    lrs = fraction
    for step in range(task.total_steps):
        if step % hold == 0 and bool(before.isfinite().all()):
            cap, guarantee = runs.cap()
            lrs = fraction * cap.double()
        runs.step(lrs, everyone)
        loss = runs.privileged_losses().double()
        rose |= ~(loss <= before + ROUNDING * start)
        highest = torch.maximum(highest, (loss / start).nan_to_num(nan=torch.inf))
        before = loss
    diverged = int((highest > DIVERGENCE_FACTOR).sum())
    return [
        name,
        guarantee if hold == 1 else "estimate",
        str(num_runs),
        str(diverged),
        f"{float(highest.max()):.3g}",
        str(int(rose.sum())),
    ]
