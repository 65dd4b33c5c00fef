import numpy as np
import pytest
import torch

from lrpilot import ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.envs import LRControlEnv
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation.experiments.nmf import experiment as nmf_experiment
from lrpilot.evaluation.experiments.nmf import report as nmf_report
from lrpilot.evaluation.experiments.nmf import stress as nmf_stress
from lrpilot.evaluation.experiments.nmf.trials import (
    OracleControl,
    PolicyControl,
    ScheduleControl,
    mean_schedule,
    run_trial,
    schedule_factors,
)
from lrpilot.evaluation.grid import Method, train
from lrpilot.evaluation.methods import schedules
from lrpilot.tasks.nmf.task import NMFTask
from tests.scheduling import plain_action

SEEDS = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 6)
FRACTION_OF_CAP = plain_action(unit="cap", max_factor=1.0, start_factor=0.8)


def make_task(**changes):
    arguments = {
        "name": "nmf",
        "optimizer": torch.optim.SGD,
        "base_lr": 0.01,
        "total_steps": 40,
        "shape": (20, 16),
        "rank": 3,
        "noise": "gaussian",
        "noise_range": (0.1, 1.0),
        "cap_kind": "segment",
    }
    return NMFTask(**{**arguments, **changes})


def make_policy(action=FRACTION_OF_CAP, seed=0):
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32))
        for shape in ((12, 8), (8, 1))
    ]
    return Policy(layers, ObservationSpec(), action, ClockSpec(num_decisions=10))


def score(run):
    return run.privileged_loss()


def no_bar(iterable):
    return iterable


def test_trial_of_a_schedule_equals_training_under_the_torch_scheduler():
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


def test_trial_of_a_policy_equals_policy_lr_under_the_runs_own_cap():
    task, policy = make_task(), make_policy()
    trial = run_trial(task, PolicyControl(policy), seeds=SEEDS)
    for seed, found in zip(SEEDS, trial.scores, strict=True):
        run = task.start(seed)
        start = run.privileged_loss()
        scheduler = PolicyLR(run.optimizer, policy, total_steps=40, cap=run.cap)
        for _ in range(40):
            scheduler.step(run.step())
        assert np.log10(run.privileged_loss() / start) == pytest.approx(found, abs=1e-3)


def test_environment_equals_scheduler_exactly_under_a_cap():
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


def test_policy_in_units_of_the_cap_needs_a_cap():
    run = make_task().start(0)
    with pytest.raises(ValueError, match="`cap` is required"):
        PolicyLR(run.optimizer, make_policy(), total_steps=40)


def test_policy_at_the_whole_cap_says_which_guarantee_bound_it():
    run = make_task(noise="none").start(0)
    policy = make_policy(plain_action(unit="cap", max_factor=1.0, start_factor=1.0))
    assert PolicyLR(run.optimizer, policy, total_steps=9, cap=run.cap).bound_by == "deterministic"


def test_factor_above_the_cap_is_refused():
    with pytest.raises(ValueError, match="`max_factor` must be at most 1 in units of the cap"):
        plain_action(unit="cap", max_factor=2.0)


def test_clipped_and_fraction_never_exceed_the_cap():
    task = make_task(noise_range=(1.0, 1.0))
    for mode in ("clipped", "fraction"):
        control = ScheduleControl([1e6] * 40, 1.0, mode)
        assert not run_trial(task, control, seeds=SEEDS).diverged.any()


def test_diverged_runs_are_data():
    trial = run_trial(
        make_task(), ScheduleControl([1.0] * 40, 1e4, "raw"), seeds=SEEDS, needs_cap=False
    )
    assert trial.diverged.all()
    assert (trial.scores == 1.0).all()


def test_line_oracle_beats_every_constant_fraction_without_noise():
    task = make_task(noise="none")
    oracle = run_trial(task, OracleControl(), seeds=SEEDS, total_steps=1)
    for value in (0.1, 0.5, 1.0):
        constant = run_trial(
            task, ScheduleControl([1.0], value, "fraction"), seeds=SEEDS, total_steps=1
        )
        assert (oracle.scores <= constant.scores + 1e-6).all()


def test_mean_schedule_has_one_factor_per_interval():
    trial = run_trial(make_task(), PolicyControl(make_policy()), seeds=SEEDS)
    assert len(mean_schedule(trial, make_policy())) == 10


def test_seed_ranges_do_not_overlap():
    starts = (
        FIRST_EVALUATION_SEED,
        nmf_experiment.FIRST_TUNING_SEED,
        nmf_experiment.FIRST_REPLAY_SEED,
    )
    assert min(np.diff(starts)) >= 100_000


def test_random_walk_has_mean_and_spread_of_the_policys_actions():
    policy = make_policy()
    trial = run_trial(make_task(), PolicyControl(policy), seeds=SEEDS)
    walk = nmf_experiment.random_walk(policy, trial, 0)
    drawn = walk._actor(np.zeros((20_000, 12), np.float32), 0)
    assert drawn.mean() == pytest.approx(trial.actions.mean(), abs=0.1)


@pytest.fixture(scope="module")
def outcomes():
    task, policy = make_task(), make_policy()
    chosen = {name: getattr(schedules, name) for name in ("constant", "linear")}
    tuned = nmf_experiment.tune_schedules(
        task,
        chosen,
        initial_lrs=[1e-4, 1e-3],
        cap_fractions=[0.3, 1.0],
        num_seeds=4,
        progress=no_bar,
    )
    return nmf_experiment.compare(
        task,
        policy,
        chosen,
        tuned,
        cap_fractions=[0.3, 1.0],
        num_seeds=5,
        num_replay_seeds=4,
        progress=no_bar,
    )


def test_comparison_has_policy_schedules_in_all_modes_placebos_and_oracles(outcomes):
    names = [(outcome.name, outcome.mode) for outcome in outcomes]
    assert names[0] == ("policy", "fraction")
    assert len(names) == 1 + 2 * 3 + 3 + 2


def test_table_verdict_and_figure_are_made(outcomes, tmp_path):
    table = nmf_report.comparison_table(outcomes)
    assert len(table.splitlines()) == len(outcomes) + 2
    assert "exact line oracle" in nmf_report.verdict(outcomes)
    nmf_report.draw_outcomes(outcomes, "NMF", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    nmf_report.write_outcomes(outcomes, "random", tmp_path / "outcomes.csv")
    assert len((tmp_path / "outcomes.csv").read_text().splitlines()) == 1 + 5 * len(outcomes)


def test_hindsight_is_at_least_as_good_as_its_best_constant(outcomes):
    by_name = {outcome.name: outcome for outcome in outcomes}
    constant = next(o for o in outcomes if (o.name, o.mode) == ("constant", "fraction"))
    assert (by_name["hindsight: constant"].trial.scores <= constant.trial.scores).all()


def test_certified_runs_do_not_rise_and_held_caps_are_named_estimates():
    task = make_task(noise="none", total_steps=20)
    certified = nmf_stress.count_diverged(task, num_runs=50, hold=1, name="x")
    held = nmf_stress.count_diverged(task, num_runs=50, hold=5, name="x")
    assert (certified[1], certified[3], certified[5]) == ("deterministic", "0", "0")
    assert held[1] == "estimate"


def test_transfer_row_compares_on_the_same_runs():
    row = nmf_stress.transfer_row("x", make_task(), make_policy(), seeds=SEEDS)
    assert (row[1], row[5]) == ("6", "0")
