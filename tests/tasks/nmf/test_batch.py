import math

import pytest
import torch

from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.draws import DRAWN_STEPS
from lrpilot.tasks.nmf.problem import NOISES
from tests.running import check_batched_runs, through_file
from tests.tasks.nmf.builders import (
    CAPPED,
    batch_of,
    make_task,
    padded_task,
)

ALL = torch.ones(4, dtype=torch.bool)
LRS = torch.tensor([0.003, 0.01, 0.02, 0.03], dtype=torch.float64)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs(noise: str, update: str) -> None:
    # beyond the numbers that are drawn at once
    task = padded_task(noise=noise, update=update, noise_range=(0.1, 0.7))
    check_batched_runs(task, [5, 6, 7, 8], num_steps=2 * DRAWN_STEPS)


def test_batched_minibatches_with_replacement_equal_those_of_single_runs() -> None:
    check_batched_runs(padded_task(with_replacement=True), [5, 6, 7, 8])


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
        lrs = 0.3 * eta.double()
        runs.step(lrs, ALL)
        for run, lr in zip(singles, lrs.tolist(), strict=True):
            run.step(lr)


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
    runs.step(LRS, ALL)
    fresh.load_state_dict(runs.state_dict())

    assert torch.equal(fresh.step(LRS, ALL), runs.step(LRS, ALL))


def test_batched_state_is_not_changed_by_the_runs_it_was_taken_from() -> None:
    runs = batch_of(make_task(), [5, 6, 7, 8])
    runs.step(LRS, ALL)
    state = runs.state_dict()
    before = through_file(state)
    runs.step(LRS, ALL)
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
