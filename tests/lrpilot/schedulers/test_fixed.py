"""D2Z, cosine after a warm-up, and WSD: schedules that look at nothing."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)
from transformers import get_wsd_schedule

from lrpilot import D2ZLR, WSDLR, CosineWarmupLR
from lrpilot.schedulers.fixed import FixedLR
from tests.scheduling import lrs_of

CLASSES = (D2ZLR, CosineWarmupLR, WSDLR)
every_class = pytest.mark.parametrize("kind", CLASSES)


def sgd(*lrs: float) -> Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in lrs])


def lr_rows(scheduler: LRScheduler, num_steps: int) -> list[list[float]]:
    rows = [lrs_of(scheduler.optimizer)]
    for _ in range(num_steps):
        scheduler.optimizer.step()
        scheduler.step()
        rows.append(lrs_of(scheduler.optimizer))
    return rows


def trapezoid(t: int, total_steps: int, warmup_share: float, decay_share: float) -> float:
    """The rule of D2Z and WSD as it was published in the first comparisons."""
    warmup_steps, decay_steps = warmup_share * total_steps, decay_share * total_steps
    warmup = (t + 1) / warmup_steps if warmup_steps > 0 else 1.0
    decay = (total_steps - t) / decay_steps if decay_steps > 0 else 1.0
    return max(0.0, min(1.0, warmup, decay))


@settings(deadline=None, max_examples=60)
@given(
    total_steps=st.integers(1, 80),
    lr=st.floats(1e-6, 1e3),
    warmup_share=st.floats(0.0, 1.0),
    decay_share=st.floats(0.0, 1.0),
)
def test_wsd_is_the_published_rule_to_the_bit(
    total_steps: int, lr: float, warmup_share: float, decay_share: float
) -> None:
    shares: dict[str, Any] = {"warmup_share": warmup_share, "decay_share": decay_share}
    plain = LambdaLR(sgd(lr), lambda t: trapezoid(t, total_steps, **shares))
    rows = lr_rows(plain, total_steps + 3)
    assert lr_rows(WSDLR(sgd(lr), total_steps=total_steps, **shares), total_steps + 3) == rows


@settings(deadline=None, max_examples=60)
@given(total_steps=st.integers(1, 80), lr=st.floats(1e-6, 1e3), warmup_share=st.floats(0.0, 1.0))
def test_d2z_is_wsd_whose_decay_follows_the_warm_up(
    total_steps: int, lr: float, warmup_share: float
) -> None:
    given_: dict[str, Any] = {"total_steps": total_steps, "warmup_share": warmup_share}
    wsd = WSDLR(sgd(lr), decay_share=1.0 - warmup_share, **given_)
    assert lr_rows(D2ZLR(sgd(lr), **given_), total_steps) == lr_rows(wsd, total_steps)


@pytest.mark.parametrize("total_steps", [1, 7, 100])
def test_a_cosine_without_warm_up_is_that_of_torch(total_steps: int) -> None:
    of_torch = lr_rows(CosineAnnealingLR(sgd(0.3), total_steps), total_steps)
    ours = CosineWarmupLR.simulate(total_steps=total_steps, initial_lr=0.3, warmup_share=0.0)
    assert ours == pytest.approx([lr for (lr,) in of_torch], abs=1e-12)


@pytest.mark.parametrize("decay", ["linear", "1-sqrt"])
def test_the_decay_of_wsd_is_that_of_transformers(decay: str) -> None:
    theirs = get_wsd_schedule(
        sgd(0.3),
        num_warmup_steps=0,
        num_decay_steps=20,
        num_training_steps=50,
        decay_type=decay,
    )
    ours = WSDLR.simulate(
        total_steps=50, initial_lr=0.3, warmup_share=0.0, decay_share=0.4, decay=decay
    )
    assert ours == pytest.approx([lr for (lr,) in lr_rows(theirs, 50)], abs=1e-12)


@every_class
def test_the_peak_is_the_initial_lr_and_after_the_last_step_it_is_0(kind: type[FixedLR]) -> None:
    lrs = kind.simulate(total_steps=200, initial_lr=0.3)
    assert max(lrs) == 0.3
    assert min(lrs[:-1]) > 0.0 == lrs[-1]


@every_class
def test_past_the_horizon_the_lr_stays_0(kind: type[FixedLR]) -> None:
    rows = lr_rows(kind(sgd(0.3), total_steps=5), 12)
    assert rows[5:] == [[0.0]] * 8


@every_class
def test_every_group_has_the_same_factor(kind: type[FixedLR]) -> None:
    scheduler = kind(sgd(0.1, 0.4), total_steps=20)
    for t, (first, second) in enumerate(lr_rows(scheduler, 20)):
        assert (first, second) == (0.1 * scheduler.factor_at(t), 0.4 * scheduler.factor_at(t))


@every_class
def test_in_a_sequence_it_starts_at_its_milestone(kind: type[FixedLR]) -> None:
    optimizer = sgd(0.1)
    first = ConstantLR(optimizer, 0.5, total_iters=100)
    sequence = SequentialLR(optimizer, [first, kind(optimizer, total_steps=20)], [3])
    rows = lr_rows(sequence, 23)
    assert [lr for (lr,) in rows[3:]] == kind.simulate(total_steps=20, initial_lr=0.1)


@every_class
def test_in_a_chain_factors_multiply(kind: type[FixedLR]) -> None:
    optimizer = sgd(0.1)
    halving = LinearLR(optimizer, 1.0, 0.5, total_iters=10)
    scheduler = kind(optimizer, total_steps=20)
    rows = lr_rows(ChainedScheduler([halving, scheduler]), 20)
    expected = [0.1 * (1 - 0.05 * min(t, 10)) * scheduler.factor_at(t) for t in range(21)]
    assert [lr for (lr,) in rows] == pytest.approx(expected, abs=1e-15)


def test_an_lr_that_somebody_sets_after_the_end_is_no_error() -> None:
    optimizer = sgd(0.1)
    scheduler = D2ZLR(optimizer, total_steps=3)
    lr_rows(scheduler, 3)
    optimizer.param_groups[0]["lr"] = 0.5
    assert lr_rows(scheduler, 1)[-1] == [0.0]


@every_class
def test_a_run_is_resumed_bit_identically(kind: type[FixedLR]) -> None:
    whole = kind(sgd(0.1, 0.4), total_steps=30)
    lr_rows(whole, 11)
    resumed = kind(sgd(0.2, 0.3), total_steps=30)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert lr_rows(resumed, 19) == lr_rows(whole, 19)


def test_a_state_of_another_decay_is_refused() -> None:
    state = WSDLR(sgd(0.1), total_steps=30, decay="1-sqrt").state_dict()
    with pytest.raises(ValueError, match="`decay` = 'linear' like this scheduler, got '1-sqrt'"):
        WSDLR(sgd(0.1), total_steps=30).load_state_dict(state)


@every_class
def test_a_cap_shortens_the_peak_and_the_log_tells_when(kind: type[FixedLR]) -> None:
    scheduler = kind(sgd(0.1), total_steps=20, cap=lambda: (0.05, "estimate"))
    free = kind.simulate(total_steps=20, initial_lr=0.1)
    rows = lr_rows(scheduler, 20)
    assert [lr for (lr,) in rows] == pytest.approx([min(lr, 0.05) for lr in free])
    assert [entry.rule for entry in scheduler.log][-1] == "cap"


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (D2ZLR, {"total_steps": 0}, "`total_steps` must be at least 1, got 0"),
        (D2ZLR, {"total_steps": 9, "warmup_share": 1.5}, r"`warmup_share` must be in \[0, 1\]"),
        (CosineWarmupLR, {"total_steps": 9.5}, "`total_steps` must be a whole number, got 9.5"),
        (WSDLR, {"total_steps": 9, "decay_share": math.nan}, r"`decay_share` must be in \[0, 1\]"),
        (WSDLR, {"total_steps": 9, "decay": "cosine"}, r"`decay` must be one of \('linear', '1-sq"),
    ],
)
def test_a_bad_argument_is_named(
    kind: type[FixedLR], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(sgd(0.1), **arguments)
