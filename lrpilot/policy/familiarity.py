"""Familiarity: whether what a policy sees is what it saw in training."""

import numpy as np
from numpy.typing import NDArray

from lrpilot.policy.actor import Policy
from lrpilot.state import Stateful, state_fields

MARGIN = 0.1
"""What a feature may leave its range by, over the width of the range."""


class Familiarity(Stateful):
    """Tells when a run has left, for several decisions in a row, what its policy was trained on.

    The card of a policy has the range of every feature in training (`feature_range`, lowest and
    highest by name). A policy without it finds everything familiar.

    Args:
        policy: whose card is read.
        patience: decisions in a row with a feature outside its range that are still borne.

    >>> from lrpilot import ActionSpec, ClockSpec, ObservationSpec
    >>> layer, seen = (np.zeros((1, 1)), np.zeros(1)), ObservationSpec(("progress",))
    >>> card = {"feature_range": {"progress": [-1.0, 0.0]}}
    >>> policy = Policy([layer], seen, ActionSpec(), ClockSpec(), card=card)
    >>> familiarity = Familiarity(policy, patience=1)
    >>> [familiarity.has_left(np.array([x], np.float32)) for x in (0.5, 0.5, 0.05)]
    [False, True, False]
    """

    _state_fields = state_fields("num_outside", "num_left", "feature")

    def __init__(self, policy: Policy, *, patience: int) -> None:
        self._names = policy.observation.names
        ranges = policy.card.get("feature_range", {})
        unbounded = [-np.inf, np.inf]
        self._low, self._high = np.array([ranges.get(name, unbounded) for name in self._names]).T
        width = np.where(np.isfinite(self._high - self._low), self._high - self._low, 0.0)
        self._low, self._high = self._low - MARGIN * width, self._high + MARGIN * width
        self.patience = patience
        self.num_outside = 0
        """Decisions in a row with a feature outside its range."""
        self.num_left = 0
        """Times that the run has left what is familiar."""
        self.feature = ""
        """What was outside at the last decision that was not familiar."""

    @property
    def is_outside(self) -> bool:
        """Whether more than `patience` decisions in a row, up to now, were not familiar."""
        return self.num_outside > self.patience

    def has_left(self, observation: NDArray[np.float32]) -> bool:
        """Take what is seen at a decision; returns `is_outside`."""
        is_strange = (observation < self._low) | (observation > self._high)
        if not is_strange.any():
            self.num_outside = 0
            return False
        self.feature = self._names[int(is_strange.argmax())]
        self.num_outside += 1
        self.num_left += self.num_outside == self.patience + 1
        return self.is_outside
