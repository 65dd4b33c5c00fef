"""What all schedulers have in common, the guard included."""

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from lrpilot import (
    D2ZLR,
    WSDLR,
    CosineWarmupLR,
    GreedyLR,
    Guard,
    HypergradientLR,
    LineSearchLR,
    PolicyLR,
)
from tests.scheduling import lrs_of

MAKERS: dict[str, Callable[[Optimizer], Any]] = {
    "PolicyLR": lambda o: PolicyLR(o, "small_networks", total_steps=300),
    "GreedyLR robust": lambda o: GreedyLR(o, window_size=10, significance=2.0, patience=5),
    "GreedyLR paper": lambda o: GreedyLR(o, semantics="paper", patience=2, min_lr=1e-6),
    "GreedyLR transformers": lambda o: GreedyLR(o, semantics="transformers", patience=2),
    "HypergradientLR global": lambda o: HypergradientLR(o, hyper_lr=0.02, level="global"),
    "HypergradientLR group": lambda o: HypergradientLR(o, hyper_lr=0.02),
    "HypergradientLR tensor": lambda o: HypergradientLR(o, hyper_lr=0.02, level="tensor"),
    "HypergradientLR entry": lambda o: HypergradientLR(o, hyper_lr=0.02, level="entry"),
    "LineSearchLR": lambda o: LineSearchLR(o, None),
    "D2ZLR": lambda o: D2ZLR(o, total_steps=300),
    "CosineWarmupLR": lambda o: CosineWarmupLR(o, total_steps=300),
    "WSDLR": lambda o: WSDLR(o, total_steps=300),
    "Guard(Cosine)": lambda o: Guard(CosineAnnealingLR(o, 100)),
    "Guard(Greedy)": lambda o: Guard(GreedyLR(o, window_size=10, significance=2.0, patience=5)),
    "Guard(Greedy paper)": lambda o: Guard(GreedyLR(o, semantics="paper", min_lr=1e-6)),
    "Guard(Policy)": lambda o: Guard(PolicyLR(o, "small_networks", total_steps=300)),
}
JOINT = [name for name in MAKERS if "group" not in name and "Cosine" not in name]


def sgd(lr: float) -> Optimizer:
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.zeros(3)
    return torch.optim.SGD([w], lr=lr)


every_scheduler = pytest.mark.parametrize("name", MAKERS)


class Training:
    """A small regression under one of the schedulers."""

    def __init__(self, name: str, *, lr: float = 0.05) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 4, generator=generator)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        parameters = list(self.model[2].parameters())
        self.optimizer: Optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        self.scheduler = MAKERS[name](self.optimizer)

    def loss(self) -> Tensor:
        loss: Tensor = (self.model(self.x) - 1.0).square().mean()
        return loss

    def step(self, shown: float | None = None) -> list[float]:
        if isinstance(self.scheduler, LineSearchLR):
            loss = self.scheduler.search(self.loss)
        else:
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
        self.optimizer.step()
        self.scheduler.step(loss.item() if shown is None else shown)
        return lrs_of(self.optimizer)

    def unfreeze(self, lr: float) -> None:
        parameters = list(self.model[0].parameters())
        self.optimizer.add_param_group({"params": parameters, "lr": lr})


# ---- reading


@every_scheduler
def test_get_lr_returns_the_present_lrs_and_changes_nothing(name: str) -> None:
    plain, asked = Training(name), Training(name)
    for _ in range(40):
        assert asked.scheduler.get_lr() == asked.scheduler.get_lr() == lrs_of(asked.optimizer)
        assert asked.step() == plain.step()
    assert repr(asked.scheduler.state_dict()) == repr(plain.scheduler.state_dict())


# ---- groups that are added later


@pytest.mark.slow
@every_scheduler
def test_a_group_that_is_added_later_is_taken_in(name: str) -> None:
    training = Training(name)
    for _ in range(20):
        training.step()
    training.unfreeze(lr=0.005)
    first = next(training.model.parameters())
    before = first.detach().clone()
    for _ in range(40):
        training.step()
    assert len(training.scheduler.get_last_lr()) == 2
    assert len(training.scheduler.base_lrs) == 2
    assert not torch.equal(first, before)


@pytest.mark.parametrize("name", JOINT)
def test_an_added_group_has_its_own_lr_times_the_factor_of_the_schedule(name: str) -> None:
    training = Training(name)
    for _ in range(20):
        training.step()
    training.unfreeze(lr=0.005)
    for _ in range(60):
        first, second = training.step()
        assert second == pytest.approx(first / 10, rel=1e-9)


def test_the_guard_lowers_an_added_group_while_a_retry_is_in_use() -> None:
    training = Training("Guard(Greedy)")
    training.step()
    assert training.step(shown=float("nan")) == [0.025]
    training.unfreeze(lr=0.01)
    assert training.step() == [0.025, 0.005]


@pytest.mark.parametrize("level", ["group", "tensor", "entry"])
def test_where_groups_have_factors_of_their_own_an_added_one_begins_at_1(level: str) -> None:
    training = Training(f"HypergradientLR {level}")
    for _ in range(20):
        training.step()
    training.unfreeze(lr=0.005)
    training.step()
    assert lrs_of(training.optimizer)[1] == 0.005


def test_an_added_group_is_in_the_cap() -> None:
    w, late = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scheduler = GreedyLR(optimizer, cap=lambda: (0.05, "estimate"))
    optimizer.add_param_group({"params": [late], "lr": 1.0})
    for _ in range(3):
        optimizer.step()
        scheduler.step(1.0)
    assert lrs_of(optimizer) == [pytest.approx(0.005), 0.05]


@pytest.mark.slow
@every_scheduler
def test_a_run_with_an_added_group_is_resumed_bit_identically(name: str) -> None:
    whole = Training(name)
    for _ in range(10):
        whole.step()
    whole.unfreeze(lr=0.005)
    for _ in range(11):
        whole.step()
    resumed = Training(name)
    resumed.unfreeze(lr=0.005)
    state = copy.deepcopy([getattr(whole, k).state_dict() for k in ("model", "optimizer")])
    resumed.model.load_state_dict(state[0])
    resumed.optimizer.load_state_dict(state[1])
    resumed.scheduler.load_state_dict(copy.deepcopy(whole.scheduler.state_dict()))
    rows = [whole.step() for _ in range(30)]
    assert [resumed.step() for _ in range(30)] == rows


def test_a_removed_group_is_an_error_that_names_the_cure() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.ones(1)]} for _ in range(2)], lr=0.1)
    scheduler = GreedyLR(optimizer)
    del optimizer.param_groups[1]
    optimizer.step()
    with pytest.raises(RuntimeError, match="keep its 2 parameter groups, got 1: make a new"):
        scheduler.step(1.0)


# ---- where schedules begin


@every_scheduler
def test_on_a_used_optimizer_it_begins_at_the_present_lr(name: str) -> None:
    def start(used: bool) -> tuple[list[float], list[float], list[float]]:
        optimizer = sgd(0.1)
        if used:
            old = StepLR(optimizer, 1, 0.5)
            optimizer.step()
            old.step()
        optimizer.param_groups[0]["lr"] = 1e-3
        scheduler = MAKERS[name](optimizer)
        return lrs_of(optimizer), list(map(float, scheduler.base_lrs)), scheduler.get_last_lr()

    assert start(used=True) == start(used=False)


@pytest.mark.parametrize("name", [name for name in MAKERS if "Guard" not in name])
def test_in_a_sequence_it_begins_at_the_initial_lr(name: str) -> None:
    optimizer = sgd(0.1)
    warmup = LinearLR(optimizer, 0.1, total_iters=2)
    scheduler = MAKERS[name](optimizer)
    sequence = SequentialLR(optimizer, [warmup, scheduler], [2])
    for _ in range(2):
        optimizer.step()
        sequence.step()
    assert scheduler.base_lrs == [0.1]
    assert scheduler.last_epoch == 0


@pytest.mark.slow
@every_scheduler
def test_a_warm_up_from_0_may_precede(name: str) -> None:
    optimizer = sgd(0.1)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: k / 2)
    scheduler = MAKERS[name](optimizer)
    sequence = SequentialLR(optimizer, [warmup, scheduler], [2])
    assert lrs_of(optimizer) == [0.0]
    for _ in range(2):
        optimizer.step()
        sequence.step()
    assert lrs_of(optimizer)[0] > 0.0


# ---- states of other schedulers

OF_TORCH: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "Cosine": lambda o: CosineAnnealingLR(o, 100),
    "Plateau": ReduceLROnPlateau,
    "Sequential": lambda o: SequentialLR(o, [LinearLR(o), ConstantLR(o, 1.0)], [5]),
}
OF_POLICY_CIFAR = {"PolicyLR cifar": lambda o: PolicyLR(o, "cifar", total_steps=300)}


@pytest.mark.slow
@pytest.mark.parametrize("other", [*MAKERS, *OF_POLICY_CIFAR, *OF_TORCH, "empty"])
@every_scheduler
def test_the_state_of_another_scheduler_is_refused_and_changes_nothing(
    name: str, other: str
) -> None:
    makers = {**MAKERS, **OF_POLICY_CIFAR, **OF_TORCH}
    mine = makers[name](sgd(0.1))
    theirs = sgd(0.2)
    state = {} if other == "empty" else makers[other](theirs).state_dict()
    if other == name:
        mine.load_state_dict(state)
        return
    before = repr(mine.state_dict())
    kind, other_kind = type(mine).__name__, state.get("class", "none of lrpilot")
    message = "`state_dict` must have"
    if other_kind != kind:
        message = f"`state_dict` must be of {kind}, got (one of )?{other_kind}"
    with pytest.raises(ValueError, match=message):
        mine.load_state_dict(state)
    assert repr(mine.state_dict()) == before


@pytest.mark.slow
@every_scheduler
@pytest.mark.parametrize("damage", ["version", "log", "base_lrs", "lrs"])
def test_a_state_with_a_part_missing_is_refused_and_changes_nothing(name: str, damage: str) -> None:
    training = Training(name)
    state = Training(name, lr=0.2).scheduler.state_dict()
    del state[damage]
    before = repr(training.scheduler.state_dict())
    with pytest.raises(ValueError, match=f"`state_dict` must have .*{damage}"):
        training.scheduler.load_state_dict(state)
    assert repr(training.scheduler.state_dict()) == before


def test_a_guard_around_a_sequence_refuses_the_state_of_another_scheduler_inside() -> None:
    def guard(**arguments: Any) -> Guard:
        optimizer = sgd(0.1)
        main = GreedyLR(optimizer, **arguments)
        return Guard(SequentialLR(optimizer, [LinearLR(optimizer), main], [5]))

    mine = guard()
    before = repr(mine.state_dict())
    with pytest.raises(ValueError, match="`state_dict` must have `arguments` = "):
        mine.load_state_dict(guard(patience=3).state_dict())
    assert repr(mine.state_dict()) == before
    with pytest.raises(ValueError, match=r"`wraps` = 'SequentialLR\(LinearLR, GreedyLR\)' like"):
        mine.load_state_dict(MAKERS["Guard(Greedy)"](mine.optimizer).state_dict())


@pytest.mark.parametrize(
    ("written", "version"),
    [
        ({"version": 1}, "1 of lrpilot 0.1.0"),
        ({"version": 9, "lrpilot": "3.0"}, "9 of lrpilot 3.0"),
    ],
)
@every_scheduler
def test_a_state_of_another_format_is_refused_with_the_version_that_wrote_it(
    name: str, written: dict[str, Any], version: str
) -> None:
    scheduler = Training(name).scheduler
    state = {**scheduler.state_dict(), **written}
    if written["version"] == 1:  # before states named it
        del state["lrpilot"]
    with pytest.raises(ValueError, match=f"must have `version` = 2, got {version}: continue that"):
        scheduler.load_state_dict(state)


@every_scheduler
def test_the_fields_of_a_state_have_public_names(name: str) -> None:
    state = Training(name).scheduler.state_dict()
    assert not [field for field in state if field.startswith("_")]


# ---- caps

CAPPED: dict[str, Callable[..., Any]] = {
    "GreedyLR robust": partial(GreedyLR, window_size=10, significance=2.0),
    "GreedyLR paper": partial(GreedyLR, semantics="paper", patience=50, min_lr=1e-6),
    "GreedyLR transformers": partial(GreedyLR, semantics="transformers", patience=1),
    "HypergradientLR global": partial(HypergradientLR, hyper_lr=0.02, level="global"),
    "HypergradientLR group": partial(HypergradientLR, hyper_lr=0.02),
    "HypergradientLR tensor": partial(HypergradientLR, hyper_lr=0.02, level="tensor"),
    "HypergradientLR entry": partial(HypergradientLR, hyper_lr=0.02, level="entry"),
    "LineSearchLR keep": partial(LineSearchLR, model=None, reset="keep", c=0.5),
    "LineSearchLR grow": partial(LineSearchLR, model=None, reset="grow", c=0.5),
    "LineSearchLR restart": partial(LineSearchLR, model=None, reset="restart", c=0.5),
    "WSDLR": partial(WSDLR, total_steps=10**6, warmup_share=0.0),
    "Guard": lambda o, cap: Guard(ConstantLR(o, 1.0), cap=cap),
    "PolicyLR": partial(PolicyLR, policy="small_networks", interval_steps=10**6, total_steps=10**6),
}


class StillLoss:
    """f = sum of w, along which nothing changes: whatever a scheduler measures stays the same."""

    def __init__(self, name: str, cap: Callable[[], tuple[float, str]]) -> None:
        self.w = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
        groups = [{"params": [w], "lr": lr} for w, lr in zip(self.w, (0.2, 0.1), strict=True)]
        self.optimizer = torch.optim.SGD(groups)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.scheduler = CAPPED[name](self.optimizer, cap=cap)

    def step(self) -> list[float]:
        """The effective learning rates of one step, by what it moves."""
        before = [w.detach().clone() for w in self.w]
        if isinstance(self.scheduler, LineSearchLR):
            self.scheduler.search(lambda: sum((w.sum() for w in self.w), torch.zeros(())))
        for w in self.w:
            w.grad = torch.ones_like(w)
            if isinstance(self.scheduler, HypergradientLR):  # successive ones are orthogonal
                w.grad[self.scheduler.last_epoch % 2] = 0.0
        self.optimizer.step()
        self.scheduler.step(1.0)
        moved = zip(before, self.w, strict=True)
        return [float((old - new.detach()).abs().max()) for old, new in moved]


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPPED)
def test_a_cap_that_ceases_to_bind_leaves_no_trace(name: str) -> None:
    eta_max = math.inf
    training = StillLoss(name, lambda: (eta_max, "estimate"))
    free = StillLoss(name, lambda: (math.inf, "estimate"))
    usual = (math.nan, math.nan)
    for step in range(1000):
        eta_max = 1e-3 if 5 <= step < 995 else math.inf
        expected, (first, second) = free.step(), training.step()
        usual = (first, second) if step < 5 else usual
        is_joint = "tensor" not in name and "entry" not in name
        if 8 < step < 990:
            assert first <= 1e-3 * 1.01
            if is_joint:
                assert first == pytest.approx(2 * second, rel=1e-2)
        elif step < 5 or (step > 997 and "GreedyLR" not in name and "grow" not in name):
            assert [first, second] == pytest.approx(expected, rel=1e-3)
        elif step > 997 and "grow" in name:
            assert 1.0 <= first / usual[0] <= 1.1


def test_hypergradients_do_not_raise_what_a_cap_bounds() -> None:
    eta_max = 0.15
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scheduler = HypergradientLR(optimizer, hyper_lr=0.1, cap=lambda: (eta_max, "estimate"))
    for _ in range(100):
        w.grad = torch.ones(1)  # every step says: raise
        optimizer.step()
        scheduler.step()
    eta_max = 10.0
    optimizer.step()
    assert lrs_of(optimizer) == [pytest.approx(0.165)]


# ---- a second scheduler


def trained(scheduler: Any, num_steps: int = 30) -> Any:
    for step in range(num_steps):
        scheduler.optimizer.step()
        scheduler.step(2.0 * 0.97**step)
    return scheduler


def test_a_second_scheduler_that_begins_where_the_first_one_left_is_warned_of() -> None:
    optimizer = sgd(0.1)
    first = trained(PolicyLR(optimizer, "small_networks", total_steps=300))
    lr = lrs_of(optimizer)
    with pytest.warns(UserWarning, match="has a PolicyLR already, .* this GreedyLR begins") as all_:
        second = GreedyLR(optimizer)
    assert len(all_) == 1
    assert all_[0].filename == __file__
    assert second.base_lrs == lr != [0.1]
    del first


def test_no_second_scheduler_is_warned_of_where_the_user_has_set_the_lr() -> None:
    optimizer = sgd(0.1)
    first = trained(PolicyLR(optimizer, "small_networks", total_steps=300))
    optimizer.param_groups[0]["lr"] = 0.01
    assert GreedyLR(optimizer).base_lrs == [0.01]
    del first


def test_compositions_and_guards_are_no_second_scheduler() -> None:
    optimizer = sgd(0.1)
    chain = ChainedScheduler([GreedyLR(optimizer), HypergradientLR(optimizer, hyper_lr=0.1)])
    assert lrs_of(chain.optimizer) == [0.1]
    scheduler = trained(GreedyLR(sgd(0.1)))
    assert Guard(Guard(scheduler)).base_lrs == lrs_of(scheduler.optimizer)
