import copy
import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot.policy.action import ANCHORS, KINDS, ActionSpec
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.controller import Controller
from lrpilot.policy.features import UNKNOWN
from lrpilot.policy.observation import FEATURES, LATER_GROUPS
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.policies import HALVE, NAN, ScriptedCap, constant_policy, losses, random_policy, sgd
from tests.scheduling import lrs_of, plain_action, run, run_composed

pytestmark = pytest.mark.filterwarnings("ignore:step .* is past `total_steps`")


# ---- the first interval and the clock


def test_the_first_interval_runs_at_the_initial_lr_times_the_start_factor() -> None:
    policy = constant_policy(1.0, action=replace(HALVE, start_factor=0.25))
    optimizer = sgd(0.1, 0.03)
    scheduler = PolicyLR(optimizer, policy, interval_steps=4)
    rows = [lrs_of(optimizer), *run(scheduler, [1.0] * 3)]
    assert rows == [[0.1 * 0.25, 0.03 * 0.25]] * 4


def test_the_constructor_makes_no_decision() -> None:
    scheduler = PolicyLR(sgd(), constant_policy(1.0), interval_steps=1)
    assert scheduler.factor == 1.0
    assert scheduler.controller.num_steps == 0
    assert scheduler.controller.observer.state["initial_loss"] is UNKNOWN


def test_decisions_are_made_exactly_every_interval() -> None:
    scheduler = PolicyLR(sgd(1.0), constant_policy(1.0), interval_steps=3)
    rows = run(scheduler, [1.0] * 8)
    double = math.exp(math.log(2))
    assert [row[0] for row in rows] == [1.0, 1.0] + [double] * 3 + [double * double] * 3


def test_the_default_interval_is_the_clock_of_the_policy() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=333)
    assert scheduler.controller.interval_steps == 33


def test_a_policy_may_be_a_file(tmp_path: Path) -> None:
    policy = random_policy()
    scheduler = PolicyLR(sgd(), policy.save(tmp_path / "p"), total_steps=50)
    assert scheduler.policy.fingerprint == policy.fingerprint


def test_a_policy_may_be_a_run_folder(tmp_path: Path) -> None:
    policy = random_policy()
    policy.save(tmp_path / "policy.safetensors")
    scheduler = PolicyLR(sgd(), str(tmp_path), total_steps=50)
    assert scheduler.policy.fingerprint == policy.fingerprint


def test_a_loaded_policy_gives_the_lrs_of_the_saved_one(tmp_path: Path) -> None:
    policy = random_policy()
    first = PolicyLR(sgd(), policy, total_steps=50)
    second = PolicyLR(sgd(), policy.save(tmp_path / "p"), total_steps=50)
    assert run(first, losses(50)) == run(second, losses(50))


def test_all_groups_keep_their_ratios() -> None:
    scheduler = PolicyLR(sgd(0.1, 0.025, 0.0), random_policy(), total_steps=50)
    for row in run(scheduler, losses(80)):
        assert row[1] / row[0] == pytest.approx(0.25, rel=1e-15)
        assert row[2] == 0.0


def test_the_lr_is_the_initial_lr_times_the_factor_exactly() -> None:
    optimizer = sgd(0.1, 0.03)
    scheduler = PolicyLR(optimizer, random_policy(), total_steps=50)
    for value in losses(80):
        run(scheduler, [value])
        assert lrs_of(optimizer) == [0.1 * scheduler.factor, 0.03 * scheduler.factor]


def test_get_last_lr_is_the_lr_of_the_groups() -> None:
    optimizer = sgd(0.1, 0.03)
    scheduler = PolicyLR(optimizer, random_policy(), total_steps=50)
    for value in losses(20):
        run(scheduler, [value])
        assert scheduler.get_last_lr() == lrs_of(optimizer)


def test_last_epoch_counts_every_step() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    run(scheduler, losses(13))
    assert (scheduler.last_epoch, scheduler.controller.num_steps) == (13, 13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_the_lr_equals_a_controller_driven_by_hand(
    kind: str, anchor: str, warmup_steps: int
) -> None:
    policy = random_policy(action=plain_action(kind, anchor, start_factor=0.5))
    scheduler = PolicyLR(sgd(0.1), policy, total_steps=50, warmup_steps=warmup_steps)
    control = Controller(
        policy.observation,
        policy.action,
        ParameterSample([torch.ones(3)], 3),
        interval_steps=5,
        total_steps=50,
        warmup_steps=warmup_steps,
    )
    values = [math.sqrt(value) for value in losses(60)]  # too calm for the brake
    expected = []
    for value in values:
        control.observe(value)
        if control.advance():
            control.act(policy.act(control.close_interval()))
        warmth = 1.0
        if control.num_steps < warmup_steps:
            warmth = (control.num_steps + 1) / warmup_steps
        expected.append([0.1 * (control.factor * warmth)])
    assert run(scheduler, values) == expected


def test_it_works_without_the_number_of_steps_when_the_policy_needs_none() -> None:
    scheduler = PolicyLR(sgd(), random_policy(groups=("loss", "lr")), interval_steps=2)
    rows = run(scheduler, losses(50))
    assert len({row[0] for row in rows}) > 10


# ---- what a loss is


def test_step_without_a_loss_names_the_cure() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    with pytest.raises(RuntimeError, match=r"call `step\(loss\)`, or `observe\(loss\)` before"):
        scheduler.step()


def test_a_loss_serves_for_one_step_only() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    run(scheduler, [1.0])
    with pytest.raises(RuntimeError, match="`step` needs a loss"):
        scheduler.step()


def test_a_refused_step_leaves_the_run_as_it_was() -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=20)
    second = PolicyLR(sgd(), random_policy(), total_steps=20)
    run(first, losses(5)), run(second, losses(5))
    with pytest.raises(RuntimeError, match="needs a loss"):
        first.step()
    with pytest.raises(TypeError, match="`loss` must be a number"):
        first.step("1.0")  # type: ignore[arg-type]
    assert run(first, losses(20)) == run(second, losses(20))


def test_observe_and_step_equal_step_with_the_loss() -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=50)
    second = PolicyLR(sgd(), random_policy(), total_steps=50)
    assert run_composed(first, first, losses(50)) == [row[0] for row in run(second, losses(50))]


@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        lambda x: torch.tensor([x]),
        lambda x: torch.tensor(x, dtype=torch.float64),
        lambda x: torch.tensor(x, requires_grad=True),
        np.float32,
        np.float64,
    ],
    ids=["0-d", "one element", "float64", "with graph", "numpy float32", "numpy float64"],
)
def test_every_kind_of_loss_gives_the_same_lrs(kind: Callable[[float], Any]) -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=50)
    second = PolicyLR(sgd(), random_policy(), total_steps=50)
    assert run(first, losses(50)) == run(second, [kind(value) for value in losses(50)])


@pytest.mark.parametrize("how", ["step", "observe"])
def test_a_nan_loss_warns_once_with_the_step(how: str) -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    run(scheduler, [1.0] * 3)
    values = [NAN, math.inf, NAN, 1.0, NAN]
    drive = run if how == "step" else partial(run_composed, scheduler)
    with pytest.warns(RuntimeWarning, match="after step 3") as warned:
        drive(scheduler, values)
    assert len(warned) == 1


@pytest.mark.parametrize("how", ["step", "observe"])
def test_the_warning_about_a_nan_loss_points_at_the_caller(how: str) -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    scheduler.optimizer.step()
    with pytest.warns(RuntimeWarning) as warned:
        getattr(scheduler, how)(NAN)
    assert warned[0].filename == __file__


@pytest.mark.filterwarnings("ignore:`loss` should be finite")
def test_lrs_stay_positive_and_below_the_upper_end_of_the_box_after_a_nan_loss() -> None:
    scheduler = PolicyLR(sgd(0.1), random_policy(), total_steps=50)
    for (lr,) in run(scheduler, [1.0, 2.0, *[NAN] * 30, *losses(30)]):
        assert 0.0 < lr <= 0.1 * 1e3


def test_a_negative_first_loss_is_refused() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50)
    with pytest.raises(ValueError, match="`loss` must be positive at the start"):
        scheduler.step(-1.0)


def test_zeroed_gradients_name_the_cure() -> None:
    policy = random_policy(groups=("gradient",))
    scheduler = PolicyLR(sgd(), policy, interval_steps=1)
    scheduler.optimizer.step()
    with pytest.raises(RuntimeError, match=r"before `optimizer\.zero_grad\(\)`"):
        scheduler.step(1.0)


# ---- the box


def in_box(scheduler: PolicyLR, lr: float, low: float, high: float) -> bool:
    """Whether a learning rate is in the box, which has no lower end for the brake."""
    brake = scheduler.controller.brake
    assert brake is not None
    has_braked = brake.num_alarms > 0 or brake.relief < 1.0
    return (0.0 if has_braked else low) <= lr <= high


@pytest.mark.filterwarnings("ignore:`loss` should be finite", "ignore:the training diverges")
@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.0, 100.0),
    kind=st.sampled_from(KINDS),
    anchor=st.sampled_from(ANCHORS),
    box=st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3).map(sorted),
    alpha=st.floats(0.01, 19.0),
    lr=st.floats(1e-12, 1e12),
    first=st.floats(1e-300, 1e300),
    rest=st.lists(st.floats(), max_size=25),
)
def test_the_lr_never_leaves_the_box(
    seed: int,
    scale: float,
    kind: str,
    anchor: str,
    box: list[float],
    alpha: float,
    lr: float,
    first: float,
    rest: list[float],
) -> None:
    low, start, high = box
    action = ActionSpec(kind, anchor, alpha, low, high, start)
    scheduler = PolicyLR(sgd(lr), random_policy(seed, scale=scale, action=action), total_steps=20)
    assert in_box(scheduler, lrs_of(scheduler.optimizer)[0], lr * low, lr * high)
    for loss in [first, *rest]:
        assert in_box(scheduler, run(scheduler, [loss])[0][0], lr * low, lr * high)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`loss` should be finite", "ignore:the training diverges")
def test_the_lr_stays_in_the_box_for_two_thousand_random_policies() -> None:
    rng = np.random.default_rng(0)
    action = plain_action(max_log_change=3.0, min_factor=0.1, max_factor=10.0)
    for seed in range(2000):
        scheduler = PolicyLR(
            sgd(0.1), random_policy(seed, scale=10.0, action=action), total_steps=8
        )
        values = [1.0, *(10 ** rng.normal(0, 3, 6)), rng.choice([NAN, math.inf, 0.0, -1.0])]
        for loss in values:
            assert in_box(scheduler, run(scheduler, [loss])[0][0], 0.1 * 0.1, 0.1 * 10.0)


def test_the_box_of_the_caller_replaces_the_policys() -> None:
    scheduler = PolicyLR(
        sgd(1.0), constant_policy(1.0), interval_steps=1, min_factor=0.5, max_factor=3.0
    )
    assert [row[0] for row in run(scheduler, [1.0] * 4)][-1] == 3.0


def test_the_lower_end_of_the_callers_box_holds() -> None:
    scheduler = PolicyLR(sgd(1.0), constant_policy(-1.0), interval_steps=1, min_factor=0.3)
    assert [row[0] for row in run(scheduler, [1.0] * 4)][-1] == 0.3


@pytest.mark.parametrize(
    ("box", "start"), [({"max_factor": 0.5}, 0.5), ({"min_factor": 2.0}, 2.0), ({}, 1.0)]
)
def test_a_start_outside_the_callers_box_moves_to_its_edge(box: Any, start: float) -> None:
    optimizer = sgd(1.0)
    PolicyLR(optimizer, constant_policy(0.0), interval_steps=4, **box)
    assert lrs_of(optimizer) == [start]


# ---- warm-up


def test_warm_up_rises_linearly_to_the_start_factor() -> None:
    policy = constant_policy(1.0, action=replace(HALVE, start_factor=0.5))
    optimizer = sgd(1.0)
    scheduler = PolicyLR(optimizer, policy, interval_steps=3, warmup_steps=4)
    rows = [lrs_of(optimizer), *run(scheduler, [1.0] * 10)]
    assert [row[0] for row in rows] == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0], rel=1e-15
    )


def test_warm_up_is_exempt_from_the_lower_end_of_the_box() -> None:
    optimizer = sgd(1.0)
    PolicyLR(optimizer, constant_policy(0.0), interval_steps=3, warmup_steps=4, min_factor=0.9)
    assert lrs_of(optimizer) == [0.25]


def test_the_reference_loss_is_the_first_of_the_warm_up() -> None:
    scheduler = PolicyLR(sgd(), constant_policy(0.0), interval_steps=3, warmup_steps=4)
    run(scheduler, [8.0, 4.0, 2.0])
    assert scheduler.controller.observer.state["initial_loss"] == 8.0


# ---- the cap


def test_a_cap_is_asked_before_every_optimizer_step() -> None:
    cap = ScriptedCap(iter([1.0] * 100))
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50, cap=cap)
    asked = [len(cap.given)]
    for value in losses(20):
        run(scheduler, [value])
        asked.append(len(cap.given))
    assert asked == list(range(1, 22))


@settings(deadline=None, max_examples=100)
@given(
    answers=st.lists(st.floats(1e-9, 1e3), min_size=30, max_size=30),
    lrs=st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    warmup_steps=st.integers(0, 5),
)
def test_no_group_exceeds_the_cap(
    answers: list[float], lrs: list[float], seed: int, warmup_steps: int
) -> None:
    cap = ScriptedCap(iter(answers))
    optimizer = sgd(*lrs)
    scheduler = PolicyLR(
        optimizer, random_policy(seed), total_steps=20, warmup_steps=warmup_steps, cap=cap
    )
    assert max(lrs_of(optimizer)) <= cap.given[-1]
    for value in losses(29):
        run(scheduler, [value])
        assert max(lrs_of(optimizer)) <= cap.given[-1]


def test_a_tensor_lr_does_not_exceed_the_cap_in_its_precision() -> None:
    lr = torch.tensor(1.0)
    PolicyLR(sgd(lr), random_policy(), total_steps=20, cap=lambda: (0.3, "estimate"))
    assert lr.item() <= torch.tensor(0.3).item()


def test_a_bound_lr_of_one_group_is_the_cap() -> None:
    optimizer = sgd(0.1)
    PolicyLR(optimizer, random_policy(), total_steps=20, cap=lambda: (0.03125, "expected"))
    assert lrs_of(optimizer) == pytest.approx([0.03125], rel=1e-15)


def test_bound_by_names_the_guarantee_while_the_cap_binds() -> None:
    cap = ScriptedCap(iter([1.0, 0.01, 1.0]), name="stationary")
    scheduler = PolicyLR(sgd(0.1), constant_policy(0.0), interval_steps=100, cap=cap)
    names = [scheduler.bound_by]
    for _ in range(2):
        run(scheduler, [1.0])
        names.append(scheduler.bound_by)
    assert names == [None, "stationary", None]


def test_the_lr_comes_back_when_the_cap_rises() -> None:
    cap = ScriptedCap(iter([1.0, 0.01, 1.0]))
    scheduler = PolicyLR(sgd(0.1), constant_policy(0.0), interval_steps=100, cap=cap)
    assert run(scheduler, [1.0] * 2) == [[pytest.approx(0.01)], [0.1]]


def test_a_cap_that_never_binds_changes_nothing() -> None:
    free = PolicyLR(sgd(), random_policy(), total_steps=50)
    capped = PolicyLR(sgd(), random_policy(), total_steps=50, cap=lambda: (math.inf, "none"))
    assert run(free, losses(60)) == run(capped, losses(60))


@pytest.mark.parametrize("answer", [0.0, -1.0, NAN])
def test_a_cap_that_is_not_positive_is_refused(answer: float) -> None:
    with pytest.raises(ValueError, match="`cap` must return a positive learning rate, got"):
        PolicyLR(sgd(), random_policy(), total_steps=50, cap=lambda: (answer, "expected"))


def test_a_cap_that_breaks_in_the_middle_is_refused() -> None:
    cap = ScriptedCap(iter([1.0, 1.0, NAN]))
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=50, cap=cap)
    run(scheduler, [1.0])
    with pytest.raises(ValueError, match="`cap` must return a positive learning rate, got nan"):
        run(scheduler, [1.0])


# ---- construction


def test_an_interval_outside_the_trained_range_warns() -> None:
    policy = random_policy(clock=ClockSpec(num_decisions=10, horizon_range=(100, 1000)))
    with pytest.warns(UserWarning, match=r"`interval_steps` = 5 is outside the range \[10, 100\]"):
        PolicyLR(sgd(), policy, total_steps=500, interval_steps=5)


def test_the_warning_about_an_interval_points_at_the_caller() -> None:
    policy = random_policy(clock=ClockSpec(num_decisions=10, horizon_range=(100, 1000)))
    with pytest.warns(UserWarning, match="interval_steps") as warned:
        PolicyLR(sgd(), policy, total_steps=500, interval_steps=5)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("interval_steps", [10, 57, 100])
def test_an_interval_inside_the_trained_range_does_not_warn(interval_steps: int) -> None:
    policy = random_policy(clock=ClockSpec(num_decisions=10, horizon_range=(100, 1000)))
    PolicyLR(sgd(), policy, total_steps=500, interval_steps=interval_steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval_steps": 0}, "`interval_steps` must be at least 1, got 0"),
        ({"interval_steps": -2}, "`interval_steps` must be at least 1, got -2"),
        ({"total_steps": None}, "`total_steps` is required"),
        ({"total_steps": 0}, "`total_steps` must be at least 1, got 0"),
        ({"warmup_steps": -1}, "`warmup_steps` must not be negative, got -1"),
        ({"min_factor": 2.0, "max_factor": 1.5}, "`min_factor` must not exceed `max_factor`"),
        ({"min_factor": 0.0}, r"`min_factor` must be positive, got 0\.0"),
        ({"max_factor": -1.0}, "`max_factor`.* got"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLR(sgd(), random_policy(), **{"total_steps": 50, **arguments})


@pytest.mark.parametrize("interval_steps", [2.5, NAN])
def test_an_interval_that_is_no_whole_number_is_refused(interval_steps: float) -> None:
    with pytest.raises((TypeError, ValueError), match="`interval_steps`"):
        PolicyLR(sgd(), random_policy(), total_steps=50, interval_steps=interval_steps)  # type: ignore[arg-type]


def test_an_anchor_needs_the_number_of_steps() -> None:
    policy = random_policy(groups=("loss",), action=plain_action(anchor="cosine"))
    with pytest.raises(ValueError, match="`total_steps` is required"):
        PolicyLR(sgd(), policy, interval_steps=5)


def test_an_optimizer_of_empty_groups_is_refused() -> None:
    optimizer = torch.optim.SGD([{"params": []}, {"params": []}], lr=0.1)
    with pytest.raises(ValueError, match="`optimizer` must hold at least one parameter, got none"):
        PolicyLR(optimizer, random_policy(), total_steps=50)


def test_a_zero_lr_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`optimizer` must have a positive learning rate, got \["):
        PolicyLR(sgd(0.0, 0.0), random_policy(), total_steps=50)


def test_a_refused_construction_leaves_the_lr_as_it_was() -> None:
    optimizer = sgd(0.1)
    with pytest.raises(ValueError, match="interval_steps"):
        PolicyLR(optimizer, random_policy(), total_steps=50, interval_steps=0)
    assert lrs_of(optimizer) == [0.1]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="is not an Optimizer"):
        PolicyLR([torch.ones(3)], random_policy(), total_steps=50)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resuming_sets_the_learning_rate_whichever_state_is_loaded_first(
    optimizer_first: bool,
) -> None:
    def build(state: dict[str, Any] | None) -> tuple[torch.optim.SGD, PolicyLR]:
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        if state and optimizer_first:
            optimizer.load_state_dict(state["optimizer"])
        scheduler = PolicyLR(optimizer, random_policy(seed=3), total_steps=60)
        if state:
            scheduler.load_state_dict(state["scheduler"])
        if state and not optimizer_first:
            optimizer.load_state_dict(state["optimizer"])
        return optimizer, scheduler

    optimizer, scheduler = build(None)
    for step in range(20):
        optimizer.step()
        scheduler.step(1.0 / (step + 1))
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    assert optimizer.param_groups[0]["lr"] != 0.5
    assert build(copy.deepcopy(state))[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("cap", [0.02, lambda: 0.02])
def test_a_cap_that_is_no_function_of_two_values_is_refused(cap: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.5)
    with pytest.raises(TypeError, match=r"`cap` must be a function that returns \(largest lr"):
        PolicyLR(optimizer, random_policy(), total_steps=60, cap=cap)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.5)
    with pytest.raises(ValueError, match="`warmup_steps` must be below `total_steps` = 60, got 60"):
        PolicyLR(optimizer, random_policy(), total_steps=60, warmup_steps=60)


# ---- log and dry run


def test_every_decision_is_logged_with_its_action_and_its_rates() -> None:
    scheduler = PolicyLR(sgd(0.1), constant_policy(-1.0), interval_steps=3)
    rows = run(scheduler, [1.0] * 7)
    assert [entry.step for entry in scheduler.log] == [3, 6]
    assert [entry.rule for entry in scheduler.log] == ["decision"] * 2
    assert [entry.signal for entry in scheduler.log] == [-1.0] * 2
    assert [entry.old_lr for entry in scheduler.log] == [0.1, rows[2][0]]
    assert [entry.new_lr for entry in scheduler.log] == [rows[2][0], rows[5][0]]


def test_the_log_says_when_a_cap_starts_and_ceases_to_bind() -> None:
    cap = ScriptedCap(iter([1.0, 0.01, 0.01, 1.0]))
    scheduler = PolicyLR(sgd(0.1), constant_policy(0.0), interval_steps=100, cap=cap)
    run(scheduler, [1.0] * 3)
    assert [(entry.rule, entry.bound_by) for entry in scheduler.log] == [
        ("cap", "deterministic"),
        ("cap", ""),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_simulation_is_the_curve_of_a_real_run(seed: int) -> None:
    policy = random_policy(seed)
    scheduler = PolicyLR(sgd(0.3), policy, total_steps=50, warmup_steps=5)
    first = lrs_of(scheduler.optimizer)[0]
    expected = [first, *(row[0] for row in run(scheduler, losses(60)))]
    simulated = PolicyLR.simulate(
        losses(60), policy, initial_lr=0.3, total_steps=50, warmup_steps=5
    )
    assert simulated == expected


def test_a_policy_that_observes_movement_cannot_be_simulated() -> None:
    policy = random_policy(groups=("loss", "movement"))
    with pytest.raises(ValueError, match=r"`policy` must observe losses alone .*'movement'"):
        PolicyLR.simulate([1.0], policy, total_steps=50)


@pytest.mark.parametrize("groups", [tuple(FEATURES), ("progress", *sorted(LATER_GROUPS))])
def test_what_was_trained_is_freed_with_its_scheduler(groups: tuple[str, ...]) -> None:
    """Without the collector of cycles: a DDP model must be gone before its process group is."""

    def train() -> weakref.ref[torch.nn.Parameter]:
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=0.001)
        clock = ClockSpec(num_decisions=4, least_interval=5)
        scheduler = PolicyLR(optimizer, random_policy(groups=groups, clock=clock), total_steps=20)
        for _ in range(20):
            loss = weight.square().sum()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
        return weakref.ref(weight)

    train()  # imports of the first step keep its frames
    gc.collect()
    gc.disable()
    try:
        assert train()() is None
    finally:
        gc.enable()
