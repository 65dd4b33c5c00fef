"""What a trained agent does in one run: its learning rates and losses, for the eye."""

from dataclasses import replace

import numpy as np

from lrpilot import ControlSettings
from lrpilot.agents.algorithms import Agent
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.task import Task


def record_episode(model: Agent, task: Task, settings: ControlSettings) -> dict[str, list[float]]:
    """Learning rate and minibatch loss of every optimizer step of a run under the mean action.

    The run is one that an agent may have trained on, at the task's own initial learning rate.

    Args:
        model: the agent.
        task: what it controls.
        settings: what it sees and does.
    """
    env = LRControlEnv(task, replace(settings, initial_lr_factors=(1.0, 1.0), max_decisions=None))
    observation, info = env.reset(seed=0)
    rates, losses = [], []
    state, is_done, is_first = None, False, np.ones(1, bool)
    while True:
        rates += len(info["losses"]) * [float(info["lr"])]
        losses += info["losses"]
        if is_done:
            return {"learning rate": rates, "loss": losses}
        action, state = model.predict(
            observation, state=state, episode_start=is_first, deterministic=True
        )
        is_first = np.zeros(1, bool)
        observation, _, terminated, truncated, info = env.step(action)
        is_done = terminated or truncated
