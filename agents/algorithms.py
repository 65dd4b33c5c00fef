"""The reinforcement-learning algorithms that train policies here."""

from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.type_aliases import TrainFreq

Agent = PPO | RecurrentPPO | SAC

ALGORITHMS: dict[str, type[Agent]] = {kind.__name__: kind for kind in (PPO, RecurrentPPO, SAC)}


def env_steps_before_update(agent: Agent) -> int:
    """Env steps that a new agent makes before its first update."""
    if not isinstance(agent, SAC):
        return agent.n_steps * agent.n_envs
    assert isinstance(agent.train_freq, TrainFreq)
    rollout = agent.train_freq.frequency * agent.n_envs
    # an update follows every rollout that ends after `learning_starts`
    return rollout * (agent.learning_starts // rollout + 1)
