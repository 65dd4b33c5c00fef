"""The environment's name in Gymnasium, known as soon as both packages are imported."""

import importlib
import sys
from types import ModuleType
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
    return _environments().LRControlEnv(task, **arguments)


def make_vector(task: Any = None, **arguments: Any) -> Any:
    """What `gymnasium.make_vec(ENV_ID, task=..., num_envs=..., ...)` returns."""
    return _environments().make_vector_env(task, **arguments)


def _environments() -> ModuleType:
    try:
        return importlib.import_module("lrpilot.envs.gymnasium_envs")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lrpilot"):
            raise
        raise ModuleNotFoundError(
            f'{ENV_ID} needs `pip install "lrpilot[research]"`: {error}', name=error.name
        ) from None
