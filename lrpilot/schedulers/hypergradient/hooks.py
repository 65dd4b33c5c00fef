"""StepHooks: what happens right before and right after the steps of an optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class StepHooks:
    """Calls a function before and another after every step of an optimizer and of its copies.

    A closure of the step runs first, since it makes the gradients. A compiled optimizer does not
    trace the functions, which build no graph.
    """

    def __init__(
        self, optimizer: Optimizer, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self._optimizer = optimizer
        self._before = before
        self._after = after
        self._attach()

    def _attach(self) -> None:
        before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
        self._handles = [
            self._optimizer.register_step_pre_hook(before),
            self._optimizer.register_step_post_hook(after),
        ]

    def remove(self) -> None:
        """Call the functions no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __getstate__(self) -> dict[str, Any]:
        # a copied or pickled optimizer loses its hooks
        return {**self.__dict__, "_handles": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        is_attached, self._handles = self._handles, []
        if is_attached:
            self._attach()

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._before()
        return None if closure is None else ((args[0], lambda: loss), {})

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        self._after()
