"""What many tests do with observers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.observation import FEATURES, ObservationSpec
from lrpilot.policy.observer import Observer
from lrpilot.policy.parameter_sample import ParameterSample


def observer_of(spec: ObservationSpec, parameters: Sequence[Tensor], **arguments: Any) -> Observer:
    """An observer of one run with these parameters."""
    return Observer(spec, ParameterSample(parameters, spec.num_entries), **arguments)


def observe(observer: Observer, **changes: float) -> NDArray[np.float32]:
    arguments = {"progress": 0.5, "factor": 1.0, "previous_action": 0.0, **changes}
    return observer.close_interval(**arguments)


def loss_observer(*losses: float) -> Observer:
    observer = observer_of(ObservationSpec(groups=("loss",)), [])
    for loss in losses:
        observer.add_loss(loss)
    return observer


def named(observer: Observer, **changes: float) -> dict[str, float]:
    values = observe(observer, **changes).tolist()
    return dict(zip(observer.spec.names, values, strict=True))


def loss_features(intervals: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    observer = loss_observer()
    rows = []
    for losses in intervals:
        for loss in losses:
            observer.add_loss(loss)
        rows.append(observe(observer))
    return np.stack(rows)


class Script:
    """A run whose losses, weights and gradients are written down."""

    def __init__(self, groups: tuple[str, ...] = tuple(FEATURES), num_entries: int = 20) -> None:
        self.parameters = [torch.ones(4, 5), torch.ones(7)]
        self.observer = observer_of(ObservationSpec(groups, num_entries), self.parameters)

    def interval(self, k: int, num_losses: int = 3) -> NDArray[np.float32]:
        for i in range(num_losses):
            self.update(k, i)
        return self.close(k)

    def update(self, k: int, i: int) -> None:
        self.observer.add_loss(2.0 + math.sin(1.0 + 3 * k + i))

    def close(self, k: int) -> NDArray[np.float32]:
        generator = torch.Generator().manual_seed(k)
        for parameter in self.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        return observe(self.observer, progress=k / 10, factor=1.5**k, previous_action=0.1 * k)
