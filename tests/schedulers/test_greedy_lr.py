import copy
import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    ExponentialLR,
    LinearLR,
    SequentialLR,
)

from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.composition import give_loss
from lrpilot.schedulers.greedy.arguments import DEFAULTS
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from tests.running import through_file
from tests.scheduling import lrs_of, run, run_composed

NAN = math.nan
SEMANTICS = ["robust", "paper", "transformers"]
QUICK: dict[str, dict[str, Any]] = {
    "robust": {"window_size": 10, "patience": 5, "factor": 0.5},
    "paper": {"patience": 2, "factor": 0.5, "min_lr": 1e-3},
    "transformers": {"patience": 2, "factor": 0.5, "smooth": True, "window_size": 4},
}


def sgd(*lrs: Any) -> Optimizer:
    groups = [{"params": [torch.ones(2, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)]
    return torch.optim.SGD(groups, lr=0.1)


def quick(semantics: str, optimizer: Optimizer | None = None, **arguments: Any) -> GreedyLR:
    chosen = QUICK[semantics] | arguments
    return GreedyLR(sgd() if optimizer is None else optimizer, semantics=semantics, **chosen)


def losses(num: int, seed: int = 0) -> list[float]:
    """Falls and rises with noise, NaN, infinities, zeros and 1e30 now and then."""
    rng = random.Random(seed)
    level, slope, values = 2.0, -0.1, []
    for _ in range(num):
        slope = rng.uniform(-0.3, 0.2) if rng.random() < 0.05 else slope
        level += slope
        odd = rng.choice([NAN, math.inf, -math.inf, 0.0, 1e30])
        values.append(odd if rng.random() < 0.02 else level + rng.gauss(0.0, 0.1))
    return values


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
    arguments = {"patience": patience, "cooldown": holds[0], "warmup": holds[1], "factor": 0.7}
    scheduler = quick(semantics, **arguments)
    lowest, highest = scheduler.check_reachable(len(values))
    for (lr,) in run(scheduler, values):
        assert lowest <= lr <= highest


@pytest.mark.slow
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("hold", [0, 3])
@pytest.mark.parametrize("num", [11, 24, 100])
def test_both_ends_of_what_is_reachable_are_reached(semantics: str, hold: int, num: int) -> None:
    arguments = {"factor": 0.9, "cooldown": hold, "warmup": hold, "min_lr": 0.01}
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


# ---- arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"factor": 0.0},
        {"factor": 1.0},
        {"factor": NAN},
        {"patience": -1},
        {"threshold": -1.0},
        {"threshold": NAN},
        {"threshold_mode": "relative"},
        {"mode": "best"},
        {"cooldown": -1},
        {"warmup": -1},
        {"window_size": 0},
        {"reset_start": 0},
        {"significance": 0.0},
        {"min_factor": 0.0},
        {"min_factor": 1.1},
        {"max_factor": 0.9},
        {"max_factor": math.inf},
    ],
    ids=repr,
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
        GreedyLR(sgd(), **arguments)


def test_an_unknown_semantics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`semantics` must be one of .*, got 'greedy'"):
        GreedyLR(sgd(), semantics="greedy")


@pytest.mark.parametrize("name", ["min_lr", "max_lr", "eps"])
def test_absolute_bounds_are_refused_in_robust(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` .* 'robust', which has `min_factor` and"):
        GreedyLR(sgd(), **{name: 0.1})


@pytest.mark.parametrize("semantics", ["paper", "transformers"])
@pytest.mark.parametrize("name", ["min_factor", "max_factor", "significance"])
def test_relative_bounds_are_refused_in_the_others(semantics: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` .* '{semantics}', which has `min_lr` and"):
        GreedyLR(sgd(), semantics=semantics, **{name: 1.0})


@pytest.mark.parametrize(("window_size", "significance"), [(9, 4.0), (1, 0.1), (40, 6.2)])
def test_a_significance_that_no_window_can_show_is_refused(
    window_size: int, significance: float
) -> None:
    with pytest.raises(ValueError, match=rf"`significance` must be below .* = {window_size} calls"):
        GreedyLR(sgd(), window_size=window_size, significance=significance)


def test_ten_calls_can_show_the_default_significance() -> None:
    assert GreedyLR(sgd(), window_size=10).check_reachable(10).highest > 0.1


def test_reading_the_lr_changes_nothing() -> None:
    scheduler = quick("robust")
    run(scheduler, losses(50))
    before = repr(scheduler.state_dict())
    assert scheduler.get_lr() == lrs_of(scheduler.optimizer)
    assert repr(scheduler.state_dict()) == before


def test_the_defaults_are_resolved_by_the_semantics() -> None:
    for semantics in SEMANTICS:
        assert GreedyLR(sgd(), semantics=semantics).arguments == DEFAULTS[semantics]


def test_verbose_prints_every_decision(capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = GreedyLR(sgd(), verbose=True)
    run(scheduler, [NAN, 1.0])
    assert capsys.readouterr().out == f"{scheduler.log[0]}\n"


# ---- log


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_the_log_has_every_change_and_nothing_else(semantics: str) -> None:
    scheduler = quick(semantics)
    rows = [0.1, *(row[0] for row in run(scheduler, losses(400)))]
    changes = [(k, old, new) for k, (old, new) in enumerate(pairwise(rows), 1) if old != new]
    assert len(changes) > 5
    assert [decision[:3] for decision in scheduler.log] == changes


def test_the_log_names_rule_signal_and_threshold() -> None:
    scheduler = quick("robust")
    run(scheduler, [10.0 - step for step in range(10)])
    (decision,) = scheduler.log
    assert decision.rule == "fall"
    assert decision.signal < decision.threshold == -4.0


@pytest.mark.parametrize(
    ("semantics", "bounds", "name"),
    [
        ("robust", {"min_factor": 0.7}, "min_factor"),
        ("paper", {"min_lr": 0.07}, "min_lr"),
        ("transformers", {"min_lr": 0.07}, "min_lr"),
    ],
)
def test_the_log_names_the_bound_that_shortened_a_change(
    semantics: str, bounds: dict[str, float], name: str
) -> None:
    scheduler = quick(semantics, **bounds)
    run(scheduler, [NAN] * 10)
    assert [decision.bound_by for decision in scheduler.log] == [name]


# ---- cap


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_no_group_exceeds_the_cap(semantics: str) -> None:
    rng = random.Random(0)
    answers = [10 ** rng.uniform(-3, 1) for _ in range(400)]
    asked = iter(answers)
    optimizer = sgd(0.1, 0.3)
    scheduler = quick(semantics, optimizer, cap=lambda: (next(asked), "estimate"))
    for value, cap in zip(losses(399), answers[1:], strict=True):
        run(scheduler, [value])
        assert max(lrs_of(optimizer)) <= cap


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_the_lr_comes_back_when_the_cap_rises(semantics: str) -> None:
    caps = iter([1.0, 0.01, 0.02, 1.0])
    scheduler = quick(semantics, cap=lambda: (next(caps), "deterministic"))
    assert run(scheduler, [2.0, 1.0, 0.0]) == [[0.01], [0.02], [0.1]]
    assert [(d.rule, d.bound_by) for d in scheduler.log] == [
        ("cap", "deterministic"),
        ("cap", "deterministic"),
        ("cap", ""),
    ]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_lowering_begins_at_the_cap_that_binds(semantics: str) -> None:
    scheduler = quick(semantics, sgd(0.8), cap=lambda: (0.1, "estimate"))
    assert run(scheduler, [NAN] * 3)[-1][0] < 0.06


def test_a_cap_that_binds_blocks_raises() -> None:
    limit = [1.0]
    scheduler = quick("robust", cap=lambda: (limit[0], "estimate"))
    falling = [100.0 - step for step in range(60)]
    limit[0] = 0.05
    run(scheduler, falling)
    limit[0] = 1.0
    assert run(scheduler, [39.0]) == [[0.1]]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_cap_that_never_binds_changes_nothing(semantics: str) -> None:
    capped = quick(semantics, cap=lambda: (math.inf, "none"))
    assert run(capped, losses(300)) == run(quick(semantics), losses(300))


# ---- composition


def warmed_up(semantics: str) -> tuple[SequentialLR, GreedyLR]:
    optimizer = sgd(0.1)
    warmup = LinearLR(optimizer, start_factor=0.5, total_iters=4)
    scheduler = quick(semantics, optimizer)
    return SequentialLR(optimizer, [warmup, scheduler], milestones=[4]), scheduler


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("observed", [1e30, NAN, None])
def test_after_a_warm_up_it_begins_at_the_initial_lr(semantics: str, observed: Any) -> None:
    composed, scheduler = warmed_up(semantics)
    rows = []
    for _ in range(4):
        scheduler.optimizer.step()
        if observed is not None:
            scheduler.observe(observed)
        composed.step()
        rows += lrs_of(scheduler.optimizer)
    assert rows == pytest.approx([0.0625, 0.075, 0.0875, 0.1])
    assert rows[-1] == 0.1
    alone = run(quick(semantics), losses(200))
    assert run_composed(composed, scheduler, losses(200)) == [row[0] for row in alone]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_sequential_lr_may_begin_with_it(semantics: str) -> None:
    optimizer = sgd(0.1)
    scheduler = quick(semantics, optimizer)
    composed = SequentialLR(
        optimizer, [scheduler, ExponentialLR(optimizer, gamma=0.5)], milestones=[50]
    )
    rows = run_composed(composed, scheduler, losses(50))
    assert rows[:-1] == [row[0] for row in run(quick(semantics), losses(49))]


def test_what_is_reachable_after_a_warm_up_is_relative_to_the_initial_lr() -> None:
    _, scheduler = warmed_up("robust")
    assert scheduler.check_reachable(10) == (0.05, 0.2)


@pytest.mark.parametrize("first", ["other", "greedy"])
def test_in_a_chain_the_lr_is_the_product_of_both_schedules(first: str) -> None:
    optimizer = sgd(0.1)
    parts: dict[str, Any] = {}
    for name in sorted(["other", "greedy"], key=lambda name: name != first):
        parts[name] = (
            quick("robust", optimizer)
            if name == "greedy"
            else ConstantLR(optimizer, factor=0.25, total_iters=90)
        )
    rows = run_composed(ChainedScheduler(list(parts.values())), parts["greedy"], losses(200))
    alone = [row[0] for row in run(quick("robust"), losses(200))]
    expected = [lr * (0.25 if step < 90 else 1.0) for step, lr in enumerate(alone, 1)]
    assert rows == pytest.approx(expected, rel=1e-12)


def test_a_tensor_lr_is_filled_and_follows_that_of_floats() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = sgd(lr)
    assert run(quick("robust", optimizer), losses(300)) == run(quick("robust"), losses(300))
    assert optimizer.param_groups[0]["lr"] is lr


def test_a_single_precision_tensor_lr_does_not_drift() -> None:
    lr = torch.tensor(0.1)
    scheduler = quick("robust", sgd(lr), factor=0.7)
    reference = quick("robust", sgd(float(lr)), factor=0.7)
    for value in losses(500):
        run(scheduler, [value])
        run(reference, [value])
        assert lr.item() == torch.tensor(lrs_of(reference.optimizer)[0]).item()
    assert len(scheduler.log) == len(reference.log)


# ---- state


@pytest.mark.slow
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("cut", [0, 1, 7, 40, 111])
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_run_continues_bit_identically(
    semantics: str, cut: int, optimizer_first: bool
) -> None:
    def make() -> GreedyLR:
        caps = iter([0.05, 1.0, 0.2] * 200)
        return quick(semantics, sgd(0.1, 0.3), cap=lambda: (next(caps), "estimate"), log_size=5)

    values = losses(250, seed=3)
    whole, resumed = make(), make()
    run(whole, values[:cut])
    state = through_file({"s": whole.state_dict(), "o": whole.optimizer.state_dict()})
    for _ in range(cut):
        resumed.cap()  # type: ignore[misc]
    if optimizer_first:
        resumed.optimizer.load_state_dict(state["o"])
    resumed.load_state_dict(state["s"])
    if not optimizer_first:
        resumed.optimizer.load_state_dict(state["o"])
    assert run(resumed, values[cut:]) == run(whole, values[cut:])
    assert repr(resumed.state_dict()) == repr(whole.state_dict())


def test_a_state_may_be_loaded_into_a_scheduler_made_on_a_loaded_optimizer() -> None:
    whole = quick("robust", sgd(0.1))
    run(whole, losses(60))
    state = through_file({"s": whole.state_dict(), "o": whole.optimizer.state_dict()})
    optimizer = sgd(0.1)
    optimizer.load_state_dict(state["o"])
    resumed = quick("robust", optimizer)
    resumed.load_state_dict(state["s"])
    assert run(resumed, losses(200)) == run(whole, losses(200))


@pytest.mark.parametrize("num_steps", [2, 4, 6, 30])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_resumed_sequential_lr_continues_bit_identically(semantics: str, num_steps: int) -> None:
    whole, whole_inner = warmed_up(semantics)
    resumed, resumed_inner = warmed_up(semantics)
    values = losses(100)
    run_composed(whole, whole_inner, values[:num_steps])
    state = through_file({"s": whole.state_dict(), "o": whole.optimizer.state_dict()})
    resumed.optimizer.load_state_dict(state["o"])
    resumed.load_state_dict(state["s"])
    rest = values[num_steps:]
    assert run_composed(resumed, resumed_inner, rest) == run_composed(whole, whole_inner, rest)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 0.0])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_in_a_chain_a_lowering_begins_at_the_capped_lr_that_the_others_left(
    semantics: str, gamma: float
) -> None:
    optimizer = sgd(0.1)
    arguments: dict[str, Any] = {} if semantics == "robust" else {"patience": 0, "min_lr": 1e-9}
    greedy = quick(semantics, optimizer, cap=lambda: (0.02, "estimate"), **arguments)
    chain = ChainedScheduler([greedy, ExponentialLR(optimizer, gamma)])
    optimizer.step()
    for loss, expected in ((1.0, 0.02 * gamma), (NAN, 0.02 * gamma * 0.5 * gamma)):
        greedy.observe(loss)
        chain.step()
        assert lrs_of(optimizer) == pytest.approx([expected])


@pytest.mark.parametrize("wrap", ["chain", "guard"])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_capped_run_whose_lr_others_change_resumes_identically(wrap: str, kind: Any) -> None:
    caps = [0.02]

    def make(optimizer: Optimizer) -> Any:
        inner = quick("robust", optimizer, cap=lambda: (caps[0], "estimate"))
        if wrap == "guard":
            return Guard(inner, recovery_steps=1000)
        return ChainedScheduler([inner, ExponentialLR(optimizer, 0.5)])

    def step(optimizer: Optimizer, scheduler: Any, loss: float) -> None:
        optimizer.step()
        give_loss(scheduler, loss)
        scheduler.step()

    runs = [(optimizer, make(optimizer)) for optimizer in (sgd(kind(0.1)), sgd(kind(0.1)))]
    for loss in (1.0, NAN) if wrap == "guard" else (1.0,):
        step(*runs[0], loss)
    runs[1][1].load_state_dict(copy.deepcopy(runs[0][1].state_dict()))
    for caps[0] in (0.02, 1.0):
        for pair in runs:
            step(*pair, 1.0)
    assert lrs_of(runs[0][0]) == lrs_of(runs[1][0])


@pytest.mark.parametrize("name", ["cooldown", "warmup", "window_size"])
@pytest.mark.parametrize("value", [40.5, math.inf])
def test_robust_counts_must_be_whole(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number"):
        GreedyLR(sgd(), **{name: value})


@pytest.mark.parametrize("lr", [NAN, math.inf])
def test_a_learning_rate_that_is_not_finite_is_refused(lr: float) -> None:
    with pytest.raises(ValueError, match="must have finite learning rates"):
        GreedyLR(sgd(0.1, lr))


def test_a_state_of_other_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="`state_dict` must have `arguments` = "):
        quick("robust").load_state_dict(quick("robust", patience=6).state_dict())


def test_a_state_of_another_semantics_is_refused() -> None:
    with pytest.raises(ValueError, match="`state_dict` must have `semantics` = 'paper' like"):
        quick("paper").load_state_dict(quick("robust").state_dict())


def test_a_saved_state_does_not_change_when_the_run_goes_on() -> None:
    scheduler = quick("transformers")
    run(scheduler, losses(10))
    state = scheduler.state_dict()
    before = repr(state)
    run(scheduler, losses(50))
    assert repr(state) == before


def test_the_log_may_be_switched_off() -> None:
    optimizer = idle_optimizer(0.1)
    scheduler = GreedyLR(optimizer, log_size=0)
    optimizer.step()
    scheduler.step(NAN)
    assert (len(scheduler.log), lrs_of(optimizer)) == (0, [0.1 * 0.9])
