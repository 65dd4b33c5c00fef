"""An update that spoils the agent is taken back."""

import warnings
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from lrpilot.agents.algorithms import Agent
from lrpilot.agents.sb3 import load_trained_state, trained_state

# in the logger of Stable-Baselines3: 1 if the last update was taken back, else 0
ROLLED_BACK_KEY = "train/num_rolled_back"
MOST_IN_A_ROW = 3


class UpdateError(RuntimeError):
    """Three updates of an agent in a row gave parameters that are not finite."""


class UpdateGuard:
    """Takes back each update that leaves a NaN or an infinity in the agent, while it is entered.

    Parameters and optimizers are then what they were before the update; training goes on with the
    next rollout, whose actions are drawn by generators that have gone on. A warning says so, and
    the count of it is logged as `ROLLED_BACK_KEY`.

    Args:
        model: whose `train` is guarded.

    Raises:
        UpdateError: by the third update in a row that would have to be taken back.
    """

    def __init__(self, model: Agent) -> None:
        self._model = model
        self._train: Any = model.train
        self._num_in_a_row = 0

    def __enter__(self) -> Self:
        setattr(self._model, "train", self._guarded_train)  # noqa: B010 (it is a method)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # the class has it
        delattr(self._model, "train")

    def _guarded_train(self, *args: Any, **kwargs: Any) -> None:
        before = trained_state(self._model)
        cause: Exception | None = None
        try:
            self._train(*args, **kwargs)
        except Exception as error:  # distributions refuse what a NaN has reached, in many ways
            cause = error
        if _is_finite(trained_state(self._model)):
            if cause is not None:
                raise cause
            self._num_in_a_row = 0
            self._model.logger.record(ROLLED_BACK_KEY, 0)
            return
        load_trained_state(self._model, before)
        self._model.logger.record(ROLLED_BACK_KEY, 1)
        self._num_in_a_row += 1
        if self._num_in_a_row == MOST_IN_A_ROW:
            raise UpdateError(
                f"{MOST_IN_A_ROW} updates of the agent in a row gave parameters that are not "
                "finite, and were taken back; a smaller `learning_rate` or `max_grad_norm` of the "
                "algorithm may help"
            ) from cause
        warnings.warn(
            "an update of the agent gave parameters that are not finite, and is taken back",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_finite(state: Any) -> bool:
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    if isinstance(state, dict):
        return all(map(_is_finite, state.values()))
    if isinstance(state, list | tuple):
        return all(map(_is_finite, state))
    return True
