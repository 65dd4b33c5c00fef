from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpilot import ActionSpec, Policy, PolicyLR
from lrpilot.envs import LRControlEnv
from lrpilot.evaluation.experiments.nmf import experiment, report, stress
from lrpilot.evaluation.experiments.nmf.report import Outcome
from lrpilot.evaluation.experiments.nmf.trials import (
    OracleControl,
    PolicyControl,
    ScheduleControl,
    run_trial,
    schedule_factors,
)
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.report import format_interval
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.evaluation.runs.seeds import evaluation_seeds, replay_seeds, tuning_seeds
from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.task import NMFTask
from tests.evaluation.policies import random_policy
from tests.scheduling import plain_action

SEEDS = evaluation_seeds(6)
FRACTION_OF_CAP = plain_action(unit="cap", max_factor=1.0, start_factor=0.8)


make_task = partial(
    NMFTask,
    name="nmf",
    optimizer=torch.optim.SGD,
    base_lr=0.01,
    total_steps=40,
    shape=(20, 16),
    rank=3,
    noise="gaussian",
    noise_range=(0.1, 1.0),
    cap_kind="segment",
)


def make_policy(action: ActionSpec = FRACTION_OF_CAP, **arguments: Any) -> Policy:
    return random_policy(action, **arguments)


def test_trial_of_a_schedule_equals_training_under_the_torch_scheduler() -> None:
    task = make_task()
    trial = run_trial(
        task,
        ScheduleControl(schedule_factors(schedules.cosine, 40), 0.003, "raw"),
        seeds=SEEDS,
        needs_cap=False,
    )
    method = Method("cosine", schedules.cosine)
    for seed, found in zip(SEEDS, trial.scores, strict=True):
        start = task.start(seed).privileged_loss()
        result = train(task, method, initial_lr_factor=0.3, seed=seed)
        assert np.log10(result.row["held_out_loss"] / start) == pytest.approx(found, abs=1e-5)


def test_trial_of_a_policy_equals_policy_lr_under_the_runs_own_cap() -> None:
    task, policy = make_task(), make_policy()
    trial = run_trial(task, PolicyControl(policy), seeds=SEEDS)
    for seed, found in zip(SEEDS, trial.scores, strict=True):
        run = task.start(seed)
        start = run.privileged_loss()
        scheduler = PolicyLR(run.optimizer, policy, total_steps=40, cap=run.cap)
        for _ in range(40):
            scheduler.step(run.step())
        assert np.log10(run.privileged_loss() / start) == pytest.approx(found, abs=1e-3)


def test_environment_equals_scheduler_exactly_under_a_cap() -> None:
    task, policy = make_task(), make_policy()
    env = LRControlEnv(task, observation=policy.observation, action=policy.action, num_decisions=10)
    observation, info = env.reset(seed=0, options={"task_seed": 7, "total_steps": 40})
    env_losses, done = info["losses"], False
    while not done:
        action = np.array([policy.act(observation)], np.float32)
        observation, _, done, _, info = env.step(action)
        env_losses = env_losses + info["losses"]
    run = task.start(7)
    scheduler = PolicyLR(run.optimizer, policy, total_steps=40, cap=run.cap)
    losses = []
    for _ in range(40):
        loss = run.step()
        losses.append(float(loss))
        scheduler.step(loss)
    assert losses == env_losses


def test_policy_in_units_of_the_cap_needs_a_cap() -> None:
    run = make_task().start(0)
    with pytest.raises(ValueError, match="`cap` is required"):
        PolicyLR(run.optimizer, make_policy(), total_steps=40)


def test_policy_at_the_whole_cap_says_which_guarantee_bound_it() -> None:
    run = make_task(noise="none").start(0)
    policy = make_policy(plain_action(unit="cap", max_factor=1.0, start_factor=1.0))
    assert PolicyLR(run.optimizer, policy, total_steps=9, cap=run.cap).bound_by == "deterministic"


def test_factor_above_the_cap_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_factor` must be at most 1 in units of the cap"):
        plain_action(unit="cap", max_factor=2.0)


class Watched(ScheduleControl):
    """Notes the largest learning rate of each step over the cap."""

    def lrs(self, step: int, runs: BatchedNMFRuns, cap: Tensor | None) -> Tensor:
        lrs = super().lrs(step, runs, cap)
        assert cap is not None
        self.largest = [*getattr(self, "largest", []), float((lrs / cap).max())]
        return lrs


@pytest.mark.parametrize("mode", ["clipped", "fraction"])
def test_a_schedule_that_is_joined_to_the_cap_never_exceeds_it(mode: str) -> None:
    control = Watched([1e6] * 40, 1.0, mode)
    run_trial(make_task(noise_range=(1.0, 1.0)), control, seeds=SEEDS)
    assert control.largest == [1.0] * 40


@pytest.mark.parametrize("mode", ["clipped", "fraction"])
def test_a_schedule_far_below_the_cap_is_left_alone(mode: str) -> None:
    control = Watched([1e-9] * 40, 1.0, mode)
    run_trial(make_task(), control, seeds=SEEDS)
    assert 0.0 < max(control.largest) < 1e-6


def test_diverged_runs_are_data() -> None:
    trial = run_trial(
        make_task(), ScheduleControl([1.0] * 40, 1e4, "raw"), seeds=SEEDS, needs_cap=False
    )
    assert trial.diverged.all()
    assert (trial.scores == 1.0).all()


def test_line_oracle_beats_every_constant_fraction_without_noise() -> None:
    task = make_task(noise="none", total_steps=1)
    oracle = run_trial(task, OracleControl(), seeds=SEEDS)
    for value in (0.1, 0.5, 1.0):
        constant = run_trial(task, ScheduleControl([1.0], value, "fraction"), seeds=SEEDS)
        assert (oracle.scores <= constant.scores + 1e-6).all()


def test_replayed_factors_are_the_geometric_mean_of_the_policys_over_runs() -> None:
    task, policy = make_task(), make_policy()
    control = experiment.mean_control(policy, task, num_seeds=3)
    trial = run_trial(task, PolicyControl(policy), seeds=replay_seeds(3))
    decided = [0.8, *np.exp(np.log(trial.decided[:, 0]).mean(axis=1))]
    runs = task.start_batch(1)
    assert isinstance(runs, BatchedNMFRuns)
    replayed = [float(control.lrs(step, runs, torch.ones(1))) for step in range(40)]
    assert replayed == pytest.approx(np.repeat(decided, 4))


def test_ranges_of_seeds_do_not_overlap() -> None:
    ranges = [seeds(100_000) for seeds in (evaluation_seeds, tuning_seeds, replay_seeds)]
    assert len({seed for seeds in ranges for seed in seeds}) == 300_000


def test_random_actions_have_mean_and_spread_of_the_policys_actions() -> None:
    task, policy = make_task(), make_policy(scale=0.02)
    trial = run_trial(task, PolicyControl(policy), seeds=SEEDS)
    walk = experiment.random_actions(policy, trial, 0)
    drawn = run_trial(task, walk, seeds=evaluation_seeds(600)).decided[:, 1]
    spread = trial.decided[:, 1].std()
    assert np.abs(trial.decided[:, 1]).max() < 0.5
    assert drawn.mean() == pytest.approx(trial.decided[:, 1].mean(), abs=0.1 * spread)
    assert drawn.std() == pytest.approx(spread, rel=0.1)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    task, policy = make_task(), make_policy()
    chosen = {name: getattr(schedules, name) for name in ("constant", "linear")}
    return experiment.compare(
        task,
        policy,
        chosen,
        initial_lrs=[1e-4, 1e-3],
        cap_fractions=[0.3, 1.0],
        num_tuning=4,
        num_seeds=5,
        progress=lambda cases, desc: cases,
    )


def test_comparison_has_policy_schedules_in_all_modes_placebos_and_oracles(
    outcomes: list[Outcome],
) -> None:
    names = [(outcome.name, outcome.mode) for outcome in outcomes]
    assert names[0] == ("policy", "fraction")
    assert len(names) == 1 + 2 * 3 + 3 + 2


def test_table_verdict_and_figure_are_made(outcomes: list[Outcome], tmp_path: Path) -> None:
    table = report.comparison_table(outcomes)
    assert len(table.splitlines()) == len(outcomes) + 2
    assert "exact line oracle" in report.verdict(outcomes)
    report.draw_outcomes(outcomes, "NMF", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = report.outcome_rows(outcomes, "random")
    assert len({(row["control"], row["cap"], row["run"]) for row in rows}) == 5 * len(outcomes)


def test_claims_pair_the_policy_with_the_best_schedule_without_the_bound_and_with_it(
    outcomes: list[Outcome],
) -> None:
    better, kept = report.claims_of(outcomes, "random")
    policy = outcomes[0].trial.scores
    for modes, told in ((("raw",), better.as_in_paper), (("clipped", "fraction"), better.fair)):
        best = report.best_schedule(outcomes, *modes)
        assert float(told.split()[0]) == pytest.approx(
            (policy - best.trial.scores).mean(), abs=1e-4
        )
    assert better.verdict.endswith((f"than {best.name}", f"from {best.name}"))
    # the policy, two schedules in two modes, three placebos and the hindsight, five runs each
    assert kept.fair.startswith("0 of 45 runs did, at most 7.8")
    assert kept.verdict == "holds"


def test_hindsight_is_at_least_as_good_as_its_best_constant(
    outcomes: list[Outcome],
) -> None:
    by_name = {outcome.name: outcome for outcome in outcomes}
    constant = next(o for o in outcomes if (o.name, o.mode) == ("constant", "fraction"))
    assert (by_name["hindsight: constant"].trial.scores <= constant.trial.scores).all()


def test_certified_runs_do_not_rise_and_held_caps_are_named_estimates() -> None:
    task = make_task(noise="none", total_steps=20)
    certified = stress.count_diverged(task, num_runs=50, hold=1, name="x")
    held = stress.count_diverged(task, num_runs=50, hold=5, name="x")
    assert (certified[1], certified[3], certified[5]) == ("deterministic", "0", "0")
    assert held[1] == "estimate"


def test_transfer_row_is_paired_over_the_same_runs() -> None:
    task, policy = make_task(), make_policy()
    row = stress.transfer_row("x", task, policy, seeds=SEEDS)
    learned = run_trial(task, PolicyControl(policy), seeds=SEEDS).scores
    fixed = experiment.run_schedule(task, schedules.linear, 1.0, "fraction", SEEDS).scores
    cells = [format_interval(list(values)) for values in (learned, fixed, learned - fixed)]
    assert row == ["x", "6", *cells, "0"]
