"""What `PolicyLR` does when a training diverges."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpilot import Guard, PolicyLR
from lrpilot.tasks.quadratic import QuadraticTask
from tests.policies import constant_policy
from tests.running import through_file
from tests.scheduling import lrs_of, plain_action, run, run_composed

CALM = [1.0, 1.1, 0.9, 1.0] * 5
EXPLOSION = [100.0, 200.0, 400.0]
quietly = pytest.mark.filterwarnings("ignore:the training diverges", "ignore:`loss` should be fin")


def constant(**arguments: Any) -> PolicyLR:
    """A policy that keeps the learning rate at 0.1."""
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    return PolicyLR(optimizer, constant_policy(0.0), interval_steps=10, **arguments)


class Regression:
    """A multilayer perceptron with dropout and a squared error, at 30 times the usual rate."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.x = torch.randn(600, 20, generator=self.generator)
        slope = torch.randn(20, 1, generator=self.generator)
        self.y = 10 * (self.x @ slope + 0.5 * torch.randn(600, 1, generator=self.generator))
        self.model = nn.Sequential(
            nn.Linear(20, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 1),
        )
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.3, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def loss(self, rows: Tensor) -> Tensor:
        error: Tensor = self.model(self.x[rows]) - self.y[rows]
        return error.square().mean()

    def train(self, scheduler: Any, num_steps: int) -> float:
        """The held-out loss over the first one."""
        losses = []
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            loss = self.loss(torch.randint(450, (32,), generator=self.generator))
            losses.append(loss.item())
            loss.backward()
            self.optimizer.step()
            scheduler.step(loss)
        self.model.eval()
        with torch.no_grad():
            return self.loss(torch.arange(450, 600)).item() / losses[0]


@quietly
def test_regressions_at_thirty_times_the_usual_rate_do_not_end_at_a_huge_loss() -> None:
    ends = []
    for seed in range(8):
        regression = Regression(seed)
        scheduler = PolicyLR(regression.optimizer, "cifar", total_steps=300)
        ends.append(regression.train(scheduler, 300))
        assert "brake" in {entry.rule for entry in scheduler.log}
    # some are lost to a single step, which only a rollback can undo
    assert sum(end < 10.0 for end in ends) >= 6


def test_with_a_guard_that_rolls_back_the_regression_ends_below_its_first_loss() -> None:
    regression = Regression(0)
    scheduler = PolicyLR(regression.optimizer, "cifar", total_steps=300)
    assert regression.train(Guard(scheduler, model=regression.model), 300) < 0.5
    assert "brake" not in {entry.rule for entry in scheduler.log}


@pytest.mark.parametrize("policy", ["cifar", "small_networks"])
@pytest.mark.parametrize("lr_factor", [0.03, 1.0, 30.0])
def test_a_healthy_training_is_not_braked(policy: str, lr_factor: float) -> None:
    task = QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.02 * lr_factor, total_steps=300
    )
    training = task.start(0)
    scheduler = PolicyLR(training.optimizer, policy, total_steps=300)
    for _ in range(300):
        scheduler.step(training.step())
        assert scheduler.controller.relief == 1.0
    assert {entry.rule for entry in scheduler.log} == {"decision"}


@quietly
def test_an_explosion_cuts_the_learning_rate_whatever_the_policy_says() -> None:
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    scheduler = PolicyLR(optimizer, constant_policy(1.0), interval_steps=10)
    before = run(scheduler, CALM)[-1][0]
    after = [row[0] for row in run(scheduler, [*EXPLOSION, *CALM * 5])]
    assert before > 0.1
    assert after[2] < before / 100
    assert max(after[3:]) <= 0.3 * before * 1.000001


@quietly
@pytest.mark.parametrize("kind", ["multiplier", "residual"])
def test_after_an_alarm_a_tenth_is_left_and_never_more_than_three_tenths(kind: str) -> None:
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    policy = constant_policy(1.0, action=plain_action(kind, max_log_change=0.7))
    scheduler = PolicyLR(optimizer, policy, interval_steps=200)
    run(scheduler, [*CALM, *EXPLOSION])
    rows = [row[0] for row in run(scheduler, CALM * 40)]
    assert rows[100] == pytest.approx(0.01)
    assert rows[-1] == pytest.approx(0.03)


@quietly
def test_repeated_alarms_cut_further() -> None:
    scheduler = constant()
    run(scheduler, [*CALM, *EXPLOSION, *CALM * 6])
    once = scheduler.factor
    run(scheduler, [*EXPLOSION, *CALM * 6])
    assert once == pytest.approx(0.1)
    assert scheduler.factor == pytest.approx(0.01)


def test_a_single_high_loss_holds_the_weights_for_one_step_and_changes_nothing_else() -> None:
    scheduler = constant()
    rows = [row[0] for row in run(scheduler, [*CALM, 15.0, *CALM, 1e9, *CALM])]
    held = [step for step, lr in enumerate(rows) if lr < 1e-20]
    assert held == [len(CALM), 2 * len(CALM) + 1]
    assert {lr for step, lr in enumerate(rows) if step not in held} == {0.1}


@quietly
def test_while_the_loss_is_high_the_steps_are_shorter_still() -> None:
    scheduler = constant()
    run(scheduler, [*CALM, 1e6, 1e6])
    high = scheduler.factor
    run(scheduler, [1e5] * 100)
    assert high < 1e-5
    assert 1e-7 < high < scheduler.factor < 1e-3


@pytest.mark.parametrize("drive", [run, lambda s, values: run_composed(s, s, values)])
def test_one_warning_names_the_loss_and_the_cure_and_the_log_has_every_alarm(drive: Any) -> None:
    scheduler = constant()
    with pytest.warns(RuntimeWarning) as warned:
        drive(scheduler, [*CALM, *EXPLOSION, *CALM * 6, *EXPLOSION, *CALM])
    (message,) = [str(entry.message) for entry in warned]
    assert message.startswith("the training diverges: the loss is 200 after step 21, and 1")
    assert "`Guard(scheduler, model=model)` also puts the weights back" in message
    brakes = [entry for entry in scheduler.log if entry.rule == "brake"]
    assert len(brakes) >= 2
    assert all(entry.signal > entry.threshold > 1.0 for entry in brakes)
    assert all(entry.new_lr < entry.old_lr or entry.old_lr < 1e-20 for entry in brakes)


@quietly
def test_a_nan_loss_is_one_alarm_for_a_row_of_them() -> None:
    scheduler = constant()
    run(scheduler, [*CALM, *[math.nan] * 8, *CALM * 6])
    assert [entry.rule for entry in scheduler.log].count("brake") == 1
    assert scheduler.factor == pytest.approx(0.1)


@quietly
@pytest.mark.parametrize("num_steps", [19, 20, 21, 22, 23, 30])
@pytest.mark.parametrize("observed", [False, True])
def test_a_braked_run_is_resumed_bit_identically(num_steps: int, observed: bool) -> None:
    values = [*CALM, *EXPLOSION, 50.0, 20.0, *CALM * 2]
    whole, resumed = constant(), constant()
    run(whole, values[:num_steps])
    if observed:
        whole.observe(values[num_steps])
    resumed.load_state_dict(through_file(whole.state_dict()))
    rest = values[num_steps:]
    if observed:
        for scheduler in (whole, resumed):
            scheduler.optimizer.step()
            scheduler.step()
        assert lrs_of(whole.optimizer) == lrs_of(resumed.optimizer)
        rest = rest[1:]
    assert run(whole, rest) == run(resumed, rest)
    assert list(whole.log)[-1].rule == list(resumed.log)[-1].rule


@quietly
def test_a_policy_that_starts_again_in_a_sequence_has_its_whole_box() -> None:
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    warm_up = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    scheduler = PolicyLR(optimizer, constant_policy(0.0), interval_steps=10)
    composed = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, scheduler], [25])
    rows = run_composed(composed, scheduler, [*CALM, *EXPLOSION, *CALM * 2])
    assert rows[-1] == 0.1


class FarTensor(torch.Tensor):
    """A tensor that says that it is on another device, and may be read only when it is allowed."""

    is_cpu = False
    may_be_read = False

    def item(self) -> Any:
        assert FarTensor.may_be_read
        return super().item()

    def tolist(self) -> Any:
        assert FarTensor.may_be_read
        return super().tolist()


@quietly
def test_losses_of_a_device_are_read_at_decisions_and_braked_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = constant()
    rows = []
    for step, loss in enumerate([*CALM, *EXPLOSION, *CALM[:17]]):
        monkeypatch.setattr(FarTensor, "may_be_read", step % 10 == 9)
        rows += run(scheduler, [torch.tensor(loss, dtype=torch.float64).as_subclass(FarTensor)])
    assert [row[0] for row in rows[:29]] == [0.1] * 29
    assert rows[29][0] < 0.01
    assert rows[29] == rows[38] < rows[39] < [0.01]
    assert [(entry.step, entry.rule) for entry in scheduler.log if entry.rule == "brake"] == [
        (30, "brake")
    ]
