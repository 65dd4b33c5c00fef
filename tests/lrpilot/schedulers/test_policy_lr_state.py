import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.controller import Controller
from lrpilot.policy.observation import FEATURES, ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.policies import HALVE, NAN, ScriptedCap, constant_policy, losses, random_policy, sgd
from tests.running import through_file
from tests.scheduling import lrs_of, plain_action, run, run_composed

pytestmark = pytest.mark.filterwarnings("ignore:step .* is past `total_steps`")


# ---- composition with torch's schedulers


def warmed_up(policy: Policy, **arguments: Any) -> tuple[SequentialLR, PolicyLR]:
    optimizer = sgd(1.0)
    warmup = LinearLR(optimizer, start_factor=0.5, total_iters=4)
    scheduler = PolicyLR(optimizer, policy, **arguments)
    return SequentialLR(optimizer, [warmup, scheduler], milestones=[4]), scheduler


def test_sequential_lr_warms_up_and_hands_over_at_the_milestone() -> None:
    composed, scheduler = warmed_up(constant_policy(1.0), interval_steps=3)
    rows = [lrs_of(scheduler.optimizer)[0], *run_composed(composed, scheduler, [1.0] * 10)]
    assert rows == pytest.approx(
        [0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0], rel=1e-14
    )


def test_the_milestone_of_sequential_lr_starts_at_the_start_factor_exactly() -> None:
    policy = constant_policy(1.0, action=replace(HALVE, start_factor=0.3))
    composed, scheduler = warmed_up(policy, interval_steps=3)
    assert run_composed(composed, scheduler, [1.0] * 6)[3:] == [0.3] * 3


def test_losses_observed_before_the_milestone_set_the_reference() -> None:
    composed, scheduler = warmed_up(constant_policy(1.0), interval_steps=3)
    run_composed(composed, scheduler, [8.0, 4.0, 2.0, 1.0, 1.0])
    assert scheduler.controller.observer.state["initial_loss"] == 8.0


def test_losses_need_not_be_observed_before_the_milestone() -> None:
    composed, scheduler = warmed_up(constant_policy(1.0), interval_steps=3)
    for _ in range(4):
        scheduler.optimizer.step()
        composed.step()
    assert run_composed(composed, scheduler, [1.0] * 3) == pytest.approx([1.0, 1.0, 2.0])


def test_after_the_milestone_a_step_without_a_loss_is_refused() -> None:
    composed, scheduler = warmed_up(constant_policy(1.0), interval_steps=3)
    run_composed(composed, scheduler, [1.0] * 4)
    with pytest.raises(RuntimeError, match=r"`observe\(loss\)` before `step\(\)`"):
        composed.step()


def test_progress_starts_at_the_milestone() -> None:
    composed, scheduler = warmed_up(random_policy(), total_steps=20)
    run_composed(composed, scheduler, losses(9))
    assert scheduler.controller.progress == 0.25


def test_sequential_lr_may_begin_with_a_policy() -> None:
    policy = constant_policy(1.0, action=replace(HALVE, start_factor=0.5))
    optimizer = sgd(1.0)
    scheduler = PolicyLR(optimizer, policy, interval_steps=2)
    last = ExponentialLR(optimizer, gamma=0.5)
    composed = SequentialLR(optimizer, [scheduler, last], milestones=[5])
    rows = [lrs_of(optimizer)[0]]
    rows += run_composed(composed, scheduler, [1.0] * 4)
    assert rows == pytest.approx([0.5, 0.5, 1.0, 1.0, 2.0], rel=1e-14)


def test_a_policy_alone_in_sequential_lr_equals_the_policy() -> None:
    alone = PolicyLR(sgd(), random_policy(), total_steps=50)
    inner = PolicyLR(sgd(), random_policy(), total_steps=50)
    composed = SequentialLR(inner.optimizer, [inner], milestones=[])
    expected = [row[0] for row in run(alone, losses(50))]
    assert run_composed(composed, inner, losses(50)) == expected


def chained(
    first: str, make_other: Callable[[Optimizer], LRScheduler], policy: Policy, **arguments: Any
) -> tuple[ChainedScheduler, PolicyLR]:
    optimizer = sgd(1.0)
    if first == "policy":
        scheduler = PolicyLR(optimizer, policy, **arguments)
        return ChainedScheduler([scheduler, make_other(optimizer)]), scheduler
    other = make_other(optimizer)
    scheduler = PolicyLR(optimizer, policy, **arguments)
    return ChainedScheduler([other, scheduler]), scheduler


OTHERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "exponential": lambda o: ExponentialLR(o, gamma=0.9),
    "step": lambda o: MultiStepLR(o, milestones=[2, 11], gamma=0.1),
    "constant": lambda o: ConstantLR(o, factor=0.25, total_iters=9),
    "warm-up": lambda o: LinearLR(o, start_factor=0.1, total_iters=7),
}


@pytest.mark.slow
@pytest.mark.parametrize("capped", [False, True], ids=["free", "with a wide cap"])
@pytest.mark.parametrize("first", ["policy", "other"])
@pytest.mark.parametrize("other", OTHERS)
def test_in_a_chain_the_lr_is_the_product_of_both_schedules(
    other: str, first: str, capped: bool
) -> None:
    policy = constant_policy(1.0, action=plain_action(max_log_change=0.2, start_factor=0.5))
    arguments: Any = {
        "interval_steps": 3,
        "cap": (lambda: (1e6, "estimate")) if capped else None,
    }
    values = losses(20)
    composed, inner = chained(first, OTHERS[other], policy, **arguments)
    rows = [lrs_of(inner.optimizer)[0], *run_composed(composed, inner, values)]

    alone = PolicyLR(sgd(1.0), policy, **arguments)
    factors = [alone.factor, *(row[0] for row in run(alone, values))]
    optimizer = sgd(1.0)
    scheduler = OTHERS[other](optimizer)
    others = [lrs_of(optimizer)[0]]
    for _ in values:
        optimizer.step()
        scheduler.step()
        others.append(lrs_of(optimizer)[0])
    expected = [a * b for a, b in zip(factors, others, strict=True)]
    assert rows == pytest.approx(expected, rel=1e-12)


def test_a_chain_of_random_decisions_is_the_product_too() -> None:
    composed, inner = chained("other", OTHERS["exponential"], random_policy(), total_steps=50)
    rows = run_composed(composed, inner, losses(50))
    alone = PolicyLR(sgd(1.0), random_policy(), total_steps=50)
    factors = [row[0] for row in run(alone, losses(50))]
    expected = [factor * 0.9**k for k, factor in enumerate(factors, 1)]
    assert rows == pytest.approx(expected, rel=1e-12)


def test_an_lr_changed_by_hand_stays_changed_through_several_decisions() -> None:
    scheduler = PolicyLR(sgd(1.0), constant_policy(0.0), interval_steps=2)
    run(scheduler, [1.0] * 2)
    scheduler.optimizer.param_groups[0]["lr"] *= 0.1
    assert run(scheduler, [1.0] * 6) == [[pytest.approx(0.1)]] * 6


def test_the_last_scheduler_of_a_chain_keeps_its_cap() -> None:
    composed, inner = chained(
        "other",
        lambda o: ExponentialLR(o, gamma=1.5),
        constant_policy(0.0),
        interval_steps=3,
        cap=lambda: (2.0, "deterministic"),
    )
    assert max(run_composed(composed, inner, [1.0] * 10)) <= 2.0


# ---- optimizers and learning rates


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda p, lr=0.05: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr=0.05: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "Adam": lambda p, lr=0.01: torch.optim.Adam(p, lr=lr),
    "AdamW": lambda p, lr=0.01: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
}


@dataclass
class Training:
    """A small network on fixed data, with dropout-free deterministic steps."""

    make_optimizer: Callable[..., Optimizer]
    policy: Policy
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(64, 5, generator=generator)
        self.targets = self.inputs[:, :1].sin()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )
        for parameter in self.network.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.4, generator=generator)
        self.optimizer = self.make_optimizer(self.network.parameters())
        self.scheduler = PolicyLR(self.optimizer, self.policy, **self.arguments)
        self.num_steps = 0

    def step(self) -> float:
        rows = torch.arange(self.num_steps * 8, self.num_steps * 8 + 8) % 64
        self.optimizer.zero_grad()
        loss = (self.network(self.inputs[rows]) - self.targets[rows]).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step(loss)
        self.num_steps += 1
        return lrs_of(self.optimizer)[0]

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "num_steps": self.num_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.num_steps = state["num_steps"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_well_under_every_optimizer(name: str) -> None:
    policy = random_policy(3, groups=tuple(FEATURES), action=plain_action(max_log_change=0.1))
    training = Training(OPTIMIZERS[name], policy, {"total_steps": 60})
    lrs = [training.step() for _ in range(60)]
    assert len(set(lrs)) > 5
    assert training.scheduler.controller.observer.interval_loss < 0.8


def test_tensor_lrs_are_filled_in_place() -> None:
    lr = torch.tensor(0.1)
    optimizer = sgd(lr)
    scheduler = PolicyLR(optimizer, constant_policy(1.0), interval_steps=1)
    run(scheduler, [1.0] * 2)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.4)


def test_tensor_lrs_follow_the_lrs_of_floats() -> None:
    tensors = PolicyLR(sgd(torch.tensor(0.1, dtype=torch.float64)), random_policy(), total_steps=50)
    floats = PolicyLR(sgd(0.1), random_policy(), total_steps=50)
    assert run(tensors, losses(60)) == run(floats, losses(60))


def test_single_precision_tensor_lrs_do_not_drift() -> None:
    lr = torch.tensor(0.1)
    scheduler = PolicyLR(sgd(lr), random_policy(), total_steps=50)
    for value in losses(80):
        run(scheduler, [value])
        assert lr.item() == torch.tensor(float(torch.tensor(0.1)) * scheduler.factor).item()


def flat(value: Any) -> list[Any]:
    """A nested state as a list of plain values, for comparison."""
    if isinstance(value, dict):
        return [x for name, inner in value.items() for x in (name, *flat(inner))]
    if isinstance(value, (list, tuple)):
        return [x for inner in value for x in flat(inner)]
    return value.flatten().tolist() if isinstance(value, Tensor) else [value]


def test_tensor_lrs_in_the_state_do_not_change_when_the_run_goes_on() -> None:
    scheduler = PolicyLR(sgd(torch.tensor(0.1)), constant_policy(1.0), interval_steps=1)
    run(scheduler, [1.0])
    state = scheduler.state_dict()
    before = flat(state)
    run(scheduler, [1.0] * 3)
    assert flat(state) == before


# ---- state


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    return through_file(state)  # type: ignore[no-any-return]


@pytest.mark.parametrize("num_steps", [0, 1, 9, 10, 23])
@pytest.mark.parametrize("name", ["momentum", "AdamW"])
def test_a_resumed_training_continues_bit_identically(name: str, num_steps: int) -> None:
    policy = random_policy(5, groups=tuple(FEATURES), num_entries=30)
    arguments = {"total_steps": 50, "warmup_steps": 4}
    whole = Training(OPTIMIZERS[name], policy, arguments)
    resumed = Training(OPTIMIZERS[name], policy, arguments)
    for _ in range(num_steps):
        whole.step()
    resumed.load(through_torch_save(whole.state()))
    assert [whole.step() for _ in range(30)] == [resumed.step() for _ in range(30)]
    pairs = zip(whole.network.parameters(), resumed.network.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.filterwarnings("ignore:the training diverges")
@pytest.mark.parametrize("group", FEATURES)
def test_a_resumed_training_continues_bit_identically_with_each_group_alone(group: str) -> None:
    policy = random_policy(6, groups=(group,))
    whole = Training(OPTIMIZERS["momentum"], policy, {"total_steps": 50})
    resumed = Training(OPTIMIZERS["momentum"], policy, {"total_steps": 50})
    for _ in range(17):
        whole.step()
    resumed.load(through_torch_save(whole.state()))
    assert [whole.step() for _ in range(30)] == [resumed.step() for _ in range(30)]


@pytest.mark.parametrize("num_steps", [2, 4, 6, 9])
def test_a_resumed_sequential_lr_continues_bit_identically(num_steps: int) -> None:
    whole, whole_inner = warmed_up(random_policy(), total_steps=20)
    resumed, resumed_inner = warmed_up(random_policy(), total_steps=20)
    values = losses(30)
    run_composed(whole, whole_inner, values[:num_steps])
    state = through_torch_save({"s": whole.state_dict(), "o": whole.optimizer.state_dict()})
    resumed.optimizer.load_state_dict(state["o"])
    resumed.load_state_dict(state["s"])
    rows = run_composed(whole, whole_inner, values[num_steps:])
    assert run_composed(resumed, resumed_inner, values[num_steps:]) == rows


def test_a_resumed_chain_continues_bit_identically() -> None:
    whole, whole_inner = chained("other", OTHERS["exponential"], random_policy(), total_steps=20)
    resumed, resumed_inner = chained(
        "other", OTHERS["exponential"], random_policy(), total_steps=20
    )
    values = losses(30)
    run_composed(whole, whole_inner, values[:7])
    state = through_torch_save({"s": whole.state_dict(), "o": whole.optimizer.state_dict()})
    resumed.optimizer.load_state_dict(state["o"])
    resumed.load_state_dict(state["s"])
    rows = run_composed(whole, whole_inner, values[7:])
    assert run_composed(resumed, resumed_inner, values[7:]) == rows


def test_a_loss_observed_before_the_state_was_taken_still_counts_after_it() -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=20)
    first.observe(2.0)
    second = PolicyLR(sgd(), random_policy(), total_steps=20)
    second.load_state_dict(through_torch_save(first.state_dict()))
    second.optimizer.step()
    second.step()
    assert second.last_epoch == 1


def test_a_resumed_scheduler_names_the_guarantee_that_binds_it() -> None:
    def build() -> PolicyLR:
        return PolicyLR(
            sgd(),
            constant_policy(0.0),
            interval_steps=5,
            cap=ScriptedCap(iter([1.0, 0.01, 0.01]), "expected"),
        )

    first, second = build(), build()
    run(first, [1.0])
    second.load_state_dict(first.state_dict())
    assert second.bound_by == first.bound_by == "expected"


def test_a_resumed_scheduler_does_not_warn_again_of_nan() -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=20)
    with pytest.warns(RuntimeWarning, match="finite"):
        run(first, [1.0, NAN])
    second = PolicyLR(sgd(), random_policy(), total_steps=20)
    second.load_state_dict(first.state_dict())
    run(second, [NAN])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: state], ids=["copied", "itself"])
def test_a_state_is_not_changed_by_the_run_that_goes_on(
    copied: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    policy = random_policy(groups=tuple(FEATURES))
    training = Training(OPTIMIZERS["momentum"], policy, {"total_steps": 50})
    for _ in range(12):
        training.step()
    state = copied(training.scheduler.state_dict())
    before = flat(state)
    for _ in range(12):
        training.step()
    assert flat(state) == before


def test_a_run_is_not_changed_by_writing_into_its_state() -> None:
    policy = random_policy(groups=("movement", "loss"))
    first = Training(OPTIMIZERS["momentum"], policy, {"total_steps": 50})
    second = Training(OPTIMIZERS["momentum"], policy, {"total_steps": 50})
    for training in (first, second):
        for _ in range(12):
            training.step()
    state = first.scheduler.state_dict()
    state["base_lrs"].clear()
    state["last_lrs"].clear()
    for value in state["controller"]["observer"].values():
        if isinstance(value, Tensor):
            value.fill_(NAN)
    assert [first.step() for _ in range(20)] == [second.step() for _ in range(20)]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("policy", lambda: PolicyLR(sgd(), random_policy(1), total_steps=50)),
        (
            "interval_steps",
            lambda: PolicyLR(sgd(), random_policy(), total_steps=50, interval_steps=7),
        ),
        (
            "total_steps",
            lambda: PolicyLR(sgd(), random_policy(), total_steps=60, interval_steps=5),
        ),
        ("warmup_steps", lambda: PolicyLR(sgd(), random_policy(), total_steps=50, warmup_steps=2)),
    ],
)
def test_the_state_of_another_schedule_is_refused(name: str, other: Callable[[], PolicyLR]) -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    with pytest.raises(ValueError, match=f"`state_dict` must have `{name}` = "):
        scheduler.load_state_dict(other().state_dict())


def test_a_refused_state_leaves_the_run_as_it_was() -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=50)
    second = PolicyLR(sgd(), random_policy(), total_steps=50)
    run(first, losses(7)), run(second, losses(7))
    other = PolicyLR(sgd(), random_policy(1), total_steps=50)
    with pytest.raises(ValueError, match="`policy`"):
        first.load_state_dict(other.state_dict())
    assert run(first, losses(20)) == run(second, losses(20))


# ---- memory


def recurrent_policy() -> Policy:
    """Three units that read five loss features and remember over the run."""
    rng = np.random.default_rng(0)

    def layer(inputs: int, outputs: int) -> tuple[Any, Any]:
        weight, bias = rng.normal(0.0, 1.0, (inputs, outputs)), rng.normal(0.0, 0.3, outputs)
        return weight.astype(np.float32), bias.astype(np.float32)

    return Policy(
        [layer(3, 1)],
        ObservationSpec(("loss",)),
        plain_action(),
        ClockSpec(num_decisions=10),
        lstm=layer(5 + 3, 4 * 3),
    )


def test_a_recurrent_policy_remembers_from_decision_to_decision() -> None:
    policy = recurrent_policy()
    control = Controller(
        policy.observation,
        policy.action,
        ParameterSample([torch.ones(3)], 3),
        interval_steps=5,
        total_steps=50,
    )
    memory = policy.initial_memory()
    expected = []
    for value in losses(50):
        control.observe(value)
        if control.advance():
            control.act(policy.act(control.close_interval(), memory))
        expected.append([0.1 * control.factor])
    assert run(PolicyLR(sgd(0.1), policy, total_steps=50), losses(50)) == expected
    assert abs(memory).min() > 0.0


@pytest.mark.parametrize("num_steps", [3, 5, 27])
def test_a_recurrent_policy_resumes_bit_identically(num_steps: int) -> None:
    values = losses(60)
    whole, resumed = (PolicyLR(sgd(), recurrent_policy(), total_steps=60) for _ in range(2))
    run(whole, values[:num_steps])
    resumed.load_state_dict(through_torch_save(whole.state_dict()))
    assert run(resumed, values[num_steps:]) == run(whole, values[num_steps:])


def test_a_state_of_a_recurrent_policy_keeps_its_memory_when_training_goes_on() -> None:
    scheduler = PolicyLR(sgd(), recurrent_policy(), total_steps=60)
    run(scheduler, losses(30))
    state = scheduler.state_dict()
    kept = copy.deepcopy(state["memory"])
    run(scheduler, losses(10))
    assert state["memory"] == kept != scheduler.state_dict()["memory"]


def test_a_copied_recurrent_policy_has_a_memory_of_its_own() -> None:
    scheduler = PolicyLR(sgd(), recurrent_policy(), total_steps=60)
    run(scheduler, losses(20))
    copied = copy.deepcopy(scheduler)
    run(copied, losses(20, seed=1))
    untouched = PolicyLR(sgd(), recurrent_policy(), total_steps=60)
    run(untouched, losses(20))
    assert run(scheduler, losses(20)) == run(untouched, losses(20))


def test_the_memory_is_empty_when_sequential_lr_reaches_the_policy() -> None:
    optimizer = sgd()
    constant = ConstantLR(optimizer, factor=1.0)
    scheduler = PolicyLR(optimizer, recurrent_policy(), interval_steps=2)
    composed = SequentialLR(optimizer, [constant, scheduler], milestones=[4])
    run_composed(composed, scheduler, losses(4))
    assert not np.any(scheduler.state_dict()["memory"])


def test_simulating_a_recurrent_policy_starts_from_an_empty_memory_every_time() -> None:
    policy = recurrent_policy()
    first, second = (PolicyLR.simulate(losses(60), policy, total_steps=60) for _ in range(2))
    assert first == second
