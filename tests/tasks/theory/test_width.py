import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.data.images import load_image_data
from lrpilot.tasks.theory.width import WidthTask
from tests.running import advance, check_batched_runs, through_file

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
SEEDS = [5, 6, 7]


make_task = partial(
    WidthTask,
    name="width",
    optimizer=MOMENTUM,
    base_lr=0.3,
    total_steps=40,
    width=12,
    num_train=100,
    batch_size=30,
)


def plain_losses(seed: int, num_steps: int) -> list[float]:
    data = load_image_data("digits")
    pixels = data.train_x.reshape(1197, 64)
    inputs = (pixels - pixels.mean(0)) / (pixels.std(0).clip(0.3) * 8.0)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(1197, generator=generator)[:100]
    x, y = inputs[chosen], data.train_y[chosen]
    wrong = torch.randperm(100, generator=generator)[:20]
    y[wrong] = (y[wrong] + torch.randint(1, 10, (20,), generator=generator)) % 10
    inner, outer = nn.Linear(64, 12), nn.Linear(12, 10)
    for parameter in (inner.bias, outer.weight, outer.bias):
        nn.init.zeros_(parameter)
    inner.weight.data = torch.randn(12, 64, generator=generator)
    parameters = [*inner.parameters(), *outer.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.3, momentum=0.9)
    losses: list[float] = []
    while len(losses) < num_steps:
        order = torch.randperm(100, generator=generator)
        for start in (0, 30, 60):
            batch = order[start : start + 30]
            hidden = torch.tanh(inner(x[batch]))
            outputs = hidden @ (outer.weight / math.sqrt(12)).T + outer.bias
            loss = ((outputs - torch.eye(10)[y[batch]]) ** 2).sum(1).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def test_losses_equal_a_plain_loop() -> None:
    assert advance(make_task().start(3), 60) == plain_losses(3, 60)


def test_runs_of_one_seed_are_identical_and_of_another_differ() -> None:
    task = make_task()
    losses = advance(task.start(1), 10)
    assert advance(task.start(1), 10) == losses
    assert advance(task.start(2), 10) != losses


@pytest.mark.parametrize("label_noise", [0.0, 0.15, 1.0])
def test_so_many_labels_are_wrong(label_noise: float) -> None:
    run = make_task(label_noise=label_noise).start(0)
    right = run.data.train_y[run.chosen]
    assert int((run.labels != right).sum()) == round(100 * label_noise)
    assert len(run.chosen.unique()) == 100


def test_wrong_labels_leave_the_data_set_as_it_was() -> None:
    make_task(label_noise=1.0).start(0)
    data = make_task().load()
    assert data.train_y.equal(load_image_data("digits").train_y)


def test_data_of_a_seed_is_the_same_at_every_width() -> None:
    narrow, wide = make_task(width=2).start(4), make_task(width=50).start(4)
    assert narrow.chosen.equal(wide.chosen)
    assert narrow.labels.equal(wide.labels)


@pytest.mark.parametrize(("num_train", "width"), [(300, 40), (100, 14)])
def test_interpolation_width_has_as_many_parameters_as_numbers_to_fit(
    num_train: int, width: int
) -> None:
    def count(width: int) -> int:
        run = make_task(width=width).start(0)
        return sum(parameter.numel() for parameter in run.parameters)

    assert math.ceil(make_task(num_train=num_train).interpolation_width) == width
    assert count(width - 1) < 10 * num_train <= count(width)


def test_network_starts_at_zero() -> None:
    assert make_task().start(0).privileged_loss() == 0.5


def test_metrics_are_those_of_the_whole_splits() -> None:
    run = make_task().start(0)
    advance(run, 30)
    metrics = run.evaluate()
    with torch.no_grad():
        outputs = run.model(run.data.test_x)
        errors = outputs - functional.one_hot(run.data.test_y)
        given = run.model(run.data.train_x[run.chosen]).argmax(1)
    assert metrics["test_loss"] == pytest.approx(float((errors**2).sum() / 300 / 2), rel=1e-6)
    assert metrics["train_accuracy"] == pytest.approx((given == run.labels).float().mean().item())
    assert metrics["held_out_loss"] == run.privileged_loss()


def test_a_run_of_another_seed_continues_from_the_state_exactly() -> None:
    task = make_task()
    run = task.start(0)
    advance(run, 11)
    state = through_file(run.state_dict())
    losses = advance(run, 20)
    other = task.start(1)
    advance(other, 5)
    other.load_state_dict(state)
    assert advance(other, 20) == losses
    assert other.evaluate() == run.evaluate()


def test_batched_runs_equal_single_runs() -> None:
    check_batched_runs(make_task(), SEEDS, num_steps=50)


def test_batched_runs_continue_from_the_state_exactly() -> None:
    task = make_task()
    everyone, lrs = torch.ones(3, dtype=torch.bool), torch.full((3,), 0.3)

    def steps(runs: Any) -> list[Tensor]:
        return [runs.step(lrs, everyone) for _ in range(10)]

    runs, others = task.start_batch(3), task.start_batch(3)
    runs.reset([0, 1, 2], SEEDS)
    steps(runs)
    state = through_file(runs.state_dict())
    expected = steps(runs)
    others.load_state_dict(state)
    assert torch.equal(torch.stack(steps(others)), torch.stack(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "`width` must be at least 1, got 0"),
        ({"batch_size": 101}, "`batch_size` must be at most `num_train` = 100, got 101"),
        ({"label_noise": 1.2}, r"`label_noise` must be in \[0, 1\], got 1.2"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**changes)


def test_more_images_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_train` must be at most 1197, got 2000"):
        make_task(num_train=2000).start(0)


@pytest.mark.slow
def test_test_loss_peaks_at_the_interpolation_width_unless_the_learning_rate_is_cautious() -> None:
    def mean_test_loss(width: int, lr: float) -> float:
        task = make_task(width=width, num_train=300, batch_size=50)
        losses = []
        for seed in range(2):
            run = task.start(seed)
            for _ in range(3000):
                run.step(lr)
            losses.append(run.evaluate()["test_loss"])
        return float(np.mean(losses))

    narrow, peak, wide = (mean_test_loss(width, 1.0) for width in (14, 40, 320))
    assert peak > 1.2 * narrow
    assert peak > 1.4 * wide
    assert mean_test_loss(40, 0.03) < 0.7 * peak
