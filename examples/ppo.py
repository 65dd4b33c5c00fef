"""PPO in one file, in the manner of CleanRL: `python examples/ppo.py --task quadratic`.

The agent is torch and Gymnasium alone. It learns to set the learning rates of many training runs at
once, and what it has learned is saved as a policy file for `lrpilot.PolicyLR`.

References:
    Schulman, Wolski, Dhariwal, Radford, Klimov. Proximal policy optimization algorithms. 2017.
    Huang et al. CleanRL: high-quality single-file implementations of deep RL algorithms. 2022.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from tqdm import trange

from lrpilot import Policy

ENV_ID = "lrpilot/LRControl-v0"
NUM_STEPS = 29  # decisions of an episode, and of an environment between two updates
NUM_EPOCHS, NUM_MINIBATCHES = 8, 8
LEARNING_RATE, CLIP, GAE_LAMBDA, MAX_NORM = 1e-3, 0.2, 0.95, 0.5  # gamma is 1: episodes end


def perceptron(num_inputs: int, *, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units and one output, with orthogonal weights."""
    layers = [nn.Linear(num_inputs, 64), nn.Linear(64, 64), nn.Linear(64, 1)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.Flatten(0))


def advantages(reward: Tensor, value: Tensor, done: Tensor) -> Tensor:
    """Generalized advantage estimates, (steps, runs), of values of one step more."""
    estimates = torch.zeros_like(reward)
    estimate = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        error = reward[t] + (1 - done[t]) * value[t + 1] - value[t]
        estimates[t] = estimate = error + (1 - done[t]) * GAE_LAMBDA * estimate
    return estimates


def train(task: str, *, num_envs: int, num_updates: int, seed: int) -> nn.Sequential:
    """The trained actor; prints the mean return of the episodes before each update."""
    torch.manual_seed(seed)
    env = gymnasium.make_vec(ENV_ID, num_envs, "vector_entry_point", task=task)
    seen = torch.as_tensor(env.reset(seed=seed)[0])
    actor, critic = perceptron(seen.shape[1], gain=0.01), perceptron(seen.shape[1], gain=1.0)
    log_std = nn.Parameter(torch.tensor(-0.7))
    parameters = [*actor.parameters(), *critic.parameters(), log_std]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    observation = torch.zeros(NUM_STEPS + 1, *seen.shape)
    action, reward, done = torch.zeros(3, NUM_STEPS, num_envs)
    for i in (bar := trange(num_updates, unit=" updates")):
        for t in range(NUM_STEPS):
            observation[t] = seen
            with torch.no_grad():
                action[t] = Normal(actor(seen), log_std.exp()).sample()
            step = env.step(action[t].clamp(-1.0, 1.0).unsqueeze(1).numpy())
            seen, reward[t] = torch.as_tensor(step[0]), torch.as_tensor(step[1])
            done[t] = torch.as_tensor(step[2] | step[3])
        observation[NUM_STEPS] = seen
        bar.write(f"update {i + 1:3}  return {reward.sum() / done.sum():+.3f}", file=sys.stdout)
        before = observation[:-1].flatten(0, 1)
        with torch.no_grad():
            value = critic(observation.flatten(0, 1)).view(NUM_STEPS + 1, num_envs)
            old = Normal(actor(before), log_std.exp()).log_prob(action.flatten())
        advantage = advantages(reward, value, done)
        target = (advantage + value[:-1]).flatten()
        for _ in range(NUM_EPOCHS):
            for index in torch.randperm(len(before)).chunk(NUM_MINIBATCHES):
                distribution = Normal(actor(before[index]), log_std.exp())
                ratio = (distribution.log_prob(action.flatten()[index]) - old[index]).exp()
                gain = advantage.flatten()[index]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                gain = torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
                error = (critic(before[index]) - target[index]).square()
                optimizer.zero_grad()
                (0.5 * error - gain).mean().backward()
                nn.utils.clip_grad_norm_(parameters, MAX_NORM)
                optimizer.step()
    env.close()
    return actor


def to_policy(actor: nn.Sequential, task: str) -> Policy:
    """The actor, with what it observes and does, as `PolicyLR` runs it."""
    env: Any = gymnasium.make(ENV_ID, task=task).unwrapped
    layers = [
        (layer.weight.detach().T.numpy(), layer.bias.detach().numpy())
        for layer in actor
        if isinstance(layer, nn.Linear)
    ]
    card = {"task": {"name": task}, "algorithm": "examples/ppo.py"}
    return Policy(
        layers, env.settings.observation, env.settings.action, env.settings.clock, card=card
    )


def main() -> None:
    """Train, and save the policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits_mlp", help="a shipped task, such as quadratic")
    parser.add_argument("--num-envs", type=int, default=64, help="training runs at a time")
    parser.add_argument("--num-updates", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("outputs/ppo.safetensors"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    actor = train(given.task, num_envs=given.num_envs, num_updates=given.num_updates, seed=0)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    to_policy(actor, given.task).save(given.out)
    print(f'PolicyLR(optimizer, "{given.out}", total_steps=...) runs what was learned')


if __name__ == "__main__":
    main()
