import copy
import math
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, LinearLR, SequentialLR

from lrpilot.schedulers.hypergradient.scheduler import LEVELS, UPDATES, HypergradientLR
from tests.lrpilot.schedulers.hypergradients import (
    INF,
    NAN,
    OPTIMIZERS,
    Training,
    loss_of,
    one_weight,
    take_step,
    through_torch_save,
    weights,
)

# ---- unusual gradients


@pytest.mark.slow
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("update", UPDATES)
def test_a_signal_that_is_not_finite_changes_nothing_and_poisons_nothing(
    update: str, level: str, bad: float
) -> None:
    w = torch.nn.Parameter(torch.zeros(1))
    scheduler = HypergradientLR(SGD([w], lr=0.1), hyper_lr=0.5, level=level, update=update)
    for gradient in (1.0, bad, bad, 1.0):
        take_step(scheduler, gradient)
    scale = scheduler.scales[0] if scheduler.scales else torch.ones(())
    assert scheduler.current_lrs()[0] * scale.item() == 0.1
    take_step(scheduler, -1.0)
    assert scheduler.current_lrs()[0] * scale.item() < 0.1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("update", UPDATES)
def test_a_gradient_of_zero_changes_nothing(update: str, level: str) -> None:
    training = Training(SGD, hyper_lr=0.1, level=level, update=update)
    for gradient in (1.0, 0.0, 0.0, 1.0):
        take_step(training.scheduler, gradient, gradient, gradient)
    assert training.scheduler.current_lrs() == [0.05]
    assert all(bool((scale == 1.0).all()) for scale in training.scheduler.scales)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["sgd_decay", "momentum", "adamw"])
def test_parameters_without_a_gradient_do_not_count(name: str, level: str) -> None:
    with_third, without = (Training(OPTIMIZERS[name], hyper_lr=0.1, level=level) for _ in range(2))
    for first, second, third in ((1.0, None, 9.0), (1.0, 2.0, None), (None, 1.0, 9.0)):
        take_step(with_third.scheduler, first, second, third)
        take_step(without.scheduler, first, second, None)
    # the third parameter never has gradients twice running
    assert with_third.scheduler.current_lrs() == without.scheduler.current_lrs()
    assert [s.tolist() for s in with_third.scheduler.scales] == [
        s.tolist() for s in without.scheduler.scales
    ]


def test_a_sparse_gradient_is_refused() -> None:
    table = torch.nn.Embedding(3, 2, sparse=True)
    optimizer = SGD(table.parameters(), lr=0.1)
    HypergradientLR(optimizer, hyper_lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="`optimizer` must have dense gradients, got a sparse"):
        optimizer.step()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["sgd", "nesterov_decay", "adamw"])
def test_half_precision_and_other_memory_layouts_work(name: str, level: str) -> None:
    w = torch.nn.Parameter(torch.ones(2, 3, 4, 4, dtype=torch.bfloat16))
    w.data = w.data.contiguous(memory_format=torch.channels_last)
    scheduler = HypergradientLR(OPTIMIZERS[name]([w], lr=0.01), hyper_lr=0.1, level=level)
    for _ in range(5):
        take_step(scheduler, w.detach())
    scale = scheduler.scales[0].mean().item() if scheduler.scales else 1.0
    assert scheduler.current_lrs()[0] * scale == pytest.approx(0.01 * 1.1**4, rel=0.02)


# ---- training loops


def test_the_usual_loop_calls_it_like_the_other_schedulers() -> None:
    w, scheduler = one_weight()
    losses: list[Any] = [
        1,
        0.5,
        np.float32(0.25),
        torch.tensor([2.0]),
        w.detach(),
        NAN,
        INF,
        1e30,
        None,
    ]
    for loss in losses:
        take_step(scheduler, 1.0)
        scheduler.step(loss)
    assert scheduler.last_epoch == len(losses)


@pytest.mark.parametrize("loss", ["1.0", [1.0], torch.ones(2), np.ones(2)], ids=repr)
def test_what_is_no_loss_is_refused(loss: Any) -> None:
    _, scheduler = one_weight()
    take_step(scheduler, 1.0)
    with pytest.raises((TypeError, ValueError), match="`loss` must"):
        scheduler.step(loss)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_a_closure_gives_the_same_run_and_is_called_once(level: str, by_name: bool) -> None:
    plain, closed = (Training(SGD, hyper_lr=0.1, level=level) for _ in range(2))
    calls = []

    def closure() -> float:
        closed.optimizer.zero_grad()
        loss = loss_of(closed.parameters, closed.num_steps)
        loss.backward()
        calls.append(loss.item())
        return calls[-1]

    for _ in range(5):
        plain.step()
        loss = (
            closed.optimizer.step(**{"closure": closure})
            if by_name
            else closed.optimizer.step(closure)
        )
        closed.num_steps += 1
        assert loss == calls[-1]
    assert len(calls) == 5
    assert closed.scheduler.current_lrs() == plain.scheduler.current_lrs()
    assert all(map(torch.equal, closed.parameters, plain.parameters))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_warm_up_in_sequential_lr_is_left_alone(name: str, level: str) -> None:
    parameters = weights()
    optimizer = OPTIMIZERS[name](parameters, lr=0.1)
    inner = HypergradientLR(optimizer, hyper_lr=0.1, level=level)
    warmup = LinearLR(optimizer, 0.1, 1.0, total_iters=5)
    scheduler = SequentialLR(optimizer, [warmup, inner], [5])
    lrs = []
    for step in range(10):
        optimizer.zero_grad()
        (loss_of(parameters, step) * (NAN if step == 0 else 1.0)).backward()
        if step == 0:
            for p in parameters:
                assert p.grad is not None
                p.grad.zero_()
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        assert step >= 5 or all(bool((scale == 1.0).all()) for scale in inner.scales)
        scheduler.step()
    assert lrs[:6] == pytest.approx([0.01, 0.028, 0.046, 0.064, 0.082, 0.1])
    changed = lrs[6] != lrs[5] if not inner.scales else bool((inner.scales[0] != 1.0).any())
    assert changed


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rollback_of_the_optimizer_before_its_first_step_is_survived(
    name: str, level: str
) -> None:
    training = Training(OPTIMIZERS[name], hyper_lr=0.1, level=level)
    training.step()
    training.optimizer.state.clear()  # as a guard does that goes back to the start
    for _ in range(3):
        values = training.step()
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_copy_of_a_training_continues_identically_and_apart(level: str, how: str) -> None:
    training = Training(OPTIMIZERS["adamw"], hyper_lr=0.1, level=level)
    for _ in range(3):
        training.step()
    twin = copy.deepcopy(training) if how == "deepcopy" else pickle.loads(pickle.dumps(training))
    for _ in range(3):
        assert training.step() == twin.step()
    training.scheduler.detach()
    detached = copy.deepcopy(training)
    assert training.step() == detached.step() != twin.step()


def capped(eta_max: float) -> tuple[float, str]:
    return eta_max, "estimate"


@pytest.mark.parametrize("level", ["tensor", "entry"])
def test_no_factor_exceeds_the_cap_by_its_rounding(level: str) -> None:
    for eta_max in np.random.default_rng(0).uniform(0.2, 0.9, size=50).tolist():
        _, scheduler = one_weight(hyper_lr=100.0, level=level, cap=partial(capped, eta_max))
        for _ in range(3):
            take_step(scheduler, 1.0)
        (scale,) = scheduler.scales
        assert 0.99 * eta_max < float(scale.max()) * scheduler.current_lrs()[0] <= eta_max


@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_parameter_is_no_obstacle_to_a_cap(level: str) -> None:
    w, empty = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(0))
    optimizer = SGD([w, empty], lr=0.1)
    cap = partial(capped, 0.15)
    scheduler = HypergradientLR(optimizer, hyper_lr=0.9, level=level, cap=cap)
    for _ in range(3):
        before = w.item()
        take_step(scheduler, 1.0, torch.ones(0))
    assert before - w.item() == pytest.approx(0.15)


def test_in_a_chain_the_changes_of_both_schedulers_add_up() -> None:
    _, inner = one_weight(update="multiplicative")
    chain = ChainedScheduler([ExponentialLR(inner.optimizer, 0.5), inner])
    lrs = []
    for _ in range(4):
        lrs.append(take_step(inner, 1.0))
        chain.step()
    assert lrs == pytest.approx([0.1, 0.1 * 0.55, 0.1 * 0.55**2, 0.1 * 0.55**3])


def test_an_lr_that_another_scheduler_set_below_the_bound_is_not_pulled_back() -> None:
    _, scheduler = one_weight(update="multiplicative", min_factor=0.5)
    take_step(scheduler, 1.0)
    scheduler.optimizer.param_groups[0]["lr"] = 0.01
    assert take_step(scheduler, -1.0) == 0.01
    assert take_step(scheduler, -1.0) == pytest.approx(0.011)


def test_a_detached_scheduler_leaves_the_optimizer_alone() -> None:
    _, scheduler = one_weight(level="tensor")
    take_step(scheduler, 1.0)
    scheduler.detach()
    take_step(scheduler, 1.0)
    assert scheduler.scales[0] == 1.0
    assert len(scheduler.log) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_tensor_lr_is_changed_in_place(level: str) -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    _, tensor = one_weight(lr=lr, level=level)
    _, number = one_weight(lr=0.1, level=level)
    for gradient in (1.0, 2.0, -1.0):
        for scheduler in (tensor, number):
            take_step(scheduler, gradient)
            scheduler.step()
    assert tensor.optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == number.current_lrs()[0]
    assert [d[1:] for d in tensor.log] == [d[1:] for d in number.log]


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adamw"])
def test_under_a_grad_scaler_the_run_is_the_same_and_skipped_steps_change_nothing(
    name: str, level: str, fused: bool
) -> None:
    make = partial(OPTIMIZERS[name], fused=fused)
    scaled, plain = (
        Training(make, hyper_lr=0.1, level=level, dtype=torch.float32) for _ in range(2)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(12):
        # not the first: torch's fused SGD then reads a momentum that it never set
        overflows = step in (3, 5, 6)
        scaled.optimizer.zero_grad()
        loss = loss_of(scaled.parameters, plain.num_steps) * (INF if overflows else 1.0)
        scaler.scale(loss).backward()
        scaler.step(scaled.optimizer)
        scaler.update()
        if not overflows:
            plain.step()
        assert scaled.scheduler.current_lrs() == pytest.approx(plain.scheduler.current_lrs())
        for mine, other in zip(scaled.parameters, plain.parameters, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("level", ["group", "entry"])
def test_a_compiled_optimizer_step_gives_the_same_run_and_is_not_compiled_again(level: str) -> None:
    plain, compiled = (
        Training(Adam, lr=torch.tensor(0.05), hyper_lr=0.1, level=level, dtype=torch.float32)
        for _ in range(2)
    )
    step = torch.compile(compiled.optimizer.step)
    for num_steps in range(12):
        plain.step()
        compiled.optimizer.zero_grad()
        loss_of(compiled.parameters, num_steps).backward()
        with torch.compiler.set_stance("fail_on_recompile" if num_steps > 2 else "default"):
            step()
        compiled.scheduler.step()
    lrs = compiled.scheduler.current_lrs()
    assert lrs == pytest.approx(plain.scheduler.current_lrs(), rel=1e-5)
    for mine, other in zip(compiled.scheduler.scales, plain.scheduler.scales, strict=True):
        torch.testing.assert_close(mine, other)


# ---- state


@pytest.mark.slow
@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_continues_bit_identically(
    name: str, level: str, update: str, optimizer_first: bool
) -> None:
    arguments: dict[str, Any] = {"hyper_lr": 0.01, "level": level, "update": update}
    whole = Training(OPTIMIZERS[name], **arguments)
    for _ in range(7):
        whole.step()
    state = through_torch_save(whole.state())
    resumed = Training(OPTIMIZERS[name], lr=0.3, **arguments)
    resumed.num_steps = state["num_steps"]
    for p, loaded in zip(resumed.parameters, state["parameters"], strict=True):
        p.data.copy_(loaded)
    if optimizer_first:
        resumed.optimizer = OPTIMIZERS[name](resumed.parameters, lr=0.3)
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.scheduler = HypergradientLR(resumed.optimizer, **arguments)
    resumed.scheduler.load_state_dict(state["scheduler"])
    if not optimizer_first:
        resumed.optimizer.load_state_dict(state["optimizer"])
    assert [whole.step() for _ in range(8)] == [resumed.step() for _ in range(8)]
    assert list(whole.scheduler.log) == list(resumed.scheduler.log)


@pytest.mark.parametrize("level", LEVELS)
def test_a_state_is_not_changed_by_the_run_that_goes_on(level: str) -> None:
    training = Training(SGD, hyper_lr=0.1, level=level)
    for _ in range(3):
        training.step()
    state = training.scheduler.state_dict()
    before = through_torch_save(state)
    for _ in range(3):
        training.step()
    assert str(state) == str(before)


def test_a_state_without_the_optimizers_gives_one_step_without_a_signal() -> None:
    whole, fresh = (Training(OPTIMIZERS["adam"], hyper_lr=0.1) for _ in range(2))
    for _ in range(3):
        whole.step()
    fresh.scheduler.load_state_dict(whole.scheduler.state_dict())
    lr = fresh.scheduler.current_lrs()
    assert fresh.step()[:1] == lr
    assert fresh.step()[:1] != lr


@pytest.mark.parametrize(
    "other",
    [{"hyper_lr": 0.2}, {"level": "entry"}, {"update": "additive"}, {"min_factor": 0.5}],
    ids=str,
)
def test_the_state_of_another_schedule_is_refused(other: dict[str, Any]) -> None:
    mine = Training(SGD, hyper_lr=0.1)
    theirs = Training(SGD, **{"hyper_lr": 0.1, **other})
    with pytest.raises(ValueError, match=f"`state_dict` must have `{next(iter(other))}` = "):
        mine.scheduler.load_state_dict(theirs.scheduler.state_dict())


# ---- simulation and construction


@pytest.mark.parametrize("update", UPDATES)
def test_a_simulation_of_the_signals_of_a_run_gives_its_lrs(update: str) -> None:
    training = Training(SGD, hyper_lr=0.1, update=update)
    lrs = [training.step()[0] for _ in range(10)]
    signals = [decision.signal for decision in training.scheduler.log]
    assert len(signals) == 9
    curve = HypergradientLR.simulate(signals, initial_lr=0.05, hyper_lr=0.1, update=update)
    assert curve == lrs


@pytest.mark.parametrize("level", ["tensor", "entry"])
def test_a_simulation_of_scales_is_refused(level: str) -> None:
    with pytest.raises(ValueError, match=f"`level` must be 'global' or 'group', got '{level}'"):
        HypergradientLR.simulate([1.0], initial_lr=0.1, hyper_lr=0.1, level=level)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "layer"}, r"`level` must be one of \('global', .*, got 'layer'"),
        ({"update": None}, r"`update` must be one of \('additive', .*, got None"),
        ({"hyper_lr": 0.0}, r"`hyper_lr` must be in \(0, 1\), got 0.0"),
        ({"hyper_lr": 1.0}, r"`hyper_lr` must be in \(0, 1\), got 1.0"),
        ({"hyper_lr": INF, "update": "additive"}, r"`hyper_lr` must be in \(0, inf\)"),
        ({"hyper_lr": NAN, "update": "additive"}, r"`hyper_lr` must be in \(0, inf\)"),
        ({"min_factor": -0.1}, r"`min_factor` must be in \[0, 1\], got -0.1"),
        ({"min_factor": 1.1}, r"`min_factor` must be in \[0, 1\], got 1.1"),
        ({"max_factor": 0.9}, r"`max_factor` must be in \[1, inf\), got 0.9"),
        ({"max_factor": INF}, r"`max_factor` must be in \[1, inf\), got inf"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    w = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=message):
        HypergradientLR(SGD([w], lr=0.1), **{"hyper_lr": 0.1, **arguments})


@pytest.mark.parametrize("optimizer", [RMSprop([torch.ones(1)]), None], ids=["RMSprop", "None"])
def test_an_optimizer_of_another_kind_is_refused(optimizer: Any) -> None:
    with pytest.raises(TypeError, match="`optimizer` must be torch's SGD, Adam or AdamW, got "):
        HypergradientLR(optimizer, hyper_lr=0.1)


def test_complex_parameters_are_refused() -> None:
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))
    with pytest.raises(ValueError, match="`optimizer` must hold real parameters"):
        HypergradientLR(SGD([w], lr=0.1), hyper_lr=0.1)


@pytest.mark.parametrize("level", LEVELS)
def test_groups_that_are_empty_or_frozen_are_harmless(level: str) -> None:
    w, frozen = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    groups: list[dict[str, Any]] = [
        {"params": []},
        {"params": [frozen], "lr": 0.0},
        {"params": [w]},
    ]
    scheduler = HypergradientLR(
        SGD(groups, lr=0.1), hyper_lr=0.1, level=level, update="additive", cap=lambda: (0.15, "x")
    )
    for _ in range(3):
        take_step(scheduler, 1.0, 1.0)
    assert frozen.item() == 1.0
    assert w.item() == pytest.approx(1.0 - 0.1 - 0.15 - 0.15, rel=1e-6)
