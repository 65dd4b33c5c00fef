"""What changes in the middle of a run, and what does not."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot.evaluation.methods import adaptive, schedules
from lrpilot.evaluation.runs.cell import Cell, grid_of
from lrpilot.evaluation.runs.disturbance import (
    UNDISTURBED,
    BatchSizeChange,
    Disturbance,
    LabelShift,
    LRScaling,
)
from lrpilot.evaluation.runs.grid import Method, Result, train
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask

SMALLER = BatchSizeChange(factor=0.125)
LARGER = BatchSizeChange(factor=8.0)
RAISED = LRScaling(multiple=10.0)
DISTURBANCES = (SMALLER, LARGER, LabelShift(), RAISED, LRScaling(multiple=0.1))
COSINE = Method("cosine", schedules.cosine)
DIGITS = ImageTask(
    name="digits_mlp",
    data="digits",
    model=partial(mlp, width=8),
    optimizer=partial(torch.optim.SGD, momentum=0.9),
    base_lr=0.05,
    total_steps=21,
)
FIRST = 11


def run(disturbance: Disturbance = UNDISTURBED, method: Method = COSINE, **changes: Any) -> Result:
    task = replace(DIGITS, **changes)
    return train(task, method, initial_lr_factor=1.0, seed=3, disturbance=disturbance)


PLAIN = run()


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda d: d.name)
def test_nothing_is_changed_before_the_disturbance(disturbance: Disturbance) -> None:
    disturbed = run(disturbance)
    assert disturbed.losses[:FIRST] == PLAIN.losses[:FIRST]
    assert disturbed.lrs[:FIRST] == PLAIN.lrs[:FIRST]
    assert disturbed.losses[FIRST + 1 :] != PLAIN.losses[FIRST + 1 :]


@pytest.mark.parametrize("disturbance", [SMALLER, LARGER, LabelShift()], ids=lambda d: d.name)
def test_a_schedule_is_not_told(disturbance: Disturbance) -> None:
    assert run(disturbance).lrs == PLAIN.lrs


@settings(deadline=None, max_examples=25)
@given(multiple=st.floats(1e-3, 1e3).filter(lambda value: value != 1.0))
def test_the_optimizer_steps_at_a_multiple_of_what_the_scheduler_says(multiple: float) -> None:
    lrs = run(LRScaling(multiple=multiple)).lrs
    assert lrs[FIRST:] == [lr * multiple for lr in PLAIN.lrs[FIRST:]]


def test_the_scheduler_finds_its_own_learning_rate_between_steps() -> None:
    seen: list[float] = []

    def watching(optimizer: torch.optim.Optimizer, *, total_steps: int) -> Any:
        def factor(t: int) -> float:
            seen.append(float(optimizer.param_groups[0]["lr"]))
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    lrs = run(RAISED, Method("watching", watching)).lrs
    assert set(seen) == {0.05}
    assert lrs == [0.05] * FIRST + [0.5] * (21 - FIRST)


def test_a_scheduler_that_sets_the_rate_within_the_step_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"`disturbance` must not be 'lr x 10 at 0.5 T' where"):
        run(RAISED, Method("hypergradient", partial(adaptive.hypergradient, hyper_lr=1e-3)))


def test_renamed_classes_are_measured_by_their_new_names() -> None:
    task = replace(DIGITS, total_steps=1)
    plain, renamed = task.start(0), task.start(0)
    renamed.shift_labels(10)
    assert renamed.evaluate() == plain.evaluate()
    renamed.shift_labels(1)
    with torch.no_grad():
        last = list(renamed.model.parameters())[-2:]
        for parameter in last:
            parameter.copy_(parameter.roll(1, 0))
    assert renamed.evaluate() == pytest.approx(plain.evaluate(), rel=1e-6)


def test_an_untrained_loss_comes_back_after_the_labels_have_moved() -> None:
    losses = run(LabelShift(), total_steps=201).losses
    assert losses[100] < 0.5 < 2.0 < losses[101] > losses[-1]


@pytest.mark.parametrize(("disturbance", "size"), [(SMALLER, 8), (LARGER, 512)])
def test_minibatches_have_another_size(disturbance: Disturbance, size: int) -> None:
    started = DIGITS.start(0)
    started.step()
    disturbance.begin(started)
    assert len(started._next_batch()[0]) == size


def test_more_examples_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`batch_size` must be at most the 1197 .* got 6400"):
        run(BatchSizeChange(factor=100.0))


@pytest.mark.parametrize("disturbance", [SMALLER, LabelShift()], ids=lambda d: d.name)
def test_a_factorization_cannot_be_disturbed_so(disturbance: Disturbance) -> None:
    task = NMFTask(
        name="nmf", optimizer=torch.optim.SGD, base_lr=0.01, total_steps=4, shape=(12, 10), rank=3
    )
    with pytest.raises(ValueError, match=r"must be asked of a run .* got NMFRun"):
        train(task, COSINE, initial_lr_factor=1.0, seed=0, disturbance=disturbance)
    scaled = train(task, COSINE, initial_lr_factor=1.0, seed=0, disturbance=RAISED)
    assert len(scaled.losses) == 4


@pytest.mark.parametrize(
    ("share", "total_steps", "first"), [(0.5, 20, 10), (0.5, 21, 11), (0.9, 10, 9), (0.1, 1, 1)]
)
def test_the_first_disturbed_step_is_at_its_share(
    share: float, total_steps: int, first: int
) -> None:
    assert Disturbance(share=share).first_step(total_steps) == first


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_before_or_after_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\), got"):
        LabelShift(share=share)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, float("inf"), float("nan")])
def test_a_change_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="`factor` must be positive, finite and not 1, got"):
        BatchSizeChange(factor=value)
    with pytest.raises(ValueError, match="`multiple` must be positive, finite and not 1, got"):
        LRScaling(multiple=value)


def test_a_shift_by_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`shift` must be at least 1, got 0"):
        LabelShift(shift=0)


def test_a_disturbance_is_part_of_a_cells_identity_and_of_its_row(task: QuadraticTask) -> None:
    later = LRScaling(multiple=10.0, share=0.75)
    cells = [
        Cell(task, COSINE, 1.0, 7, disturbance=disturbance)
        for disturbance in (UNDISTURBED, RAISED, later, LRScaling(multiple=0.1))
    ]
    assert len({cell.name for cell in cells}) == 4
    names = ["none", "lr x 10 at 0.5 T", "lr x 10 at 0.75 T", "lr x 0.1 at 0.5 T"]
    assert [cell.train().row["disturbance"] for cell in cells] == names


def test_a_grid_is_disturbed_as_a_whole(task: QuadraticTask) -> None:
    cells = grid_of(task, [COSINE], initial_lr_factors=[1.0], seeds=[1, 2], disturbance=RAISED)
    assert {cell.disturbance for cell in cells} == {RAISED}
