import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from lrpilot import ObservationSpec
from lrpilot.envs import LRControlEnv, LRControlVecEnv, LRControlVectorEnv
from lrpilot.tasks.images.models import mlp, small_cnn
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask
from tests.running import through_file
from tests.scheduling import plain_action

CAPPED = plain_action(unit="cap", anchor="linear", max_factor=1.0, start_factor=0.3)
VARIANTS: dict[str, Any] = {
    "minibatch": ({}, {"action": plain_action(start_factor=0.1)}),
    "capped": ({"noise": "gaussian", "cap_kind": "segment"}, {"action": CAPPED}),
    "ball": (
        {"noise": "relative", "cap_kind": "ball"},
        {"use_cap": True, "reward": "training", "action": plain_action(anchor="cosine")},
    ),
    "sizes": (
        {
            "noise": "gaussian",
            "cap_kind": "segment",
            "smallest_shape": (10, 12),
            "smallest_rank": 1,
            "scale_range": (0.01, 100.0),
            "condition_range": (1.0, 10.0),
            "sparsity_range": (0.0, 0.5),
        },
        {"action": CAPPED, "observation": ObservationSpec(groups=("progress", "loss"))},
    ),
    "alternating": (
        {"noise": "none", "cap_kind": "block", "update": "alternating"},
        {"action": plain_action(unit="cap", kind="residual", max_factor=1.0, start_factor=0.5)},
    ),
}


make_task = partial(
    NMFTask,
    name="nmf",
    optimizer=torch.optim.SGD,
    base_lr=0.003,
    total_steps=24,
    shape=(20, 16),
    rank=3,
    batch_size=5,
)


def make_arguments(**changes: Any) -> dict[str, Any]:
    return {"num_decisions": 6, "horizon_factors": (0.4, 1.0), **changes}


def actions_of(step: int, num_envs: int) -> NDArray[np.float32]:
    return np.random.default_rng(step).uniform(-1, 1, size=(num_envs, 1)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_instances_equal_single_environments_through_their_resets(variant: str) -> None:
    task_changes, env_changes = VARIANTS[variant]
    task, arguments = make_task(**task_changes), make_arguments(**env_changes)
    batch: Any = LRControlVecEnv(task, 5, **arguments)
    singles = [LRControlEnv(task, **arguments) for _ in range(5)]
    batch.seed(3)
    observations = batch.reset()
    expected = [env.reset(seed=3 + i)[0] for i, env in enumerate(singles)]
    np.testing.assert_allclose(observations, expected, atol=2e-3)
    num_ended = 0
    for step in range(14):
        actions = actions_of(step, 5)
        observations, rewards, dones, infos = batch.step(actions)
        for i, env in enumerate(singles):
            observation, reward, done, _, info = env.step(actions[i])
            assert done == dones[i]
            assert infos[i].get("num_capped") == info.get("num_capped")
            assert infos[i]["lr"] == pytest.approx(info["lr"], rel=1e-4)
            assert infos[i].get("guarantee") == info.get("guarantee")
            assert reward == pytest.approx(rewards[i], abs=1e-3)
            if done:
                num_ended += 1
                np.testing.assert_allclose(infos[i]["terminal_observation"], observation, atol=2e-3)
                assert infos[i]["episode_return"] == pytest.approx(info["episode_return"], abs=1e-3)
                observation, _ = env.reset()
            np.testing.assert_allclose(observations[i], observation, atol=2e-3)
    assert num_ended >= 10


@pytest.mark.parametrize("model", [small_cnn, partial(mlp, width=200)], ids=["cnn", "mlp"])
def test_movement_of_networks_equals_that_of_single_environments(model: Any) -> None:
    task = ImageTask(
        name="digits",
        data="digits",
        model=model,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.02,
        total_steps=12,
        batch_size=16,
    )
    # of the 55,000 entries of the mlp a sample is read, of the cnn all
    arguments: dict[str, Any] = {"num_decisions": 4, "observation": ObservationSpec(("movement",))}
    batch: Any = LRControlVecEnv(task, 3, **arguments)
    singles = [LRControlEnv(task, **arguments) for _ in range(3)]
    batch.seed(3)
    expected = [env.reset(seed=3 + i)[0] for i, env in enumerate(singles)]
    np.testing.assert_allclose(batch.reset(), expected, atol=1e-3)
    for step in range(2):
        actions = actions_of(step, 3)
        observations = batch.step(actions)[0]
        expected = [env.step(action)[0] for env, action in zip(singles, actions, strict=True)]
        np.testing.assert_allclose(observations, expected, atol=1e-3)
        assert np.abs(observations).min() > 0.0


def test_state_in_mid_episode_continues_bit_identically() -> None:
    task_changes, env_changes = VARIANTS["sizes"]
    make = partial(LRControlVecEnv, make_task(**task_changes), 4, **make_arguments(**env_changes))
    first: Any = make()
    second: Any = make()
    first.seed(0)
    first.reset()
    for step in range(4):
        first.step(actions_of(step, 4))
    second.load_state_dict(copy.deepcopy(through_file(first.state_dict())))
    for step in range(4, 12):
        left, right = first.step(actions_of(step, 4)), second.step(actions_of(step, 4))
        for a, b in zip(left[:3], right[:3], strict=True):
            assert (a == b).all()


def test_learning_rate_never_leaves_the_cap() -> None:
    task = make_task(noise="gaussian", cap_kind="segment")
    # one step per decision, so that the cap of that step can be asked for
    env = LRControlVecEnv(task, 8, num_decisions=24, use_cap=True, initial_lr_factors=(1.0, 1e4))
    env.seed(0)
    env.reset()
    num_bound = 0
    for step in range(20):
        cap = env.runs.cap()[0].double().numpy()
        infos = env.step(actions_of(step, 8))[3]
        lrs = np.array([info["lr"] for info in infos])
        assert (lrs <= cap).all()
        assert [info["num_capped"] for info in infos] == (lrs == cap).tolist()
        num_bound += int((lrs == cap).sum())
    assert 0 < num_bound < 20 * 8


def test_ppo_learns_from_every_transition_of_its_rollouts() -> None:
    env = LRControlVecEnv(make_task(), 4, **make_arguments())
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=20, n_epochs=1, seed=0, device="cpu")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(80)
    after = model.policy.state_dict()
    assert model.num_timesteps == 80
    assert not [name for name, value in after.items() if torch.equal(value, before[name])]


def test_no_instances_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`num_runs` must be at least 1, got 0"):
        LRControlVecEnv(make_task(), 0)


def test_task_that_cannot_be_batched_is_refused() -> None:
    task = QuadraticTask(name="q", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=9)
    with pytest.raises(ValueError, match="must be one that can be batched"):
        LRControlVecEnv(task, 2)


def test_batched_runs_of_another_optimizer_are_refused() -> None:
    task = NMFTask(name="nmf", optimizer=torch.optim.Adam, base_lr=0.1, total_steps=9)
    with pytest.raises(ValueError, match="must be plain SGD"):
        LRControlVecEnv(task, 2)


@pytest.mark.parametrize("bad", [1.5, np.nan])
def test_action_outside_its_space_is_refused(bad: float) -> None:
    env = LRControlVecEnv(make_task(), 2, **make_arguments())
    env.reset()
    with pytest.raises(ValueError, match=r"`action` must be in \[-1, 1\]"):
        env.step(np.array([[0.0], [bad]], np.float32))


def test_actions_of_another_shape_are_refused() -> None:
    env = LRControlVecEnv(make_task(), 2, **make_arguments())
    env.reset()
    with pytest.raises(ValueError, match=r"`actions` must have shape \(2, 1\)"):
        env.step(np.zeros((3, 1), np.float32))


def test_gymnasium_vector_interface_gives_the_same_steps() -> None:
    left: Any = LRControlVecEnv(make_task(), 3, **make_arguments())
    right = LRControlVectorEnv(LRControlVecEnv(make_task(), 3, **make_arguments()))
    left.seed(5)
    assert (left.reset() == right.reset(seed=5)[0]).all()
    num_final = 0
    for step in range(8):
        actions = actions_of(step, 3)
        observations, rewards, dones, infos = left.step(actions)
        found = right.step(actions)
        assert (found[0] == observations).all()
        assert (found[1] == rewards).all()
        assert (found[2] == dones).all()
        assert not found[3].any()
        for i in dones.nonzero()[0]:
            num_final += 1
            assert (found[4]["final_obs"][i] == infos[i]["terminal_observation"]).all()
    assert num_final > 0


def test_gymnasium_vector_spaces_are_batched() -> None:
    env = LRControlVectorEnv(LRControlVecEnv(make_task(), 3, **make_arguments()))
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert env.action_space.shape == (3, 1)
