"""The NMF experiment: a policy over a certified cap beside tuned schedules, placebos and oracles.

Every control is tuned on tuning seeds and measured on held-out seeds that tuning, training and
the agent never saw; all controls see the same matrices, starts and noise.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpilot import Policy
from lrpilot.evaluation.experiments.claims import Claim, write_claims
from lrpilot.evaluation.experiments.nmf import report
from lrpilot.evaluation.experiments.nmf.report import Outcome
from lrpilot.evaluation.experiments.nmf.trials import (
    Control,
    OracleControl,
    PolicyControl,
    ScheduleControl,
    Trial,
    run_trial,
    schedule_factors,
)
from lrpilot.evaluation.methods.placebos import untrained
from lrpilot.evaluation.methods.schedules import constant
from lrpilot.evaluation.report import describe_spread
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, replay_seeds, tuning_seeds
from lrpilot.tasks.nmf.task import NMFTask

MODES = ("raw", "clipped", "fraction")

Schedules = Mapping[str, Callable[..., Any]]
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def compare_on_problems(
    *,
    task: NMFTask,
    schedulers: Schedules,
    real_matrices: Mapping[str, int],
    num_tuning: int,
    num_held_out: int,
    num_real_seeds: int,
    initial_lrs: Sequence[float],
    real_initial_lrs: Sequence[float],
    cap_fractions: Sequence[float],
    policy: Policy,
    output: Output,
) -> None:
    """Random problems, then real matrices; a table, a figure and a CSV of runs for each.

    Args:
        task: the random problems.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        real_matrices: name of each real matrix, and its rank.
        num_tuning: random problems that schedules are tuned on.
        num_held_out: others that all controls are compared on.
        num_real_seeds: held-out runs on a real matrix.
        initial_lrs: initial learning rates that are tried on random problems.
        real_initial_lrs: the same on real matrices.
        cap_fractions: fractions of the cap that are tried.
        policy: the learned policy.
        output: gets runs.parquet and, for each problem, outcomes_<problem>.csv,
            table_<problem>.md and curves_<problem>.png; and at last table.md.
    """
    results: list[Result] = []
    claims: list[Claim] = []

    def compare_on(name: str, task: NMFTask, num_tuning: int, num_held_out: int) -> None:
        outcomes = compare(
            task,
            policy,
            schedulers,
            initial_lrs=initial_lrs if task.matrix is None else real_initial_lrs,
            cap_fractions=cap_fractions,
            num_tuning=num_tuning,
            num_seeds=num_held_out,
            progress=lambda cases, desc: output.progress(cases, desc=f"{name}: {desc}"),
        )
        output.write_table(
            f"{name}: {num_held_out} held-out runs, tuned on {num_tuning} others, "
            f"{task.total_steps} steps; {describe_spread(num_held_out)}",
            report.comparison_table(outcomes),
            name=f"table_{name}.md",
            verdict=report.verdict(outcomes),
        )
        output.write_rows(report.outcome_rows(outcomes, name), f"outcomes_{name}.csv")
        results.extend(report.results_of(outcomes, name, evaluation_seeds(num_held_out)))
        output.write_runs(results)
        claims.extend(report.claims_of(outcomes, name))
        report.draw_outcomes(outcomes, f"NMF, {name}", output.folder / f"curves_{name}.png")

    compare_on("random", task, num_tuning, num_held_out)
    fixed = replace(task, smallest_shape=None, smallest_rank=None, scale_range=(1.0, 1.0))
    for matrix, rank in real_matrices.items():
        compare_on(matrix, replace(fixed, matrix=matrix, rank=rank), 1, num_real_seeds)
    title = "policy minus the best tuned schedule, log10(f(T)/f(0)), paired by run"
    write_claims(output, title, claims, details=[])


def run_schedule(
    task: NMFTask, make: Callable[..., Any], value: float, mode: str, seeds: Sequence[int]
) -> Trial:
    """A torch scheduler from this initial learning rate or fraction of the cap; see `Outcome`."""
    control = ScheduleControl(schedule_factors(make, task.total_steps), value, mode)
    return run_trial(task, control, seeds=seeds, needs_cap=mode != "raw")


def tune_schedules(
    task: NMFTask,
    schedules: Schedules,
    *,
    initial_lrs: Sequence[float],
    cap_fractions: Sequence[float],
    num_seeds: int,
    progress: Progress,
) -> dict[tuple[str, str], float]:
    """The best initial learning rate or cap fraction of every schedule in every mode.

    Returns:
        (schedule, mode) -> value with the smallest mean score on the tuning seeds.
    """
    # on a real matrix, of one scale, a learning rate is tuned to the cap already
    modes = MODES if task.matrix is None else ("raw", "fraction")
    cases = [
        (name, mode, value)
        for name in schedules
        for mode in modes
        for value in (cap_fractions if mode == "fraction" else initial_lrs)
    ]
    scores: dict[tuple[str, str], dict[float, float]] = {}
    for name, mode, value in progress(cases, "tuning"):
        trial = run_schedule(task, schedules[name], value, mode, tuning_seeds(num_seeds))
        scores.setdefault((name, mode), {})[value] = float(trial.scores.mean())
    return {case: min(found, key=lambda value: found[value]) for case, found in scores.items()}


def random_actions(policy: Policy, trial: Trial, seed: int) -> PolicyControl:
    """Random actions with the mean and variance, over decisions and runs, of the policy's."""
    rng = np.random.default_rng(seed)
    mean, std = trial.decided[:, 1].mean(), trial.decided[:, 1].std()

    def act(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        drawn = rng.normal(mean, std, size=len(observations)).clip(-1.0, 1.0)
        return drawn.astype(np.float32)

    return PolicyControl(policy, actor=act)


def mean_control(policy: Policy, task: NMFTask, num_seeds: int) -> ScheduleControl:
    """The policy's mean schedule, taken on seeds that nothing else uses.

    It is the geometric mean over runs of the factor at each decision.
    """
    trial = run_trial(task, PolicyControl(policy), seeds=replay_seeds(num_seeds))
    decided = [math.exp(float(np.log(row).mean())) for row in trial.decided[:, 0]]
    ends = [*policy.clock.decision_steps(task.total_steps), task.total_steps]
    factors = np.repeat([policy.action.start_factor, *decided][: len(ends)], np.diff([0, *ends]))
    return ScheduleControl(factors.tolist(), 1.0, "fraction")


def compare(
    task: NMFTask,
    policy: Policy,
    schedules: Schedules,
    *,
    initial_lrs: Sequence[float],
    cap_fractions: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    progress: Progress,
) -> list[Outcome]:
    """All controls on the held-out seeds: policy, tuned schedules, placebos, oracles."""
    tuned = tune_schedules(
        task,
        schedules,
        initial_lrs=initial_lrs,
        cap_fractions=cap_fractions,
        num_seeds=num_tuning,
        progress=progress,
    )
    seeds = evaluation_seeds(num_seeds)

    def outcome(name: str, control: Control, mode: str = "fraction") -> Outcome:
        return Outcome(name, mode, float("nan"), run_trial(task, control, seeds=seeds))

    outcomes = [outcome("policy", PolicyControl(policy))]
    for (name, mode), value in progress(tuned.items(), "held-out"):
        trial = run_schedule(task, schedules[name], value, mode, seeds)
        outcomes.append(Outcome(name, mode, value, trial))
    walk = random_actions(policy, outcomes[0].trial, 0)
    others = [
        lambda: outcome("placebo: replay", mean_control(policy, task, num_tuning)),
        lambda: outcome("placebo: untrained", PolicyControl(untrained(policy, 0))),
        lambda: outcome("placebo: random walk", walk),
        lambda: outcome("oracle: exact line", OracleControl(), "-"),
    ]
    outcomes += [make() for make in progress(others, "placebos and oracle")]
    constants = [
        run_schedule(task, constant, fraction, "fraction", seeds)
        for fraction in progress(cap_fractions, "hindsight")
    ]
    best = constants[int(np.argmin([trial.scores.mean() for trial in constants]))]
    best = replace(best, scores=np.min([trial.scores for trial in constants], axis=0))
    outcomes.insert(-1, Outcome("hindsight: constant", "fraction", float("nan"), best))
    return outcomes
