"""The mean of several policies as one policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from lrpilot import Policy
from lrpilot.agents.actor_arrays import shapes_of

Array = NDArray[np.float32]


def mean_policy(policies: Sequence[Policy], card: dict[str, Any]) -> Policy:
    """The policy whose action is the mean of theirs, before it is clipped.

    Its units are those of all of them, side by side, which do not see each other.

    Args:
        policies: at least one, of equal shapes, that see and do the same.
        card: of the new policy.

    Raises:
        ValueError: if they differ in shapes, or in what they see or do.
    """
    first = policies[0]
    for name, values in (
        ("observation", [policy.observation for policy in policies]),
        ("action", [policy.action for policy in policies]),
        ("clock", [policy.clock for policy in policies]),
        ("output", [policy.output for policy in policies]),
        ("shapes", [shapes_of(policy) for policy in policies]),
    ):
        if any(value != values[0] for value in values):
            raise ValueError(f"`policies` must have equal {name}, got {values}")
    layers = []
    for i, same in enumerate(zip(*(policy.layers for policy in policies), strict=True)):
        weights, biases = zip(*same, strict=True)
        is_first = i == 0 and first.lstm is None
        weight = np.hstack(weights) if is_first else scipy.linalg.block_diag(*weights)
        layers.append((weight, np.concatenate(biases)))
    weight, bias = layers[-1]
    layers[-1] = weight.mean(1, keepdims=True), bias.mean(keepdims=True)
    lstms = [policy.lstm for policy in policies if policy.lstm is not None]
    return Policy(
        layers,
        first.observation,
        first.action,
        first.clock,
        output=first.output,
        card=card,
        lstm=_side_by_side(lstms, len(first.observation.names)) if lstms else None,
    )


def _side_by_side(lstms: Sequence[tuple[Array, Array]], num_inputs: int) -> tuple[Array, Array]:
    """One LSTM of the units of all: the four gates, and in each the units of one after another."""
    gates = [[np.split(array, 4, axis=-1) for array in lstm] for lstm in lstms]
    weights, biases = [], []
    for k in range(4):
        parts = [weight[k] for weight, _ in gates]
        weights.append(
            np.vstack(
                (
                    np.hstack([part[:num_inputs] for part in parts]),
                    scipy.linalg.block_diag(*(part[num_inputs:] for part in parts)),
                )
            )
        )
        biases.append(np.concatenate([bias[k] for _, bias in gates]))
    return np.hstack(weights), np.concatenate(biases)
