import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import DivergenceError, Guard
from lrpilot.schedulers.guard.snapshot import Snapshot
from lrpilot.schedulers.guard.spike_detector import SpikeDetector
from lrpilot.schedulers.hypergradient.scheduler import HypergradientLR
from lrpilot.schedulers.line_search.scheduler import LineSearchLR
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.running import through_file
from tests.scheduling import lrs_of, plain_action, run

NAN, INF = math.nan, math.inf


def policy() -> Policy:
    rng = np.random.default_rng(0)
    observation = ObservationSpec(("progress", "loss", "lr"))
    layer = rng.normal(size=(len(observation.names), 1)).astype(np.float32)
    layers = [(layer, np.zeros(1, np.float32))]
    return Policy(layers, observation, plain_action(), ClockSpec(num_decisions=10))


def warm_up(optimizer: Optimizer, main: LRScheduler) -> SequentialLR:
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=5), main], [5])


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "constant": partial(ConstantLR, factor=1.0),
    "cosine": partial(CosineAnnealingLR, T_max=70),
    "exponential": partial(ExponentialLR, gamma=0.9),
    "milestones": partial(MultiStepLR, milestones=[4, 9]),
    "lambda": partial(LambdaLR, lr_lambda=lambda epoch: 1.0 / (1.0 + epoch)),
    "cyclic": partial(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False),
    "one cycle": partial(OneCycleLR, max_lr=0.1, total_steps=200),
    "restarts": partial(CosineAnnealingWarmRestarts, T_0=7),
    "plateau": partial(ReduceLROnPlateau, patience=1, factor=0.5),
    "policy": lambda optimizer: PolicyLR(optimizer, policy(), total_steps=60, interval_steps=2),
    "greedy": partial(GreedyLR, semantics="paper", patience=1),
    "warm-up": lambda optimizer: warm_up(optimizer, CosineAnnealingLR(optimizer, 70)),
    "warm-up, policy": lambda optimizer: warm_up(
        optimizer, PolicyLR(optimizer, policy(), total_steps=60, interval_steps=2)
    ),
    "chain": lambda optimizer: ChainedScheduler(
        [ExponentialLR(optimizer, 0.9), LinearLR(optimizer, 0.5, total_iters=8)]
    ),
}


def sgd(*lrs: Any) -> Optimizer:
    groups = [{"params": [torch.ones(3, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)]
    return SGD(groups, lr=0.1, momentum=0.9)


def constant(*lrs: Any) -> ConstantLR:
    return ConstantLR(sgd(*lrs), factor=1.0)


def bare(scheduler: LRScheduler, losses: list[float]) -> list[list[float]]:
    """What a scheduler does without a guard."""
    rows = []
    for loss in losses:
        scheduler.optimizer.step()
        if isinstance(scheduler, ReduceLROnPlateau | PolicyLR | GreedyLR):
            scheduler.step(loss)
        else:
            for part in getattr(scheduler, "_schedulers", []):
                if isinstance(part, PolicyLR):
                    part.observe(loss)
            scheduler.step()
        rows.append(lrs_of(scheduler.optimizer))
    return rows


def rules(guard: Guard) -> list[str]:
    return [decision.rule for decision in guard.log]


def snapshot_step(guard: Guard) -> int:
    """The step at which the guard's snapshot was taken, or put back."""
    step: int = guard.state_dict()["rollback"]["snapshot_step"]
    return step


def snapshot_tensors(guard: Guard) -> dict[str, Tensor]:
    """What the guard would put back."""
    tensors: dict[str, Tensor] = guard.state_dict()["rollback"]["snapshot"]["tensors"]
    return tensors


def noise(num: int, *, deviation: float = 0.1, seed: int = 0) -> list[float]:
    return list(2.0 * np.exp(deviation * np.random.default_rng(seed).normal(size=num)))


def through_torch_save(state: Any) -> Any:
    return through_file(state)


# ---- the detector

NOISES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal 5 %": lambda rng, n: 1.0 + 0.05 * rng.normal(size=n),
    "normal 30 %": lambda rng, n: 1.0 + 0.3 * rng.normal(size=n),
    "normal around 0": lambda rng, n: rng.normal(size=n),
    "negative": lambda rng, n: -100.0 + 5.0 * rng.normal(size=n),
    "lognormal 30 %": lambda rng, n: np.exp(0.3 * rng.normal(size=n)),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "falling": lambda rng, n: np.exp(0.2 * rng.normal(size=n) - np.arange(n) / 1000.0),
    "wave": lambda rng, n: 2.0 + np.sin(np.arange(n) / 50.0) + 0.1 * rng.normal(size=n),
    "sometimes 0": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.3),
    "zero": lambda rng, n: np.zeros(n),
}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", NOISES)
def test_pure_noise_is_no_spike(name: str, scale: float) -> None:
    losses = NOISES[name](np.random.default_rng(1), 10_000) * scale
    detector = SpikeDetector()
    # the first losses of heavy noise may look like a spike
    assert sum([detector.is_spike(loss) for loss in losses.tolist()]) <= 1


@pytest.mark.parametrize(("deviation", "most"), [(0.1, 0), (0.3, 2), (0.5, 10)])
def test_beginnings_of_pure_noise_are_rarely_spikes(deviation: float, most: int) -> None:
    num_alarms = 0
    for seed in range(1000):
        detector = SpikeDetector()
        num_alarms += any([detector.is_spike(x) for x in noise(50, deviation=deviation, seed=seed)])
    assert num_alarms <= most


@pytest.mark.parametrize(("deviation", "ratio"), [(0.02, 1.6), (0.1, 2.5), (0.3, 8.0)])
@pytest.mark.parametrize("level", [1.0, 1e-5, 1e5])
def test_a_loss_that_stands_out_of_the_noise_is_a_spike(
    deviation: float, ratio: float, level: float
) -> None:
    detector = SpikeDetector()
    assert not any([detector.is_spike(level * x) for x in noise(500, deviation=deviation)])
    assert detector.is_spike(2.0 * ratio * level)


@pytest.mark.parametrize("growth", [1.3, 2.0, 10.0, 1e3])
def test_a_loss_that_explodes_from_the_first_step_is_a_spike(growth: float) -> None:
    detector = SpikeDetector()
    assert any([detector.is_spike(growth**step) for step in range(40)])


def test_a_negative_loss_that_jumps_up_is_a_spike() -> None:
    detector = SpikeDetector()
    assert not any([detector.is_spike(-10.0 + 0.1 * x) for x in noise(200)])
    assert detector.is_spike(0.0)


@pytest.mark.parametrize("ratio", [2.0, 10.0])
def test_a_new_level_of_the_loss_becomes_the_usual_one(ratio: float) -> None:
    detector = SpikeDetector()
    for loss in noise(200, deviation=0.05):
        detector.is_spike(loss)
    spikes = [detector.is_spike(ratio * loss) for loss in noise(500, deviation=0.05)]
    assert spikes[0]
    assert not any(spikes[300:])


@pytest.mark.parametrize("loss", [1e30, -1e30, 1.7e308, -1.7e308, 5e-324, 0.0])
def test_a_detector_survives_extreme_losses(loss: float) -> None:
    detector = SpikeDetector()
    for value in [*noise(20), loss, *noise(20), loss, loss, *noise(20)]:
        detector.is_spike(value)
    assert all(map(math.isfinite, (detector.mean, detector.scale, detector.deviation)))


# ---- backing off and recovering


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_healthy_training_has_the_wrapped_learning_rates(name: str) -> None:
    first, second = sgd(0.1, 0.03), sgd(0.1, 0.03)
    guard = Guard(SCHEDULERS[name](first))
    assert run(guard, noise(50)) == bare(SCHEDULERS[name](second), noise(50))
    assert len(guard.log) == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_backed_off_scheduler_keeps_its_own_recursion(name: str) -> None:
    losses = noise(60)
    clean = list(losses)
    for step in (6, 17, 33):
        losses[step], clean[step] = NAN, losses[step - 1]
    first, second = sgd(0.1, 0.03), sgd(0.1, 0.03)
    guard = Guard(SCHEDULERS[name](first), recovery_steps=5)
    expected = bare(SCHEDULERS[name](second), clean)
    factors = []
    for loss, row in zip(losses, expected, strict=True):
        (actual,) = run(guard, [loss])
        factors.append(guard.factor)
        assert actual == [lr * guard.factor for lr in row]
    assert sorted(set(factors)) == [0.5, 1.0]
    assert rules(guard) == ["nan", "recovered"] * 3


@pytest.mark.parametrize("loss", [NAN, INF, -INF, torch.tensor(NAN), np.float32(INF)])
def test_a_loss_that_is_not_finite_backs_off_at_once(loss: Any) -> None:
    guard = Guard(constant(0.1, 0.03), backoff=0.25)
    assert run(guard, [2.0, loss])[-1] == [0.1 * 0.25, 0.03 * 0.25]
    decision = guard.log[0]
    assert decision[:3] == (2, 0.1, 0.1 * 0.25)
    assert decision.rule == "nan"
    assert not math.isfinite(decision.signal)


def test_a_spike_backs_off_and_is_logged_with_its_threshold() -> None:
    guard = Guard(constant())
    run(guard, [*noise(30), 40.0])
    (decision,) = guard.log
    assert (decision.step, decision.old_lr, decision.new_lr) == (31, 0.1, 0.05)
    assert (decision.signal, decision.rule) == (40.0, "spike")
    assert 2.5 < decision.threshold < 40.0


def test_a_loss_that_stays_high_after_a_spike_is_one_alarm() -> None:
    guard = Guard(constant())
    run(guard, [*noise(30), *(4.0 * loss for loss in noise(400))])
    assert rules(guard).count("spike") == 1
    assert guard.num_retries == 0


def test_a_loss_that_keeps_growing_is_one_alarm_after_another() -> None:
    guard = Guard(constant())
    run(guard, [*noise(30), *(10.0 * 2.5**step for step in range(6))])
    assert len(rules(guard)) == 6
    assert set(rules(guard)) == {"spike", "divergence"}


def test_each_retry_is_taken_back_after_as_many_healthy_steps() -> None:
    guard = Guard(constant(1.0), recovery_steps=3)
    rows = run(guard, [2.0, NAN, NAN, *[2.0] * 7])
    assert [lr for (lr,) in rows] == [1.0, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0, 1.0]


def test_a_relapse_doubles_the_time_to_the_next_recovery_until_one_lasts() -> None:
    guard = Guard(constant(1.0), recovery_steps=2)
    rows = run(guard, [2.0, NAN, 2.0, 2.0, NAN, *[2.0] * 8, NAN, 2.0, 2.0])
    steps = [decision.step for decision in guard.log if decision.rule == "recovered"]
    assert steps == [4, 9, 16]
    assert rows[-1] == [1.0]


def test_a_loss_that_is_not_finite_never_reaches_the_wrapped_scheduler() -> None:
    scheduler = ReduceLROnPlateau(sgd(), patience=3)
    run(Guard(scheduler), [NAN, INF, 2.0, NAN, INF, 1e30])
    assert scheduler.best == 2.0
    assert scheduler.last_epoch == 4


def test_every_bad_loss_raises_when_the_retries_are_used_up() -> None:
    guard = Guard(constant(), max_retries=3)
    run(guard, [2.0, NAN, NAN, NAN])
    with pytest.raises(DivergenceError, match="the loss is nan after step 5, with 3 retries"):
        run(guard, [NAN])


def test_without_retries_the_first_alarm_raises() -> None:
    with pytest.raises(DivergenceError, match="give the guard the `model`"):
        run(Guard(constant(), max_retries=0), [NAN])


def test_a_learning_rate_that_is_a_tensor_is_filled_not_replaced() -> None:
    optimizer = Adam([torch.ones(3, requires_grad=True)], lr=torch.tensor(0.1))
    lr = optimizer.param_groups[0]["lr"]
    guard = Guard(ExponentialLR(optimizer, 0.5), recovery_steps=1)
    rows = run(guard, [1.0, NAN, 1.0])
    assert optimizer.param_groups[0]["lr"] is lr
    np.testing.assert_allclose([r for (r,) in rows], [0.05, 0.0125, 0.0125], rtol=1e-6)


def test_the_last_learning_rates_are_those_of_the_optimizer() -> None:
    guard = Guard(constant(0.1, 0.03))
    run(guard, [NAN])
    assert guard.get_last_lr() == lrs_of(guard.optimizer) == [0.05, 0.015]


@pytest.mark.parametrize(
    "losses",
    [
        [NAN] * 4,
        [1e30, 2.0, 2.0],
        [2.0, 1e30, 2.0, -1e30, 2.0],
        [0.0] * 5,
        [0.0, 1.0, 0.0],
        [-3.0, -4.0, 2.0],
        [torch.tensor([2.0]), np.float64(2.0), np.float32(1.5), 1],
    ],
    ids=str,
)
def test_extreme_losses_are_survived(losses: list[Any]) -> None:
    rows = run(Guard(constant()), losses)
    assert all(0.0 < lr <= 0.1 for (lr,) in rows)


@pytest.mark.parametrize("loss", ["2.0", [1.0], torch.ones(2), np.ones(2)], ids=str)
def test_what_is_no_loss_is_refused(loss: Any) -> None:
    guard = Guard(constant())
    with pytest.raises((TypeError, ValueError), match="`loss` must"):
        guard.step(loss)


def test_a_step_without_a_loss_is_refused() -> None:
    guard = Guard(constant())
    with pytest.raises(RuntimeError, match="`step` needs a loss"):
        guard.step()


def test_an_observed_loss_counts_at_the_next_step_once() -> None:
    guard = Guard(constant())
    guard.optimizer.step()
    guard.observe(torch.tensor(NAN))
    guard.step()
    assert guard.factor == 0.5
    with pytest.raises(RuntimeError, match="`step` needs a loss"):
        guard.step()


# ---- caps


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_cap_limits_any_scheduler_without_touching_its_recursion(name: str) -> None:
    first, second = sgd(0.1, 0.03), sgd(0.1, 0.03)
    guard = Guard(SCHEDULERS[name](first), cap=lambda: (0.02, "expected"))
    expected = bare(SCHEDULERS[name](second), noise(40))
    for loss, row in zip(noise(40), expected, strict=True):
        (actual,) = run(guard, [loss])
        share = min(1.0, 0.02 / max(row))
        np.testing.assert_allclose(actual, [lr * share for lr in row], rtol=1e-12)
        assert max(actual) <= 0.02
        assert guard.bound_by == ("expected" if share < 1.0 else None)


def test_a_cap_is_logged_when_it_begins_to_bind_and_when_it_moves() -> None:
    caps = iter([1.0, 1.0, 0.05, 0.05, 0.02, 1.0, 0.02])
    guard = Guard(constant(), cap=lambda: (next(caps), "estimate"))
    rows = run(guard, [2.0] * 6)
    assert [lr for (lr,) in rows] == [0.1, 0.05, 0.05, 0.02, 0.1, 0.02]
    assert [tuple(decision) for decision in guard.log] == [
        (2, 0.1, 0.05, 0.1, 0.05, "cap", "estimate"),
        (4, 0.05, 0.02, 0.1, 0.02, "cap", "estimate"),
        (6, 0.1, 0.02, 0.1, 0.02, "cap", "estimate"),
    ]


def test_the_cap_limits_the_initial_learning_rate() -> None:
    guard = Guard(constant(), cap=lambda: (0.01, "estimate"))
    assert guard.get_last_lr() == [0.01]


# ---- rollback

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=5.0),
    "momentum": partial(SGD, lr=1.0, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.01),
}


class Training:
    """A small network with BatchNorm that regresses on random data."""

    def __init__(
        self,
        optimizer_class: Callable[[Any], Optimizer],
        *,
        rollback: bool = True,
        **arguments: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(256, 8, generator=generator)
        self.y = self.x[:, :1] * self.x[:, 1:2] + self.x[:, 2:3]
        self.model = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1)
        )
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        self.optimizer = optimizer_class(self.model.parameters())
        self.guard = Guard(
            CosineAnnealingLR(self.optimizer, 400),
            model=self.model if rollback else None,
            **arguments,
        )
        self.num_steps = 0

    def backward(self, factor: float = 1.0) -> Tensor:
        index = torch.arange(64).add(37 * self.num_steps) % 256
        self.num_steps += 1
        loss = factor * (self.model(self.x[index]) - self.y[index]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def step(self, factor: float = 1.0) -> float:
        """A step whose loss is multiplied, and, if there is a rollback to heal it, the gradient."""
        loss = self.backward(factor) if self.guard.rolls_back else factor * self.backward()
        self.optimizer.step()
        self.guard.step(loss)
        return float(loss)

    def tensors(self) -> dict[str, Any]:
        return copy.deepcopy(
            {"model": self.model.state_dict(), "state": self.optimizer.state_dict()["state"]}
        )


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("name", ["SGD", "momentum"])
def test_a_far_too_high_learning_rate_becomes_nan_alone_and_trains_with_rollback(
    name: str,
) -> None:
    training = Training(OPTIMIZERS[name])
    first = training.step()
    losses = [training.step() for _ in range(400)]
    assert "rollback" in rules(training.guard)
    assert max(losses[-20:]) < 0.3 * first
    unguarded = Training(OPTIMIZERS[name], rollback=False)
    scheduler = CosineAnnealingLR(unguarded.optimizer, 400)
    for _ in range(400):
        loss = unguarded.backward()
        unguarded.optimizer.step()
        scheduler.step()
    assert math.isnan(float(loss))


@pytest.mark.parametrize("num_steps", [0, 7, 25])
@pytest.mark.parametrize("name", ["AdamW", "momentum"])
def test_a_rollback_restores_weights_buffers_and_step_counters_exactly(
    name: str, num_steps: int
) -> None:
    optimizer_class = OPTIMIZERS[name] if name == "AdamW" else partial(SGD, lr=0.01, momentum=0.9)
    training = Training(optimizer_class, snapshot_steps=5)
    states = [training.tensors()]
    snapshot_epochs = [0]
    for _ in range(num_steps):
        training.step()
        states.append(training.tensors())
        snapshot_epochs.append(snapshot_step(training.guard))
    assert snapshot_epochs[-1] > 0 or num_steps < 5
    training.step(factor=NAN)
    assert_equal(training.tensors(), states[snapshot_epochs[-1]])
    decision = training.guard.log[0]
    assert (decision.rule, decision.signal) == (
        "rollback",
        num_steps + 1 - snapshot_epochs[-1],
    )


def test_snapshots_are_taken_in_the_interval_and_only_at_healthy_losses() -> None:
    training = Training(partial(SGD, lr=0.01), snapshot_steps=10)
    taken = []
    for step in range(1, 61):
        before = snapshot_tensors(training.guard)
        is_healthy = not 31 <= step < 35
        loss = training.step(1.0 if is_healthy else 1e3)
        after = snapshot_tensors(training.guard)
        if any(not torch.equal(after[name], before[name]) for name in before):
            assert is_healthy
            assert loss <= training.guard.detector.mean
            taken.append(step)
    assert rules(training.guard)[:2] == ["rollback", "spike"]
    assert min(np.diff([0, *taken])) >= 10
    assert max(np.diff([0, *(step for step in taken if step < 31)])) <= 20
    assert min(step for step in taken if step > 30) >= 41


def test_weights_that_are_not_finite_are_never_in_a_snapshot() -> None:
    training = Training(partial(SGD, lr=0.01), snapshot_steps=1)
    for _ in range(5):
        training.step()
    loss = training.backward()
    training.model[0].weight.grad.fill_(NAN)  # type: ignore[union-attr, operator]
    training.optimizer.step()
    training.guard.step(loss)
    training.step()
    assert all(bool(p.isfinite().all()) for p in training.model.parameters())
    assert math.isfinite(training.step())


def held_by(snapshot: Snapshot) -> list[torch.Tensor]:
    return [
        *snapshot._tensors.values(),
        *(v for states in snapshot._states for state in states.values() for v in state.values()),
    ]


def test_a_snapshot_needs_one_copy_of_model_and_optimizer_state() -> None:
    training = Training(OPTIMIZERS["AdamW"])
    training.step()
    snapshot = Snapshot(training.model, training.optimizer)
    sizes = [t.numel() for t in training.model.state_dict().values()]
    sizes += [v.numel() for state in training.optimizer.state.values() for v in state.values()]
    held = held_by(snapshot)
    assert sum(tensor.numel() for tensor in held) == sum(sizes)
    before = [tensor.data_ptr() for tensor in held]
    training.step()
    assert snapshot.take()
    held = held_by(snapshot)
    assert [tensor.data_ptr() for tensor in held] == before


def test_the_error_leaves_the_model_at_the_snapshot() -> None:
    training = Training(partial(SGD, lr=0.01), max_retries=2)
    before = training.tensors()
    training.step(factor=INF)
    with pytest.warns(RuntimeWarning, match="again right after a rollback"):
        training.step(factor=INF)
    with pytest.raises(DivergenceError, match="look at the data"):
        training.step(factor=INF)
    assert_equal(training.tensors(), before)


# ---- compositions


def test_a_guard_in_a_sequence_starts_at_its_milestone() -> None:
    optimizer = sgd(0.1)
    warm = LinearLR(optimizer, 0.1, total_iters=3)
    guard = Guard(ExponentialLR(optimizer, 0.5))
    sequence = SequentialLR(optimizer, [warm, guard], [3])
    assert guard.is_waiting
    rows = []
    for loss in [NAN, 1e30, 2.0, 2.0, NAN, 2.0]:
        optimizer.step()
        guard.observe(loss)
        sequence.step()
        rows += lrs_of(optimizer)
    np.testing.assert_allclose(rows, [0.04, 0.07, 0.1, 0.05, 0.0125, 0.00625])
    assert not guard.is_waiting


def test_a_guard_may_be_the_first_of_a_sequence() -> None:
    optimizer = sgd(0.1)
    guard = Guard(ExponentialLR(optimizer, 0.5))
    sequence = SequentialLR(optimizer, [guard, ConstantLR(optimizer, 1.0)], [2])
    rows = lrs_of(optimizer)
    for loss in [2.0, 2.0]:
        optimizer.step()
        guard.observe(loss)
        sequence.step()
        rows += lrs_of(optimizer)
    assert rows[:2] == [0.1, 0.05]
    assert guard.scheduler.last_epoch == 1


# ---- state

FAILURES = {3: NAN, 9: 1e4, 10: 1e9, 21: INF}


def run_with_failures(training: Training, num_steps: int) -> list[Any]:
    rows: list[Any] = []
    for _ in range(num_steps):
        factor = FAILURES.get(training.num_steps, 1.0)
        loss = training.step(factor)
        rows.append((str(loss), lrs_of(training.optimizer), len(training.guard.log)))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("order", ["model, optimizer, guard", "guard, model, optimizer"])
@pytest.mark.parametrize("num_steps", [0, 4, 10, 11, 22])
@pytest.mark.parametrize("rollback", [True, False])
def test_a_resumed_guard_continues_bit_identically(
    rollback: bool, num_steps: int, order: str
) -> None:
    build = partial(
        Training,
        OPTIMIZERS["AdamW"],
        rollback=rollback,
        snapshot_steps=4,
        recovery_steps=6,
        cap=lambda: (0.008, "estimate"),
    )
    whole, resumed = build(), build()
    for parameter in resumed.model.parameters():
        nn.init.zeros_(parameter)
    run_with_failures(whole, num_steps)
    objects = {name: getattr(whole, name).state_dict() for name in order.split(", ")}
    for name, state in through_torch_save(objects).items():
        getattr(resumed, name).load_state_dict(state)
    resumed.num_steps = whole.num_steps
    assert run_with_failures(resumed, 40) == run_with_failures(whole, 40)
    assert_equal(resumed.tensors(), whole.tensors())
    assert str(resumed.guard.state_dict()) == str(whole.guard.state_dict())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_guard_around_any_scheduler_continues_bit_identically(name: str) -> None:
    losses = noise(60)
    losses[5] = losses[6] = losses[30] = NAN
    for num_steps in (0, 6, 7, 20):
        first, second = (
            Guard(SCHEDULERS[name](sgd(0.1, 0.03)), recovery_steps=8) for _ in range(2)
        )
        run(first, losses[:num_steps])
        second.load_state_dict(through_torch_save(first.state_dict()))
        assert lrs_of(second.optimizer) == lrs_of(first.optimizer)
        assert run(second, losses[num_steps:]) == run(first, losses[num_steps:])


def test_a_state_is_not_changed_by_the_run_that_goes_on() -> None:
    training = Training(OPTIMIZERS["AdamW"], snapshot_steps=2)
    run_with_failures(training, 8)
    state = training.guard.state_dict()
    before = copy.deepcopy(state)
    run_with_failures(training, 20)
    assert str(state) == str(before)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("backoff", lambda: Guard(constant(), backoff=0.1)),
        ("rolls_back", lambda: Guard(constant(), model=nn.Linear(1, 1))),
    ],
)
def test_the_state_of_another_guard_is_refused(name: str, other: Callable[[], Guard]) -> None:
    with pytest.raises(ValueError, match=f"`state_dict` must have `{name}` = "):
        Guard(constant()).load_state_dict(other().state_dict())


# ---- construction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backoff": 0.0}, r"`backoff` must be in \(0, 1\), got 0\.0"),
        ({"backoff": 1.0}, r"`backoff` must be in \(0, 1\), got 1\.0"),
        ({"recovery_steps": 0}, r"`recovery_steps` must be in \[1, inf\], got 0"),
        ({"snapshot_steps": 0}, r"`snapshot_steps` must be in \[1, inf\], got 0"),
        ({"max_retries": -1}, r"`max_retries` must be in \[0, inf\], got -1"),
        ({"max_retries": NAN}, r"`max_retries` must be in \[0, inf\], got nan"),
        ({"spike_ratio": 1.0}, r"`ratio` must be in \(1, inf\), got 1\.0"),
        ({"spike_deviations": NAN}, r"`deviations` must be in \(0, inf\), got nan"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard(constant(), **arguments)


def test_a_wrong_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`window` must be in \[1, inf\], got 0"):
        SpikeDetector(window=0)


def test_what_is_no_scheduler_is_refused() -> None:
    with pytest.raises(TypeError, match="`scheduler` must be a torch scheduler, got SGD"):
        Guard(sgd())  # type: ignore[arg-type]


@pytest.mark.parametrize("is_behind_warm_up", [False, True])
@pytest.mark.parametrize("name", ["hypergradient", "line search"])
def test_a_cap_around_a_scheduler_that_moves_after_the_guard_is_refused(
    name: str, is_behind_warm_up: bool
) -> None:
    optimizer = idle_optimizer(0.1)
    inner: LRScheduler = (
        HypergradientLR(optimizer, hyper_lr=0.1)
        if name == "hypergradient"
        else LineSearchLR(optimizer, None)
    )
    scheduler = warm_up(optimizer, inner) if is_behind_warm_up else inner
    with pytest.raises(ValueError, match="given to the scheduler inside"):
        Guard(scheduler, cap=lambda: (0.05, "estimate"))
    Guard(scheduler)


def test_the_wait_is_doubled_once_by_several_alarms_after_a_recovery() -> None:
    optimizer = idle_optimizer(0.1)
    guard = Guard(ConstantLR(optimizer, 1.0), recovery_steps=2)
    optimizer.step()
    for loss in [1.0, NAN, 1.0, 1.0, NAN, NAN]:  # recovered after the fourth
        guard.step(loss)
    factors = []
    for _ in range(8):
        guard.step(1.0)
        factors.append(guard.factor)
    assert factors == [0.25] * 3 + [0.5] * 4 + [1.0]


def test_a_loss_that_was_observed_is_forgotten_when_one_is_given() -> None:
    optimizer = idle_optimizer(0.1)
    guard = Guard(ConstantLR(optimizer, 1.0))
    optimizer.step()
    guard.observe(NAN)
    guard.step(1.0)
    with pytest.raises(RuntimeError, match="needs a loss"):
        guard.step()
