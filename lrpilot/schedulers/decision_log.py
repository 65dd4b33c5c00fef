"""DecisionLog: why a scheduler changed the learning rate, in bounded memory."""

import csv
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lrpilot.arguments import require_count


class Decision(NamedTuple):
    """One change of the learning rate (of the first parameter group)."""

    step: int
    """Steps of the scheduler before it, from 0."""
    old_lr: float
    new_lr: float
    signal: float
    """What the rule looked at, in the rule's own units."""
    threshold: float
    """What the signal was compared with; NaN if the rule compares nothing."""
    rule: str
    """The rule that fired, as the scheduler's docstring names it."""
    bound_by: str
    """The limit that shortened the change: a bound's or a cap's name, else empty."""


class DecisionLog:
    """The last changes of a learning rate, oldest first.

    Args:
        max_entries: entries that are kept; older ones are dropped and counted in `num_dropped`.

    Raises:
        ValueError: if `max_entries` is negative.

    >>> log = DecisionLog(max_entries=2)
    >>> for step in range(3):
    ...     log.add(Decision(step, 0.1, 0.05, 2.0, 1.0, "plateau", ""))
    >>> [decision.step for decision in log], log.num_dropped
    ([1, 2], 1)
    """

    def __init__(self, max_entries: int = 1000) -> None:
        require_count("max_entries", max_entries, least=0)
        self._entries: deque[Decision] = deque(maxlen=max_entries)
        self._listeners: list[Callable[[Decision], None]] = []
        self.num_dropped = 0

    def add(self, decision: Decision) -> None:
        """Keep a decision, and tell the listeners."""
        if len(self._entries) == self._entries.maxlen:
            self.num_dropped += 1
        self._entries.append(decision)
        for listener in self._listeners:
            listener(decision)

    def subscribe(self, listener: Callable[[Decision], None]) -> None:
        """Call `listener` with every later decision; listeners are not part of the state."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Decision:
        return self._entries[index]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per decision, with a header."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Decision._fields)
            writer.writerows(self._entries)

    def state_dict(self) -> dict[str, Any]:
        """The entries in plain values (loads with `weights_only=True`)."""
        return {"entries": [list(entry) for entry in self], "num_dropped": self.num_dropped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; as many of the last entries as fit are kept."""
        self._entries.clear()
        self._entries.extend(Decision(*entry) for entry in state["entries"])
        self.num_dropped = state["num_dropped"] + len(state["entries"]) - len(self._entries)
