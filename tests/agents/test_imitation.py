import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrpilot import ActionSpec, ControlSettings, ObservationSpec
from lrpilot.agents.imitation import Experts, imitate, search_experts
from lrpilot.agents.imitation.actor import Actor
from lrpilot.agents.imitation.experts import log_levels
from lrpilot.agents.imitation.mean import mean_policy
from lrpilot.agents.imitation.rollouts import (
    Rollout,
    read_rollouts,
    relabel,
    roll_out,
    write_rollout,
)
from lrpilot.agents.imitation.schedules import SCHEDULES, decay_to_zero
from lrpilot.tasks.small_trainings.task import SmallTrainingTask

PEAKS = np.array([0.1, 1.0, 10.0])
TASK = SmallTrainingTask(
    name="small_trainings",
    base_lr=0.2,
    total_steps=24,
    num_setups=2,
    families=("mlp",),
    num_train_range=(256, 300),
    num_privileged=32,
    dtype="float64",
    calibrate=False,
)
SETTINGS = ControlSettings(
    observation=ObservationSpec(groups=("progress", "recent_loss", "recent_lr")),
    num_decisions=6,
    horizon_factors=(0.5, 1.0),
)
IMITATION: dict[str, Any] = {
    "num_runs": 4,
    "num_rounds": 3,
    "updates_per_round": 30,
    "hidden_sizes": [8],
    "num_members": 1,
    "action_noise": 0.1,
    "peak_error": 0.5,
    "caution": 1.0,
    "schedule": "d2z",
    "show_progress": False,
}


def experts_of(*levels: list[float], peaks: np.ndarray = PEAKS) -> Experts:
    count = len(levels)
    return Experts(peaks, np.arange(count), np.full(count, 12), np.array(levels, np.float64))


@pytest.mark.parametrize("kind", ["multiplier", "residual"])
def test_the_action_for_a_factor_gives_this_factor(kind: str) -> None:
    spec = ActionSpec(kind=kind, min_factor=1e-9, max_factor=1e9)
    rng = np.random.default_rng(0)
    multiplier, progress = np.exp(rng.normal(size=100)), rng.uniform(0.0, 0.99, 100)
    action = rng.uniform(-1.0, 1.0, 100)
    factor, _ = spec.apply(action, multiplier=multiplier, progress=progress)
    again = spec.action_for(factor, multiplier=multiplier, progress=progress)
    assert again == pytest.approx(action, abs=1e-9)


@pytest.mark.parametrize(("name", "share"), [("d2z", 0.1), ("slow_rise", 0.2)])
def test_a_schedule_of_experts_is_continuous_and_highest_after_its_warmup(
    name: str, share: float
) -> None:
    grid = np.linspace(0.0, 1.0, 1001)
    factors = SCHEDULES[name](grid)
    assert np.abs(np.diff(factors)).max() < 0.02
    assert grid[factors.argmax()] == pytest.approx(share)
    assert factors[-1] == 0.0
    assert factors[:-1].min() > 0.0


def test_the_best_peak_of_one_that_follows_exactly_is_the_best_that_ran() -> None:
    peaks = experts_of([0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, -0.5, -1.0]).best_peaks(1e-3)
    assert peaks == pytest.approx([1.0, 0.1, 10.0])


def test_an_even_valley_has_its_best_peak_in_the_middle_whatever_the_error() -> None:
    for error in (0.1, 0.7, 2.0):
        assert experts_of([0.0, -1.0, 0.0]).best_peaks(error) == pytest.approx([1.0])


def test_the_best_peak_keeps_away_from_divergence_the_more_the_larger_the_error() -> None:
    experts = experts_of([-0.8, -1.0, 2.0])
    near, far = experts.best_peaks(0.2)[0], experts.best_peaks(0.7)[0]
    assert far < near < 1.0


def test_stakes_are_high_where_the_other_peaks_are_bad() -> None:
    stakes = experts_of([-1.0, -1.0, -1.0], [0.0, -1.0, -0.5], [2.0, -1.0, 1.5]).stakes()
    assert stakes == pytest.approx([0.0, 1.0, 1.0])


def test_experts_of_a_file_are_those_that_were_written(tmp_path: Path) -> None:
    experts = experts_of([0.1, -1.0 / 3.0, 2.0], [0.0, -1e-9, -2.0])
    experts.write(tmp_path / "experts.csv")
    again = Experts.read(tmp_path / "experts.csv")
    for name in ("peak_lrs", "task_seeds", "total_steps", "levels"):
        assert np.array_equal(getattr(again, name), getattr(experts, name))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("seed,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"`experts.path` must be a file of experts, got .*runs"):
        Experts.read(path)


def test_experts_with_other_peaks_are_not_joined() -> None:
    with pytest.raises(ValueError, match="`other` must have the peaks"):
        experts_of([0.0, 0.0, 0.0]) + experts_of([0.0, 0.0, 0.0], peaks=2 * PEAKS)


def test_levels_are_those_of_single_runs() -> None:
    experts = search_experts(TASK, seeds=[3, 8], total_steps=12, peak_factors=[0.3, 1.0, 3.0])
    assert experts.peak_lrs == pytest.approx([0.06, 0.2, 0.6])
    for k, lr in enumerate(experts.peak_lrs):
        run = TASK.start(8)
        first = run.privileged_loss()
        for step in range(12):
            run.step(lr * decay_to_zero((step + 0.5) / 12))
        level = math.log(run.privileged_loss() / first)
        assert experts.levels[1, k] == pytest.approx(level, rel=1e-9)


def test_divergence_is_a_level_of_2() -> None:
    experts = search_experts(TASK, seeds=[0], total_steps=5, peak_factors=[1.0, 2.0, 1e30])
    assert experts.levels[0, 2] == 2.0


def test_a_loss_of_0_has_a_finite_level() -> None:
    levels = log_levels(torch.tensor([0.0, 1.0, math.nan]), torch.tensor([2.0, 1.0, 1.0]))
    assert levels == pytest.approx([math.log(1e-8), 0.0, 2.0])


@pytest.mark.parametrize("factors", [[0.1, 1.0], [1.0, 1.0, 3.0], [-1.0, 1.0, 3.0]])
def test_peaks_must_ascend(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="`peak_factors` must be at least three positive numbers"):
        search_experts(TASK, seeds=[0], total_steps=5, peak_factors=factors)


def test_experts_of_a_horizon_are_those_with_it() -> None:
    experts = Experts(PEAKS, np.arange(3), np.array([10, 20, 10]), np.eye(3))
    chosen = experts.of_horizon(10)
    assert chosen.task_seeds.tolist() == [0, 2]
    assert np.array_equal(chosen.levels, np.eye(3)[[0, 2]])


def test_an_expert_that_acts_is_followed_to_its_schedule() -> None:
    """Noise or not, it brings the rate to its peak, times its schedule's value at each decision."""
    experts = search_experts(TASK, seeds=[1, 2], total_steps=24, peak_factors=[0.1, 1.0, 10.0])
    settings = replace(SETTINGS, action=ActionSpec(max_log_change=10.0, max_factor=1e6))
    rollout, _ = roll_out(
        TASK,
        settings,
        experts,
        Actor(len(settings.observation.names), lstm_units=0, hidden_sizes=[2]).policy(settings, {}),
        num_runs=6,
        peak_error=0.5,
        schedule="d2z",
        expert_share=1.0,
        noise=0.0,
        rng=np.random.default_rng(0),
    )
    # after the first decision that reaches it, only the warm-up remains to be followed
    after_warmup = rollout.wanted[2:]
    assert after_warmup.abs().max() < 1e-6
    assert rollout.wanted[0].abs().min() > 1e-3


def test_a_horizon_without_a_decision_is_refused() -> None:
    experts = replace(experts_of([0.0, -1.0, 0.0]), total_steps=np.array([1]))
    with pytest.raises(ValueError, match="`experts` must have horizons with a decision, got 1 st"):
        imitate(TASK, SETTINGS, experts, **IMITATION, lstm_units=0)


def test_states_after_a_divergence_have_no_weight() -> None:
    experts = replace(experts_of([0.0, -1.0, 0.0]), total_steps=np.array([24]))
    settings = replace(SETTINGS, initial_lr_factors=(1e30, 1e31))
    actor = Actor(len(settings.observation.names), lstm_units=0, hidden_sizes=[2])
    rollout, regrets = roll_out(
        TASK,
        settings,
        experts,
        actor.policy(settings, {}),
        num_runs=3,
        peak_error=0.5,
        schedule="d2z",
        expert_share=0.0,
        noise=0.0,
        rng=np.random.default_rng(0),
    )
    assert not rollout.weights.any()
    assert regrets.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("lstm_units", [0, 5])
def test_the_policy_acts_as_its_network_in_whole_runs(lstm_units: int) -> None:
    torch.manual_seed(0)
    actor = Actor(len(SETTINGS.observation.names), lstm_units=lstm_units, hidden_sizes=[6])
    policy = actor.policy(SETTINGS, {})
    x = torch.randn(7, 3, len(SETTINGS.observation.names))
    memory = policy.initial_memory(3)
    with torch.no_grad():
        expected = actor(x).clamp(-1.0, 1.0).numpy()
    for observations, wanted in zip(x.numpy(), expected, strict=True):
        assert policy.act_batch(observations, memory) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("lstm_units", [0, 5])
def test_an_actor_that_takes_a_policy_is_that_policy(lstm_units: int) -> None:
    sizes: dict[str, Any] = {"lstm_units": lstm_units, "hidden_sizes": [6]}
    first, second = (Actor(len(SETTINGS.observation.names), **sizes) for _ in range(2))
    policy = first.policy(SETTINGS, {})
    assert second.policy(SETTINGS, {}).fingerprint != policy.fingerprint
    second.load(policy, SETTINGS)
    assert second.policy(SETTINGS, {}).fingerprint == policy.fingerprint


@pytest.mark.parametrize("lstm_units", [0, 5])
def test_the_mean_of_policies_acts_as_the_mean_of_what_they_do(lstm_units: int) -> None:
    torch.manual_seed(0)
    size = len(SETTINGS.observation.names)
    policies = [
        Actor(size, lstm_units=lstm_units, hidden_sizes=[6, 4]).policy(SETTINGS, {})
        for _ in range(3)
    ]
    mean = mean_policy(policies, {"task": "mean"})
    memories = [policy.initial_memory(2) for policy in policies]
    memory = mean.initial_memory(2)
    for observations in torch.randn(7, 2, size).numpy():
        actions = [p.act_batch(observations, m) for p, m in zip(policies, memories, strict=True)]
        assert mean.act_batch(observations, memory) == pytest.approx(np.mean(actions, 0), abs=1e-6)
    assert mean.card == {"task": "mean"}


def test_policies_of_other_shapes_have_no_mean() -> None:
    small, large = (
        Actor(len(SETTINGS.observation.names), lstm_units=0, hidden_sizes=[size]) for size in (3, 4)
    )
    with pytest.raises(ValueError, match="`policies` must have equal shapes, got"):
        mean_policy([small.policy(SETTINGS, {}), large.policy(SETTINGS, {})], {})


def test_an_actor_does_not_take_a_policy_of_other_shapes() -> None:
    small, large = (
        Actor(len(SETTINGS.observation.names), lstm_units=0, hidden_sizes=[size]) for size in (3, 4)
    )
    with pytest.raises(ValueError, match="`init_from` must have the shapes"):
        small.load(large.policy(SETTINGS, {}), SETTINGS)


@pytest.mark.parametrize(("lstm_units", "num_members"), [(0, 1), (4, 1), (4, 2)])
def test_a_policy_learns_what_its_experts_do(lstm_units: int, num_members: int) -> None:
    experts = search_experts(TASK, seeds=[1, 2, 3], total_steps=24, peak_factors=[0.1, 1.0, 10.0])
    rows: list[str] = []
    policy = imitate(
        TASK,
        SETTINGS,
        experts,
        **{**IMITATION, "num_rounds": 8, "updates_per_round": 100, "num_members": num_members},
        lstm_units=lstm_units,
        report=lambda _, metrics, rollout: rows.append(metrics),
    )
    errors = [float(line.split(",")[3]) for line in rows[-1].splitlines()[1:]]
    assert errors[-1] < errors[0] / 3
    low, high = policy.card["feature_range"]["progress"]
    assert -1.0 <= low < high <= 1.0
    # of 8 rounds with 4 runs of 24 steps, and 5 decisions each
    assert (policy.card["num_env_steps"], policy.card["num_inner_steps"]) == (160, 768)


def test_a_policy_that_goes_on_has_seen_what_it_saw_before() -> None:
    experts = search_experts(TASK, seeds=[1], total_steps=24, peak_factors=[0.1, 1.0, 10.0])
    options: dict[str, Any] = {**IMITATION, "num_rounds": 1, "lstm_units": 0}
    first, second = (imitate(TASK, SETTINGS, experts, **options, seed=seed) for seed in (0, 1))
    on = imitate(TASK, SETTINGS, experts, **options, seed=1, init_from=first)

    ranges = [policy.card["feature_range"]["recent_noise"] for policy in (first, second, on)]
    assert ranges[0] != ranges[1]
    assert ranges[2][0] <= ranges[0][0] <= ranges[0][1] <= ranges[2][1]


def test_what_was_noted_in_a_round_is_read_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written = [
        Rollout(torch.randn(3, 2, 4), torch.randn(3, 2), torch.rand(3, 2)) for _ in range(12)
    ]
    for rollout in written:
        write_rollout(tmp_path, rollout, SETTINGS, "d2z")
    for rollout, again in zip(written, read_rollouts(tmp_path, SETTINGS, "d2z"), strict=True):
        assert all(map(torch.equal, rollout, again))


def test_what_was_noted_of_other_observations_is_refused(tmp_path: Path) -> None:
    write_rollout(tmp_path, Rollout(*torch.zeros(3, 2, 1, 1)), SETTINGS, "d2z")
    other = replace(SETTINGS, observation=ObservationSpec(groups=("progress",)))
    with pytest.raises(ValueError, match="`rollouts_from` must have been seen and decided as"):
        read_rollouts(tmp_path, other, "d2z")


def test_a_folder_without_rollouts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`rollouts_from` must be run folders with rollouts/, got"):
        read_rollouts(tmp_path, SETTINGS, "d2z")


def test_experts_of_another_schedule_are_told_from_what_was_noted() -> None:
    """As those who were asked in the same runs, but for the anchor's change within a step."""
    experts = search_experts(TASK, seeds=[1, 2], total_steps=24, peak_factors=[0.1, 1.0, 10.0])
    settings = replace(SETTINGS, action=ActionSpec(max_log_change=4.0, max_factor=1e6))
    actor = Actor(len(SETTINGS.observation.names), lstm_units=0, hidden_sizes=[2])
    options: dict[str, Any] = {"num_runs": 6, "peak_error": 0.5, "expert_share": 0.0, "noise": 0.1}
    noted, expected = (
        roll_out(
            TASK,
            settings,
            experts,
            actor.policy(settings, {}),
            **options,
            schedule=schedule,
            rng=np.random.default_rng(0),
        )[0]
        for schedule in ("d2z", "slow_rise")
    )
    assert torch.equal(noted.observations, expected.observations)
    again = relabel(noted, settings, "d2z", "slow_rise")
    known = again.weights > 0.0
    assert known.sum() >= 0.5 * known.numel()
    was_free = known & (noted.wanted.abs() < 1.0)
    assert 0 < was_free.sum() < known.sum()
    assert (again.wanted - expected.wanted)[was_free].abs().max() < 1e-5
    assert (again.wanted - expected.wanted)[known].abs().max() < 0.1
    assert (noted.wanted - expected.wanted)[known].abs().max() > 0.2


def test_another_schedule_needs_a_policy_that_sees_its_learning_rate() -> None:
    other = replace(SETTINGS, observation=ObservationSpec(groups=("progress",)))
    with pytest.raises(ValueError, match="`schedule` must be 'd2z', as that of the rollouts, unl"):
        relabel(Rollout(*torch.zeros(3, 2, 1, 1)), other, "d2z", "slow_rise")


def test_a_policy_acts_from_the_first_round_as_earlier_rollouts_teach() -> None:
    experts = search_experts(TASK, seeds=[1, 2, 3], total_steps=24, peak_factors=[0.1, 1.0, 10.0])
    noted: list[Rollout] = []
    errors: list[str] = []
    options: dict[str, Any] = {**IMITATION, "lstm_units": 0, "updates_per_round": 200}
    imitate(TASK, SETTINGS, experts, **options, report=lambda _, __, rollout: noted.append(rollout))
    policy = imitate(
        TASK,
        SETTINGS,
        experts,
        **{**options, "num_rounds": 1},
        seed=1,
        earlier=noted,
        report=lambda _, metrics, __: errors.extend(metrics.splitlines()),
    )
    untaught = imitate(TASK, SETTINGS, experts, **{**options, "num_rounds": 1}, seed=1)

    # of 3 rounds with 4 runs of 5 decisions
    assert (policy.card["num_earlier_env_steps"], policy.card["num_env_steps"]) == (60, 20)
    assert len(noted) == 3
    seen = torch.cat([rollout.observations.flatten(0, 1) for rollout in noted])
    asked = torch.cat([rollout.wanted.flatten() for rollout in noted]).numpy()
    mistakes = [np.abs(p.act_batch(seen.numpy()) - asked).mean() for p in (policy, untaught)]
    assert mistakes[0] < mistakes[1] / 2


def test_caution_lowers_what_a_policy_does_where_it_cannot_know() -> None:
    """Its experts disagree, in states that it cannot tell from each other."""
    experts = experts_of([-1.0, 0.0, 0.0], [0.0, 0.0, -1.0])
    settings = replace(SETTINGS, observation=ObservationSpec(groups=("progress",)))
    plain, cautious = (
        imitate(
            TASK, settings, experts, **{**IMITATION, "num_rounds": 6, "caution": c}, lstm_units=0
        )
        for c in (1.0, 9.0)
    )
    progress = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
    assert cautious.act_batch(progress).mean() < plain.act_batch(progress).mean() - 0.1


def test_imitation_of_one_seed_gives_one_policy() -> None:
    experts = experts_of([0.0, -1.0, 0.0], [-1.0, 0.0, 0.0])
    policies = [
        imitate(TASK, SETTINGS, experts, **IMITATION, lstm_units=3, seed=seed) for seed in (0, 0, 1)
    ]
    same, again, other = (policy.fingerprint for policy in policies)
    assert same == again != other
