"""Learn a policy on real images, and compare it with schedules: `python examples/quickstart.py`.

In half a minute of one core an agent learns to control the learning rate of small networks that
read scikit-learn's digits. Then new networks, on seeds that the agent never saw, are trained under
its policy and under four schedules, all from the same five initial learning rates.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from stable_baselines3 import PPO

from lrpilot import ControlSettings, Policy
from lrpilot.agents import train
from lrpilot.evaluation.evaluate import evaluate
from lrpilot.evaluation.methods.schedules import constant, cosine, linear, wsd

NUM_ENVS = 32
EPISODE = 29  # decisions of an agent in a run: one for each of 30 intervals but the first


def main() -> None:
    """Learn, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent-steps", type=int, default=12_000, help="decisions to learn from")
    parser.add_argument("--num-seeds", type=int, default=2)
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/quickstart"))
    arguments = parser.parse_args()
    start, out_dir = time.perf_counter(), arguments.out_dir
    torch.set_num_threads(1)
    print("1. an agent learns to set the learning rate of small networks that read digits")
    train(
        "digits_mlp",
        ControlSettings(horizon_factors=(0.5, 1.0)),
        algorithm=partial(
            PPO,
            "MlpPolicy",
            learning_rate=1e-3,
            n_steps=EPISODE,
            batch_size=EPISODE * NUM_ENVS // 8,
            n_epochs=8,
            gamma=1.0,
            policy_kwargs={"net_arch": [64, 64], "log_std_init": -0.7},
        ),
        total_steps=arguments.agent_steps,
        num_envs=NUM_ENVS,
        runner="batched",
        run_dir=out_dir,
    )
    print("2. new networks are trained under the policy and under schedules")
    evaluate(
        "digits_mlp",
        policy=Policy.load(out_dir),
        schedulers={"constant": constant, "linear": linear, "cosine": cosine, "wsd": wsd},
        initial_lr_factors=(0.1, 0.3, 1.0, 3.0, 10.0),
        num_seeds=arguments.num_seeds,
        out_dir=out_dir,
    )
    print(f"{time.perf_counter() - start:.0f} seconds")
    print(f"figure  {out_dir / 'curves.png'}\ntable   {out_dir / 'table.md'}")
    print(f"policy  {out_dir / 'policy.safetensors'}")
    print(f'next    PolicyLR(optimizer, "{out_dir}", total_steps=...) in your training loop,')
    print("        python scripts/train_agent.py task=cifar, or docs/your_own_task.md")


if __name__ == "__main__":
    main()
