import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.optim import SGD

from lrpilot.schedulers.hypergradient.directions import LastStep
from lrpilot.schedulers.hypergradient.scheduler import LEVELS, UPDATES, HypergradientLR
from tests.lrpilot.schedulers.hypergradients import (
    INF,
    OPTIMIZERS,
    TINY,
    VARIANTS,
    Training,
    loss_of,
    one_weight,
    take_step,
    weights,
)

# ---- the derivative


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_direction_is_what_the_step_subtracts_over_the_lr(name: str, variant: str) -> None:
    parameters = weights()
    optimizer = OPTIMIZERS[name](parameters, lr=0.05, **VARIANTS[variant])
    last_step = LastStep(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(parameters, step).backward()
        before = [p.detach().clone() for p in parameters]
        last_step.remember(last_step.gradients(), [0.05])
        optimizer.step()
        with torch.no_grad():
            directions = last_step.directions()
            for i, (p, old) in enumerate(zip(parameters, before, strict=True)):
                torch.testing.assert_close(0.05 * directions[i], old - p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_signal_is_minus_autograds_derivative_of_the_loss_after_the_step(name: str) -> None:
    training = Training(OPTIMIZERS[name], hyper_lr=TINY, update="additive")
    for _ in range(4):
        training.step()
    # the last step once more, by torch's own optimizer in its differentiable form
    lr = torch.tensor(training.scheduler.current_lrs()[0], dtype=torch.float64, requires_grad=True)
    moved = [p.detach().clone().requires_grad_().clone() for p in training.parameters]
    again = OPTIMIZERS[name](moved, lr=lr, differentiable=True)
    state = copy.deepcopy(training.optimizer.state_dict())
    state["param_groups"][0].update(lr=lr, differentiable=True)
    again.load_state_dict(state)
    again.param_groups[0]["lr"] = lr
    for p, gradient in zip(moved, torch.autograd.grad(loss_of(moved, 4), moved), strict=True):
        p.grad = gradient.detach()
    again.step()
    derivative = torch.autograd.grad(loss_of(moved, 5), lr)[0].item()
    training.step()
    training.step()
    signal = training.scheduler.log[-1].signal
    assert training.scheduler.log[-1].step == 5
    # torch's differentiable Adam corrects its bias in float32
    assert signal == pytest.approx(-derivative, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_signal_is_minus_the_finite_difference_of_the_loss(name: str, level: str) -> None:
    training = Training(OPTIMIZERS[name], hyper_lr=TINY, level=level, update="additive")
    for _ in range(4):
        training.step()
    losses = []
    for change in (-1e-5, 1e-5):
        # the scales are 1 but for rounding, so torch's own step is the same
        parameters = [torch.nn.Parameter(p.detach().clone()) for p in training.parameters]
        optimizer = OPTIMIZERS[name](parameters, lr=1.0)
        optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
        optimizer.param_groups[0]["lr"] += change
        loss_of(parameters, 4).backward()
        optimizer.step()
        losses.append(loss_of(parameters, 5).item())
    training.step()
    training.step()
    signal = training.scheduler.log[-1].signal
    count = {"tensor": 3, "entry": 17}.get(level, 1)
    assert signal * count == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["sgd", "nesterov_decay", "adamw"])
def test_all_levels_are_the_same_for_one_number(name: str, update: str) -> None:
    curves = []
    for level in LEVELS:
        w = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = OPTIMIZERS[name]([w], lr=0.01)
        scheduler = HypergradientLR(optimizer, hyper_lr=1e-3, level=level, update=update)
        curve = []
        for _ in range(20):
            take_step(scheduler, w.detach() * 3)
            scale = scheduler.scales[0].item() if scheduler.scales else 1.0
            curve.append((scheduler.current_lrs()[0] * scale, w.item()))
        curves.append(curve)
    assert curves[0][0][0] != curves[0][-1][0]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-9)


def test_a_multiplicative_change_is_the_cosine_times_the_hyper_lr() -> None:
    w = torch.nn.Parameter(torch.zeros(2))
    scheduler = HypergradientLR(SGD([w], lr=0.1), hyper_lr=0.5)
    take_step(scheduler, [1000.0, 0.0])
    assert take_step(scheduler, [3e-5, 4e-5]) == pytest.approx(0.1 * (1 + 0.5 * 0.6))
    assert scheduler.log[-1].signal == pytest.approx(0.6)


@pytest.mark.parametrize("update", UPDATES)
def test_the_global_level_keeps_the_ratio_of_the_groups(update: str) -> None:
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}])
    scheduler = HypergradientLR(optimizer, hyper_lr=0.01, level="global", update=update)
    take_step(scheduler, 1.0, 2.0)
    take_step(scheduler, 1.0, 2.0)
    # d w / d alpha is (1, 1)/4 and (2, 2, 2) for alpha, the learning rate of the second group
    signal = 2 / 4 + 12 if update == "additive" else 12.5 / math.sqrt((2 + 12) * (2 / 16 + 12))
    expected = 0.4 + 0.01 * signal if update == "additive" else 0.4 * (1 + 0.01 * signal)
    assert scheduler.current_lrs() == pytest.approx([expected / 4, expected])


def test_the_group_level_changes_each_group_by_its_own_signal() -> None:
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}])
    scheduler = HypergradientLR(optimizer, hyper_lr=0.01, update="additive")
    take_step(scheduler, 1.0, 2.0)
    take_step(scheduler, -1.0, 2.0)
    assert scheduler.current_lrs() == pytest.approx([0.1 - 0.02, 0.4 + 0.12])


def test_a_scale_multiplies_the_optimizers_step() -> None:
    w = torch.nn.Parameter(torch.zeros(2))
    scheduler = HypergradientLR(
        SGD([w], lr=0.1), hyper_lr=0.5, level="entry", update="multiplicative"
    )
    take_step(scheduler, [1.0, 2.0])
    take_step(scheduler, [1.0, -2.0])
    assert scheduler.scales[0].tolist() == [1.5, 0.5]
    assert w.tolist() == pytest.approx([-0.1 - 0.15, -0.2 + 0.1])
    assert scheduler.current_lrs() == [0.1]


# ---- known optima


@pytest.mark.slow
@pytest.mark.parametrize("level", ["global", "group", "tensor"])
@pytest.mark.parametrize("start", [0.01, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("largest", [10.0, 100.0])
def test_on_a_quadratic_the_lr_settles_within_a_factor_2_of_the_best_constant(
    largest: float, start: float, level: str
) -> None:
    eigenvalues = torch.linspace(1.0, largest, 10, dtype=torch.float64)
    best = 2.0 / (1.0 + largest)
    w = torch.nn.Parameter(torch.ones(10, dtype=torch.float64))
    scheduler = HypergradientLR(SGD([w], lr=start * best), hyper_lr=0.02, level=level)
    first, logs = eigenvalues.sum().item() / 2, []
    for _ in range(800):
        lr = take_step(scheduler, eigenvalues * w.detach())
        scale = scheduler.scales[0].item() if scheduler.scales else 1.0
        logs.append(math.log(lr * scale / best))
    # it swings about its mean, as the fastest direction must grow before it is seen
    assert abs(np.mean(logs[-200:])) < math.log(2)
    assert (eigenvalues * w.detach().square()).sum().item() / 2 < 1e-4 * first


@pytest.mark.slow
@pytest.mark.parametrize("hyper_lr", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("level", LEVELS)
def test_with_a_cap_no_additive_hyper_lr_diverges(level: str, hyper_lr: float) -> None:
    eigenvalues = torch.linspace(1.0, 10.0, 10, dtype=torch.float64)
    w = torch.nn.Parameter(torch.ones(10, dtype=torch.float64))
    scheduler = HypergradientLR(
        SGD([w], lr=0.05),
        hyper_lr=hyper_lr,
        level=level,
        update="additive",
        cap=lambda: (0.19, "deterministic"),
    )
    previous = INF
    for _ in range(3000):
        take_step(scheduler, eigenvalues * w.detach())
        loss = (eigenvalues * w.detach().square()).sum().item() / 2
        assert loss <= previous
        previous = loss
    assert previous < 1e-12


@pytest.fixture(scope="module")
def cancer() -> tuple[Tensor, Tensor, float]:
    """Standardised features, labels -1 and 1, and the least loss with l2 = 0.01."""
    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(
        C=1 / (0.01 * len(labels)), fit_intercept=False, tol=1e-10, max_iter=10_000
    )
    model.fit(features, labels)
    x, y = torch.tensor(features), torch.tensor(2.0 * labels - 1.0)
    return x, y, logistic_loss(torch.tensor(model.coef_[0]), x, y).item()


def logistic_loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-y * (x @ w)).mean() + 0.005 * w.square().sum()


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("name", "lr", "num_steps"),
    [("sgd", 0.01, 1500), ("momentum", 0.001, 600), ("nesterov", 0.001, 600), ("adam", 0.001, 600)],
)
def test_on_logistic_regression_it_reaches_the_known_optimum(
    cancer: tuple[Tensor, Tensor, float], name: str, lr: float, num_steps: int, level: str
) -> None:
    x, y, least = cancer
    w = torch.nn.Parameter(torch.zeros(30, dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([w], lr=lr)
    scheduler = HypergradientLR(optimizer, hyper_lr=0.02, level=level)
    for _ in range(num_steps):
        optimizer.zero_grad()
        logistic_loss(w, x, y).backward()
        optimizer.step()
        scheduler.step()
    assert least - 1e-9 <= logistic_loss(w, x, y).item() < least + 1e-5


# ---- bounds and caps

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    signals=st.lists(NUMBERS, max_size=30),
    update=st.sampled_from(UPDATES),
    hyper_lr=st.floats(1e-8, 0.99),
    low=st.floats(0.0, 1.0),
    high=st.floats(1.0, 1e6),
)
@settings(max_examples=200, deadline=None)
def test_no_signals_move_the_lr_out_of_its_bounds(
    signals: list[float], update: str, hyper_lr: float, low: float, high: float
) -> None:
    curve = HypergradientLR.simulate(
        signals, initial_lr=0.5, hyper_lr=hyper_lr, update=update, min_factor=low, max_factor=high
    )
    assert len(curve) == len(signals) + 1
    assert all(low * 0.5 <= lr <= high * 0.5 for lr in curve)


@given(
    gradients=st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=12),
    update=st.sampled_from(UPDATES),
    level=st.sampled_from(LEVELS),
)
@settings(max_examples=100, deadline=None)
def test_no_gradients_move_an_lr_or_a_scale_out_of_its_bounds(
    gradients: list[list[float]], update: str, level: str
) -> None:
    w = torch.nn.Parameter(torch.ones(2))
    scheduler = HypergradientLR(
        SGD([w], lr=0.5), hyper_lr=0.5, level=level, update=update, min_factor=0.5, max_factor=2.0
    )
    for gradient in gradients:
        take_step(scheduler, gradient)
        rates = [*scheduler.current_lrs(), *(s * 0.5 for s in scheduler.scales)]
        assert all(bool(((r >= 0.25) & (r <= 1.0)).all()) for r in map(torch.as_tensor, rates))


def test_an_lr_of_zero_rises_again() -> None:
    _, scheduler = one_weight(min_factor=0.0, hyper_lr=1.0)
    take_step(scheduler, 1.0)
    assert take_step(scheduler, -1.0) == 0.0
    assert take_step(scheduler, -1.0) == 1.0


@pytest.mark.parametrize(("second", "bound"), [(-1e6, "min_factor"), (1e6, "max_factor")])
@pytest.mark.parametrize("level", LEVELS)
def test_the_log_names_the_bound_that_was_hit(level: str, second: float, bound: str) -> None:
    _, scheduler = one_weight(level=level)
    take_step(scheduler, 1.0)
    take_step(scheduler, second)
    factor = {"min_factor": 0.01, "max_factor": 100.0}[bound]
    assert scheduler.log[-1].new_lr == pytest.approx(0.1 * factor)
    assert scheduler.log[-1].bound_by == scheduler.bound_by == bound


@pytest.mark.parametrize("level", LEVELS)
def test_the_log_explains_a_change(level: str) -> None:
    _, scheduler = one_weight(level=level)
    take_step(scheduler, 2.0)
    scheduler.step()
    take_step(scheduler, 3.0)
    (entry,) = scheduler.log
    assert (entry.step, entry.rule, entry.threshold, entry.bound_by) == (1, "additive", 0.0, "")
    assert (entry.old_lr, entry.new_lr, entry.signal) == pytest.approx((0.1, 0.7, 6.0))


@pytest.mark.parametrize("level", LEVELS)
def test_no_step_is_longer_than_the_cap_allows(level: str) -> None:
    caps = iter([5.0, 0.3, 0.2, 0.05, 1.0, 0.4])
    w, scheduler = one_weight(level=level, cap=lambda: (next(caps), "estimate"))
    for eta_max in (0.3, 0.2, 0.05, 1.0, 0.4):
        before = w.item()
        take_step(scheduler, 2.0)
        scheduler.step()
        assert (before - w.item()) / 2.0 <= eta_max * (1 + 1e-6)
    assert {d.bound_by for d in scheduler.log} == {"", "estimate"}
    with pytest.raises(StopIteration):  # asked once per step, and once at the start
        next(caps)


@pytest.mark.parametrize("level", ["global", "group"])
def test_the_first_step_is_capped(level: str) -> None:
    _, scheduler = one_weight(level=level, cap=lambda: (0.02, "estimate"))
    assert scheduler.current_lrs() == [0.02]


def test_a_fall_of_the_cap_alone_is_logged_as_such() -> None:
    caps = iter([1.0, 0.05])
    _, scheduler = one_weight(cap=lambda: (next(caps), "expected"))
    take_step(scheduler, 1.0)
    assert [(d.rule, d.new_lr, d.bound_by) for d in scheduler.log] == [("cap", 0.05, "expected")]
