"""What a rollback covers, and what a guard says where it does not help."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR

from lrpilot import CurvatureCap, GreedyLR
from lrpilot.schedulers.guard.scheduler import DivergenceError, Guard
from tests.running import through_file
from tests.scheduling import run


class Sharpness(Optimizer):
    """Sharpness-aware minimization around another optimizer, which holds the state."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm() + 1e-12
        climbs = [g * (0.05 / norm) for g in gradients]
        torch._foreach_add_(parameters, climbs)
        with torch.enable_grad():
            loss = closure()
        torch._foreach_sub_(parameters, climbs)
        self.base_optimizer.step()
        return loss


class Grows(nn.Module):
    """Registers a buffer in its first forward pass, and averages into it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(()))
        out: Tensor = self.net(x)
        self.seen = 0.9 * self.seen + 0.1 * out.detach().mean()
        return out.add(self.seen, alpha=0.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def with_frozen_float8() -> nn.Module:
    model = network()
    frozen = torch.ones(4).to(torch.float8_e4m3fn)
    model.register_parameter("frozen", nn.Parameter(frozen, requires_grad=False))
    model.register_buffer("scale", torch.ones(4).to(torch.float8_e5m2))
    return model


def tied() -> nn.Module:
    model = network()
    model.add_module("again", nn.Identity())
    model[3].linear = model[2]
    return model


def lazy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyBatchNorm1d(), nn.Linear(16, 1))


MODELS: dict[str, Callable[[], Any]] = {
    "plain": network,
    "a buffer born in the first forward pass": Grows,
    "frozen and buffered float8": with_frozen_float8,
    "tied": tied,
    "lazy": lazy,
    "compiled": lambda: torch.compile(network(), backend="eager"),
}
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X.sin().sum(1, keepdim=True)


def poison(tensors: Any) -> None:
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.element_size() > 1:
                tensor.fill_(math.nan)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    guard: Guard,
    *,
    num_steps: int = 60,
    poison_at: int = 25,
    of: Callable[[], Any] | None = None,
) -> float:
    """The last loss of a training in which everything that it changes becomes NaN once."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    for step in range(num_steps):
        loss = closure().item()
        optimizer.step(closure) if isinstance(optimizer, Sharpness) else optimizer.step()
        if step == poison_at:
            poison(model.parameters() if of is None else of())
            poison(b for name, b in model.named_buffers() if name.endswith("seen"))
        guard.step(loss)
    return float((model(X) - Y).square().mean().detach())


@pytest.mark.parametrize("poison_at", [3, 25])
@pytest.mark.parametrize("kind", MODELS)
def test_what_becomes_nan_is_put_back(kind: str, poison_at: int) -> None:
    model = MODELS[kind]()
    optimizer = AdamW(model.parameters(), lr=0.01)
    guard = Guard(ConstantLR(optimizer, 1.0), model=model, snapshot_steps=10)
    assert train(model, optimizer, guard, poison_at=poison_at) < 3.0
    assert [decision.rule for decision in guard.log] == ["rollback", "nan"]


@pytest.mark.parametrize("base", [AdamW, SGD])
def test_the_state_of_an_inner_optimizer_is_put_back(base: Any) -> None:
    model = network()
    options = {"momentum": 0.9} if base is SGD else {}
    optimizer = Sharpness(model.parameters(), base, lr=0.01, **options)
    guard = Guard(ConstantLR(optimizer, 1.0), model=model, snapshot_steps=10)

    def all_tensors() -> list[Tensor]:
        states = optimizer.base_optimizer.state.values()
        values = [v for state in states for v in state.values() if v is not None]
        return [*model.parameters(), *values]

    assert train(model, optimizer, guard, of=all_tensors) < 3.0
    assert [decision.rule for decision in guard.log] == ["rollback", "nan"]


@pytest.mark.parametrize("kind", ["a buffer born in the first forward pass", "tied"])
def test_a_guard_with_such_a_model_is_resumed_bit_identically(kind: str) -> None:
    def build() -> tuple[nn.Module, Optimizer, Guard]:
        model = MODELS[kind]()
        optimizer = AdamW(model.parameters(), lr=0.01)
        return model, optimizer, Guard(ConstantLR(optimizer, 1.0), model=model, snapshot_steps=10)

    whole, resumed = build(), build()
    train(*whole, num_steps=20, poison_at=-1)
    resumed[0](X)
    pairs: Any = zip(resumed, whole, strict=True)
    for mine, theirs in pairs:
        mine.load_state_dict(through_file(theirs.state_dict()))
    assert train(*resumed, num_steps=20, poison_at=4) == train(*whole, num_steps=20, poison_at=4)


def test_parameters_of_an_added_group_are_put_back() -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = SGD(model[2].parameters(), lr=0.05, momentum=0.9)
    guard = Guard(ConstantLR(optimizer, 1.0), model=model)
    train(model, optimizer, guard, num_steps=5, poison_at=-1)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
    assert train(model, optimizer, guard, poison_at=4) < 3.0
    assert [decision.rule for decision in guard.log][:2] == ["rollback", "nan"]


def test_nan_right_after_a_rollback_is_warned_of_once() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.01)
    guard = Guard(ConstantLR(optimizer, 1.0), model=model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for loss in [2.0, math.nan, 2.0, math.nan, math.nan, math.nan]:
            optimizer.step()
            guard.step(loss)
    (warning,) = caught
    assert "again right after a rollback (step 5)" in str(warning.message)
    assert warning.filename == __file__


# ---- trainings that die noisily


@pytest.mark.slow
@pytest.mark.parametrize("is_capped", [False, True])
@pytest.mark.parametrize("kind", ["greedy", "cosine"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_noisy_training_at_far_too_high_an_lr_ends_well(
    seed: int, kind: str, is_capped: bool
) -> None:
    features, labels = load_breast_cancer(return_X_y=True)
    x = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
    y = torch.tensor(labels)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    )
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    cap = None
    if is_capped:
        cap = CurvatureCap(optimizer, lambda: nn.functional.cross_entropy(model(x), y), model=model)
    inner = GreedyLR(optimizer) if kind == "greedy" else CosineAnnealingLR(optimizer, 600)
    guard = Guard(inner, model=model, cap=cap)
    losses = []
    for _ in range(600):
        batch = torch.randint(len(x), (8,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        guard.step(loss)
        losses.append(loss.item())
    assert any(decision.rule in ("divergence", "explosion") for decision in guard.log)
    assert max(losses) < 1e5
    assert sum(losses[-50:]) / 50 < 1.0


def test_a_loss_that_stays_ten_times_above_the_first_ones_ends_in_an_error() -> None:
    optimizer = SGD([torch.ones(1)], lr=0.1)
    guard = Guard(ConstantLR(optimizer, 1.0), recovery_steps=20, max_retries=3)
    run(guard, [1.0] * 30)
    with pytest.raises(DivergenceError, match="the loss is 15"):
        run(guard, [15.0] * 200)
    assert guard.log[-1].rule == "divergence"


def test_a_loss_that_climbs_in_noise_is_an_alarm() -> None:
    optimizer = SGD([torch.ones(1)], lr=0.1)
    guard = Guard(ConstantLR(optimizer, 1.0), max_retries=100)
    optimizer.step()
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(3000).log_normal_(0.0, 1.0, generator=generator).tolist()
    for step in range(3000):
        guard.step(noise[step] * 1.003 ** max(0, step - 500))
    assert {"divergence", "explosion"} & {decision.rule for decision in guard.log}


@pytest.mark.parametrize("first", [1e300, 1.7e308, -1.7e308])
def test_a_huge_first_loss_does_not_blind_the_guard(first: float) -> None:
    optimizer = SGD([torch.ones(1)], lr=0.1)
    guard = Guard(ConstantLR(optimizer, 1.0))
    optimizer.step()
    for loss in [first, *[2.0, 1.9, 2.1, 1.8] * 20, 900.0]:
        guard.step(loss)
    assert guard.log[-1].rule == "spike"


def test_losses_at_both_ends_of_the_floats_do_not_blind_the_guard() -> None:
    optimizer = SGD([torch.ones(1)], lr=0.1)
    guard = Guard(ConstantLR(optimizer, 1.0), max_retries=1000)
    optimizer.step()
    for loss in [*[2.0] * 10, *[1.7e308, -1.7e308] * 3, *[2.0] * 500]:
        guard.step(loss)
    known = len(guard.log)
    guard.step(900.0)
    assert guard.log[known].rule == "spike"
