import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

from lrpilot.policy.action import ANCHORS, KINDS, ActionSpec
from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.controller import Controller
from lrpilot.policy.features import UNKNOWN
from lrpilot.policy.observation import FEATURES, ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.running import through_file
from tests.scheduling import lrs_of, plain_action, run, run_composed

pytestmark = pytest.mark.filterwarnings("ignore:step .* is past `total_steps`")


NAN = math.nan
HALVE = plain_action(max_log_change=math.log(2))


def random_policy(
    seed: int = 0,
    *,
    groups: tuple[str, ...] = ("progress", "loss", "lr"),
    action: ActionSpec | None = None,
    clock: ClockSpec | None = None,
    scale: float = 2.0,
    num_entries: int = 10_000,
) -> Policy:
    rng = np.random.default_rng(seed)
    observation = ObservationSpec(groups, num_entries)
    sizes = (len(observation.names), 8, 1)
    layers = [
        (
            rng.normal(0.0, scale / np.sqrt(m), (m, n)).astype(np.float32),
            rng.normal(0.0, 0.3, n).astype(np.float32),
        )
        for m, n in pairwise(sizes)
    ]
    return Policy(
        layers=layers,
        observation=observation,
        action=action or plain_action(),
        clock=clock or ClockSpec(num_decisions=10),
    )


def constant_policy(
    value: float, *, groups: tuple[str, ...] = ("loss",), action: ActionSpec = HALVE
) -> Policy:
    """A policy that always takes the same action."""
    observation = ObservationSpec(groups)
    size = len(observation.names)
    layers = [(np.zeros((size, 1), np.float32), np.full(1, value, np.float32))]
    return Policy(layers, observation, action, ClockSpec(num_decisions=10))


def sgd(*lrs: Any) -> Optimizer:
    groups = [{"params": [torch.ones(3, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)]
    return torch.optim.SGD(groups, lr=0.1)


def losses(num: int, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(np.float32(x)) for x in np.exp(np.cumsum(rng.normal(0.0, 0.3, num)))]


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
    assert in_box(scheduler, *lrs_of(scheduler.optimizer), lr * low, lr * high)
    for loss in [first, *rest]:
        assert in_box(scheduler, *run(scheduler, [loss])[0], lr * low, lr * high)


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
            assert in_box(scheduler, *run(scheduler, [loss])[0], 0.1 * 0.1, 0.1 * 10.0)


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
def test_a_start_outside_the_callers_box_moves_to_its_edge(
    box: dict[str, float], start: float
) -> None:
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


@dataclass
class ScriptedCap:
    answers: Iterator[float]
    name: str = "deterministic"
    given: list[float] = field(default_factory=list)

    def __call__(self) -> tuple[float, str]:
        self.given.append(next(self.answers))
        return self.given[-1], self.name


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
    arguments = {"interval_steps": 3, "cap": (lambda: (1e6, "estimate")) if capped else None}
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
