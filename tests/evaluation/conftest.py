import numpy as np
import pytest
import torch

from lrpilot import ClockSpec, ObservationSpec, Policy
from lrpilot.tasks.quadratic import QuadraticTask
from tests.scheduling import plain_action


@pytest.fixture(scope="session")
def task():
    return QuadraticTask(name="quadratic", optimizer=torch.optim.SGD, base_lr=0.01, total_steps=40)


@pytest.fixture(scope="session")
def policy():
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32))
        for shape in ((12, 8), (8, 1))
    ]
    action = plain_action(min_factor=0.01, max_factor=10.0)
    return Policy(layers, ObservationSpec(), action, ClockSpec(num_decisions=10))
