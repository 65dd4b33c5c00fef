"""The environment's name in Gymnasium, known as soon as both packages are imported."""

import importlib
import sys
from typing import Any

ENV_ID = "lrpilot/LRControl-v0"


def register() -> None:
    """Make `ENV_ID` known to Gymnasium, where that is imported; it is never imported here."""
    gymnasium: Any = sys.modules.get("gymnasium")
    if gymnasium is not None and ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENV_ID,
            entry_point="lrpilot.environment:make",
            vector_entry_point="lrpilot.environment:make_vector",
        )


def make(task: Any = None, **arguments: Any) -> Any:
    """An `LRControlEnv`: what `gymnasium.make(ENV_ID, task=..., ...)` returns."""
    return research_module("lrpilot.envs.gymnasium_envs", ENV_ID).LRControlEnv(task, **arguments)


def make_vector(task: Any = None, **arguments: Any) -> Any:
    """What `gymnasium.make_vec(ENV_ID, task=..., num_envs=..., ...)` returns."""
    return research_module("lrpilot.envs.gymnasium_envs", ENV_ID).make_vector_env(task, **arguments)


def research_module(name: str, user: str) -> Any:
    """A module that needs the packages of the extra `research`, which are imported on demand.

    Args:
        name: the module's.
        user: what needs it, for the error.

    Raises:
        ModuleNotFoundError: if one of the packages is missing; it names the cure.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lrpilot"):
            raise
        raise ModuleNotFoundError(
            f'{user} needs `pip install "lrpilot[research]"`: {error}', name=error.name
        ) from None
