import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot import GreedyLR
from lrpilot.tasks.networks.from_model import from_model
from lrpilot.tasks.networks.randomness import RunDropout
from tests.batched import compare, start_batch
from tests.running import (
    advance,
    check_batched_environments,
    check_environment,
    through_file,
)

OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
    "adamw": torch.optim.AdamW,
}


def points(num_examples: int = 240, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs, and which of three random directions is nearest."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_examples, 6, generator=generator, dtype=dtype)
    directions = torch.randn(6, 3, generator=generator, dtype=dtype)
    return inputs, (inputs @ directions).argmax(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def normalized() -> nn.Module:
    # without a bias, whose gradient would be rounding alone, which Adam makes as large as any
    first = nn.Linear(6, 16, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double()


def regression() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1), nn.Flatten(0)).double()


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)).double()


def with_run_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), RunDropout(0.5), nn.Linear(16, 3)).double()


class HalfFrozen(nn.Module):
    """Trains the last layer alone; the first one is the same in every network, or random."""

    def __init__(self, *, is_random: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16).double().requires_grad_(False)
        if not is_random:
            nn.init.eye_(self.first.weight)
            nn.init.zeros_(self.first.bias)
        self.last = nn.Linear(16, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(x).tanh())
        return outputs


make_task = partial(
    from_model,
    name="points",
    model=mlp,
    loss=functional.cross_entropy,
    data=points(),
    optimizer=OPTIMIZERS["momentum"],
    base_lr=0.05,
    total_steps=30,
    batch_size=16,
    num_privileged=32,
)


BATCHED: dict[str, dict[str, Any]] = {
    "mlp": {},
    "batch normalization": {"model": normalized},
    "squared error": {
        "model": regression,
        "loss": functional.mse_loss,
        "data": (points()[0], points()[0].sum(1)),
    },
    "smoothed labels": {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
    "frozen layer": {"model": HalfFrozen},
    "dropout of the run": {"model": with_run_dropout},
    "shortened gradients": {"max_gradient_norm": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("changes", BATCHED)
def test_batched_runs_equal_single_runs_in_float64(changes: str, optimizer: str) -> None:
    compare(make_task(**BATCHED[changes], optimizer=OPTIMIZERS[optimizer]), 30)


def test_batched_runs_equal_single_runs_in_float32() -> None:
    compare(make_task(model=lambda: mlp().float(), data=points(dtype=torch.float32)))


def test_batched_environments_equal_single_ones_through_their_resets() -> None:
    check_batched_environments(make_task(total_steps=24), 4)


@pytest.mark.parametrize("model", [mlp, normalized, with_dropout])
def test_environment_passes_the_checkers(model: Callable[[], nn.Module]) -> None:
    check_environment(make_task(model=model))


def branching_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.detach().sum() > 1e9:
        return outputs.sum()
    return functional.cross_entropy(outputs, targets)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x + torch.randn_like(x))
        return outputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Noisy}, "torch.func.vmap maps"),
        ({"loss": branching_loss}, "torch.func.vmap maps"),
        ({"model": with_dropout}, "`model` of batched runs must drop by"),
        ({"optimizer": torch.optim.Adagrad}, "must be torch's SGD, Adam, AdamW or RMSprop"),
        (
            {"model": partial(HalfFrozen, is_random=True)},
            "the same frozen parameters for every seed, got another 'first.weight'",
        ),
    ],
)
def test_what_cannot_be_batched_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    task = make_task(**changes)
    assert math.isfinite(float(task.start(0).step()))
    with pytest.raises(ValueError, match=message):
        task.start_batch(2)


@pytest.mark.parametrize("model", [mlp, normalized, with_dropout, Noisy])
def test_two_runs_of_one_seed_are_identical(model: Callable[[], nn.Module]) -> None:
    task = make_task(model=model)
    first, second = task.start(3), task.start(3)
    assert advance(first, 20) == advance(second, 20)
    assert first.evaluate() == second.evaluate()
    assert advance(first, 1) != advance(task.start(4), 1)


@pytest.mark.parametrize("model", [mlp, normalized, with_dropout, HalfFrozen])
def test_the_global_generator_is_left_alone(model: Callable[[], nn.Module]) -> None:
    before = torch.get_rng_state()
    run = make_task(model=model).start(0)
    run.step()
    run.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "model", [mlp, normalized, with_dropout, partial(HalfFrozen, is_random=True)]
)
def test_state_through_a_file_continues_bit_identically(model: Callable[[], nn.Module]) -> None:
    task = make_task(model=model)
    first, second = task.start(0), task.start(1)
    advance(first, 5)
    second.load_state_dict(through_file(first.state_dict()))
    # 12 steps are an epoch: new orders are drawn
    assert advance(first, 30) == advance(second, 30)
    assert first.evaluate() == second.evaluate()


def test_state_of_batched_runs_through_a_file_continues_bit_identically() -> None:
    task = make_task(model=normalized)
    first, second = start_batch(task), task.start_batch(3)
    everyone, lrs = torch.ones(3, dtype=torch.bool), torch.full((3,), 0.05)
    for _ in range(5):
        first.step(lrs, everyone)
    second.load_state_dict(through_file(first.state_dict()))
    for _ in range(20):
        assert torch.equal(first.step(lrs, everyone), second.step(lrs, everyone))
    assert torch.equal(first.privileged_losses(), second.privileged_losses())


def test_a_repeated_closure_drops_the_same_units() -> None:
    run = make_task(model=with_dropout).start(0)
    run.step(lr=0.0)
    assert torch.equal(run.repeat_loss(), run.repeat_loss())


def test_training_improves_the_held_out_loss() -> None:
    run = make_task().start(0)
    before = run.evaluate()["held_out_loss"]
    advance(run, 60)
    assert run.evaluate()["held_out_loss"] < 0.5 * before


def test_a_scheduler_drives_a_run() -> None:
    run = make_task().start(0)
    scheduler = GreedyLR(run.optimizer)
    for _ in range(5):
        scheduler.step(run.step())


def test_the_held_out_loss_is_the_mean_over_all_examples() -> None:
    task = make_task(data=points(3000), held_out_share=0.5)
    run = task.start(0)
    outputs = run.model(task.splits.held_out_x).detach()
    expected = float(functional.cross_entropy(outputs, task.splits.held_out_y))
    assert run.evaluate()["held_out_loss"] == pytest.approx(expected, rel=1e-12)


def test_the_test_loss_is_measured_where_there_is_a_test_split() -> None:
    metrics = make_task(test_share=0.1).start(0).evaluate()
    assert set(metrics) == {"held_out_loss", "held_out_accuracy", "test_loss", "test_accuracy"}


def test_the_privileged_loss_is_of_at_most_256_examples_by_default() -> None:
    assert make_task(num_privileged=None).num_privileged == 48
    assert make_task(num_privileged=None, data=points(3000)).num_privileged == 256


def test_an_accuracy_is_measured_where_targets_are_numbers_of_classes() -> None:
    run = make_task().start(0)
    advance(run, 60)
    outputs = run.model(run.data.held_out_x)
    expected = (outputs.argmax(1) == run.data.held_out_y).double().mean()
    assert run.evaluate()["held_out_accuracy"] == float(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"data": (points()[0], functional.one_hot(points()[1]).double())},
        {"data": (points()[0], points()[1].where(points()[1] > 0, -100))},
        BATCHED["squared error"],
    ],
)
def test_what_is_no_plain_classification_has_a_loss_alone(changes: dict[str, Any]) -> None:
    assert set(make_task(**changes).start(0).evaluate()) == {"held_out_loss"}


def test_gradients_are_shortened_to_the_given_norm() -> None:
    run = make_task(max_gradient_norm=0.01).start(0)
    run.step()
    norms = [parameter.grad.norm() for parameter in run.parameters if parameter.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(0.01, rel=1e-3)


def test_an_epoch_is_what_full_minibatches_there_are() -> None:
    assert make_task().steps_per_epoch() == 192 // 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 193}, "`batch_size` must be at most the 192 training examples"),
        ({"num_privileged": 49}, "`num_privileged` must be at most the 48 held-out examples"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"base_lr": 0.0}, "`base_lr` must be positive"),
        ({"precision": "float16"}, "`precision` must be one of"),
        ({"model": lambda: 3}, "`model` must be a function that makes a new torch module, got int"),
        (
            {"loss": nn.CrossEntropyLoss(reduction="none")},
            r"shape \(\) that depends on the weights",
        ),
        ({"loss": lambda *_: 0.5}, "`loss` must return the mean over a minibatch.* got float"),
        ({"loss": lambda *_: torch.tensor(1.0)}, "that depends on the weights"),
        (
            {"model": lambda: nn.LSTM(6, 3).double(), "loss": lambda outputs, _: outputs[0].sum()},
            "`model` must return one tensor, got tuple",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**changes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", BATCHED)
def test_batched_runs_on_a_gpu_equal_single_runs_there(changes: str) -> None:
    compare(make_task(**BATCHED[changes], device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_a_gpu_is_drawn_from_the_seed() -> None:
    task = make_task(model=with_dropout, device="cuda")
    before = torch.cuda.get_rng_state()
    assert advance(task.start(3), 5) == advance(task.start(3), 5)
    assert torch.equal(torch.cuda.get_rng_state(), before)
