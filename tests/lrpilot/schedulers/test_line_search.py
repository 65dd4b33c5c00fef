import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpilot.schedulers.line_search.conditions import armijo_holds, goldstein_holds
from lrpilot.schedulers.line_search.scheduler import RESETS, LineSearchLR
from lrpilot.schedulers.line_search.trial_step import adam_direction
from tests.lrpilot.schedulers.line_searches import (
    EIGENVALUES,
    INF,
    NAN,
    cancer_data,
    grad_of,
    image_batches,
    logistic_loss,
    loss_of,
    quadratic,
    small_cnn,
    squared_norm,
    start_quadratic,
    train,
)

# ---- the conditions


@pytest.mark.parametrize(
    ("new_loss", "armijo", "goldstein"),
    [
        (0.96, False, False),
        (0.95, True, True),
        (0.7, True, True),
        (0.55, True, True),
        (0.54, True, False),
        (NAN, False, False),
        (INF, False, False),
        (-INF, False, False),
    ],
)
def test_conditions_hold_between_their_lines(
    new_loss: float, armijo: bool, goldstein: bool
) -> None:
    arguments = {"lr": 0.25, "slope": 2.0, "c": 0.1}
    assert armijo_holds(1.0, new_loss, **arguments) == armijo
    assert goldstein_holds(1.0, new_loss, **arguments) == goldstein


# ---- the accepted steps satisfy the inequality, measured after the optimizer's own step


@pytest.mark.slow
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e3])
def test_every_step_on_a_quadratic_satisfies_armijo(lr: float, reset: str) -> None:
    w, optimizer, scheduler = start_quadratic(lr, reset=reset, batches_per_epoch=3)
    for _ in range(200):
        loss = scheduler.search(lambda: quadratic(w)).item()
        required = 0.1 * optimizer.param_groups[0]["lr"] * squared_norm([w])
        optimizer.step()
        scheduler.step()
        assert quadratic(w).item() <= loss - required


def test_every_minibatch_step_of_logistic_regression_satisfies_armijo() -> None:
    x, y = cancer_data()
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=100.0)
    scheduler = LineSearchLR(optimizer, None, batches_per_epoch=18)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for index in torch.randperm(len(x), generator=generator).split(32):
            batch = (x[index], y[index])
            loss = scheduler.search(partial(logistic_loss, w, *batch)).item()
            required = 0.1 * optimizer.param_groups[0]["lr"] * squared_norm([w])
            optimizer.step()
            scheduler.step()
            assert logistic_loss(w, *batch).item() <= loss - required


@pytest.mark.parametrize("condition", ["armijo", "goldstein"])
def test_every_step_of_a_cnn_with_batchnorm_and_dropout_satisfies_its_condition(
    condition: str,
) -> None:
    torch.manual_seed(0)
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = LineSearchLR(optimizer, model, condition=condition, batches_per_epoch=10)
    for batch in image_batches(10) * 5:
        before, rng = copy.deepcopy(model), torch.get_rng_state()
        loss = scheduler.search(partial(loss_of, model, batch)).item()
        promised = optimizer.param_groups[0]["lr"] * squared_norm(list(model.parameters()))
        optimizer.step()
        scheduler.step()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for p, new in zip(before.parameters(), model.parameters(), strict=True):
                p.copy_(new)
            torch.set_rng_state(rng)
            new_loss = loss_of(before, batch).item()
        assert new_loss <= loss - 0.1 * promised
        if condition == "goldstein":
            assert new_loss >= loss - 0.9 * promised


def test_weight_decay_of_sgd_is_part_of_loss_and_slope() -> None:
    w = torch.tensor([3.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=50.0, weight_decay=0.5)
    scheduler = LineSearchLR(optimizer, None, batches_per_epoch=1)
    for _ in range(50):
        before = w.detach().clone()
        loss = scheduler.search(lambda: (w[0] - w[1]).cosh().log())
        total = loss + before.square().sum() / 4
        direction = grad_of(w) + 0.5 * before
        required = 0.1 * optimizer.param_groups[0]["lr"] * direction.square().sum()
        optimizer.step()
        scheduler.step()
        new_total = (w[0] - w[1]).cosh().log() + w.square().sum() / 4
        assert new_total.item() <= (total - required).item() + 1e-14
    assert w.detach().abs().max() < 1e-6


# ---- known optima


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["armijo", "goldstein"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("lr", [0.45, 1.0, 100.0])
def test_quadratic_is_minimised(lr: float, reset: str, condition: str) -> None:
    w, _, scheduler = start_quadratic(
        lr, reset=reset, condition=condition, batches_per_epoch=1, max_trials=200
    )
    train(scheduler, [lambda: quadratic(w)] * 600)
    assert quadratic(w).item() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_logistic_regression_reaches_the_optimum(optimizer_class: Any) -> None:
    x, y = cancer_data()
    decay = 0.01

    def total(w: Tensor) -> Tensor:
        return logistic_loss(w, x, y) + decay / 2 * w.square().sum()

    best = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS([best], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0)
    lbfgs.step(lambda: (lbfgs.zero_grad(), total(best), total(best).backward())[1])
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    betas = {"betas": (0.0, 0.999)} if optimizer_class is torch.optim.Adam else {}
    optimizer = optimizer_class([w], lr=1.0, weight_decay=decay, **betas)
    train(
        LineSearchLR(optimizer, None, batches_per_epoch=1), [lambda: logistic_loss(w, x, y)] * 800
    )
    assert total(w).item() - total(best).item() < 1e-6


# ---- resets


def accepted_factors(scheduler: LineSearchLR, w: Tensor) -> list[tuple[float, int]]:
    rows = []
    for _ in range(40):
        (lr,) = train(scheduler, [lambda: quadratic(w)])
        rows.append((lr, scheduler.num_trials))
    return rows


@pytest.mark.parametrize(
    ("reset", "start_after"),
    [
        ("keep", lambda eta: eta),
        ("grow", lambda eta: eta * 3.0 ** (1 / 5)),
        ("restart", lambda eta: 8.0),
    ],
)
def test_reset_follows_its_formula_exactly(
    reset: str, start_after: Callable[[float], float]
) -> None:
    w, _, scheduler = start_quadratic(
        8.0, reset=reset, gamma=3.0, batches_per_epoch=5, backtrack=0.5
    )
    start = 8.0
    for lr, num_trials in accepted_factors(scheduler, w):
        assert lr == start * 0.5 ** (num_trials - 1)
        start = start_after(lr)


def test_the_first_search_begins_at_the_initial_lr() -> None:
    w, _, scheduler = start_quadratic(1e-3)
    assert train(scheduler, [lambda: quadratic(w)]) == [1e-3]
    assert scheduler.num_trials == 1


def test_grow_multiplies_by_gamma_in_one_epoch() -> None:
    w, _, scheduler = start_quadratic(1e-5, batches_per_epoch=7, gamma=2.0)
    lrs = train(scheduler, [lambda: quadratic(w)] * 8)
    assert lrs[-1] == pytest.approx(2e-5, rel=1e-14)


# ---- Goldstein


@pytest.mark.parametrize("lr", [1e-2, 0.3, 30.0])
def test_every_step_on_a_quadratic_satisfies_goldstein(lr: float) -> None:
    w, optimizer, scheduler = start_quadratic(lr, condition="goldstein", reset="keep")
    for _ in range(100):
        loss = scheduler.search(lambda: quadratic(w)).item()
        lr, slope = optimizer.param_groups[0]["lr"], squared_norm([w])
        optimizer.step()
        scheduler.step()
        assert loss - 0.9 * lr * slope <= quadratic(w).item() <= loss - 0.1 * lr * slope


def test_goldstein_lengthens_by_gamma() -> None:
    curve = (lambda lr: (1 - lr) ** 2, 2.0)
    assert LineSearchLR.simulate([curve], initial_lr=0.03, condition="goldstein") == [0.03, 0.24]


def test_goldstein_takes_the_geometric_mean_between_too_short_and_too_long() -> None:
    curve = (lambda lr: (1 - lr) ** 2, 2.0)
    settings = {"initial_lr": 0.1, "c": 0.4, "gamma": 30.0, "backtrack": 0.01}
    _, lr = LineSearchLR.simulate([curve], condition="goldstein", **settings)
    first = math.sqrt(0.1 * 3.0)  # too short; with 3 comes a mean that is too long
    assert lr == pytest.approx(math.sqrt(first * math.sqrt(first * 3.0)), rel=1e-14)


def test_goldstein_that_gives_up_makes_the_longest_step_that_armijo_allows() -> None:
    curve = (lambda lr: -lr, 1.0)
    lrs = LineSearchLR.simulate([curve], initial_lr=1.0, condition="goldstein", max_trials=4)
    assert lrs == [1.0, 8.0]


def test_goldstein_accepts_a_short_step_at_the_upper_bound() -> None:
    w, _, scheduler = start_quadratic(1e-3, condition="goldstein", max_factor=5.0)
    assert train(scheduler, [lambda: quadratic(w)]) == [5e-3]
    assert (scheduler.log[0].rule, scheduler.log[0].bound_by) == ("lengthened", "max_factor")


# ---- what a search leaves behind


def test_a_search_leaves_generator_and_buffers_as_one_forward_pass_does() -> None:
    batch, model = image_batches(1)[0], small_cnn()
    other = copy.deepcopy(model)
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=1e3), model)
    torch.manual_seed(3)
    loss = loss_of(other, batch)
    rng = torch.get_rng_state()
    torch.manual_seed(3)
    assert scheduler.search(lambda: loss_of(model, batch)).item() == loss.item()
    assert scheduler.num_trials > 1
    assert torch.equal(torch.get_rng_state(), rng)
    for mine, expected in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_a_run_equals_one_with_the_same_lrs_and_no_search(optimizer_class: Any) -> None:
    batches, model = image_batches(8) * 3, small_cnn()
    bare = copy.deepcopy(model)
    optimizer = optimizer_class(model.parameters(), lr=3.0, weight_decay=0.01)
    scheduler = LineSearchLR(optimizer, model, batches_per_epoch=8)
    torch.manual_seed(4)
    lrs = train(scheduler, [partial(loss_of, model, batch) for batch in batches])
    rng = torch.get_rng_state()
    optimizer = optimizer_class(bare.parameters(), lr=3.0, weight_decay=0.01)
    torch.manual_seed(4)
    for lr, batch in zip(lrs, batches, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss_of(bare, batch).backward()
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), rng)
    for mine, expected in zip(model.state_dict().values(), bare.state_dict().values(), strict=True):
        assert torch.equal(mine, expected)


def test_parameters_and_mode_are_untouched_by_a_search() -> None:
    batch, model = image_batches(1)[0], small_cnn()
    before = [p.detach().clone() for p in model.parameters()]
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=1e3), model)
    scheduler.search(lambda: loss_of(model, batch))
    assert all(map(torch.equal, model.parameters(), before))
    assert model.training
    assert torch.is_grad_enabled()


def test_a_closure_that_fails_in_a_trial_leaves_the_model_as_it_was() -> None:
    batch, model = image_batches(1)[0], small_cnn()
    before = [p.detach().clone() for p in model.parameters()]
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=1.0), model)

    def closure() -> Tensor:
        if not torch.is_grad_enabled():
            raise InterruptedError
        return loss_of(model, batch)

    with pytest.raises(InterruptedError):
        scheduler.search(closure)
    assert all(map(torch.equal, model.parameters(), before))
    assert scheduler.current_lrs() == [1.0]


def test_a_buffer_that_the_forward_pass_reads_and_replaces_starts_the_same_in_every_trial() -> None:
    class Counter(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0]))
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("last", None)

        def forward(self) -> Tensor:
            self.calls = self.calls + 1
            self.last = self.w.detach().clone()
            return self.w.square().sum() * self.calls

    model = Counter()
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=0.95), model)
    scheduler.search(model)
    assert scheduler.num_trials > 1
    assert (model.calls.item(), model.last.item()) == (1.0, 1.0)


def test_a_trial_costs_one_call_of_the_closure() -> None:
    w, _, scheduler = start_quadratic(100.0)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return quadratic(w)

    scheduler.search(closure)
    assert calls == [True] + [False] * scheduler.num_trials
    scheduler.search(closure)
    assert scheduler.total_trials == len(calls) - 2


def test_gradients_are_those_of_the_minibatch_alone() -> None:
    w, _, scheduler = start_quadratic(1.0)
    for _ in range(2):
        scheduler.search(lambda: quadratic(w))
        assert torch.equal(grad_of(w), EIGENVALUES * w.detach())


def test_trials_see_the_new_weights_under_an_outer_autocast() -> None:
    model = nn.Linear(4, 1)
    x, y = torch.eye(4), torch.ones(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = LineSearchLR(optimizer, model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scheduler.search(lambda: (model(x).float() - y).square().mean())
        assert scheduler.num_trials < 5


# ---- Adam


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_direction_is_the_step_of_torch_without_its_first_beta(
    optimizer_class: Any, weight_decay: float, amsgrad: bool
) -> None:
    torch.manual_seed(0)
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_class(
        [w], lr=1.0, betas=(0.0, 0.9), weight_decay=weight_decay, amsgrad=amsgrad
    )
    for _ in range(4):
        w.grad = torch.randn(5, dtype=torch.float64)
        before = w.detach().clone()
        is_coupled = optimizer_class is torch.optim.Adam
        gradient = w.grad + weight_decay * before if is_coupled else w.grad
        direction = adam_direction(gradient, optimizer.param_groups[0], optimizer.state[w])
        decay = 0.0 if is_coupled else weight_decay
        optimizer.step()
        expected = before * (1 - decay) - direction
        torch.testing.assert_close(w.detach(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_every_step_of_adam_without_its_first_beta_satisfies_armijo(optimizer_class: Any) -> None:
    w = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_class([w], lr=10.0, betas=(0.0, 0.99), weight_decay=0.0)
    scheduler = LineSearchLR(optimizer, None, batches_per_epoch=1)
    for _ in range(100):
        before = w.detach().clone()
        loss = scheduler.search(lambda: quadratic(w)).item()
        optimizer.step()
        scheduler.step()
        step = before - w.detach()
        assert quadratic(w).item() <= loss - 0.1 * float(grad_of(w) @ step) + 1e-15


def test_momentum_does_not_change_the_search() -> None:
    lrs = []
    for momentum in (0.0, 0.9):
        w = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=5.0, momentum=momentum)
        optimizer.state[w]["momentum_buffer"] = torch.full_like(w, 7.0)
        scheduler = LineSearchLR(optimizer, None)
        scheduler.search(partial(quadratic, w))
        lrs += scheduler.current_lrs()
    assert lrs[0] == lrs[1]
