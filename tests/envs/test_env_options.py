import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common import env_checker as sb3_env_checker
from stable_baselines3.common.vec_env import DummyVecEnv

from lrpilot import ObservationSpec
from lrpilot.envs import LRControlEnv, LRControlVecEnv, LRControlVectorEnv
from lrpilot.policy.observation import FEATURES
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from tests.running import through_file
from tests.scheduling import plain_action

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
WITH_CURVATURE = ObservationSpec(groups=(*FEATURES, "curvature"))
OPTIONS: dict[str, dict[str, Any]] = {
    "truncated": {"max_decisions": 3},
    "reward every third": {"reward_interval": 3},
    "both": {"max_decisions": 4, "reward_interval": 3},
}


@dataclass(frozen=True, kw_only=True)
class EpochTask(QuadraticTask):
    """A quadratic that calls seven steps an epoch."""

    def steps_per_epoch(self) -> int:
        return 7


def quadratic(**changes: Any) -> QuadraticTask:
    arguments = {"name": "bowl", "base_lr": 0.02, "total_steps": 24, "dimension": 9}
    return QuadraticTask(optimizer=torch.optim.SGD, **{**arguments, **changes})


def epochs() -> EpochTask:
    return EpochTask(
        name="epochs", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=40, dimension=9
    )


def digits(**changes: Any) -> ImageTask:
    arguments: dict[str, Any] = {
        "name": "digits",
        "data": "digits",
        "model": partial(mlp, width=8),
        "optimizer": MOMENTUM,
        "base_lr": 0.1,
        "total_steps": 12,
        "num_privileged": 32,
    }
    return ImageTask(**{**arguments, **changes})


def nmf() -> NMFTask:
    return NMFTask(
        name="nmf",
        optimizer=torch.optim.SGD,
        base_lr=0.003,
        total_steps=24,
        shape=(12, 8),
        rank=3,
        batch_size=4,
    )


def networks() -> SmallNetworkTask:
    return SmallNetworkTask(
        name="small",
        base_lr=0.05,
        total_steps=20,
        reward_scale=5.0,
        num_setups=3,
        num_train_range=(64, 100),
        num_privileged=32,
        dtype="float64",
    )


def mixture() -> MixtureTask:
    return MixtureTask(
        tasks={
            "quadratic": quadratic(base_lr=0.5, total_steps=60, reward_scale=2.0),
            "digits": digits(reward_scale=4.0),
        }
    )


def actions_of(step: int, num_envs: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(step).uniform(-1, 1, size=(num_envs, 1)).astype(np.float32)


def episode(env: LRControlEnv, **reset: Any) -> list[tuple[Any, ...]]:
    """The steps of an episode; the first is its reset, with reward 0."""
    observation, info = env.reset(**reset)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False, info)]
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(actions_of(len(steps), 1)[0]))
    return steps


# ---- both kinds of environments agree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option", "num_truncated"),
    [("nmf", "truncated", 24), ("nmf", "reward every third", 0), ("mixture", "both", 18)],
)
def test_batched_instances_equal_single_environments(
    name: str, option: str, num_truncated: int
) -> None:
    mixture = MixtureTask(tasks={"small": networks(), "nmf": nmf(), "digits": digits()})
    task: Task = mixture if name == "mixture" else nmf()
    arguments = {"num_decisions": 6, "initial_lr_factors": (0.1, 3.0), **OPTIONS[option]}
    batch: Any = LRControlVecEnv(task, 6, **arguments)
    singles: Any = DummyVecEnv([partial(LRControlEnv, task, **arguments)] * 6)
    batch.seed(3)
    singles.seed(3)
    np.testing.assert_allclose(batch.reset(), singles.reset(), atol=2e-3)
    num_found = 0
    for step in range(12):
        actions = actions_of(step, 6)
        observations, rewards, dones, infos = batch.step(actions)
        expected = singles.step(actions)
        np.testing.assert_allclose(observations, expected[0], atol=2e-3)
        np.testing.assert_allclose(rewards, expected[1], atol=5e-3)
        assert (dones == expected[2]).all()
        for found, wanted in zip(infos, expected[3], strict=True):
            assert found["task"] == wanted["task"]
            if "episode_return" in wanted:
                assert found["episode_length"] == wanted["episode_length"]
                assert found["TimeLimit.truncated"] == wanted["TimeLimit.truncated"]
                num_found += found["TimeLimit.truncated"]
    assert num_found == num_truncated


def test_batched_state_continues_bit_identically() -> None:
    arguments = {"num_decisions": 6, **OPTIONS["both"]}
    task = MixtureTask(tasks={"nmf": nmf(), "digits": digits(reward_scale=3.0)})
    first, second = (LRControlVecEnv(task, 4, **arguments) for _ in range(2))
    first.seed(0)
    first.reset()
    for step in range(4):
        first.step(actions_of(step, 4))
    second.load_state_dict(through_file(first.state_dict()))
    for step in range(4, 12):
        left, right = first.step(actions_of(step, 4)), second.step(actions_of(step, 4))
        for a, b in zip(left[:3], right[:3], strict=True):
            assert np.array_equal(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["both", "curvature", "mixture"])
def test_state_continues_bit_identically(option: str) -> None:
    # a loss that is not a number equals nothing
    no_divergence = {"initial_lr_factors": (0.1, 0.5)}
    arguments = {"num_decisions": 6, **no_divergence, **OPTIONS.get(option, {})}
    if option == "curvature":
        arguments["observation"] = WITH_CURVATURE
    task = mixture() if option == "mixture" else digits()
    first, second = (LRControlEnv(task, **arguments) for _ in range(2))
    first.reset(seed=1)
    for step in range(2):
        first.step(actions_of(step, 1)[0])
    second.load_state_dict(through_file(first.state_dict()))
    done = False
    while not done:
        left, right = first.step(np.full(1, 0.3)), second.step(np.full(1, 0.3))
        assert np.array_equal(left[0], right[0])
        assert left[1:] == right[1:]
        done = left[2] or left[3]


CHECKED: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (quadratic(), arguments) for name, arguments in OPTIONS.items()},
    "curvature": (digits(), {"observation": WITH_CURVATURE}),
    "mixture": (mixture(), {}),
    "epochs": (epochs(), {"num_epochs": 2}),
}


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("check", [check_env, sb3_env_checker.check_env])
def test_the_checkers_pass_without_a_warning(name: str, check: Any) -> None:
    task, arguments = CHECKED[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = gymnasium.make("lrpilot/LRControl-v0", task=task, num_decisions=6, **arguments)
        check(made.unwrapped)

    assert [str(warning.message) for warning in caught] == []


# ---- a mixture


def test_an_episode_takes_learning_rate_horizon_and_name_from_its_own_task() -> None:
    env = LRControlEnv(mixture(), initial_lr_factors=(1.0, 1.0), num_decisions=3)
    env.reset(seed=0)
    infos = [env.reset()[1] for _ in range(20)]

    assert {(i["task"], round(i["initial_lr"], 12), i["total_steps"]) for i in infos} == {
        ("quadratic", 0.5, 60),
        ("digits", 0.1, 12),
    }


@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_the_rewards_of_an_episode_are_those_of_its_own_task(name: str) -> None:
    whole = mixture()
    seed = next(seed for seed in range(50) if whole.member_of_seed(seed).name == name)
    options = {"task_seed": seed, "initial_lr": 0.01, "total_steps": 12}
    mixed = episode(LRControlEnv(whole, num_decisions=6), options=options)
    alone = episode(LRControlEnv(whole.tasks[name], num_decisions=6), options=options)

    assert [step[1:] for step in mixed] == [step[1:] for step in alone]


def test_the_option_of_a_task_seed_decides_whose_learning_rate_and_horizon_is_drawn() -> None:
    whole = mixture()
    env = LRControlEnv(whole, initial_lr_factors=(1.0, 1.0), num_decisions=3)
    for seed in range(10):
        _, info = env.reset(seed=0, options={"task_seed": seed})
        task = whole.member_of_seed(seed)
        assert info["initial_lr"] == pytest.approx(task.base_lr)
        assert info["total_steps"] == task.total_steps


@pytest.mark.parametrize(("num_epochs", "expected"), [(None, (6, 60)), (2, (7, 14))])
def test_the_clock_covers_the_horizons_of_all_tasks(num_epochs: Any, expected: Any) -> None:
    tasks: Any = {"epochs": epochs()} if num_epochs else mixture().tasks
    env = LRControlEnv(MixtureTask(tasks=tasks), horizon_factors=(0.5, 1.0), num_epochs=num_epochs)
    assert env.settings.clock.horizon_range == expected


# ---- truncation


@pytest.mark.parametrize("reward_interval", [1, 4])
def test_a_truncated_episode_is_the_beginning_of_the_whole_one(reward_interval: int) -> None:
    make = partial(LRControlEnv, digits(), num_decisions=6, reward_interval=reward_interval)
    whole = episode(make(), seed=3)
    part = episode(make(max_decisions=3), seed=3)

    assert len(part) == 1 + 3 < len(whole)
    assert [step[2:4] for step in part] == [(False, False)] * 3 + [(False, True)]
    for a, b in zip(part, whole, strict=False):
        assert np.array_equal(a[0], b[0])
        assert a[4]["losses"] == b[4]["losses"]
    assert part[-1][4]["episode_return"] == sum(step[1] for step in part)
    assert part[-1][4]["episode_length"] == 3


def test_a_run_that_is_at_its_end_is_terminated_and_not_truncated() -> None:
    steps = episode(LRControlEnv(quadratic(), num_decisions=6, max_decisions=5), seed=0)
    assert (len(steps) - 1, steps[-1][2], steps[-1][3]) == (5, True, False)


def test_a_run_that_diverged_is_terminated_and_not_truncated() -> None:
    env = LRControlEnv(quadratic(), num_decisions=6, action=plain_action(), max_decisions=1)
    env.reset(seed=0, options={"initial_lr": 1e4})
    *_, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated, info["is_diverged"]) == (True, False, True)


def test_gymnasiums_vector_interface_tells_truncated_from_terminated() -> None:
    arguments: dict[str, Any] = {
        "num_decisions": 6,
        "horizon_factors": (0.1, 1.0),
        "max_decisions": 3,
    }
    plain, env = (LRControlVecEnv(nmf(), 6, **arguments) for _ in range(2))
    vector = LRControlVectorEnv(env)
    plain.seed(0)
    plain.reset()
    vector.reset(seed=0)
    found = set()
    for step in range(9):
        _, _, dones, infos = plain.step(actions_of(step, 6))
        _, _, terminated, truncated, _ = vector.step(actions_of(step, 6))
        for i in range(6):
            was_cut = infos[i].get("TimeLimit.truncated", False)
            assert (terminated[i], truncated[i]) == (dones[i] and not was_cut, was_cut)
            found.add((bool(terminated[i]), bool(truncated[i])))
    assert found == {(False, False), (True, False), (False, True)}


# ---- the reward's interval


@pytest.mark.parametrize("reward", ["privileged", "training"])
@pytest.mark.parametrize("interval", [2, 3, 100])
def test_rewards_are_summed_over_their_interval_and_everything_else_is_the_same(
    reward: str, interval: int
) -> None:
    make = partial(LRControlEnv, digits(reward_scale=2.0), num_decisions=12, reward=reward)
    dense = episode(make(), seed=2, options={"initial_lr": 0.1})
    sparse = episode(make(reward_interval=interval), seed=2, options={"initial_lr": 0.1})

    last = len(dense) - 1
    assert len(sparse) == last + 1 == 12
    owed = 0.0
    for k in range(1, last + 1):
        assert np.array_equal(dense[k][0], sparse[k][0])
        assert dense[k][4]["losses"] == sparse[k][4]["losses"]
        owed += dense[k][1]
        is_measured = k % interval == 0 or k == last
        assert sparse[k][1] == pytest.approx(owed if is_measured else 0.0, abs=1e-12)
        owed = 0.0 if is_measured else owed
    assert sparse[-1][4]["episode_return"] == pytest.approx(dense[-1][4]["episode_return"])


def test_a_divergence_is_penalized_at_once() -> None:
    env = LRControlEnv(quadratic(), num_decisions=6, reward_interval=100)
    env.reset(seed=0, options={"initial_lr": 0.3})
    env.controller.action = plain_action(max_log_change=9.0, max_factor=1e9)
    _, reward, terminated, _, info = env.step(np.ones(1, np.float32))
    assert (terminated, info["is_diverged"]) == (True, True)
    assert -math.inf < reward < -1.0


# ---- horizons in epochs


def test_the_horizon_is_that_many_epochs() -> None:
    env = LRControlEnv(epochs(), num_epochs=3, num_decisions=3)
    steps = episode(env, seed=0)
    assert env.settings.clock.horizon_range == (21, 21)
    assert [len(step[4]["losses"]) for step in steps] == [7, 7, 7]


@pytest.mark.parametrize(("num_epochs", "expected"), [(2, 14), (0.5, 4), (0.01, 1)])
def test_the_option_sets_the_horizon_of_an_episode_in_epochs(
    num_epochs: float, expected: int
) -> None:
    env = LRControlEnv(epochs(), horizon_factors=(0.5, 2.0))
    _, drawn = env.reset(seed=1)
    _, info = env.reset(seed=1, options={"num_epochs": num_epochs})
    assert info["total_steps"] == expected
    assert (info["initial_lr"], info["task_seed"]) == (drawn["initial_lr"], drawn["task_seed"])


def test_the_horizon_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="`total_steps` or `num_epochs`, got both"):
        LRControlEnv(epochs()).reset(options={"num_epochs": 1, "total_steps": 3})


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan])
def test_epochs_that_are_not_positive_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"`num_epochs` must be positive, got {bad}"):
        LRControlEnv(epochs(), num_epochs=bad)


def test_a_task_without_epochs_refuses_them_by_name() -> None:
    with pytest.raises(ValueError, match="must be one with epochs of one length, got 'bowl'"):
        LRControlEnv(quadratic(), num_epochs=2)


# ---- what is refused


@pytest.mark.parametrize("name", ["max_decisions", "reward_interval"])
def test_a_count_below_one_is_refused(name: str) -> None:
    arguments: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        LRControlEnv(quadratic(), **arguments)


def test_curvature_is_refused_in_batched_runs() -> None:
    with pytest.raises(ValueError, match="of batched runs must not have the group 'curvature'"):
        LRControlVecEnv(digits(), 2, observation=WITH_CURVATURE)


def test_curvature_is_refused_for_runs_whose_loss_no_closure_repeats() -> None:
    with pytest.raises(ValueError, match="a closure repeats, got QuadraticRun"):
        LRControlEnv(quadratic(), observation=WITH_CURVATURE).reset(seed=0)
