import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents.export import export_policy
from envs import LRControlEnv
from tasks.quadratic import QuadraticTask


@pytest.fixture
def env():
    task = QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=20, dimension=10
    )
    return LRControlEnv(task, num_decisions=10)


def trained(env, **policy_kwargs):
    model = PPO(
        "MlpPolicy",
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


def export(model, env):
    return export_policy(
        model, observation=env.observation, action=env.action, clock=env.clock, card={}
    )


def test_exported_policy_gives_the_actions_of_the_sb3_actor(env):
    model = trained(env)
    policy = export(model, env)
    observations = np.random.default_rng(0).uniform(-5, 5, size=(200, 12)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0][:, 0]
    actions = [policy.act(observation) for observation in observations]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_exported_policy_survives_further_training_unchanged(env):
    model = trained(env)
    policy = export(model, env)
    fingerprint = policy.fingerprint
    model.learn(128)
    assert policy.fingerprint == fingerprint != export(model, env).fingerprint


def test_card_names_the_versions(env):
    policy = export(trained(env), env)
    assert policy.card["versions"]["torch"] == torch.__version__


def test_actor_with_other_units_is_refused(env):
    with pytest.raises(ValueError, match="tanh"):
        export(trained(env, activation_fn=nn.ReLU), env)
