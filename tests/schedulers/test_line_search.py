import copy
import gc
import io
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from lrpilot.schedulers.line_search.conditions import armijo_holds, goldstein_holds
from lrpilot.schedulers.line_search.scheduler import RESETS, LineSearchLR
from lrpilot.schedulers.line_search.trial_step import adam_direction
from tests.running import through_file

NAN, INF = math.nan, math.inf
EIGENVALUES = torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=torch.float64)


def quadratic(w: Tensor) -> Tensor:
    return (EIGENVALUES.to(w.dtype) * w.square()).sum() / 2


def start_quadratic(
    lr: Any = 1.0, optimizer_class: Any = torch.optim.SGD, **settings: Any
) -> tuple[Tensor, Optimizer, LineSearchLR]:
    w = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_class([w], lr=lr)
    return w, optimizer, LineSearchLR(optimizer, None, **settings)


def train(
    scheduler: LineSearchLR, closures: list[Callable[[], Tensor]], composed: Any = None
) -> list[float]:
    """The learning rates of the steps."""
    lrs = []
    for closure in closures:
        scheduler.search(closure)
        lrs += scheduler.current_lrs()
        scheduler.optimizer.step()
        (composed or scheduler).step()
    return lrs


def small_cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * 6 * 6, 3),
        )


def image_batches(num: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 1, 8, 8, generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(num)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def cancer_data() -> tuple[Tensor, Tensor]:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(np.c_[x, np.ones(len(x))]), torch.from_numpy(2.0 * y - 1)


def logistic_loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return functional.softplus(-y * (x @ w)).mean()


def squared_norm(parameters: list[Tensor]) -> float:
    return float(sum(p.grad.double().square().sum() for p in parameters))


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
            loss = scheduler.search(lambda batch=batch: logistic_loss(w, *batch)).item()
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
        loss = scheduler.search(lambda batch=batch: loss_of(model, batch)).item()
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
        direction = w.grad + 0.5 * before
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
    settings = {"initial_lr": 1.0, "condition": "goldstein", "max_trials": 4}
    assert LineSearchLR.simulate([curve], **settings) == [1.0, 8.0]


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
    lrs = train(scheduler, [lambda batch=batch: loss_of(model, batch) for batch in batches])
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
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0]))
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("last", None)

        def forward(self) -> Tensor:
            self.calls = self.calls + 1
            self.last = self.w.detach().clone()
            return self.calls * self.w.square().sum()

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
        assert torch.equal(w.grad, EIGENVALUES * w.detach())


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
        assert quadratic(w).item() <= loss - 0.1 * float(w.grad @ step) + 1e-15


def test_momentum_does_not_change_the_search() -> None:
    lrs = []
    for momentum in (0.0, 0.9):
        w = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=5.0, momentum=momentum)
        optimizer.state[w]["momentum_buffer"] = torch.full_like(w, 7.0)
        scheduler = LineSearchLR(optimizer, None)
        scheduler.search(lambda w=w: quadratic(w))
        lrs += scheduler.current_lrs()
    assert lrs[0] == lrs[1]


# ---- groups, bounds, log


def test_groups_keep_their_ratios_and_a_group_at_zero_stays() -> None:
    ws = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(ws, (0.5, 8.0, 0.0), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = LineSearchLR(optimizer, None, batches_per_epoch=4)

    def closure() -> Tensor:
        return sum(k * w.square().sum() for k, w in enumerate(ws, 1))

    for _ in range(20):
        loss = scheduler.search(closure).item()
        lrs = scheduler.current_lrs()
        slope = sum(lr * squared_norm([w]) for lr, w in zip(lrs, ws, strict=True))
        optimizer.step()
        scheduler.step()
        assert lrs[1] == pytest.approx(16 * lrs[0], rel=1e-15)
        assert lrs[2] == 0.0
        assert closure().item() <= loss - 0.1 * slope


def test_no_trial_exceeds_the_cap() -> None:
    w, optimizer, scheduler = start_quadratic(3.0, cap=lambda: (0.05, "estimate"))
    seen = [optimizer.param_groups[0]["lr"], *train(scheduler, [lambda: quadratic(w)] * 5)]
    assert seen == [0.05] * 6
    assert scheduler.bound_by == "estimate"


def test_no_rounding_exceeds_the_cap() -> None:
    rng = np.random.default_rng(0)
    for lr, cap in rng.uniform(0.01, 1.0, (200, 2)).tolist():
        curve = (lambda lr: -lr, 1.0)
        settings = {"condition": "goldstein", "cap": lambda cap=cap: (cap, "estimate")}
        assert max(LineSearchLR.simulate([curve] * 2, initial_lr=lr, **settings)) <= cap


def test_the_cap_is_asked_once_per_search() -> None:
    asked = []

    def cap() -> tuple[float, str]:
        asked.append(1)
        return 0.05, "estimate"

    w, _, scheduler = start_quadratic(3.0, cap=cap)
    asked.clear()
    train(scheduler, [lambda: quadratic(w)] * 5)
    assert len(asked) == 5


def test_giving_up_respects_a_tiny_cap() -> None:
    w, _, scheduler = start_quadratic(1.0, cap=lambda: (1e-9, "estimate"), max_trials=2)
    train(scheduler, [lambda: quadratic(w) * (1.0 if torch.is_grad_enabled() else 2.0)])
    assert scheduler.get_last_lr() == [1e-9]


def test_max_factor_bounds_the_growth() -> None:
    w, _, scheduler = start_quadratic(1e-3, batches_per_epoch=1, max_factor=3.0)
    assert train(scheduler, [lambda: quadratic(w)] * 4) == [1e-3, 2e-3, 3e-3, 3e-3]
    assert [(d.rule, d.bound_by) for d in scheduler.log] == [
        ("accepted", ""),
        ("accepted", "max_factor"),
    ]


def test_the_log_explains_every_change() -> None:
    w, optimizer, scheduler = start_quadratic(4.0)
    loss = scheduler.search(lambda: quadratic(w)).item()
    (entry,) = scheduler.log
    lr, slope = optimizer.param_groups[0]["lr"], squared_norm([w])
    optimizer.step()
    assert (entry.step, entry.old_lr, entry.new_lr) == (0, 4.0, lr)
    assert (entry.rule, entry.bound_by) == ("backtracked", "")
    assert entry.signal == loss - quadratic(w).item()
    assert entry.threshold == pytest.approx(0.1 * lr * slope, rel=1e-14)


# ---- giving up and losses that are no numbers


@pytest.mark.parametrize("trial_loss", [NAN, INF, -INF, 1e30])
def test_bad_trial_losses_are_rejected_until_the_search_gives_up(trial_loss: float) -> None:
    w, _, scheduler = start_quadratic(2.0, max_trials=5, reset="keep", backtrack=0.5)

    def closure() -> Tensor:
        return quadratic(w) if torch.is_grad_enabled() else torch.tensor(trial_loss)

    assert train(scheduler, [closure]) == [2e-6]
    assert (scheduler.log[0].rule, scheduler.num_trials) == ("gave up", 5)
    # the next search begins where this one ended, at 2 / 2^4
    scheduler.search(lambda: quadratic(w))
    assert scheduler.current_lrs() == [2.0 / 16]


def test_after_giving_up_again_and_again_the_search_begins_at_the_fallback() -> None:
    w, _, scheduler = start_quadratic(1.0, max_trials=20, reset="keep", backtrack=0.1)

    def rising() -> Tensor:
        return quadratic(w) if torch.is_grad_enabled() else torch.tensor(INF)

    assert train(scheduler, [rising] * 3) == [1e-6] * 3
    assert train(scheduler, [lambda: quadratic(w)]) == [1e-6]
    assert scheduler.num_trials == 1


def test_after_giving_up_on_a_flat_loss_the_next_search_begins_where_this_one_did() -> None:
    w, _, scheduler = start_quadratic(0.125, max_trials=5, reset="keep")
    constant = quadratic(w).detach()

    def flat() -> Tensor:
        return quadratic(w) if torch.is_grad_enabled() else constant

    assert train(scheduler, [flat]) == [0.125e-6]
    assert train(scheduler, [lambda: quadratic(w)]) == [0.125]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_no_number_keeps_the_lr_without_a_trial(bad: float) -> None:
    w, _, scheduler = start_quadratic(4.0)
    train(scheduler, [lambda: quadratic(w)])
    before, weights = scheduler.current_lrs(), w.detach().clone()
    scheduler.search(lambda: quadratic(w) + bad)
    scheduler.step()
    assert scheduler.current_lrs() == before
    assert (scheduler.num_trials, scheduler.log[-1].rule) == (0, "kept")
    assert torch.equal(w.detach(), weights)


@pytest.mark.parametrize("factor", [0.0, NAN, INF])
def test_a_slope_that_is_no_positive_number_keeps_the_lr(factor: float) -> None:
    w, _, scheduler = start_quadratic(4.0)
    w.register_hook(lambda gradient: gradient * factor)
    scheduler.search(lambda: quadratic(w))
    assert scheduler.current_lrs() == [4.0]
    assert (scheduler.num_trials, scheduler.log[-1].rule) == (0, "kept")


@pytest.mark.parametrize("scale", [1e30, 1e-30, -1.0])
def test_the_scale_and_sign_of_the_loss_are_free(scale: float) -> None:
    w, optimizer, scheduler = start_quadratic(1.0 / abs(scale))
    shift = -10.0 * abs(scale)
    first = last = scheduler.search(lambda: quadratic(w) * abs(scale) + shift).item()
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        last = scheduler.search(lambda: quadratic(w) * abs(scale) + shift).item()
    assert last < first


def test_a_loss_of_one_element_is_a_loss() -> None:
    w, _, scheduler = start_quadratic(4.0)
    scheduler.search(lambda: quadratic(w).reshape(1, 1))
    assert scheduler.num_trials > 1


def test_parameters_without_a_gradient_are_left_out() -> None:
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [used]}, {"params": [unused]}], lr=4.0)
    scheduler = LineSearchLR(optimizer, None)
    train(scheduler, [lambda: used.square().sum()])
    assert unused.tolist() == [1.0, 1.0]
    assert used.square().sum() < 2.0


# ---- torch's conventions


@pytest.mark.parametrize("load_optimizer_first", [False, True])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_a_loaded_run_continues_bit_identically(
    optimizer_class: Any, reset: str, load_optimizer_first: bool
) -> None:
    def start() -> tuple[nn.Module, Optimizer, LineSearchLR]:
        model = small_cnn()
        optimizer = optimizer_class(model.parameters(), lr=0.3)
        return model, optimizer, LineSearchLR(optimizer, model, reset=reset, batches_per_epoch=5)

    def run(model: nn.Module, scheduler: LineSearchLR, seed: int) -> list[float]:
        torch.manual_seed(seed)
        batches = image_batches(6)
        return train(scheduler, [lambda batch=batch: loss_of(model, batch) for batch in batches])

    model, optimizer, scheduler = start()
    run(model, scheduler, 0)
    file = io.BytesIO()
    states = [x.state_dict() for x in (model, optimizer, scheduler)]
    torch.save(states, file)
    expected = run(model, scheduler, 1)
    file.seek(0)
    loaded = start()
    parts = list(zip(loaded, torch.load(file, weights_only=True), strict=True))
    for part, state in parts if load_optimizer_first else reversed(parts):
        part.load_state_dict(state)
    assert run(loaded[0], loaded[2], 1) == expected
    assert loaded[2].state_dict() == scheduler.state_dict()
    for mine, other in zip(model.parameters(), loaded[0].parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_state_with_numpy_settings_and_lrs_loads_with_weights_only() -> None:
    w, _, scheduler = start_quadratic(np.float64(4.0), c=np.float32(0.25), gamma=np.float64(3.0))
    train(scheduler, [lambda: quadratic(w)] * 3)
    assert through_file(scheduler.state_dict()) == scheduler.state_dict()


def test_a_state_of_other_settings_is_refused() -> None:
    state = start_quadratic(reset="keep")[2].state_dict()
    with pytest.raises(ValueError, match="`reset` = 'grow' like this scheduler, got 'keep'"):
        start_quadratic()[2].load_state_dict(state)


def test_in_a_sequence_the_search_begins_at_the_milestone_from_the_initial_lr() -> None:
    w, optimizer, scheduler = start_quadratic(0.4)
    warmup = LinearLR(optimizer, start_factor=0.5, total_iters=4)
    composed = SequentialLR(optimizer, [warmup, scheduler], milestones=[4])
    lrs = []
    for step in range(8):
        scheduler.search(lambda step=step: quadratic(w) + (NAN if step == 2 else 0.0))
        assert scheduler.num_trials == 0 or step >= 4
        lrs += scheduler.current_lrs()
        optimizer.step()
        composed.step()
    assert lrs[:4] == pytest.approx([0.2, 0.25, 0.3, 0.35])
    assert lrs[4] == 0.4
    assert len(scheduler.log) == sum(a != b for a, b in pairwise(lrs[4:]))


def test_before_the_milestone_search_computes_the_gradients() -> None:
    w, optimizer, scheduler = start_quadratic(0.4)
    SequentialLR(optimizer, [LinearLR(optimizer), scheduler], milestones=[4])
    assert scheduler.search(lambda: quadratic(w)).item() == quadratic(w).item()
    assert torch.equal(w.grad, EIGENVALUES * w.detach())


def test_a_tensor_lr_is_filled_not_replaced() -> None:
    lr = torch.tensor(4.0)
    w = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr, capturable=False, foreach=False)
    scheduler = LineSearchLR(optimizer, None)
    train(scheduler, [lambda: quadratic(w)] * 3)
    assert optimizer.param_groups[0]["lr"] is lr
    assert 0.0 < lr.item() < 4.0


def test_a_step_without_a_search_is_named_with_its_cure() -> None:
    _, optimizer, scheduler = start_quadratic()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"call `search\(closure\)` before every step"):
        scheduler.step()


def test_get_last_lr_is_the_lr_found() -> None:
    w, _, scheduler = start_quadratic(4.0)
    scheduler.search(lambda: quadratic(w))
    assert scheduler.get_last_lr() == scheduler.current_lrs() != [4.0]


def test_simulate_gives_the_lrs_of_training() -> None:
    w, optimizer, scheduler = start_quadratic(4.0, batches_per_epoch=2)
    curves, lrs = [], []
    for _ in range(10):
        scheduler.search(lambda: quadratic(w))
        at, gradient = w.detach().clone(), w.grad.clone()
        curves.append(
            (lambda lr, w=at, g=gradient: quadratic(w.add(g, alpha=-lr)), squared_norm([w]))
        )
        lrs += scheduler.current_lrs()
        optimizer.step()
        scheduler.step()
    simulated = LineSearchLR.simulate(curves, initial_lr=4.0, batches_per_epoch=2)
    assert simulated == [4.0, *lrs]


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "wolfe"}, "`condition` must be one of"),
        ({"reset": 1}, "`reset` must be one of"),
        ({"c": 0.0}, r"`c` must be in \(0, 1\), got 0.0"),
        ({"c": 0.5, "condition": "goldstein"}, r"`c` must be in \(0, 0.5\), got 0.5"),
        ({"backtrack": 1.0}, r"`backtrack` must be in \(0, 1\), got 1.0"),
        ({"gamma": 1.0}, r"`gamma` must be in \(1, inf\), got 1.0"),
        ({"fallback_factor": NAN}, r"`fallback_factor` must be in \(0, 1\), got nan"),
        ({"batches_per_epoch": 0}, r"`batches_per_epoch` must be in \[1, inf\], got 0"),
        ({"max_trials": 0}, r"`max_trials` must be in \[1, inf\), got 0"),
        ({"max_factor": 0.5}, r"`max_factor` must be in \[1, inf\), got 0.5"),
        ({"max_factor": INF}, r"`max_factor` must be in \[1, inf\), got inf"),
    ],
)
def test_a_bad_argument_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_quadratic(**settings)


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(TypeError, match="must be torch's SGD, Adam or AdamW, got RMSprop"):
        start_quadratic(optimizer_class=torch.optim.RMSprop)


def test_maximising_optimizers_are_refused() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="`optimizer` must have maximize=False, got True"):
        LineSearchLR(optimizer, None)


def test_a_model_that_is_no_module_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    with pytest.raises(TypeError, match="`model` must be a Module or None, got list"):
        LineSearchLR(optimizer, [])


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(3, 2, sparse=True)
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match="must have dense gradients, got a sparse one"):
        scheduler.search(lambda: model(torch.tensor([0])).sum())


@pytest.mark.parametrize("loss", [None, "0.5", 0.5])
def test_a_loss_that_is_no_tensor_is_refused(loss: Any) -> None:
    scheduler = start_quadratic()[2]
    with pytest.raises(TypeError, match="`closure` must return a tensor of one element, got"):
        scheduler.search(lambda: loss)


def test_a_loss_of_several_elements_is_refused() -> None:
    w, _, scheduler = start_quadratic()
    with pytest.raises(ValueError, match=r"`loss` must have one element, got shape \(4,\)"):
        scheduler.search(lambda: w.square())


# ---- processes


def train_rank(rank: int, folder: str) -> None:
    model = DistributedDataParallel(small_cnn()[:4].append(nn.Linear(144, 3)))
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=30.0), model)
    batches = image_batches(12)[rank::2]
    lrs = train(scheduler, [lambda batch=batch: loss_of(model, batch) for batch in batches])
    torch.save((lrs, scheduler.total_trials), f"{folder}/{rank}.pt")


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    train_rank(rank, folder)
    gc.collect()  # a DDP model that outlives its gloo group can hang or abort at exit
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_of_a_data_parallel_model_choose_the_same_lrs(tmp_path: Path) -> None:
    spawn(run_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    assert first[1] > 6
