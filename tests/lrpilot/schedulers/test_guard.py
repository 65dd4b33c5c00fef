import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import (
    ConstantLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.guard.scheduler import DivergenceError, Guard
from lrpilot.schedulers.hypergradient.scheduler import HypergradientLR
from lrpilot.schedulers.line_search.scheduler import LineSearchLR
from tests.lrpilot.schedulers.guards import (
    INF,
    NAN,
    OPTIMIZERS,
    SCHEDULERS,
    Training,
    assert_equal,
    bare,
    constant,
    noise,
    rules,
    sgd,
    through_torch_save,
    warm_up,
)
from tests.scheduling import lrs_of, run

# ---- backing off and recovering


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_healthy_training_has_the_wrapped_learning_rates(name: str) -> None:
    first, second = sgd(0.1, 0.03), sgd(0.1, 0.03)
    guard = Guard(SCHEDULERS[name](first))
    assert run(guard, noise(50)) == bare(SCHEDULERS[name](second), noise(50))
    assert len(guard.log) == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_backed_off_scheduler_keeps_its_own_recursion(name: str) -> None:
    losses = noise(60)
    clean = list(losses)
    for step in (6, 17, 33):
        losses[step], clean[step] = NAN, losses[step - 1]
    first, second = sgd(0.1, 0.03), sgd(0.1, 0.03)
    guard = Guard(SCHEDULERS[name](first), recovery_steps=5)
    expected = bare(SCHEDULERS[name](second), clean)
    factors = []
    for loss, row in zip(losses, expected, strict=True):
        (actual,) = run(guard, [loss])
        factors.append(guard.factor)
        assert actual == [lr * guard.factor for lr in row]
    assert sorted(set(factors)) == [0.5, 1.0]
    assert rules(guard) == ["nan", "recovered"] * 3


@pytest.mark.parametrize("loss", [NAN, INF, -INF, torch.tensor(NAN), np.float32(INF)])
def test_a_loss_that_is_not_finite_backs_off_at_once(loss: Any) -> None:
    guard = Guard(constant(0.1, 0.03), backoff=0.25)
    assert run(guard, [2.0, loss])[-1] == [0.1 * 0.25, 0.03 * 0.25]
    decision = guard.log[0]
    assert decision[:3] == (2, 0.1, 0.1 * 0.25)
    assert decision.rule == "nan"
    assert not math.isfinite(decision.signal)


def test_a_spike_backs_off_and_is_logged_with_its_threshold() -> None:
    guard = Guard(constant())
    run(guard, [*noise(30), 40.0])
    (decision,) = guard.log
    assert (decision.step, decision.old_lr, decision.new_lr) == (31, 0.1, 0.05)
    assert (decision.signal, decision.rule) == (40.0, "spike")
    assert 2.5 < decision.threshold < 40.0


def test_a_loss_that_stays_high_after_a_spike_is_one_alarm() -> None:
    guard = Guard(constant())
    run(guard, [*noise(30), *(4.0 * loss for loss in noise(400))])
    assert rules(guard).count("spike") == 1
    assert guard.num_retries == 0


def test_a_loss_that_keeps_growing_is_one_alarm_after_another() -> None:
    guard = Guard(constant())
    run(guard, [*noise(30), *(10.0 * 2.5**step for step in range(6))])
    assert len(rules(guard)) == 6
    assert set(rules(guard)) == {"spike", "divergence"}


def test_each_retry_is_taken_back_after_as_many_healthy_steps() -> None:
    guard = Guard(constant(1.0), recovery_steps=3)
    rows = run(guard, [2.0, NAN, NAN, *[2.0] * 7])
    assert [lr for (lr,) in rows] == [1.0, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0, 1.0]


def test_a_relapse_doubles_the_time_to_the_next_recovery_until_one_lasts() -> None:
    guard = Guard(constant(1.0), recovery_steps=2)
    rows = run(guard, [2.0, NAN, 2.0, 2.0, NAN, *[2.0] * 8, NAN, 2.0, 2.0])
    steps = [decision.step for decision in guard.log if decision.rule == "recovered"]
    assert steps == [4, 9, 16]
    assert rows[-1] == [1.0]


def test_a_loss_that_is_not_finite_never_reaches_the_wrapped_scheduler() -> None:
    scheduler = ReduceLROnPlateau(sgd(), patience=3)
    run(Guard(scheduler), [NAN, INF, 2.0, NAN, INF, 1e30])
    assert scheduler.best == 2.0
    assert scheduler.last_epoch == 4


def test_every_bad_loss_raises_when_the_retries_are_used_up() -> None:
    guard = Guard(constant(), max_retries=3)
    run(guard, [2.0, NAN, NAN, NAN])
    with pytest.raises(DivergenceError, match="the loss is nan after step 5, with 3 retries"):
        run(guard, [NAN])


def test_without_retries_the_first_alarm_raises() -> None:
    with pytest.raises(DivergenceError, match="give the guard the `model`"):
        run(Guard(constant(), max_retries=0), [NAN])


def test_a_learning_rate_that_is_a_tensor_is_filled_not_replaced() -> None:
    optimizer = Adam([torch.ones(3, requires_grad=True)], lr=torch.tensor(0.1))
    lr = optimizer.param_groups[0]["lr"]
    guard = Guard(ExponentialLR(optimizer, 0.5), recovery_steps=1)
    rows = run(guard, [1.0, NAN, 1.0])
    assert optimizer.param_groups[0]["lr"] is lr
    np.testing.assert_allclose([r for (r,) in rows], [0.05, 0.0125, 0.0125], rtol=1e-6)


def test_the_last_learning_rates_are_those_of_the_optimizer() -> None:
    guard = Guard(constant(0.1, 0.03))
    run(guard, [NAN])
    assert guard.get_last_lr() == lrs_of(guard.optimizer) == [0.05, 0.015]


@pytest.mark.parametrize(
    "losses",
    [
        [NAN] * 4,
        [1e30, 2.0, 2.0],
        [2.0, 1e30, 2.0, -1e30, 2.0],
        [0.0] * 5,
        [0.0, 1.0, 0.0],
        [-3.0, -4.0, 2.0],
        [torch.tensor([2.0]), np.float64(2.0), np.float32(1.5), 1],
    ],
    ids=str,
)
def test_extreme_losses_are_survived(losses: list[Any]) -> None:
    rows = run(Guard(constant()), losses)
    assert all(0.0 < lr <= 0.1 for (lr,) in rows)


@pytest.mark.parametrize("loss", ["2.0", [1.0], torch.ones(2), np.ones(2)], ids=str)
def test_what_is_no_loss_is_refused(loss: Any) -> None:
    guard = Guard(constant())
    with pytest.raises((TypeError, ValueError), match="`loss` must"):
        guard.step(loss)


def test_a_step_without_a_loss_is_refused() -> None:
    guard = Guard(constant())
    with pytest.raises(RuntimeError, match="`step` needs a loss"):
        guard.step()


def test_an_observed_loss_counts_at_the_next_step_once() -> None:
    guard = Guard(constant())
    guard.optimizer.step()
    guard.observe(torch.tensor(NAN))
    guard.step()
    assert guard.factor == 0.5
    with pytest.raises(RuntimeError, match="`step` needs a loss"):
        guard.step()


# ---- caps


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_cap_limits_any_scheduler_without_touching_its_recursion(name: str) -> None:
    first, second = sgd(0.1, 0.03), sgd(0.1, 0.03)
    guard = Guard(SCHEDULERS[name](first), cap=lambda: (0.02, "expected"))
    expected = bare(SCHEDULERS[name](second), noise(40))
    for loss, row in zip(noise(40), expected, strict=True):
        (actual,) = run(guard, [loss])
        share = min(1.0, 0.02 / max(row))
        np.testing.assert_allclose(actual, [lr * share for lr in row], rtol=1e-12)
        assert max(actual) <= 0.02
        assert guard.bound_by == ("expected" if share < 1.0 else None)


def test_a_cap_is_logged_when_it_begins_to_bind_and_when_it_moves() -> None:
    caps = iter([1.0, 1.0, 0.05, 0.05, 0.02, 1.0, 0.02])
    guard = Guard(constant(), cap=lambda: (next(caps), "estimate"))
    rows = run(guard, [2.0] * 6)
    assert [lr for (lr,) in rows] == [0.1, 0.05, 0.05, 0.02, 0.1, 0.02]
    assert [tuple(decision) for decision in guard.log] == [
        (2, 0.1, 0.05, 0.1, 0.05, "cap", "estimate"),
        (4, 0.05, 0.02, 0.1, 0.02, "cap", "estimate"),
        (6, 0.1, 0.02, 0.1, 0.02, "cap", "estimate"),
    ]


def test_the_cap_limits_the_initial_learning_rate() -> None:
    guard = Guard(constant(), cap=lambda: (0.01, "estimate"))
    assert guard.get_last_lr() == [0.01]


# ---- compositions


def test_a_guard_in_a_sequence_starts_at_its_milestone() -> None:
    optimizer = sgd(0.1)
    warm = LinearLR(optimizer, 0.1, total_iters=3)
    guard = Guard(ExponentialLR(optimizer, 0.5))
    sequence = SequentialLR(optimizer, [warm, guard], [3])
    assert guard.is_waiting
    rows = []
    for loss in [NAN, 1e30, 2.0, 2.0, NAN, 2.0]:
        optimizer.step()
        guard.observe(loss)
        sequence.step()
        rows += lrs_of(optimizer)
    np.testing.assert_allclose(rows, [0.04, 0.07, 0.1, 0.05, 0.0125, 0.00625])
    assert not guard.is_waiting


def test_a_guard_may_be_the_first_of_a_sequence() -> None:
    optimizer = sgd(0.1)
    guard = Guard(ExponentialLR(optimizer, 0.5))
    sequence = SequentialLR(optimizer, [guard, ConstantLR(optimizer, 1.0)], [2])
    rows = lrs_of(optimizer)
    for loss in [2.0, 2.0]:
        optimizer.step()
        guard.observe(loss)
        sequence.step()
        rows += lrs_of(optimizer)
    assert rows[:2] == [0.1, 0.05]
    assert guard.scheduler.last_epoch == 1


# ---- state

FAILURES = {3: NAN, 9: 1e4, 10: 1e9, 21: INF}


def run_with_failures(training: Training, num_steps: int) -> list[Any]:
    rows: list[Any] = []
    for _ in range(num_steps):
        factor = FAILURES.get(training.num_steps, 1.0)
        loss = training.step(factor)
        rows.append((str(loss), lrs_of(training.optimizer), len(training.guard.log)))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("order", ["model, optimizer, guard", "guard, model, optimizer"])
@pytest.mark.parametrize("num_steps", [0, 4, 10, 11, 22])
@pytest.mark.parametrize("rollback", [True, False])
def test_a_resumed_guard_continues_bit_identically(
    rollback: bool, num_steps: int, order: str
) -> None:
    build = partial(
        Training,
        OPTIMIZERS["AdamW"],
        rollback=rollback,
        snapshot_steps=4,
        recovery_steps=6,
        cap=lambda: (0.008, "estimate"),
    )
    whole, resumed = build(), build()
    for parameter in resumed.model.parameters():
        nn.init.zeros_(parameter)
    run_with_failures(whole, num_steps)
    objects = {name: getattr(whole, name).state_dict() for name in order.split(", ")}
    for name, state in through_torch_save(objects).items():
        getattr(resumed, name).load_state_dict(state)
    resumed.num_steps = whole.num_steps
    assert run_with_failures(resumed, 40) == run_with_failures(whole, 40)
    assert_equal(resumed.tensors(), whole.tensors())
    assert str(resumed.guard.state_dict()) == str(whole.guard.state_dict())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_guard_around_any_scheduler_continues_bit_identically(name: str) -> None:
    losses = noise(60)
    losses[5] = losses[6] = losses[30] = NAN
    for num_steps in (0, 6, 7, 20):
        first, second = (
            Guard(SCHEDULERS[name](sgd(0.1, 0.03)), recovery_steps=8) for _ in range(2)
        )
        run(first, losses[:num_steps])
        second.load_state_dict(through_torch_save(first.state_dict()))
        assert lrs_of(second.optimizer) == lrs_of(first.optimizer)
        assert run(second, losses[num_steps:]) == run(first, losses[num_steps:])


def test_a_state_is_not_changed_by_the_run_that_goes_on() -> None:
    training = Training(OPTIMIZERS["AdamW"], snapshot_steps=2)
    run_with_failures(training, 8)
    state = training.guard.state_dict()
    before = copy.deepcopy(state)
    run_with_failures(training, 20)
    assert str(state) == str(before)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("backoff", lambda: Guard(constant(), backoff=0.1)),
        ("rolls_back", lambda: Guard(constant(), model=nn.Linear(1, 1))),
    ],
)
def test_the_state_of_another_guard_is_refused(name: str, other: Callable[[], Guard]) -> None:
    with pytest.raises(ValueError, match=f"`state_dict` must have `{name}` = "):
        Guard(constant()).load_state_dict(other().state_dict())


# ---- construction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backoff": 0.0}, r"`backoff` must be in \(0, 1\), got 0\.0"),
        ({"backoff": 1.0}, r"`backoff` must be in \(0, 1\), got 1\.0"),
        ({"recovery_steps": 0}, r"`recovery_steps` must be in \[1, inf\], got 0"),
        ({"snapshot_steps": 0}, r"`snapshot_steps` must be in \[1, inf\], got 0"),
        ({"max_retries": -1}, r"`max_retries` must be in \[0, inf\], got -1"),
        ({"max_retries": NAN}, r"`max_retries` must be in \[0, inf\], got nan"),
        ({"spike_ratio": 1.0}, r"`ratio` must be in \(1, inf\), got 1\.0"),
        ({"spike_deviations": NAN}, r"`deviations` must be in \(0, inf\), got nan"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard(constant(), **arguments)


def test_what_is_no_scheduler_is_refused() -> None:
    with pytest.raises(TypeError, match="`scheduler` must be a torch scheduler, got SGD"):
        Guard(sgd())  # type: ignore[arg-type]


@pytest.mark.parametrize("is_behind_warm_up", [False, True])
@pytest.mark.parametrize("name", ["hypergradient", "line search"])
def test_a_cap_around_a_scheduler_that_moves_after_the_guard_is_refused(
    name: str, is_behind_warm_up: bool
) -> None:
    optimizer = idle_optimizer(0.1)
    inner: LRScheduler = (
        HypergradientLR(optimizer, hyper_lr=0.1)
        if name == "hypergradient"
        else LineSearchLR(optimizer, None)
    )
    scheduler = warm_up(optimizer, inner) if is_behind_warm_up else inner
    with pytest.raises(ValueError, match="given to the scheduler inside"):
        Guard(scheduler, cap=lambda: (0.05, "estimate"))
    Guard(scheduler)


def test_the_wait_is_doubled_once_by_several_alarms_after_a_recovery() -> None:
    optimizer = idle_optimizer(0.1)
    guard = Guard(ConstantLR(optimizer, 1.0), recovery_steps=2)
    optimizer.step()
    for loss in [1.0, NAN, 1.0, 1.0, NAN, NAN]:  # recovered after the fourth
        guard.step(loss)
    factors = []
    for _ in range(8):
        guard.step(1.0)
        factors.append(guard.factor)
    assert factors == [0.25] * 3 + [0.5] * 4 + [1.0]


def test_a_loss_that_was_observed_is_forgotten_when_one_is_given() -> None:
    optimizer = idle_optimizer(0.1)
    guard = Guard(ConstantLR(optimizer, 1.0))
    optimizer.step()
    guard.observe(NAN)
    guard.step(1.0)
    with pytest.raises(RuntimeError, match="needs a loss"):
        guard.step()
