import pytest
import torch

from lrpilot import Policy
from lrpilot.tasks.quadratic import QuadraticTask
from tests.evaluation.policies import random_policy
from tests.scheduling import plain_action


@pytest.fixture(scope="session")
def task() -> QuadraticTask:
    return QuadraticTask(name="quadratic", optimizer=torch.optim.SGD, base_lr=0.01, total_steps=40)


@pytest.fixture(scope="session")
def policy() -> Policy:
    return random_policy(plain_action(min_factor=0.01, max_factor=10.0))
