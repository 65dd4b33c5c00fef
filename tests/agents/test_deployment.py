"""What an agent's policy does under its environment it does as a scheduler."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lrpilot import Policy, PolicyLR
from lrpilot.envs import LRControlEnv
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.quadratic import QuadraticTask
from tests.scheduling import plain_action

SGD = partial(torch.optim.SGD, momentum=0.9)
TASKS: dict[str, Any] = {
    "quadratic": partial(QuadraticTask, dimension=10),
    "digits": partial(ImageTask, data="digits", batch_size=32, num_privileged=32),
}


def random_policy(env: LRControlEnv, *, output: str, is_recurrent: bool) -> Policy:
    rng = np.random.default_rng(1)

    def layer(inputs: Any, outputs: Any) -> Any:
        weight, bias = rng.normal(0, 0.3, (inputs, outputs)), rng.normal(0, 0.3, outputs)
        return weight.astype(np.float32), bias.astype(np.float32)

    size = len(env.settings.observation.names)
    lstm = layer(size + 8, 4 * 8) if is_recurrent else None
    layers = [layer(8 if is_recurrent else size, 16), layer(16, 1)]
    return Policy(
        layers,
        env.settings.observation,
        env.settings.action,
        env.settings.clock,
        output=output,
        lstm=lstm,
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("output", "is_recurrent"),
    [("clip", False), ("clip", True), ("tanh", False)],
    ids=["PPO", "RecurrentPPO", "SAC"],
)
def test_the_env_and_the_scheduler_give_identical_lrs_and_losses(
    name: str, output: Any, is_recurrent: Any
) -> None:
    task = TASKS[name](name=name, optimizer=SGD, base_lr=0.02, total_steps=23)
    action = plain_action(anchor="linear", start_factor=0.03, min_factor=1e-4, max_factor=100.0)
    env = LRControlEnv(task, action=action, num_decisions=8, horizon_factors=(0.5, 2.0))
    policy = random_policy(env, output=output, is_recurrent=is_recurrent)
    seed, factor, steps = FIRST_EVALUATION_SEED + 3, 0.7, 37

    options = {"task_seed": seed, "initial_lr": task.base_lr * factor, "total_steps": steps}
    observation, info = env.reset(seed=0, options=options)
    memory, actions, terminated = policy.initial_memory(), [], False
    lrs, losses = [info["lr"]] * len(info["losses"]), info["losses"]
    while not terminated:
        actions.append(policy.act(observation, memory))
        observation, _, terminated, _, info = env.step(np.array([actions[-1]]))
        lrs += [info["lr"]] * len(info["losses"])
        losses += info["losses"]
    method = Method("policy", partial(PolicyLR, policy=policy))
    deployed = train(task, method, initial_lr_factor=factor, seed=seed, total_steps=steps)

    assert len(set(actions)) > 3
    assert len(lrs) == steps
    assert deployed.lrs == lrs
    assert deployed.losses == losses
