import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
)

from lrpilot.schedulers.guard.scheduler import DivergenceError
from lrpilot.schedulers.guard.snapshot import Snapshot
from tests.lrpilot.schedulers.guards import (
    INF,
    NAN,
    OPTIMIZERS,
    Training,
    assert_equal,
    rules,
    snapshot_step,
    snapshot_tensors,
)


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
