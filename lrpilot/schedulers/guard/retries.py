"""Retries: how far the learning rate is lowered after alarms, and when it may rise again."""

from lrpilot.state import Stateful, state_fields


class Retries(Stateful):
    """Counts alarms up, and healthy steps down again.

    An alarm soon after a recovery doubles the healthy steps that the next recovery takes, until
    one lasts.

    Args:
        recovery_steps: healthy steps in a row that take one retry back.

    >>> retries = Retries(recovery_steps=2)
    >>> retries.add()
    >>> [retries.count_healthy_step() for _ in range(3)], retries.in_use
    ([0, 2, 0], 0)
    """

    _state_fields = state_fields(
        "in_use", "healthy_steps", has_recovered="_has_recovered", healthy_steps_needed="_needed"
    )

    def __init__(self, recovery_steps: int) -> None:
        self.in_use = 0
        self.healthy_steps = 0
        self._recovery_steps = self._needed = recovery_steps
        self._has_recovered = False

    def count_healthy_step(self) -> int:
        """The healthy steps that have just taken one retry back; 0 if none was."""
        if not self.in_use and not self._has_recovered:
            return 0
        self.healthy_steps += 1
        if self.healthy_steps < self._needed:
            return 0
        self.healthy_steps = 0
        self._has_recovered = self.in_use > 0
        if self._has_recovered:
            self.in_use -= 1
            return self._needed
        self._needed = self._recovery_steps  # the last recovery has lasted
        return 0

    def add(self) -> None:
        """Use one more, after an alarm."""
        if self._has_recovered:
            self._needed *= 2
            self._has_recovered = False
        self.in_use += 1
