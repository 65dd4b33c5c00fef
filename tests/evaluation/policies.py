"""Policies with drawn weights."""

import numpy as np

from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy


def random_policy(action: ActionSpec, *, scale: float = 1.0) -> Policy:
    """Ten decisions by a small network; the scale is that of its last layer."""
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32))
        for shape in ((12, 8), (8, 1))
    ]
    layers[1] = (layers[1][0] * np.float32(scale), layers[1][1] * np.float32(scale))
    return Policy(layers, ObservationSpec(), action, ClockSpec(num_decisions=10))
