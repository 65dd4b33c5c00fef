import copy
import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    ExponentialLR,
    LinearLR,
    SequentialLR,
)

from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.greedy.arguments import DEFAULTS
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.schedulers.loss_driven import give_loss
from tests.lrpilot.schedulers.greedy_runs import NAN, SEMANTICS, losses, quick, sgd
from tests.running import through_file
from tests.scheduling import lrs_of, run, run_composed

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
    argument: dict[str, Any] = {name: 0.1}
    with pytest.raises(ValueError, match=f"`{name}` .* 'robust', which has `min_factor` and"):
        GreedyLR(sgd(), **argument)


@pytest.mark.parametrize("semantics", ["paper", "transformers"])
@pytest.mark.parametrize("name", ["min_factor", "max_factor", "significance"])
def test_relative_bounds_are_refused_in_the_others(semantics: str, name: str) -> None:
    argument: dict[str, Any] = {name: 1.0}
    with pytest.raises(ValueError, match=f"`{name}` .* '{semantics}', which has `min_lr` and"):
        GreedyLR(sgd(), semantics=semantics, **argument)


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
    semantics: str, bounds: dict[str, Any], name: str
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
