"""Episodes that end because their worker has died: how a step says so."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEY = "is_lost"


def lost_info(last_observation: NDArray[np.float32]) -> dict[str, Any]:
    """The info of the step that ends a lost episode.

    It has no `episode_return`, so that no statistics count the episode. For Stable-Baselines3 it is
    truncated where it last was: the step is worth what the critic expects there, so that with a
    discount of 1 its advantage is 0, and no loss of a worker is taken for one of the action.

    Args:
        last_observation: of the environment, before the action that was lost.
    """
    return {
        _KEY: True,
        "TimeLimit.truncated": True,
        "terminal_observation": last_observation,
        "num_steps": 0,
        "is_diverged": False,
    }


def is_lost(info: dict[str, Any]) -> bool:
    """Whether the info of a step says that its episode is lost."""
    return bool(info.get(_KEY, False))
