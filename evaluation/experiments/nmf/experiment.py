"""The NMF experiment: a policy over a certified cap beside tuned schedules, placebos and oracles.

Every control is tuned on tuning seeds and measured on held-out seeds that tuning, training and
the agent never saw; all controls see the same matrices, starts and noise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpilot import Policy
from lrpilot.evaluation.experiments.nmf.trials import (
    Control,
    OracleControl,
    PolicyControl,
    ScheduleControl,
    Trial,
    mean_schedule,
    run_trial,
    schedule_factors,
)
from lrpilot.evaluation.methods.placebos import untrained
from lrpilot.evaluation.seeds import FIRST_EVALUATION_SEED, FIRST_REPLAY_SEED, FIRST_TUNING_SEED
from lrpilot.tasks.nmf.task import NMFTask

MODES = ("raw", "clipped", "fraction")


@dataclass(frozen=True)
class Outcome:
    """One control on the held-out seeds.

    Args:
        name: as in the table.
        mode: how it is joined to the cap: "raw", "clipped", "fraction", or "-".
        tuned: the initial learning rate or cap fraction that tuning chose; NaN if nothing is.
        trial: its runs.
    """

    name: str
    mode: str
    tuned: float
    trial: Trial


def tune_schedules(
    task: NMFTask,
    schedules: Mapping[str, Callable[..., Any]],
    *,
    initial_lrs: Sequence[float],
    cap_fractions: Sequence[float],
    num_seeds: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
    modes: Sequence[str] = MODES,
) -> dict[tuple[str, str], float]:
    """The best initial learning rate or cap fraction of every schedule in every mode.

    Returns:
        (schedule, mode) -> value with the smallest mean score on the tuning seeds.
    """
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + num_seeds)
    cases = [
        (name, mode, value)
        for name in schedules
        for mode in modes
        for value in (cap_fractions if mode == "fraction" else initial_lrs)
    ]
    scores: dict[tuple[str, str], dict[float, float]] = {}
    for name, mode, value in progress(cases):
        factors = schedule_factors(schedules[name], task.total_steps)
        control = ScheduleControl(factors, value, mode)
        trial = run_trial(task, control, seeds=seeds, needs_cap=mode != "raw")
        scores.setdefault((name, mode), {})[value] = float(trial.scores.mean())
    return {case: min(found, key=lambda value: found[value]) for case, found in scores.items()}


def random_walk(policy: Policy, trial: Trial, seed: int) -> PolicyControl:
    """Random actions with the mean and variance, over decisions and runs, of the policy's."""
    rng = np.random.default_rng(seed)
    mean, std = float(trial.actions.mean()), float(trial.actions.std())

    def act(observations: NDArray[np.float32], decision: int) -> NDArray[np.float32]:
        drawn = rng.normal(mean, std, size=len(observations)).clip(-1.0, 1.0)
        return drawn.astype(np.float32)

    return PolicyControl(policy, actor=act)


def replay(policy: Policy, task: NMFTask, num_seeds: int) -> ScheduleControl:
    """The policy's mean schedule, taken on seeds that nothing else uses."""
    seeds = range(FIRST_REPLAY_SEED, FIRST_REPLAY_SEED + num_seeds)
    trial = run_trial(task, PolicyControl(policy), seeds=seeds)
    interval = policy.clock.interval_steps(task.total_steps)
    factors = np.repeat(mean_schedule(trial, policy), interval)[: task.total_steps]
    return ScheduleControl(factors.tolist(), 1.0, "fraction")


def compare(
    task: NMFTask,
    policy: Policy,
    schedules: Mapping[str, Callable[..., Any]],
    tuned: Mapping[tuple[str, str], float],
    *,
    cap_fractions: Sequence[float],
    num_seeds: int,
    num_replay_seeds: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> list[Outcome]:
    """All controls on the held-out seeds: policy, tuned schedules, placebos, oracles."""
    seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + num_seeds)

    def outcome(name: str, mode: str, value: float, control: Control) -> Outcome:
        trial = run_trial(task, control, seeds=seeds, needs_cap=mode != "raw")
        return Outcome(name, mode, value, trial)

    nothing = float("nan")
    learned = outcome("policy", "fraction", nothing, PolicyControl(policy))
    outcomes = [learned]
    for (name, mode), value in progress(tuned.items()):
        factors = schedule_factors(schedules[name], task.total_steps)
        outcomes.append(outcome(name, mode, value, ScheduleControl(factors, value, mode)))
    placebos: dict[str, Control] = {
        "placebo: replay": replay(policy, task, num_replay_seeds),
        "placebo: untrained": PolicyControl(untrained(policy, 0)),
        "placebo: random walk": random_walk(policy, learned.trial, 0),
    }
    outcomes += [outcome(name, "fraction", nothing, c) for name, c in placebos.items()]
    ones = [1.0] * task.total_steps
    constants = [
        run_trial(task, ScheduleControl(ones, value, "fraction"), seeds=seeds)
        for value in cap_fractions
    ]
    best = constants[int(np.argmin([trial.scores.mean() for trial in constants]))]
    hindsight = np.min([trial.scores for trial in constants], axis=0)
    outcomes.append(
        Outcome("hindsight: constant", "fraction", nothing, replace(best, scores=hindsight))
    )
    outcomes.append(outcome("oracle: exact line", "-", nothing, OracleControl()))
    return outcomes
