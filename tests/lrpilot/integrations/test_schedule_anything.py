import io
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR

from tests.lrpilot.integrations.loss_lr import LossLR

anything = pytest.importorskip("torch_schedule_anything")

# the package's adapter makes no steps itself, so torch takes any scheduler's first one for early
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

TARGETS = ("lr", "momentum", "weight_decay")


def schedule(optimizer: Optimizer, target: str, make_scheduler: Any = LossLR) -> Any:
    return anything.arbitrary_schedule_factory(optimizer, make_scheduler, schedule_target=target)


def sgd(**options: Any) -> torch.optim.SGD:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    return torch.optim.SGD(layer.parameters(), **{"lr": 0.05, "momentum": 0.5, **options})


class Training:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(
            self.layer.parameters(), lr=0.05, momentum=0.5, weight_decay=0.01
        )
        schedules = [schedule(self.optimizer, target) for target in TARGETS]
        self.schedules = anything.SynchronousSchedule(schedules)
        self.losses: list[float] = []
        self.values: list[list[float]] = []

    def run(self, steps: range) -> None:
        for i in steps:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
            self.optimizer.zero_grad()
            loss = (self.layer(x)[:, 0] - x.sum(1)).square().mean() / 4
            loss.backward()
            self.optimizer.step()
            self.schedules.step(loss)
            self.losses.append(loss.item())
            group = self.optimizer.param_groups[0]
            self.values.append([group[target] for target in TARGETS])


def test_one_loss_drives_learning_rate_momentum_and_weight_decay() -> None:
    training = Training()
    training.run(range(5))
    means = [sum(training.losses[:k]) / k for k in range(1, 6)]
    assert training.values == [[0.05 * mean, 0.5 * mean, 0.01 * mean] for mean in means]


def test_saving_and_loading_continues_bit_for_bit() -> None:
    whole = Training()
    whole.run(range(4))
    file = io.BytesIO()
    parts = (whole.layer, whole.optimizer, whole.schedules)
    torch.save([part.state_dict() for part in parts], file)
    whole.run(range(4, 9))
    file.seek(0)
    resumed = Training()
    states = torch.load(file, weights_only=True)
    for part, state in zip(
        (resumed.layer, resumed.optimizer, resumed.schedules), states, strict=True
    ):
        part.load_state_dict(state)
    resumed.run(range(4, 9))
    assert resumed.values == whole.values[4:]


def test_a_cap_keeps_momentum_below_one() -> None:
    optimizer = sgd(momentum=0.9)
    scheduler = schedule(optimizer, "momentum", lambda o: LossLR(o, cap=lambda: (0.99, "estimate")))
    scheduler.step(5.0)
    assert optimizer.param_groups[0]["momentum"] == 0.99
    assert scheduler.log[0].bound_by == "estimate"


def test_a_weight_decay_of_zero_cannot_be_driven() -> None:
    with pytest.raises(ValueError, match=r"must have a positive learning rate, got \[0\.0\]"):
        schedule(sgd(), "weight_decay")


def test_the_betas_of_adam_cannot_be_driven() -> None:
    optimizer = torch.optim.Adam([torch.ones(1, requires_grad=True)])
    with pytest.raises(TypeError, match="tuple"):
        schedule(optimizer, "betas")


def test_a_schedule_made_after_a_plain_one_starts_from_its_own_value() -> None:
    optimizer = sgd()
    ConstantLR(optimizer, factor=1.0)
    assert schedule(optimizer, "momentum").base_lrs == [0.5]


def test_a_plain_scheduler_made_last_is_right() -> None:
    optimizer = sgd()
    assert schedule(optimizer, "momentum").base_lrs == [0.5]
    assert LossLR(optimizer).base_lrs == [0.05]
