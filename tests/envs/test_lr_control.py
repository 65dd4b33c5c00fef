import copy
import math
import re
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common import env_checker as sb3_env_checker

from lrpilot import ActionSpec, ObservationSpec
from lrpilot.envs import LRControlEnv
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.tasks.nmf.task import NMFTask
from tests.environments import (
    LEVEL_FLOOR,
    TASKS,
    episode,
    make_env,
    make_task,
    parameters,
)
from tests.running import through_file
from tests.scheduling import plain_action


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("reward", ["privileged", "training"])
def test_gymnasiums_checker_passes_without_a_warning(name: str, reward: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(make_env(name, reward=reward, num_decisions=5))

    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("reward", ["privileged", "training"])
def test_stable_baselines3s_checker_passes_without_a_warning(name: str, reward: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_env_checker.check_env(make_env(name, reward=reward, num_decisions=5))

    assert [str(warning.message) for warning in caught] == []


def test_the_package_registers_the_env_under_its_id() -> None:
    spec = gymnasium.spec("lrpilot/LRControl-v0")

    assert isinstance(spec.make(task=make_task("quadratic")).unwrapped, LRControlEnv)


def test_gymnasiums_wrappers_can_wrap_a_made_env() -> None:
    env = FlattenObservation(gymnasium.make("lrpilot/LRControl-v0", task=make_task("quadratic")))
    observation, _ = env.reset(seed=0)

    assert env.observation_space.contains(observation)


def test_the_docstring_table_lists_the_features_in_order() -> None:
    assert LRControlEnv.__doc__ is not None
    rows = re.findall(r"^    (\d+) +(\w+) +\S", LRControlEnv.__doc__, flags=re.MULTILINE)

    assert [name for _, name in rows] == list(ObservationSpec().names)
    assert [int(index) for index, _ in rows] == list(range(len(rows)))


def capped_env(**arguments: Any) -> LRControlEnv:
    task = NMFTask(
        name="nmf",
        optimizer=torch.optim.SGD,
        base_lr=0.02,
        total_steps=23,
        shape=(12, 8),
        rank=3,
        batch_size=4,
        noise="gaussian",
        cap_kind="segment",
    )
    return LRControlEnv(task, **arguments)


def in_units_of_the_cap() -> ActionSpec:
    return plain_action(unit="cap", max_factor=1.0, start_factor=0.3)


def documented_info() -> tuple[set[str], set[str], set[str]]:
    """Keys of info that are there always, under a cap and at the end."""
    assert LRControlEnv.__doc__ is not None
    section = LRControlEnv.__doc__.split("**Info.**")[1].split("Args:")[0]
    first, _, rest = section.partition("under a cap also")
    second, _, third = rest.partition("at the end")
    always, capped, end = (set(re.findall(r"`(\w+)`", part)) for part in (first, second, third))
    return always, capped, end


def test_the_docstring_names_exactly_the_keys_of_info_without_a_cap() -> None:
    always, _, end = documented_info()
    env = make_env(num_decisions=2)
    _, first = env.reset(seed=0)
    *_, last = env.step(np.zeros(1))

    assert set(first) == always
    assert set(last) == always | end


@pytest.mark.parametrize("arguments", [{"use_cap": True}, {"action": in_units_of_the_cap()}])
def test_the_docstring_names_exactly_the_keys_of_info_under_a_cap(
    arguments: dict[str, Any],
) -> None:
    always, capped, end = documented_info()
    env = capped_env(num_decisions=2, **arguments)
    _, first = env.reset(seed=0)
    *_, last = env.step(np.zeros(1))

    assert set(first) == always | capped
    assert set(last) == always | capped | end


def test_without_use_cap_a_task_with_a_cap_is_not_bound_by_it() -> None:
    _, info = capped_env(action=plain_action()).reset(seed=0, options={"initial_lr": 0.5})

    assert info["lr"] == 0.5
    assert "num_capped" not in info


def test_under_a_cap_info_counts_the_steps_that_it_bound() -> None:
    env = capped_env(num_decisions=2, use_cap=True)
    _, bound = env.reset(seed=0, options={"initial_lr": 1e3})
    _, free = env.reset(seed=0, options={"initial_lr": 1e-9})

    assert (bound["num_capped"], len(bound["losses"])) == (12, 12)
    assert (free["num_capped"], len(free["losses"])) == (0, 12)


def test_under_a_cap_info_names_its_guarantee() -> None:
    _, info = capped_env(use_cap=True).reset(seed=0)

    assert info["guarantee"] == "stationary"


def test_in_units_of_the_cap_the_lr_is_the_factor_times_the_cap_of_its_step() -> None:
    env = capped_env(action=in_units_of_the_cap(), interval_steps=1)
    _, info = env.reset(seed=0)
    cap, _ = env.task.start(info["task_seed"]).cap()

    assert info["lr"] == 0.3 * cap


@pytest.mark.parametrize("name", TASKS)
def test_reset_with_one_seed_gives_the_same_episode(name: str) -> None:
    env = make_env(name)
    first, first_info = env.reset(seed=4)
    first_weights = parameters(env)
    env.step(np.ones(1))
    second, second_info = env.reset(seed=4)

    assert np.array_equal(first, second)
    assert first_info == second_info
    assert all(map(torch.equal, first_weights, parameters(env)))


@pytest.mark.parametrize("name", TASKS)
def test_whole_episodes_of_one_seed_are_identical_in_two_envs(name: str) -> None:
    one, two = (
        episode(make_env(name, num_decisions=6), np.random.default_rng(0), seed=9) for _ in range(2)
    )

    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a[0], b[0])
        assert a[1:] == b[1:]


def test_reset_without_a_seed_draws_a_new_run() -> None:
    env = make_env(horizon_factors=(0.5, 2.0))
    _, first = env.reset(seed=4)
    _, second = env.reset()

    assert first["task_seed"] != second["task_seed"]
    assert first["initial_lr"] != second["initial_lr"]


def test_options_fix_the_run() -> None:
    _, info = make_env().reset(
        seed=0, options={"task_seed": 2**30 + 5, "initial_lr": 0.125, "total_steps": 9}
    )

    assert (info["task_seed"], info["initial_lr"], info["total_steps"]) == (2**30 + 5, 0.125, 9)


@pytest.mark.parametrize("option", ["task_seed", "initial_lr", "total_steps"])
def test_one_option_leaves_the_other_draws_as_they_are(option: str) -> None:
    env = make_env(horizon_factors=(0.5, 2.0))
    _, drawn = env.reset(seed=3)
    value = {"task_seed": 1, "initial_lr": 0.5, "total_steps": 17}[option]
    _, fixed = env.reset(seed=3, options={option: value})

    for name in {"task_seed", "initial_lr", "total_steps"} - {option}:
        assert fixed[name] == drawn[name]
    assert fixed[option] == value


def test_options_do_not_change_later_episodes() -> None:
    env = make_env()
    env.reset(seed=3)
    _, free = env.reset()
    env.reset(seed=3, options={"task_seed": 1, "initial_lr": 0.5, "total_steps": 17})
    _, after_options = env.reset()

    assert after_options == free


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"`options` must be among .*, got \{'lr'\}"):
        make_env().reset(options={"lr": 0.1})


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    horizon=st.tuples(st.floats(0.2, 1.0), st.floats(1.0, 3.0)),
    lr=st.tuples(st.floats(1e-3, 1.0), st.floats(1.0, 30.0)),
)
def test_draws_lie_in_the_stated_ranges(
    seed: int, horizon: tuple[float, float], lr: tuple[float, float]
) -> None:
    task = make_task("quadratic", total_steps=20)
    env = LRControlEnv(task, horizon_factors=horizon, initial_lr_factors=lr, num_decisions=20)
    _, info = env.reset(seed=seed)

    assert round(20 * horizon[0]) <= info["total_steps"] <= round(20 * horizon[1])
    # logarithm and back cost a rounding error
    assert lr[0] * (1 - 1e-12) <= info["initial_lr"] / task.base_lr <= lr[1] * (1 + 1e-12)
    assert 0 <= info["task_seed"] < FIRST_EVALUATION_SEED
    assert type(info["total_steps"]) is int
    assert type(info["task_seed"]) is int


def test_initial_lrs_are_log_uniform_over_the_range() -> None:
    env = make_env(num_decisions=23, initial_lr_factors=(0.01, 100.0))
    env.reset(seed=0)
    logs = [math.log10(env.reset()[1]["initial_lr"] / 0.02) for _ in range(600)]

    # uniform on [-2, 2]: quarters of equal probability; 4 standard errors are 42 draws
    counts, _ = np.histogram(logs, bins=[-2, -1, 0, 1, 2])
    assert abs(counts - 150).max() <= 42


def test_a_range_of_one_point_draws_the_tasks_own_values() -> None:
    env = make_env(initial_lr_factors=(1.0, 1.0))
    _, info = env.reset(seed=0)

    assert (info["initial_lr"], info["total_steps"]) == (0.02, 23)


def test_the_first_interval_runs_at_the_start_factor() -> None:
    env = make_env(action=plain_action(start_factor=0.125), num_decisions=5)
    _, info = env.reset(seed=0, options={"initial_lr": 0.5})

    assert info["lr"] == 0.0625
    assert len(info["losses"]) == info["num_steps"] == round(23 / 5)


def test_reset_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    make_env("digits").reset(seed=0)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("total_steps", "num_decisions", "expected"),
    [(12, 4, [3, 3, 3, 3]), (23, 5, [5, 5, 5, 5, 3]), (4, 30, [1, 1, 1, 1]), (1, 1, [1])],
)
def test_intervals_cover_the_horizon_and_the_last_may_be_shorter(
    total_steps: int, num_decisions: int, expected: list[int]
) -> None:
    env = make_env(num_decisions=num_decisions)
    steps = episode(env, np.random.default_rng(0), seed=0, options={"total_steps": total_steps})
    lengths = [len(step[-1]["losses"]) for step in steps]

    assert [length for length in lengths if length] == expected
    assert steps[-1][-1]["num_steps"] == total_steps


@pytest.mark.parametrize("interval_steps", [1, 7, 23, 50])
def test_interval_steps_sets_the_interval(interval_steps: int) -> None:
    env = make_env(interval_steps=interval_steps)
    _, info = env.reset(seed=0)

    assert len(info["losses"]) == min(interval_steps, 23)


def test_an_episode_is_as_long_as_its_decisions() -> None:
    steps = episode(make_env(num_decisions=5), np.random.default_rng(0), seed=0)

    assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert not any(step[3] for step in steps)
    assert steps[-1][-1]["episode_length"] == len(steps) - 1


@pytest.mark.parametrize("name", TASKS)
def test_the_return_is_the_log_ratio_of_privileged_losses(name: str) -> None:
    env = make_env(name, num_decisions=6, initial_lr_factors=(0.1, 1.0))
    env.reset(seed=0)
    first = env.run.privileged_loss()
    rewards = []
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(np.full(1, 0.3))
        rewards.append(reward)

    assert not info["is_diverged"]
    assert info["episode_return"] == sum(rewards)
    assert sum(rewards) == pytest.approx(math.log(first / env.run.privileged_loss()), abs=1e-9)


@pytest.mark.parametrize("name", TASKS)
def test_each_reward_is_the_log_ratio_of_successive_privileged_losses(name: str) -> None:
    env = make_env(name, num_decisions=4, initial_lr_factors=(0.1, 1.0))
    env.reset(seed=1)
    terminated = False
    while not terminated:
        before = env.run.privileged_loss()
        _, reward, terminated, _, _ = env.step(np.full(1, -0.5))
        assert reward == pytest.approx(math.log(before / env.run.privileged_loss()), abs=1e-9)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("groups", [ObservationSpec().groups, ("progress", "lr")])
def test_each_training_reward_is_the_log_ratio_of_successive_interval_means(
    name: str, groups: tuple[str, ...]
) -> None:
    env = make_env(
        name,
        num_decisions=4,
        initial_lr_factors=(0.1, 1.0),
        reward="training",
        observation=ObservationSpec(groups),
    )
    _, *steps = episode(env, np.random.default_rng(0), seed=1)
    _, info = env.reset(seed=1)
    mean = np.mean(info["losses"])
    for _, reward, _, _, info in steps:
        assert reward == pytest.approx(math.log(mean / np.mean(info["losses"])), abs=1e-9)
        mean = np.mean(info["losses"])


@pytest.mark.parametrize("reward", ["privileged", "training"])
@pytest.mark.parametrize("groups", [ObservationSpec().groups, ("progress", "lr")])
def test_a_decision_after_the_last_step_is_worth_nothing(
    reward: str, groups: tuple[str, ...]
) -> None:
    env = make_env(interval_steps=50, reward=reward, observation=ObservationSpec(groups))
    env.reset(seed=0, options={"initial_lr": 0.3})
    _, value, terminated, _, info = env.step(np.ones(1))

    assert terminated
    assert (value, info["losses"]) == (0.0, [])


def test_the_reward_never_reads_the_test_split() -> None:
    env = make_env("digits", num_decisions=4)
    plain = [step[1] for step in episode(env, np.random.default_rng(0), seed=2)]
    data = env.run.data  # type: ignore[attr-defined]
    kept = data.test_x.clone()
    try:
        data.test_x.fill_(math.nan)
        poisoned = [step[1] for step in episode(env, np.random.default_rng(0), seed=2)]
    finally:
        data.test_x.copy_(kept)

    assert poisoned == plain
    assert all(map(math.isfinite, poisoned))


@pytest.mark.parametrize("name", ["quadratic", "digits"])
@pytest.mark.parametrize("reward", ["privileged", "training"])
def test_divergence_terminates_with_a_finite_penalty_and_observation(
    name: str, reward: str
) -> None:
    # The first interval is stable; the decisions then raise the learning rate 50-fold each.
    action = plain_action(max_log_change=math.log(50), max_factor=1e6, min_factor=1e-6)
    env = make_env(name, num_decisions=10, action=action, reward=reward)
    env.reset(seed=0, options={"initial_lr": 0.02})
    rewards, terminated = [], False
    while not terminated:
        observation, value, terminated, _, info = env.step(np.ones(1))
        rewards.append(value)
        assert env.observation_space.contains(observation)

    assert info["is_diverged"]
    assert info["num_steps"] < info["total_steps"]
    assert all(map(math.isfinite, rewards))
    # the privileged loss may have reached its ceiling before the training losses did
    assert sum(rewards) < 0.0
    assert sum(rewards) >= -math.log(10.0) - math.log(1 / LEVEL_FLOOR)


@pytest.mark.parametrize("initial_lr", [1e2, 1e6, 1e30])
@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_a_huge_initial_lr_at_start_factor_one_diverges_and_ends_the_episode(
    name: str, initial_lr: float
) -> None:
    env = make_env(name, num_decisions=4, action=plain_action(start_factor=1.0))
    observation, info = env.reset(seed=0, options={"initial_lr": initial_lr})
    assert env.observation_space.contains(observation)
    assert info["is_diverged"]

    observation, reward, terminated, _, info = env.step(np.zeros(1))
    assert env.observation_space.contains(observation)
    assert (terminated, info["is_diverged"]) == (True, True)
    assert math.isfinite(reward)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["quadratic", "nmf"]),
    initial_lr=st.floats(-4, 30).map(lambda x: 10.0**x),
    seed=st.integers(0, 1000),
    divergence_factor=st.floats(1.01, 1e3),
    reward=st.sampled_from(["privileged", "training"]),
)
def test_whatever_the_lr_observations_are_in_the_space_and_returns_are_bounded(
    name: str, initial_lr: float, seed: int, divergence_factor: float, reward: str
) -> None:
    env = make_env(name, num_decisions=5, divergence_factor=divergence_factor, reward=reward)
    steps = episode(env, np.random.default_rng(seed), seed=seed, options={"initial_lr": initial_lr})
    bound = math.log(divergence_factor) + math.log(1 / LEVEL_FLOOR)

    assert all(env.observation_space.contains(step[0]) for step in steps)
    assert all(math.isfinite(step[1]) for step in steps)
    assert abs(sum(step[1] for step in steps)) <= bound + 1e-9


@pytest.mark.parametrize("groups", [ObservationSpec().groups, ("progress", "lr")])
def test_info_says_so_when_finite_losses_end_the_episode(groups: tuple[str, ...]) -> None:
    action = plain_action(max_log_change=5.0)
    env = make_env(num_decisions=11, action=action, observation=ObservationSpec(groups))
    env.reset(seed=0, options={"initial_lr": 0.1})
    _, _, terminated, _, info = env.step(np.ones(1))

    assert all(map(math.isfinite, info["losses"]))
    assert terminated
    assert info["num_steps"] < info["total_steps"]
    assert info["is_diverged"]


def test_a_run_within_the_divergence_factor_goes_on() -> None:
    env = make_env(num_decisions=4, divergence_factor=1e3)
    env.reset(seed=0, options={"initial_lr": 2.05})
    *_, info = env.step(np.zeros(1))

    assert not info["is_diverged"]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("num_decisions", [0, 3])
def test_state_through_a_file_continues_bit_identically_in_a_fresh_env(
    name: str, num_decisions: int
) -> None:
    task = make_task(name, "adam")
    arguments: dict[str, Any] = {"num_decisions": 8, "horizon_factors": (0.7, 1.5)}
    env = LRControlEnv(task, **arguments)
    env.reset(seed=0)
    for _ in range(num_decisions):
        env.step(np.full(1, 0.4))
    fresh = LRControlEnv(task, **arguments)
    fresh.load_state_dict(through_file(env.state_dict()))

    rng = np.random.default_rng(0)
    terminated: Any = False
    while not terminated:
        action = rng.uniform(-1, 1, 1)
        (a, *expected), (b, *resumed) = env.step(action), fresh.step(action)
        terminated = expected[1]
        assert np.array_equal(a, b)
        assert expected == resumed
    assert env.reset()[1] == fresh.reset()[1]


def test_state_does_not_alias_the_env() -> None:
    env = make_env("digits", num_decisions=8)
    env.reset(seed=0)
    env.step(np.zeros(1))
    state = env.state_dict()
    expected = copy.deepcopy(state)
    env.step(np.ones(1))
    other = make_env("digits", num_decisions=8)
    other.load_state_dict(state)
    other.step(np.ones(1))
    other.load_state_dict(expected)
    again = make_env("digits", num_decisions=8)
    again.load_state_dict(state)

    assert other.step(np.full(1, 0.5))[4] == again.step(np.full(1, 0.5))[4]


@pytest.mark.parametrize("interval_steps", [0, -2])
def test_interval_steps_below_one_is_refused(interval_steps: int) -> None:
    message = f"`interval_steps` must be at least 1, got {interval_steps}"
    with pytest.raises(ValueError, match=message):
        LRControlEnv(make_task("quadratic"), interval_steps=interval_steps)


def test_num_decisions_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_decisions` must be at least 1, got 0"):
        LRControlEnv(make_task("quadratic"), num_decisions=0)


def test_a_reversed_box_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`min_factor` must not exceed `max_factor`, got 2.0"):
        plain_action(min_factor=2.0, max_factor=1.0)


@pytest.mark.parametrize("name", ["horizon_factors", "initial_lr_factors"])
@pytest.mark.parametrize(
    "bounds", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)]
)
def test_a_range_that_is_reversed_or_not_positive_is_refused(
    name: str, bounds: tuple[float, float]
) -> None:
    arguments: dict[str, Any] = {name: bounds}
    with pytest.raises(ValueError, match=f"`{name}` must be 0 < low <= high, got"):
        LRControlEnv(make_task("quadratic"), **arguments)


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`reward` must be one of .*, got 'test_loss'"):
        LRControlEnv(make_task("quadratic"), reward="test_loss")


@pytest.mark.parametrize("factor", [1.0, 0.5, -3.0, math.inf, math.nan])
def test_a_divergence_factor_that_does_not_exceed_one_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=f"`divergence_factor` must exceed 1, got {factor}"):
        LRControlEnv(make_task("quadratic"), divergence_factor=factor)


@pytest.mark.parametrize("action", [0.0, [], [0.0, 0.0], [[0.0]]])
def test_an_action_of_another_shape_is_refused(action: Any) -> None:
    env = make_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"`action` must have shape \(1,\), got"):
        env.step(np.array(action))


@pytest.mark.parametrize("action", [1.001, -1.001, math.nan, math.inf])
def test_an_action_outside_the_space_is_refused_and_changes_nothing(action: float) -> None:
    env, untouched = make_env(), make_env()
    env.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=r"`action` must be in \[-1, 1\], got"):
        env.step(np.array([action]))

    assert env.step(np.ones(1))[1:] == untouched.step(np.ones(1))[1:]


def test_step_before_reset_names_its_cure() -> None:
    with pytest.raises(RuntimeError, match=re.escape("call `reset()` before `step()`")):
        LRControlEnv(make_task("quadratic")).step(np.zeros(1))


@pytest.mark.parametrize("initial_lr", [0.0, -0.1, math.nan])
def test_an_initial_lr_option_that_is_not_positive_is_refused(initial_lr: float) -> None:
    with pytest.raises(ValueError, match="`initial_lr`"):
        make_env().reset(seed=0, options={"initial_lr": initial_lr})


def test_a_total_steps_option_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`total_steps` must be at least 1, got 0"):
        make_env().reset(seed=0, options={"total_steps": 0})
