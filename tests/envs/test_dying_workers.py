"""Workers that die or are stuck: their episodes are lost, and nothing else is."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from lrpilot.agents import checkpoint
from lrpilot.agents.metrics import read_rows
from lrpilot.agents.tracking import Tracker
from lrpilot.envs import LRControlEnv, LRControlVecEnv, WorkerError, WorkerVecEnv, looped
from lrpilot.envs.lost_episodes import is_lost
from tests.running import through_file
from tests.training import SAC_TINY, policy_file, quadratic, run

pytestmark = pytest.mark.slow

MAKE_ENV = partial(LRControlEnv, quadratic(), num_decisions=5)
MAKE_ENVS = partial(looped, MAKE_ENV)


def actions_of(step: int) -> Any:
    return np.random.default_rng(step).uniform(-1, 1, size=(2, 1)).astype(np.float32)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stuck"])
def test_the_environments_of_a_worker_that_dies_begin_new_episodes_of_its_own_seed(
    number: Any,
) -> None:
    env = WorkerVecEnv(MAKE_ENVS, 2, num_workers=2, patience=2)
    whole: Any = looped(MAKE_ENV, 2)
    new: Any = looped(MAKE_ENV, 1)
    new.seed(int(np.random.SeedSequence([7, 1, 1]).generate_state(1)[0]))
    for each in (env, whole):
        each.seed(7)
        each.reset()
    last: Any = env.step(actions_of(0))[0]
    whole.step(actions_of(0))
    os.kill(env.pids[1], number)
    observations, rewards, dones, infos = env.step(actions_of(1))
    expected = whole.step(actions_of(1))
    np.testing.assert_array_equal(observations, [expected[0][0], new.reset()[0]])
    assert (rewards[0], dones.tolist()) == (expected[1][0], [False, True])
    assert rewards[1] == 0.0
    assert [is_lost(info) for info in infos] == [False, True]
    assert infos[1]["TimeLimit.truncated"]
    assert "episode_return" not in infos[1]
    np.testing.assert_array_equal(infos[1]["terminal_observation"], last[1])
    for step in (2, 3):
        found: Any = env.step(actions_of(step))[0]
        parts = [whole.step(actions_of(step))[0][0], new.step(actions_of(step)[1:])[0][0]]
        np.testing.assert_array_equal(found, parts)
    env.close()


class DyingEnv(LRControlEnv):
    """Takes its process with it when it is made, in a worker."""

    parent = 0

    def __init__(self, *args: Any, parent: int, **kwargs: Any) -> None:
        if os.getpid() != parent:
            os._exit(3)
        super().__init__(*args, **kwargs)


def test_a_worker_that_dies_again_and_again_is_an_error_after_three_restarts() -> None:
    make_env = partial(DyingEnv, quadratic(), parent=os.getpid())
    with pytest.raises(WorkerError, match=r"exit code 3.*; it had been started again 3 times"):
        WorkerVecEnv(partial(looped, make_env), 1, num_workers=1)


def test_a_death_between_two_steps_is_the_same_for_a_training_that_is_resumed_there() -> None:
    found: Any = []
    first, second = (WorkerVecEnv(MAKE_ENVS, 2, num_workers=2) for _ in range(2))
    for env in (first, second):
        env.seed(3)
        env.reset()
    first.step(actions_of(0))
    os.kill(first.pids[0], signal.SIGKILL)
    state = through_file(first.state_dict())
    assert [one is None for one in state["states"]] == [True, False]
    second.load_state_dict(state)
    for env in (first, second):
        steps = [env.step(actions_of(step)) for step in (1, 2)]
        assert [is_lost(info) for info in steps[0][3]] == [True, False]
        found.append([(observations, rewards, dones) for observations, rewards, dones, _ in steps])
        env.close()
    np.testing.assert_equal(found[0], found[1])


def test_batches_in_workers_are_those_of_one_batch_and_go_on_from_their_states(
    tmp_path: Path,
) -> None:
    from tests.envs.test_runners import digits

    make_envs = partial(LRControlVecEnv, digits(), num_decisions=4)
    env = WorkerVecEnv(make_envs, 4, num_workers=2)
    batch: Any = make_envs(4)
    actions = np.linspace(-1, 1, 4, dtype=np.float32)[:, None]
    env.seed(0)
    batch.seed(0)
    np.testing.assert_allclose(env.reset(), batch.reset(), atol=1e-4)
    state = through_file(env.state_dict())
    steps: Any = [env.step(actions) for _ in range(5)]
    for observations, *_ in steps:
        np.testing.assert_allclose(observations, batch.step(actions)[0], atol=1e-4)
    env.load_state_dict(state)
    for observations, *_ in steps:
        np.testing.assert_array_equal(observations, env.step(actions)[0])
    env.close()


class KillOnce(Tracker):
    """Kills a worker after the first rollout."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def log(self, row: Any, *, step: Any) -> None:
        if step == 24:
            os.kill(self.env.pids[1], signal.SIGKILL)


@pytest.mark.parametrize("algorithm", [None, SAC_TINY], ids=["PPO", "SAC"])
def test_training_goes_on_without_the_episodes_of_a_killed_worker_which_are_counted(
    tmp_path: Path, algorithm: Any
) -> None:
    env = WorkerVecEnv(MAKE_ENVS, 2, num_workers=2)
    changes = {"algorithm": algorithm} if algorithm else {}
    summary = run(tmp_path, total_steps=72, env=env, tracker=KillOnce(env), **changes)
    assert (summary["num_lost_episodes"], summary["num_env_steps"]) == (1, 72)
    rows = read_rows((tmp_path / "metrics.csv").read_text())
    assert [row["num_lost_episodes"] for row in rows] == ["0", "1", "0"]
    # an episode of five decisions has four env steps
    assert [row["num_episodes"] for row in rows] == ["6", "5", "6"]


def test_the_same_deaths_give_the_same_training_also_where_it_is_resumed(tmp_path: Path) -> None:
    for name in ("whole", "half"):
        env = WorkerVecEnv(MAKE_ENVS, 2, num_workers=2)
        total = {"whole": 96, "half": 48}[name]
        run(tmp_path / name, total_steps=total, env=env, tracker=KillOnce(env))
    env = WorkerVecEnv(MAKE_ENVS, 2, num_workers=2)
    run(tmp_path / "rest", total_steps=96, env=env, resume_from=tmp_path / "half")
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")


def test_the_last_transition_of_a_lost_episode_has_no_advantage() -> None:
    env = WorkerVecEnv(MAKE_ENVS, 2, num_workers=2)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, gamma=1.0, seed=0, device="cpu")

    def kill_once(seen: dict[str, Any], _: Any) -> bool:
        if seen["n_steps"] == 1:
            os.kill(env.pids[0], signal.SIGKILL)
        return True

    model.learn(16, callback=kill_once)
    advantages = model.rollout_buffer.advantages.reshape(2, 8)
    assert abs(advantages[0, 2]) < 1e-6
    assert (abs(np.delete(advantages.ravel(), 2)) > 1e-6).all()
    env.close()


def test_a_checkpoint_of_another_number_of_environments_is_refused(tmp_path: Path) -> None:
    env = WorkerVecEnv(MAKE_ENVS, 2, num_workers=1)
    run(tmp_path, total_steps=24, env=env)
    other = WorkerVecEnv(MAKE_ENVS, 3, num_workers=1)
    with pytest.raises(checkpoint.CheckpointError, match="it is one of 2 states, and 3 are needed"):
        run(tmp_path / "rest", total_steps=48, env=other, resume_from=tmp_path)
