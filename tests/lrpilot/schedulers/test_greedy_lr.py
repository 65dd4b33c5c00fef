import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot.schedulers.greedy.scheduler import GreedyLR
from tests.lrpilot.schedulers.greedy_runs import NAN, QUICK, SEMANTICS, losses, quick, sgd
from tests.scheduling import lrs_of, run, run_composed

# ---- moves


def test_a_fall_raises_and_a_rise_lowers_by_the_factor() -> None:
    falling = [10.0 - step for step in range(10)]
    rows = run(quick("robust"), [*falling, *reversed(falling), *reversed(falling)])
    assert [row[0] for row in rows] == [0.1] * 9 + [0.2] * 10 + [0.1] * 10 + [0.05]


def test_the_lr_returns_to_the_initial_one_exactly() -> None:
    falling = [10.0 - step for step in range(10)]
    optimizer = sgd(0.1, 0.03)
    scheduler = quick("robust", optimizer, factor=0.5)
    run(scheduler, [*falling * 3, *list(reversed(falling)) * 3])
    assert lrs_of(optimizer) == [0.1, 0.03]


def test_all_groups_share_one_factor_in_robust() -> None:
    scheduler = quick("robust", sgd(0.1, 0.025, 0.0), factor=0.7)
    rows = run(scheduler, losses(500))
    assert len({row[0] for row in rows}) > 5
    for row in rows:
        assert row[1] / row[0] == pytest.approx(0.25, rel=1e-15)
        assert row[2] == 0.0


def test_every_group_has_its_own_bounds_in_paper() -> None:
    optimizer = sgd(0.1, 0.2)
    scheduler = quick("paper", optimizer, min_lr=[0.05, 1e-3], max_lr=(0.3, 0.9))
    run(scheduler, [1.0] * 100)
    assert lrs_of(optimizer) == [0.05, 1e-3]
    run(scheduler, [-float(step) for step in range(100)])
    assert lrs_of(optimizer) == [0.3, 0.9]


def test_reset_restores_the_initial_lr_after_lowerings_at_the_floor() -> None:
    scheduler = quick("robust", min_factor=0.5, reset_start=3)
    rows = run(scheduler, [NAN] * 7)
    assert [row[0] for row in rows] == [0.05, 0.05, 0.1, 0.05, 0.05, 0.1, 0.05]
    assert [decision.rule for decision in scheduler.log] == [
        "not finite",
        "reset",
        "not finite",
        "reset",
        "not finite",
    ]


def test_robust_never_resets_by_default() -> None:
    assert run(quick("robust"), [NAN] * 2000)[-1] == [0.1 * 0.01]


@pytest.mark.parametrize("hold", ["cooldown", "warmup"])
def test_in_the_holds_of_the_paper_the_best_still_updates(hold: str) -> None:
    first = [5.0, 5.0, 5.0, 5.0] if hold == "cooldown" else [5.0, 4.0, 3.0]
    held = [*first, 1.0, 2.0, 2.0, 2.0]
    arguments = {"patience": 2, "factor": 0.5, hold: 1}
    paper = GreedyLR.simulate(held, semantics="paper", **arguments)
    copied = GreedyLR.simulate(held, semantics="transformers", **arguments)
    assert paper[-1] == 0.5 * paper[-2]
    assert copied[-1] == copied[-2]


def test_a_cooldown_of_the_paper_still_counts_good_calls() -> None:
    held = [5.0, 5.0, 5.0, 5.0, 4.0, 3.0, 2.0]
    arguments: dict[str, Any] = {"patience": 2, "factor": 0.5, "cooldown": 3}
    assert GreedyLR.simulate(held, semantics="paper", **arguments)[-1] == 0.1
    assert GreedyLR.simulate(held, semantics="transformers", **arguments)[-1] == 0.05


@pytest.mark.parametrize("value", [-math.inf, math.inf, NAN])
def test_no_value_that_is_not_finite_becomes_the_best_of_the_paper(value: float) -> None:
    lrs = GreedyLR.simulate([3.0, value, 2.0, 1.0, 0.0], semantics="paper", patience=2)
    assert lrs[-1] == 0.1 / 0.95


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_relative_threshold_of_the_paper_is_in_units_of_the_best(mode: str, sign: int) -> None:
    step = 0.9 if (mode == "min") == (sign > 0) else 1.1
    values = [sign * 10.0 * step**k for k in range(9)]
    arguments: dict[str, Any] = {"semantics": "paper", "mode": mode, "threshold_mode": "rel"}
    assert GreedyLR.simulate(values, patience=7, threshold=0.09, **arguments)[-1] > 0.1
    # every second value is good: it beats the best by 0.19 or 0.21
    assert GreedyLR.simulate(values, patience=7, threshold=0.11, **arguments)[-1] == 0.1


# ---- losses


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        lambda x: torch.tensor([x]),
        lambda x: torch.tensor(x, requires_grad=True),
        np.float32,
        lambda x: np.array([x], np.float32),
    ],
    ids=["0-d", "one element", "with graph", "numpy float32", "array of one element"],
)
def test_every_kind_of_loss_gives_the_same_lrs(semantics: str, kind: Any) -> None:
    values = [float(np.float32(x)) for x in losses(150)]
    expected = run(quick(semantics), values)
    assert run(quick(semantics), [kind(value) for value in values]) == expected


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    ("loss", "error"),
    [("low", TypeError), ([1.0], TypeError), (torch.ones(2), ValueError), (np.ones(2), ValueError)],
    ids=["string", "list", "tensor", "array"],
)
def test_what_is_no_loss_is_refused_and_changes_nothing(
    semantics: str, loss: Any, error: type[Exception]
) -> None:
    scheduler = quick(semantics)
    run(scheduler, losses(20))
    before = scheduler.state_dict()
    for take in (scheduler.step, scheduler.observe):
        with pytest.raises(error, match="`loss` must"):
            take(loss)
    assert repr(scheduler.state_dict()) == repr(before)


@pytest.mark.parametrize("semantics", ["robust", "paper"])
def test_a_string_of_a_number_is_refused(semantics: str) -> None:
    with pytest.raises(TypeError, match="`loss` must be a number"):
        quick(semantics).step("1.0")


def test_step_without_a_loss_names_the_cure() -> None:
    scheduler = quick("robust")
    run(scheduler, [1.0])
    with pytest.raises(RuntimeError, match=r"call `step\(loss\)`, or `observe\(loss\)` before"):
        scheduler.step()


def test_an_observed_loss_serves_for_one_step_only() -> None:
    scheduler = quick("robust")
    run_composed(scheduler, scheduler, [1.0])
    with pytest.raises(RuntimeError, match="`step` needs a loss"):
        scheduler.step()


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_observe_and_step_equal_step_with_the_loss(semantics: str) -> None:
    scheduler = quick(semantics)
    observed = run_composed(scheduler, scheduler, losses(200))
    assert observed == [row[0] for row in run(quick(semantics), losses(200))]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_torchs_own_counters_follow_every_step(semantics: str) -> None:
    scheduler = quick(semantics)
    for count, value in enumerate(losses(60), 1):
        run(scheduler, [value])
        assert (scheduler.last_epoch, scheduler._step_count) == (count, count + 1)
        assert scheduler.get_last_lr() == lrs_of(scheduler.optimizer)


# ---- bounds

ANY_LOSSES = st.lists(st.floats(), max_size=60)
ANY_LR = st.floats(1e-9, 1e9)


@settings(max_examples=100, deadline=None)
@given(
    values=ANY_LOSSES,
    lr=ANY_LR,
    factor=st.floats(0.01, 0.99),
    min_factor=st.floats(1e-3, 1.0),
    max_factor=st.floats(1.0, 1e3),
    holds=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_robust_never_leaves_its_bounds(
    values: list[float],
    lr: float,
    factor: float,
    min_factor: float,
    max_factor: float,
    holds: tuple[int, int],
) -> None:
    lrs = GreedyLR.simulate(
        values,
        initial_lr=lr,
        window_size=5,
        significance=1.0,
        patience=2,
        factor=factor,
        min_factor=min_factor,
        max_factor=max_factor,
        cooldown=holds[0],
        warmup=holds[1],
    )
    assert all(lr * min_factor <= value <= lr * max_factor for value in lrs)


@settings(max_examples=100, deadline=None)
@given(
    semantics=st.sampled_from(["paper", "transformers"]),
    values=ANY_LOSSES,
    lr=ANY_LR,
    bounds=st.tuples(ANY_LR, ANY_LR).map(sorted),
    patience=st.integers(0, 3),
    reset_start=st.integers(1, 3),
)
def test_the_others_never_leave_theirs_nor_move_further_out(
    semantics: str,
    values: list[float],
    lr: float,
    bounds: list[float],
    patience: int,
    reset_start: int,
) -> None:
    lrs = GreedyLR.simulate(
        values,
        initial_lr=lr,
        semantics=semantics,
        min_lr=bounds[0],
        max_lr=bounds[1],
        patience=patience,
        reset_start=reset_start,
    )
    assert all(min(lr, bounds[0]) <= value <= max(lr, bounds[1]) for value in lrs)


@settings(max_examples=100, deadline=None)
@given(
    semantics=st.sampled_from(SEMANTICS),
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=20, max_size=60),
    patience=st.integers(0, 9),
    holds=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_finite_losses_never_leave_what_is_reachable(
    semantics: str, values: list[float], patience: int, holds: tuple[int, int]
) -> None:
    arguments: dict[str, Any] = {
        "patience": patience,
        "cooldown": holds[0],
        "warmup": holds[1],
        "factor": 0.7,
    }
    scheduler = quick(semantics, **arguments)
    lowest, highest = scheduler.check_reachable(len(values))
    for (lr,) in run(scheduler, values):
        assert lowest <= lr <= highest


@pytest.mark.slow
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("hold", [0, 3])
@pytest.mark.parametrize("num", [11, 24, 100])
def test_both_ends_of_what_is_reachable_are_reached(semantics: str, hold: int, num: int) -> None:
    arguments: dict[str, Any] = {"factor": 0.9, "cooldown": hold, "warmup": hold, "min_lr": 0.01}
    if semantics == "robust":
        del arguments["min_lr"]
    lowest, highest = quick(semantics, **arguments).check_reachable(num)
    falling = [-float(step) for step in range(num)]
    rising = [float(step) for step in range(num)] if semantics == "robust" else [NAN] * num
    assert run(quick(semantics, **arguments), falling)[-1] == [highest]
    assert run(quick(semantics, **arguments), rising)[-1] == [lowest]


def test_what_is_reachable_counts_calls_not_steps() -> None:
    scheduler = quick("robust")
    assert scheduler.check_reachable(1000, eval_interval=100) == (0.05, 0.2)
    with pytest.raises(ValueError, match=r"got 9 calls .* takes 10: lower `window_size`"):
        scheduler.check_reachable(999, eval_interval=100)


def test_bounds_without_room_are_refused_with_their_values() -> None:
    scheduler = GreedyLR(sgd(1e-9), semantics="transformers")
    with pytest.raises(ValueError, match=r"bounds must leave room around \[1e-09\], got .*'eps'"):
        scheduler.check_reachable(1000)


@pytest.mark.parametrize("name", ["total_steps", "eval_interval"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        quick("robust").check_reachable(**{"total_steps": 100, name: 0})


def test_check_reachable_changes_nothing() -> None:
    scheduler = quick("robust")
    run(scheduler, losses(50))
    before = repr(scheduler.state_dict())
    scheduler.check_reachable(1000)
    assert repr(scheduler.state_dict()) == before


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_simulation_has_the_lrs_of_a_run(semantics: str) -> None:
    expected = [[0.3], *run(quick(semantics, sgd(0.3)), losses(100))]
    simulated = GreedyLR.simulate(
        losses(100), initial_lr=0.3, semantics=semantics, **QUICK[semantics]
    )
    assert [[lr] for lr in simulated] == expected
