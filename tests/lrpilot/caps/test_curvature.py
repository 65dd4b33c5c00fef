import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR

from lrpilot.caps.cap import ask_cap
from lrpilot.caps.curvature import LARGEST_CAP, CurvatureCap
from lrpilot.caps.eigenvalue import hessian_vector_product, largest_eigenvalue
from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.running import through_file
from tests.scheduling import plain_action


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Regression:
    """A small double-precision MLP on random data, with its exact Hessian."""

    def __init__(self, seed: int = 0, num_samples: int = 40) -> None:
        self.x = torch.randn(num_samples, 3, generator=generator(seed), dtype=torch.float64)
        self.y = torch.randn(num_samples, 1, generator=generator(seed + 1), dtype=torch.float64)
        self.model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator(seed + 2), dtype=p.dtype))

    def loss(self) -> Tensor:
        loss: Tensor = (self.model(self.x) - self.y).square().mean()
        return loss

    def train(self, optimizer: Optimizer, num_steps: int) -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()

    def hessian(self) -> Tensor:
        names = [name for name, _ in self.model.named_parameters()]
        shapes = [p.shape for p in self.model.parameters()]

        def loss(flat: Tensor) -> Tensor:
            parts = flat.split([shape.numel() for shape in shapes])
            values = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
            state = dict(zip(names, values, strict=True))
            output = torch.func.functional_call(self.model, state, self.x)
            loss: Tensor = (output - self.y).square().mean()
            return loss

        flat = nn.utils.parameters_to_vector(self.model.parameters()).detach()
        hessian = torch.autograd.functional.hessian(loss, flat)
        assert isinstance(hessian, Tensor)
        return hessian


def quadratic(optimizer_class: Callable[..., Optimizer], eigenvalues: list[float]) -> Any:
    w = torch.full((len(eigenvalues),), 1e-120, dtype=torch.float64, requires_grad=True)
    curvatures = torch.tensor(eigenvalues, dtype=torch.float64)
    return w, optimizer_class([w]), lambda: 0.5 * (curvatures * w.square()).sum()


def growth(w: Tensor, optimizer: Optimizer, loss: Callable[[], Tensor], num_steps: int) -> float:
    """The norm of w after some steps over the one before."""
    before = float(w.detach().norm())
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return float(w.detach().norm()) / before


# ---- products and eigenvalues


def test_products_are_those_of_the_exact_hessian() -> None:
    task = Regression()
    parameters = list(task.model.parameters())
    gradient = torch.autograd.grad(task.loss(), parameters, create_graph=True)
    hessian = task.hessian()
    for column, unit in zip(hessian, torch.eye(len(hessian), dtype=torch.float64), strict=True):
        torch.testing.assert_close(hessian_vector_product(gradient, parameters, unit), column)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_eigenvalue_of_a_network_is_that_of_its_exact_hessian(seed: int) -> None:
    task = Regression(seed)
    optimizer = SGD(task.model.parameters(), lr=0.1)
    exact = float(torch.linalg.eigvalsh(task.hessian())[-1])
    measured = CurvatureCap(optimizer, task.loss, max_products=30).measure()
    assert measured.value == pytest.approx(exact, rel=1e-3)
    assert measured.value <= exact * (1 + 1e-12) <= measured.value + measured.residual


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("shift", [-20.0, 0.0, 20.0])
def test_the_largest_eigenvalue_is_found_where_others_are_larger_in_size(
    size: int, shift: float
) -> None:
    a = torch.randn(size, size, generator=generator(size), dtype=torch.float64)
    a = (a + a.T) / 2 + shift * torch.eye(size, dtype=torch.float64)
    start = torch.randn(size, generator=generator(), dtype=torch.float64)
    pair = largest_eigenvalue(lambda v: a @ v, start, max_products=200, tolerance=1e-9)
    values, vectors = torch.linalg.eigh(a)
    assert pair.value == pytest.approx(float(values[-1]), rel=1e-9)
    assert abs(float(pair.vector @ vectors[:, -1])) == pytest.approx(1.0, abs=1e-9)
    assert float((a @ pair.vector - pair.value * pair.vector).norm()) == pytest.approx(
        pair.residual, abs=1e-9
    )


@pytest.mark.parametrize("max_products", [1, 2, 5])
def test_an_unfinished_iteration_reports_a_lower_bound_and_its_residual(max_products: int) -> None:
    a = torch.diag(torch.linspace(-1.0, 1.0, 200, dtype=torch.float64))
    start = torch.ones(200, dtype=torch.float64)
    pair = largest_eigenvalue(lambda v: a @ v, start, max_products=max_products)
    assert pair.num_products == max_products
    assert pair.value < 1.0
    assert float((a @ pair.vector - pair.value * pair.vector).norm()) == pytest.approx(
        pair.residual
    )


@pytest.mark.parametrize("start", [0.0, math.nan, math.inf])
def test_a_start_without_direction_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match="`start` must have a positive and finite norm"):
        largest_eigenvalue(lambda v: v, torch.full((3,), start))


def test_a_wide_network_has_the_curvature_of_its_tangent_kernel() -> None:
    num_samples, width = 12, 8192
    x = functional.normalize(torch.randn(num_samples, 5, generator=generator()), dim=1)
    y = torch.randn(num_samples, generator=generator(1))
    inner = torch.randn(width, 5, generator=generator(2)).requires_grad_()
    outer = torch.randn(width, generator=generator(3)).requires_grad_()

    def outputs() -> Tensor:
        return torch.relu(x @ inner.T) @ outer / math.sqrt(width)

    rows = [torch.autograd.grad(f, [inner, outer], retain_graph=True) for f in outputs()]
    jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    kernel = float(torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1]) / num_samples
    cap = CurvatureCap(
        SGD([inner, outer], lr=0.1), lambda: 0.5 * (outputs() - y).square().mean(), safety=1.0
    )
    assert cap.measure().value == pytest.approx(kernel, rel=0.02)
    assert cap()[0] == pytest.approx(2.0 / kernel, rel=0.03)


# ---- stability limits

SGDS: dict[str, Callable[..., Optimizer]] = {
    "plain": partial(SGD, lr=1.0),
    "momentum": partial(SGD, lr=1.0, momentum=0.9),
    "dampening": partial(SGD, lr=1.0, momentum=0.8, dampening=0.5),
    "nesterov": partial(SGD, lr=1.0, momentum=0.9, nesterov=True),
    "decay": partial(SGD, lr=1.0, momentum=0.5, weight_decay=3.0),
}
ADAMS: dict[str, Callable[..., Optimizer]] = {
    "Adam": partial(Adam, lr=1e-30, eps=1.0),
    "beta1": partial(Adam, lr=1e-30, eps=0.5, betas=(0.5, 0.99)),
    "amsgrad": partial(Adam, lr=1e-30, eps=1.0, amsgrad=True),
    "coupled": partial(Adam, lr=1e-30, eps=1.0, weight_decay=3.0),
    "AdamW": partial(AdamW, lr=1e-30, eps=1.0, weight_decay=3.0),
    "no momentum": partial(AdamW, lr=1e-30, eps=1.0, betas=(0.0, 0.99), weight_decay=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SGDS, *ADAMS])
def test_descent_converges_just_below_the_limit_and_diverges_just_above(name: str) -> None:
    for factor, is_stable in ((0.98, True), (1.02, False)):
        w, optimizer, loss = quadratic({**SGDS, **ADAMS}[name], [10.0, 4.0, 0.5])
        if name in ADAMS:  # P is eps, once the momentum's start is over
            growth(w, optimizer, loss, 500)
        eta_max, guarantee = CurvatureCap(optimizer, loss, safety=1.0)()
        assert guarantee == "estimate"
        optimizer.param_groups[0]["lr"] = factor * eta_max
        # from so small a start Adam's P stays eps
        assert (growth(w, optimizer, loss, 1000) < 1.0) == is_stable


def test_the_limit_of_adam_is_the_published_one() -> None:
    w, optimizer, loss = quadratic(partial(Adam, lr=1e-30, eps=1.0), [10.0, 1.0])
    growth(w, optimizer, loss, 1000)
    assert CurvatureCap(optimizer, loss, safety=1.0)()[0] == pytest.approx(38.0 / 10.0, rel=1e-6)


@pytest.mark.slow
def test_the_limit_is_for_the_largest_of_several_learning_rates() -> None:
    for factor, is_stable in ((0.98, True), (1.02, False)):
        first = torch.ones(1, dtype=torch.float64, requires_grad=True)
        second = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = SGD([{"params": [first], "lr": 0.01}, {"params": [second], "lr": 0.1}])

        def loss(a: Tensor = first, b: Tensor = second) -> Tensor:
            return (100.0 * a.square() + b.square() + a * b).sum()

        eta_max, _ = CurvatureCap(optimizer, loss, safety=1.0, max_products=50)()
        optimizer.param_groups[0]["lr"] = factor * eta_max / 10.0
        optimizer.param_groups[1]["lr"] = factor * eta_max
        assert (growth(first, optimizer, loss, 2000) < 1.0) == is_stable


@pytest.mark.parametrize("optimizer_class", [Adam, AdamW])
@pytest.mark.parametrize("num_steps", [0, 1, 30])
def test_the_preconditioner_is_read_from_the_optimizer(
    optimizer_class: type[Adam], num_steps: int
) -> None:
    task = Regression()
    optimizer = optimizer_class(task.model.parameters(), lr=1e-2, weight_decay=0.1)
    task.train(optimizer, num_steps)
    optimizer.zero_grad()
    hessian = task.hessian()
    task.loss().backward()
    decay = 0.1 if optimizer_class is Adam else 0.0
    parts = []
    for p in task.model.parameters():
        assert p.grad is not None
        deviation = (p.grad + decay * p.detach()).abs()
        if num_steps:
            deviation = (optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**num_steps)).sqrt()
        parts.append(((1 - 0.9 ** (num_steps + 1)) * (deviation + 1e-8)).reshape(-1))
    root = torch.cat(parts).rsqrt()
    hessian = hessian + decay * torch.eye(len(hessian), dtype=torch.float64)
    exact = float(torch.linalg.eigvalsh(root[:, None] * hessian * root)[-1])
    cap = CurvatureCap(optimizer, task.loss, max_products=60)
    assert cap.measure().value == pytest.approx(exact, rel=1e-3)


def last_loss_of_adam(factor: float) -> float:
    """A badly scaled quadratic, by Adam whose every step is `factor` times the cap."""
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    curvatures = torch.tensor([1000.0, 30.0, 1.0, 0.1], dtype=torch.float64)
    optimizer = Adam([w], lr=1e-3)

    def loss() -> Tensor:
        return 0.5 * (curvatures * w.square()).sum()

    cap = CurvatureCap(optimizer, loss, interval_steps=1)
    for _ in range(400):
        optimizer.param_groups[0]["lr"] = factor * cap()[0]
        growth(w, optimizer, loss, 1)
    return float(loss().detach())


def test_adam_at_the_cap_is_stable_and_far_above_it_is_not() -> None:
    assert last_loss_of_adam(1.0) < 1e-3
    assert last_loss_of_adam(20.0) > 1.0


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_where_the_loss_does_not_curve_upwards_the_cap_is_huge_but_finite(sign: float) -> None:
    w = torch.ones(3, requires_grad=True)
    cap = CurvatureCap(SGD([w], lr=0.1), lambda: sign * w.square().sum() + w.sum())
    eta_max, _ = ask_cap(cap)
    assert eta_max == LARGEST_CAP
    assert eta_max * 0.0 == 0.0


def test_the_cap_is_safety_times_the_limit_at_value_plus_residual() -> None:
    task = Regression()
    cap = CurvatureCap(SGD(task.model.parameters(), lr=0.1), task.loss, safety=0.5)
    eta_max, _ = cap()
    assert cap.eigenpair is not None
    assert eta_max == 0.5 * 2.0 / (cap.eigenpair.value + cap.eigenpair.residual)


# ---- what a measurement leaves alone


class Restless(nn.Module):
    """BatchNorm, dropout and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).unsqueeze(0)
        out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return out.squeeze(0)


def restless() -> tuple[Restless, CurvatureCap]:
    model = Restless()
    optimizer = Adam(model.parameters(), lr=1e-2)
    x = torch.randn(16, 8, generator=generator())
    cap = CurvatureCap(optimizer, lambda: model(x).square().mean(), model=model)
    model(x + 1.0).square().mean().backward()
    optimizer.step()
    return model, cap


def test_a_measurement_leaves_gradients_buffers_and_random_numbers_alone() -> None:
    model, cap = restless()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    cap.measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.buffers(), buffers))
    assert all(map(torch.equal, model.parameters(), weights))
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        assert p.grad is None or torch.equal(p.grad, gradient)  # type: ignore[arg-type]


def test_a_failed_measurement_leaves_buffers_and_random_numbers_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(8, 3, generator=generator())

    def loss() -> Tensor:
        model(x + torch.rand(1))
        raise KeyError("batch")

    cap = CurvatureCap(SGD(model.parameters(), lr=0.1), loss, model=model)
    buffers, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    with pytest.raises(KeyError, match="batch"):
        cap()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.buffers(), buffers))


def test_dropout_is_the_same_in_every_measurement() -> None:
    _, cap = restless()
    first = cap.measure()
    cap.eigenpair = None
    torch.rand(3)
    assert cap.measure().value == first.value


def test_a_measurement_works_without_gradients_switched_on() -> None:
    _, cap = restless()
    with torch.no_grad():
        assert cap.measure().value > 0.0


def test_frozen_and_unused_parameters_do_not_count() -> None:
    used, frozen, unused = (torch.ones(2, requires_grad=r) for r in (True, False, True))
    optimizer = SGD([used, frozen, unused], lr=0.1)
    cap = CurvatureCap(optimizer, lambda: (frozen * used.square()).sum(), safety=1.0)
    assert cap()[0] == pytest.approx(1.0, rel=1e-6)


# ---- when it measures


def test_it_is_measured_at_powers_of_two_and_then_every_interval() -> None:
    calls: list[int] = []
    w = torch.ones(2, requires_grad=True)

    def loss() -> Tensor:
        calls.append(cap.num_calls)
        return w.square().sum()

    cap = CurvatureCap(SGD([w], lr=0.1), loss, interval_steps=20)
    for _ in range(65):
        cap()
    assert calls == [0, 1, 2, 4, 8, 16, 20, 40, 60]


def test_later_measurements_start_at_the_last_eigenvector() -> None:
    task = Regression(num_samples=200)
    optimizer = SGD(task.model.parameters(), lr=1e-3)
    cap = CurvatureCap(optimizer, task.loss)
    first = cap.measure().num_products
    task.train(optimizer, 5)
    assert cap.measure().num_products < first


def test_another_eigenvector_may_overtake_the_last_one() -> None:
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    curvatures = torch.tensor([2.0, 1.0], dtype=torch.float64)
    cap = CurvatureCap(
        SGD([w], lr=0.1), lambda: 0.5 * (curvatures * w.square()).sum(), interval_steps=1
    )
    assert cap()[0] == pytest.approx(0.2, rel=0.02)
    curvatures[1] = 10.0
    assert cap()[0] == pytest.approx(0.04, rel=0.02)


def test_a_diverged_model_keeps_the_last_finite_cap() -> None:
    task = Regression()
    cap = CurvatureCap(SGD(task.model.parameters(), lr=0.1), task.loss, interval_steps=1)
    first, pair = cap(), cap.eigenpair
    with torch.no_grad():
        next(task.model.parameters()).fill_(math.nan)
    assert cap() == first
    assert cap.eigenpair is pair


def test_a_model_that_was_never_finite_is_refused() -> None:
    w = torch.full((2,), math.nan, requires_grad=True)
    cap = CurvatureCap(SGD([w], lr=0.1), lambda: w.square().square().sum())
    with pytest.raises(RuntimeError, match="`loss_fn` must have a finite Hessian"):
        cap()


def run(task: Regression, cap: CurvatureCap, num_steps: int) -> list[float]:
    caps = []
    for _ in range(num_steps):
        caps.append(cap()[0])
        task.train(cap.optimizer, 1)
    return caps


@pytest.mark.parametrize("num_steps", [0, 1, 3, 12])
def test_a_resumed_cap_continues_bit_identically(num_steps: int) -> None:
    whole, resumed = Regression(), Regression()
    caps = [
        CurvatureCap(Adam(task.model.parameters()), task.loss, interval_steps=5, max_products=4)
        for task in (whole, resumed)
    ]
    run(whole, caps[0], num_steps)
    file = io.BytesIO()
    states = (whole.model.state_dict(), caps[0].optimizer.state_dict(), caps[0].state_dict())
    torch.save(states, file)
    file.seek(0)
    model, optimizer, cap = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(model)
    caps[1].optimizer.load_state_dict(optimizer)
    caps[1].load_state_dict(cap)
    assert run(resumed, caps[1], 20) == run(whole, caps[0], 20)


# ---- with schedulers


def policy() -> Policy:
    observation = ObservationSpec(("loss",))
    layers = [(np.zeros((len(observation.names), 1), np.float32), np.ones(1, np.float32))]
    return Policy(layers, observation, plain_action(), ClockSpec(num_decisions=10))


@pytest.mark.parametrize("name", ["policy", "guarded cosine"])
def test_it_caps_our_schedulers_and_torch_ones(name: str) -> None:
    task = Regression()
    optimizer = SGD(task.model.parameters(), lr=100.0)
    cap = CurvatureCap(optimizer, task.loss, interval_steps=1)
    scheduler: Any
    if name == "policy":
        scheduler = PolicyLR(optimizer, policy(), interval_steps=5, cap=cap)
    else:
        scheduler = Guard(CosineAnnealingLR(optimizer, 1000), cap=cap)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        scheduler.step(losses[-1])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cap._eta_max, rel=1e-12)
        assert scheduler.bound_by == "estimate"
    assert losses[-1] < 0.3 * losses[0]


# ---- construction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safety": 0.0}, r"`safety` must be in \(0, inf\), got 0\.0"),
        ({"safety": math.nan}, r"`safety` must be in \(0, inf\), got nan"),
        ({"interval_steps": 0}, r"`interval_steps` must be in \[1, inf\], got 0"),
        ({"max_products": 0}, r"`max_products` must be in \[1, inf\), got 0"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        CurvatureCap(SGD([w], lr=0.1), lambda: w.sum(), **arguments)


def test_an_optimizer_whose_preconditioner_is_not_known_is_refused() -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(TypeError, match="must be torch's SGD, Adam or AdamW, got RMSprop"):
        CurvatureCap(RMSprop([w]), lambda: w.sum())


def test_a_maximising_optimizer_is_refused() -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="`optimizer` must minimise, got maximize=True"):
        CurvatureCap(SGD([w], lr=0.1, maximize=True), lambda: w.sum())


@pytest.mark.parametrize("is_guarded", [False, True])
def test_a_scheduler_under_a_measured_cap_resumes_identically_from_its_own_state(
    is_guarded: bool,
) -> None:
    def make() -> tuple[Tensor, SGD, Any]:
        w = torch.tensor([1.0, 2.0], requires_grad=True)
        optimizer = SGD([w], lr=1000.0)
        cap = CurvatureCap(optimizer, lambda: (w**4).sum(), interval_steps=5)
        if is_guarded:
            return w, optimizer, Guard(ConstantLR(optimizer, 1.0), cap=cap)
        return w, optimizer, GreedyLR(optimizer, cap=cap)

    def run(training: tuple[Tensor, SGD, Any], num_steps: int) -> list[float]:
        w, optimizer, scheduler = training
        lrs = []
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss = (w**4).sum()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            lrs += [optimizer.param_groups[0]["lr"], *w.tolist()]
        return lrs

    whole, resumed = make(), make()
    run(whole, 13)
    weights, state = through_file([whole[0].detach(), whole[2].state_dict()])
    resumed[0].data.copy_(weights)
    resumed[2].load_state_dict(state)
    assert run(whole, 20) == run(resumed, 20)


def test_an_optimizer_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold a parameter that requires gradients, got none"):
        CurvatureCap(SGD([torch.zeros(2)], lr=0.1), lambda: torch.zeros(()))


@pytest.mark.parametrize("loss_fn", [0.5, None, torch.tensor(1.0)], ids=repr)
def test_a_loss_function_that_is_none_is_refused(loss_fn: Any) -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1)
    with pytest.raises(TypeError, match="`loss_fn` must be a function that returns the loss, got"):
        CurvatureCap(optimizer, loss_fn)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w: 0.5, "`loss_fn` must return the loss as a tensor, got 0.5"),
        (lambda w: w.sum().item(), "`loss_fn` must return the loss as a tensor, got 2.0"),
        (lambda w: 2.0 * w, r"must return a loss of one element, got shape \(2,\)"),
        (lambda w: w.detach().sum(), "must return a loss that depends on the optimizer's"),
    ],
)
def test_what_a_loss_function_must_return_is_said(loss: Any, message: str) -> None:
    w = torch.ones(2, requires_grad=True)
    cap = CurvatureCap(torch.optim.SGD([w], lr=0.1), lambda: loss(w))
    with pytest.raises((TypeError, ValueError), match=message):
        cap()


@pytest.mark.parametrize("how", ["added", "unfrozen"])
def test_parameters_that_join_are_measured(how: str) -> None:
    w, late = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=how == "added")
    optimizer = torch.optim.SGD([w] if how == "added" else [w, late], lr=0.1)
    cap = CurvatureCap(optimizer, lambda: w.square().sum() + 8.0 * late.square().sum(), safety=1.0)
    assert cap()[0] == pytest.approx(1.0)
    if how == "added":
        optimizer.add_param_group({"params": [late]})
    else:
        late.requires_grad_(True)
    assert cap()[0] == pytest.approx(0.125)
