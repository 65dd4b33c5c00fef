"""A policy for a training of your own, learned in a minute: `python examples/own_task.py`.

The task is an autoencoder of scikit-learn's digits: squared error and AdamW, hundreds of runs of
which are one computation. The policy is compared with cosine decay on networks it never trained.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from stable_baselines3 import PPO
from torch import nn

from lrpilot import ControlSettings, Policy
from lrpilot.agents import train
from lrpilot.evaluation.evaluate import evaluate
from lrpilot.evaluation.methods.schedules import cosine
from lrpilot.tasks.networks.from_model import ModelTask, from_model

NUM_ENVS = 64
EPISODE = 29  # decisions of an agent in a run: one for each of 30 intervals but the first


def autoencoder() -> nn.Module:
    """64 pixels through 12 numbers."""
    return nn.Sequential(
        nn.Linear(64, 32),
        nn.GELU(),
        nn.Linear(32, 12),
        nn.Linear(12, 32),
        nn.GELU(),
        nn.Linear(32, 64),
    )


def make_task() -> ModelTask:
    """What is trained; the learning rate is the one that one would try first."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16.0
    return from_model(
        name="autoencoder",
        model=autoencoder,
        loss=nn.functional.mse_loss,
        data=(images, images),
        optimizer=torch.optim.AdamW,
        base_lr=0.01,
        total_steps=300,
        reward_scale=2.0,
    )


def learn(task: ModelTask, *, total_steps: int, run_dir: Path) -> Policy:
    """A policy that an agent has learned in so many decisions."""
    algorithm = partial(
        PPO,
        "MlpPolicy",
        learning_rate=1e-3,
        n_steps=EPISODE,
        batch_size=EPISODE * NUM_ENVS // 8,
        n_epochs=8,
        gamma=1.0,
        policy_kwargs={"net_arch": [64, 64], "log_std_init": -0.7},
    )
    train(
        task,
        ControlSettings(horizon_factors=(0.5, 1.0)),
        algorithm=algorithm,
        total_steps=total_steps,
        num_envs=NUM_ENVS,
        runner="batched",
        run_dir=run_dir,
    )
    return Policy.load(run_dir)


def main() -> None:
    """Learn, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent-steps", type=int, default=12_000, help="decisions to learn from")
    parser.add_argument("--num-seeds", type=int, default=2)
    parser.add_argument("--run-dir", type=Path, default=Path("outputs/own_task"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = make_task()
    evaluate(
        task,
        policy=learn(task, total_steps=arguments.agent_steps, run_dir=arguments.run_dir),
        schedulers={"cosine": cosine},
        initial_lr_factors=(0.1, 0.3, 1.0, 3.0, 10.0),
        num_seeds=arguments.num_seeds,
        out_dir=arguments.run_dir,
    )


if __name__ == "__main__":
    main()
