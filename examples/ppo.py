"""PPO in one file, in the manner of CleanRL: `python examples/ppo.py --task quadratic`.

The agent is torch and Gymnasium alone. It learns to set the learning rate of many training runs at
once, and what it has learned is saved as a policy file for `lrpilot.PolicyLR`.

References:
    Schulman, Wolski, Dhariwal, Radford, Klimov. Proximal policy optimization algorithms. 2017.
    Huang et al. CleanRL: high-quality single-file implementations of deep RL algorithms. 2022.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.distributions import Normal
from tqdm import trange

from lrpilot import Policy

ENV_ID = "lrpilot/LRControl-v0"
NUM_STEPS = 29  # decisions of an episode, and of an environment between two updates
NUM_EPOCHS, NUM_MINIBATCHES = 8, 8
LEARNING_RATE, CLIP, GAE_LAMBDA, MAX_NORM = 1e-3, 0.2, 0.95, 0.5  # gamma is 1: episodes end


def perceptron(sizes: list[int], gain: float) -> nn.Sequential:
    """Layers with tanh units and orthogonal weights; the last one has a gain of its own."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(layer.weight, 2**0.5 if outputs != sizes[-1] else gain)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """A Gaussian actor, and a critic."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.actor = perceptron([num_features, 64, 64, 1], gain=0.01)
        self.critic = perceptron([num_features, 64, 64, 1], gain=1.0)
        self.log_std = nn.Parameter(torch.tensor(-0.7))

    def actions(self, observations: Tensor) -> Normal:
        """What the actor would do."""
        return Normal(self.actor(observations).squeeze(-1), self.log_std.exp())

    def values(self, observations: Tensor) -> Tensor:
        """The returns that the critic expects."""
        values: Tensor = self.critic(observations).squeeze(-1)
        return values


def collect(
    env: VectorEnv[Any, Any, Any], agent: Agent, observation: Tensor, returns: Tensor
) -> tuple[dict[str, Tensor], Tensor, list[float]]:
    """Play `NUM_STEPS` decisions in every environment.

    Args:
        env: many environments.
        agent: who decides.
        observation: what is seen now.
        returns: of the episodes so far, (environments,); updated in place.

    Returns:
        What was seen, done and gained; what is seen then; the returns of episodes that ended.
    """
    steps: list[dict[str, Tensor]] = []
    ended: list[float] = []
    for _ in range(NUM_STEPS):
        distribution, value = agent.actions(observation), agent.values(observation)
        action = distribution.sample()
        step = {"observation": observation, "action": action, "value": value}
        step["log_prob"] = distribution.log_prob(action)
        clipped = action.clamp(-1.0, 1.0).unsqueeze(1).numpy()
        seen, reward, terminated, truncated, _ = env.step(clipped)
        done = torch.as_tensor(terminated | truncated)
        step["reward"] = torch.as_tensor(reward, dtype=torch.float32)
        step["done"] = done.float()
        steps.append(step)
        observation = torch.as_tensor(seen)
        returns += step["reward"]
        ended += returns[done].tolist()
        returns[done] = 0.0
    batch = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    batch["advantage"] = advantages(batch, agent.values(observation))
    batch["target"] = batch["advantage"] + batch["value"]
    return batch, observation, ended


def advantages(batch: dict[str, Tensor], next_value: Tensor) -> Tensor:
    """Generalized advantage estimates, (steps, environments)."""
    estimates, estimate = [], torch.zeros_like(next_value)
    steps = zip(batch["reward"], batch["value"], batch["done"], strict=True)
    for reward, value, done in reversed(list(steps)):
        error = reward + (1 - done) * next_value - value
        estimate = error + (1 - done) * GAE_LAMBDA * estimate
        estimates.append(estimate)
        next_value = value
    return torch.stack(estimates[::-1])


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """Improve actor and critic on what was collected."""
    flat = {name: values.flatten(0, 1) for name, values in batch.items()}
    size = len(flat["action"])
    for _ in range(NUM_EPOCHS):
        for index in torch.randperm(size).chunk(NUM_MINIBATCHES):
            part = {name: values[index] for name, values in flat.items()}
            log_prob = agent.actions(part["observation"]).log_prob(part["action"])
            ratio = (log_prob - part["log_prob"]).exp()
            advantage = part["advantage"] - part["advantage"].mean()
            advantage = advantage / (advantage.std() + 1e-8)
            gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            error = (agent.values(part["observation"]) - part["target"]).square().mean()
            optimizer.zero_grad()
            (0.5 * error - gain).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_NORM)
            optimizer.step()


def train(task: str, *, num_envs: int, num_updates: int, seed: int) -> tuple[Agent, list[float]]:
    """A trained agent, and the mean return of the episodes that ended before each update."""
    torch.manual_seed(seed)
    env = gymnasium.make_vec(
        ENV_ID, num_envs=num_envs, vectorization_mode="vector_entry_point", task=task
    )
    observation = torch.as_tensor(env.reset(seed=seed)[0])
    agent = Agent(observation.shape[1])
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE)
    returns, mean_returns = torch.zeros(num_envs), []
    for i in (bar := trange(num_updates, unit=" updates")):
        with torch.no_grad():
            batch, observation, ended = collect(env, agent, observation, returns)
        update(agent, optimizer, batch)
        mean_returns.append(float(np.mean(ended)))
        bar.write(f"update {i + 1:3}  return {mean_returns[-1]:+.3f}", file=sys.stdout)
    env.close()
    return agent, mean_returns


def to_policy(agent: Agent, task: str) -> Policy:
    """The actor, with what it observes and does, as `PolicyLR` runs it."""
    env: Any = gymnasium.make(ENV_ID, task=task).unwrapped
    layers = [
        (layer.weight.detach().T.numpy(), layer.bias.detach().numpy())
        for layer in agent.actor
        if isinstance(layer, nn.Linear)
    ]
    card = {"task": {"name": task}, "algorithm": "examples/ppo.py"}
    return Policy(layers, env.observation, env.action, env.clock, card=card)


def main() -> None:
    """Train, and save the policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits_mlp", help="a shipped task, such as quadratic")
    parser.add_argument("--num-envs", type=int, default=64, help="training runs at a time")
    parser.add_argument("--num-updates", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/ppo.safetensors"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    agent, _ = train(
        arguments.task,
        num_envs=arguments.num_envs,
        num_updates=arguments.num_updates,
        seed=arguments.seed,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    to_policy(agent, arguments.task).save(arguments.out)
    print(f'PolicyLR(optimizer, "{arguments.out}", total_steps=...) runs what was learned')


if __name__ == "__main__":
    main()
