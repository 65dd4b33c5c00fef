import math

import pytest
import torch
from torch import Tensor

from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.problem import NOISES
from lrpilot.tasks.nmf.run import NMFRun
from tests.running import through_file
from tests.tasks.nmf.builders import (
    CAPPED,
    batch_of,
    gradients,
    make_task,
    padded_task,
)


def check_equal(runs: BatchedNMFRuns, singles: list[NMFRun]) -> None:
    for name in ("w", "h"):
        expected = torch.stack([getattr(run, name).detach() for run in singles])
        assert torch.allclose(getattr(runs, name), expected, rtol=1e-5, atol=1e-5)
    losses = [run.privileged_loss() for run in singles]
    assert runs.privileged_losses().tolist() == pytest.approx(losses, rel=1e-5)


def drive(
    runs: BatchedNMFRuns, singles: list[NMFRun], lrs: Tensor, num_steps: int, actives: Tensor
) -> None:
    """Step the batch and the single runs; their observed losses must agree."""
    for step in range(num_steps):
        active = actives[step % len(actives)]
        losses = runs.step(lrs, active)
        expected = [float(singles[i].step(float(lrs[i]))) for i in active.nonzero()[:, 0]]
        assert losses[active].tolist() == pytest.approx(expected, rel=1e-5)
        check_equal(runs, singles)


ALL = torch.ones(1, 4, dtype=torch.bool)
LRS = torch.tensor([0.003, 0.01, 0.02, 0.03], dtype=torch.float64)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs(noise: str, update: str) -> None:
    task = padded_task(noise=noise, update=update)
    seeds = [5, 6, 7, 8]
    drive(batch_of(task, seeds), [task.start(seed) for seed in seeds], LRS, 60, ALL)


def test_batched_minibatches_with_replacement_equal_those_of_single_runs() -> None:
    task = padded_task(with_replacement=True)
    seeds = [5, 6, 7, 8]
    drive(batch_of(task, seeds), [task.start(seed) for seed in seeds], LRS, 60, ALL)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs_with_some_rows_active(noise: str, update: str) -> None:
    task = padded_task(noise=noise, update=update)
    seeds = [5, 6, 7, 8]
    actives = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    drive(batch_of(task, seeds), [task.start(seed) for seed in seeds], LRS, 60, actives)


@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs_after_a_reset_of_some_rows(noise: str) -> None:
    task = padded_task(noise=noise, update="alternating")
    seeds = [5, 6, 7, 8]
    runs, singles = batch_of(task, seeds), [task.start(seed) for seed in seeds]
    drive(runs, singles, LRS, 21, ALL)
    runs.reset([3, 1], [20, 21])
    singles[3], singles[1] = task.start(20), task.start(21)
    check_equal(runs, singles)
    drive(runs, singles, LRS, 39, ALL)


@pytest.mark.parametrize(("noise", "cap_kind", "update"), CAPPED)
def test_batched_caps_equal_those_of_single_runs(noise: str, cap_kind: str, update: str) -> None:
    task = padded_task(noise=noise, cap_kind=cap_kind, update=update)
    seeds = [5, 6, 7, 8]
    runs, singles = batch_of(task, seeds), [task.start(seed) for seed in seeds]
    for _ in range(20):
        eta, guarantee = runs.cap()
        for i, run in enumerate(singles):
            expected, name = run.cap()
            assert guarantee == name
            assert float(eta[i]) == pytest.approx(expected, rel=1e-4)
        drive(runs, singles, 0.3 * eta.double(), 1, ALL)


def test_inactive_rows_do_not_move() -> None:
    runs = batch_of(make_task(), [1, 2])
    before = runs.weights()
    runs.step(torch.full((2,), 0.01), torch.tensor([False, True]))

    assert torch.equal(runs.weights()[0], before[0])
    assert not torch.equal(runs.weights()[1], before[1])


def test_a_row_that_diverges_leaves_the_others_alone() -> None:
    task = make_task(noise="relative")
    runs, single = batch_of(task, [1, 2]), task.start(2)
    for _ in range(10):
        runs.step(torch.tensor([1e30, 0.01]), torch.ones(2, dtype=torch.bool))
        single.step(0.01)

    assert not math.isfinite(float(runs.privileged_losses()[0]))
    assert float(runs.privileged_losses()[1]) == pytest.approx(single.privileged_loss(), rel=1e-5)


@pytest.mark.parametrize("cap_kind", [None, "segment", "ball"])
def test_rows_can_be_reset_before_the_others_have_started(cap_kind: str | None) -> None:
    task = make_task(noise="gaussian", cap_kind=cap_kind)
    runs, single = BatchedNMFRuns(task, 3), task.start(0)
    runs.reset([1], [0])
    if cap_kind is not None:
        assert float(runs.cap()[0][1]) == pytest.approx(single.cap()[0], rel=1e-5)
    runs.step(torch.full((3,), 0.01), torch.tensor([False, True, False]))
    single.step(0.01)

    assert float(runs.privileged_losses()[1]) == pytest.approx(single.privileged_loss(), rel=1e-5)


def test_a_reset_of_no_rows_changes_nothing() -> None:
    runs = batch_of(make_task(), [1, 2])
    before = runs.weights()
    runs.reset([], [])

    assert torch.equal(runs.weights(), before)


def test_weights_and_gradients_are_those_of_the_single_run() -> None:
    task = make_task(noise="none")
    runs, single = batch_of(task, [3]), task.start(3)
    runs.step(torch.tensor([0.01]), torch.tensor([True]))
    single.step(0.01)
    weights = torch.cat([p.detach().flatten() for p in single.parameters])
    grads = torch.cat([g.float().flatten() for g in gradients(single)])

    torch.testing.assert_close(runs.weights()[0], weights, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runs.gradients()[0], grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_state_through_a_file_continues_bit_identically(noise: str, update: str) -> None:
    task = padded_task(noise=noise, update=update)
    runs, resumed = batch_of(task, [5, 6, 7, 8]), batch_of(task, [1, 2, 3, 4])
    mask = torch.tensor([True, True, False, True])
    for step in range(21):
        runs.step(LRS, mask | (step % 3 == 0))
    resumed.load_state_dict(through_file(runs.state_dict()))

    assert torch.equal(resumed.gradients(), runs.gradients())
    for _ in range(30):
        assert torch.equal(resumed.step(LRS, mask), runs.step(LRS, mask))
    assert torch.equal(resumed.weights(), runs.weights())
    assert torch.equal(resumed.gradients(), runs.gradients())


def test_batched_state_continues_in_runs_that_were_never_reset() -> None:
    task = make_task()
    runs, fresh = batch_of(task, [5, 6, 7, 8]), BatchedNMFRuns(task, 4)
    runs.step(LRS, ALL[0])
    fresh.load_state_dict(runs.state_dict())

    assert torch.equal(fresh.step(LRS, ALL[0]), runs.step(LRS, ALL[0]))


def test_batched_state_is_not_changed_by_the_runs_it_was_taken_from() -> None:
    runs = batch_of(make_task(), [5, 6, 7, 8])
    runs.step(LRS, ALL[0])
    state = runs.state_dict()
    before = through_file(state)
    runs.step(LRS, ALL[0])
    runs.reset([0, 1], [9, 10])

    for name in ("w", "h"):
        assert torch.equal(state[name], before[name])
    for name, value in state["_instance"].items():
        assert torch.equal(value, before["_instance"][name])


def test_the_state_of_a_run_brings_its_cap_to_a_run_of_another_seed() -> None:
    task = make_task(noise="none", cap_kind="ball", scale_range=(0.01, 100.0))
    run, other = task.start(0), task.start(1)
    state = run.state_dict()
    other.cap()
    other.load_state_dict(state)

    assert other.cap() == run.cap()
