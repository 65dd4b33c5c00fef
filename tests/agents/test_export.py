from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from lrpilot.agents.export import export_policy
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.quadratic import QuadraticTask


@pytest.fixture
def env() -> Any:
    task = QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=20, dimension=10
    )
    return LRControlEnv(task, num_decisions=10)


TANH = {"net_arch": [16, 16], "activation_fn": nn.Tanh}


def trained_on_policy(env: Any, algorithm: Any, policy: Any, **policy_kwargs: Any) -> Any:
    model = algorithm(
        policy,
        DummyVecEnv([lambda: env]),
        n_steps=32,
        batch_size=32,
        n_epochs=3,
        learning_rate=0.03,
        seed=0,
        device="cpu",
        policy_kwargs=policy_kwargs,
    )
    return model.learn(128)


def trained(env: Any, **policy_kwargs: Any) -> Any:
    return trained_on_policy(env, PPO, "MlpPolicy", **policy_kwargs)


def trained_recurrent(env: Any, **policy_kwargs: Any) -> Any:
    policy_kwargs = {"lstm_hidden_size": 16, **policy_kwargs}
    return trained_on_policy(env, RecurrentPPO, "MlpLstmPolicy", **policy_kwargs)


def trained_sac(env: Any, **policy_kwargs: Any) -> Any:
    model = SAC(
        "MlpPolicy",
        DummyVecEnv([lambda: env]),
        learning_starts=16,
        train_freq=16,
        learning_rate=0.03,
        buffer_size=1000,
        batch_size=16,
        seed=0,
        device="cpu",
        policy_kwargs={**TANH, **policy_kwargs},
    )
    return model.learn(128)


def export(model: Any, env: Any) -> Any:
    return export_policy(
        model,
        observation=env.settings.observation,
        action=env.settings.action,
        clock=env.settings.clock,
        card={},
    )


@pytest.mark.parametrize("train", [trained, trained_sac])
def test_exported_policy_gives_the_actions_of_the_sb3_actor(env: Any, train: Any) -> None:
    model = train(env)
    policy = export(model, env)
    observations = np.random.default_rng(0).uniform(-5, 5, size=(200, 12)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0][:, 0]
    actions = [policy.act(observation) for observation in observations]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_exported_recurrent_policy_gives_the_actions_of_the_sb3_actor_over_a_run(env: Any) -> None:
    model = trained_recurrent(env)
    policy = export(model, env)
    observations = np.random.default_rng(0).uniform(-5, 5, size=(50, 12)).astype(np.float32)
    memory, state, expected = policy.initial_memory(), None, []
    for observation in observations:
        start = np.array([state is None])
        action, state = model.predict(
            observation, state=state, episode_start=start, deterministic=True
        )
        expected.append(action[0])
    assert np.ptp(expected) > 0.1
    actions = [policy.act(observation, memory) for observation in observations]
    np.testing.assert_allclose(actions, expected, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("train", [trained, trained_recurrent, trained_sac])
def test_exported_policy_survives_further_training_unchanged(env: Any, train: Any) -> None:
    model = train(env)
    policy = export(model, env)
    fingerprint = policy.fingerprint
    model.learn(128)
    assert policy.fingerprint == fingerprint != export(model, env).fingerprint


def test_card_names_the_versions(env: Any) -> None:
    policy = export(trained(env), env)
    assert policy.card["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("train", [trained, trained_recurrent, trained_sac])
def test_actor_with_other_units_is_refused(env: Any, train: Any) -> None:
    with pytest.raises(ValueError, match="tanh"):
        export(train(env, activation_fn=nn.ReLU), env)


def test_actor_with_two_lstm_layers_is_refused(env: Any) -> None:
    with pytest.raises(ValueError, match="must have an LSTM of one plain layer"):
        export(trained_recurrent(env, n_lstm_layers=2), env)
