import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, LinearLR, SequentialLR

from lrpilot.schedulers.hypergradient.directions import LastStep
from lrpilot.schedulers.hypergradient.scheduler import LEVELS, UPDATES, HypergradientLR
from tests.running import through_file

NAN, INF = math.nan, math.inf
MakeOptimizer = Callable[..., Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": SGD,
    "sgd_decay": partial(SGD, weight_decay=0.1),
    "momentum": partial(SGD, momentum=0.9),
    "momentum_decay": partial(SGD, momentum=0.9, weight_decay=0.1),
    "dampening": partial(SGD, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "nesterov_decay": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": Adam,
    "adam_decay": partial(Adam, weight_decay=0.1),
    "amsgrad": partial(Adam, amsgrad=True, weight_decay=0.1),
    "adamw": partial(AdamW, weight_decay=0.1),
    "adamw_amsgrad": partial(AdamW, weight_decay=0.1, amsgrad=True),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "maximize": {"maximize": True},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
# a change far below the rounding of float32, but in the log of a float64 learning rate
TINY = 1e-9


def weights(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    shapes = ((3, 4), (4,), ())
    return [torch.nn.Parameter(torch.tensor(rng.normal(size=s), dtype=dtype)) for s in shapes]


def loss_of(parameters: list[Tensor], step: int) -> Tensor:
    """A smooth loss whose data changes from step to step."""
    matrix, vector, offset = parameters
    rng = np.random.default_rng(step)
    data = torch.tensor(rng.normal(size=(6, 3)), dtype=matrix.dtype)
    values = torch.tanh(data @ matrix + vector).sum(1) + offset
    return (values - data[:, 0]).square().mean() + 0.1 * offset.square()


class Training:
    """A training loop of a small model, with a scheduler of ours."""

    def __init__(
        self, make: MakeOptimizer, *, lr: Any = 0.05, dtype: torch.dtype = torch.float64, **kw: Any
    ) -> None:
        self.parameters = weights(dtype=dtype)
        self.optimizer = make(self.parameters, lr=lr)
        self.scheduler = HypergradientLR(self.optimizer, **kw)
        self.num_steps = 0

    def step(self) -> list[float]:
        self.optimizer.zero_grad()
        loss_of(self.parameters, self.num_steps).backward()
        self.optimizer.step()
        self.scheduler.step()
        self.num_steps += 1
        values = [x for p in self.parameters for x in p.detach().flatten().tolist()]
        scales = [x for s in self.scheduler.scales for x in s.flatten().tolist()]
        return [*self.scheduler.current_lrs(), *values, *scales]

    def state(self) -> dict[str, Any]:
        return {
            "parameters": [p.detach().clone() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "num_steps": self.num_steps,
        }


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = through_file(state)
    return loaded


def one_weight(value: float = 1.0, *, lr: Any = 0.1, **kw: Any) -> tuple[Tensor, HypergradientLR]:
    w = torch.nn.Parameter(torch.tensor([value]))
    arguments = {"hyper_lr": 0.1, "update": "additive"} | kw
    return w, HypergradientLR(SGD([w], lr=lr), **arguments)


def take_step(scheduler: HypergradientLR, *gradients: Any) -> float:
    """An optimizer step with these gradients of the parameters; the learning rate it used."""
    parameters = [p for group in scheduler.optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else torch.as_tensor(gradient).to(p).expand_as(p).clone()
    scheduler.optimizer.step()
    return scheduler.current_lrs()[0]


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
    losses = [1, 0.5, np.float32(0.25), torch.tensor([2.0]), w.detach(), NAN, INF, 1e30, None]
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


@pytest.mark.parametrize("level", ["tensor", "entry"])
def test_no_factor_exceeds_the_cap_by_its_rounding(level: str) -> None:
    for eta_max in np.random.default_rng(0).uniform(0.2, 0.9, size=50).tolist():
        arguments = {"hyper_lr": 100.0, "level": level}
        _, scheduler = one_weight(**arguments, cap=partial(tuple, (eta_max, "estimate")))
        for _ in range(3):
            take_step(scheduler, 1.0)
        (scale,) = scheduler.scales
        assert 0.99 * eta_max < float(scale.max()) * scheduler.current_lrs()[0] <= eta_max


@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_parameter_is_no_obstacle_to_a_cap(level: str) -> None:
    w, empty = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(0))
    optimizer = SGD([w, empty], lr=0.1)
    cap = partial(tuple, (0.15, "estimate"))
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
    arguments = {"hyper_lr": 0.01, "level": level, "update": update}
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
    groups = [{"params": []}, {"params": [frozen], "lr": 0.0}, {"params": [w]}]
    scheduler = HypergradientLR(
        SGD(groups, lr=0.1), hyper_lr=0.1, level=level, update="additive", cap=lambda: (0.15, "x")
    )
    for _ in range(3):
        take_step(scheduler, 1.0, 1.0)
    assert frozen.item() == 1.0
    assert w.item() == pytest.approx(1.0 - 0.1 - 0.15 - 0.15, rel=1e-6)
