import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.tasks.images.models import mlp, resnet9, resnet18, small_cnn
from lrpilot.tasks.images.task import (
    BatchedImageRuns,
    ImageTask,
    can_lie_channels_last,
    runs_and_channels_last,
)
from tests.batched import EVERYONE, SEEDS, compare, lrs_of, start_batch
from tests.running import check_batched_environments, through_file
from tests.tasks.images.builders import digits_task

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(SGD, weight_decay=0.01),
    "momentum": partial(SGD, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(ADAM, weight_decay=0.01, betas=(0.8, 0.99)),
    "adamw": partial(ADAMW, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.9, eps=1e-6, weight_decay=0.01),
}
MODELS: dict[str, Any] = {
    "mlp": partial(mlp, width=16),
    "normalized mlp": partial(mlp, width=16, normalization="layer", activation="gelu"),
    "cnn": small_cnn,
    "normalized cnn": partial(small_cnn, normalization="group"),
}


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@dataclass(frozen=True)
class Double:
    """A model in float64 for images in float32."""

    make: Any

    def __call__(self, channels: int, num_classes: int, *, image_size: int) -> nn.Module:
        is_mlp = self.make.func is mlp if isinstance(self.make, partial) else False
        size = {"image_size": image_size} if is_mlp else {}
        return nn.Sequential(ToDouble(), self.make(channels, num_classes, **size)).double()


def make_task(name: str = "mlp", optimizer: Any = "momentum", **changes: Any) -> ImageTask:
    arguments: dict[str, Any] = {
        "model": Double(MODELS[name]),
        "optimizer": OPTIMIZERS.get(optimizer, optimizer),
        "base_lr": 0.003 if optimizer in ("adam", "adamw", "rmsprop") else 0.05,
        "total_steps": 50,
        "batch_size": 16,
        "num_privileged": 64,
    }
    return digits_task(**{**arguments, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_runs_equal_single_runs_for_20_steps_in_float64(model: str, optimizer: str) -> None:
    compare(make_task(model, optimizer))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_runs_equal_single_runs_for_20_steps_in_float32(model: str, optimizer: str) -> None:
    task = make_task(optimizer=optimizer, model=MODELS[model])
    runs, singles = start_batch(task), [task.start(seed) for seed in SEEDS]
    # Adam divides by the root of tiny second moments, so that rounding grows
    tolerance = 5e-3 if "adam" in optimizer else 1e-5
    for step in range(20):
        lrs = lrs_of(task) * (1 - step / 60)
        losses = runs.step(lrs, EVERYONE).tolist()
        pairs = zip(singles, lrs.tolist(), strict=True)
        assert losses == pytest.approx([float(run.step(lr)) for run, lr in pairs], abs=tolerance)
    for row, single in zip(runs.parameters, singles, strict=True):
        expected = nn.utils.parameters_to_vector(single.parameters)
        torch.testing.assert_close(row, expected, rtol=0.0, atol=tolerance)


NORMALIZED: dict[str, Any] = {
    "mlp": partial(mlp, width=16, normalization="batch"),
    "cnn": partial(small_cnn, normalization="batch"),
    "resnet9": partial(resnet9, widths=(4, 4, 8, 8)),
}


@pytest.mark.parametrize("model", NORMALIZED)
def test_runs_with_batch_normalization_equal_single_runs_for_20_steps(model: str) -> None:
    compare(make_task(model=Double(NORMALIZED[model])))


def test_running_statistics_are_those_of_single_runs() -> None:
    task = make_task(model=Double(NORMALIZED["cnn"]))
    runs, singles = start_batch(task), [task.start(seed) for seed in SEEDS]
    for _ in range(5):
        runs.step(lrs_of(task), EVERYONE)
        for single, lr in zip(singles, lrs_of(task).tolist(), strict=True):
            single.step(lr)
    buffers = runs.state_dict()["buffers"]
    for i, single in enumerate(singles):
        for stacked, buffer in zip(buffers, single.state_dict()["fixed"], strict=True):
            torch.testing.assert_close(stacked[i], buffer, rtol=1e-9, atol=1e-12)


def test_measuring_leaves_running_statistics_alone() -> None:
    runs = start_batch(make_task(model=NORMALIZED["cnn"]))
    before = runs.state_dict()["buffers"]
    runs.privileged_losses()
    after = runs.state_dict()["buffers"]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("normalization", ["none", "batch", "group"])
@pytest.mark.parametrize("model", [partial(mlp, width=16), small_cnn])
def test_runs_in_bfloat16_equal_single_runs_to_its_rounding(model: Any, normalization: str) -> None:
    # rounding is 2^-8 relative, at different places: each side is compared with float32
    make = partial(make_task, model=partial(model, normalization=normalization))
    task = make(precision="bfloat16")
    runs = start_batch(task)
    losses = runs.step(torch.full((3,), 0.05), EVERYONE)
    assert losses.dtype == runs.weights().dtype == torch.float32
    privileged = runs.privileged_losses()
    for i, seed in enumerate(SEEDS):
        single, exact = task.start(seed), make().start(seed)
        loss, _ = single.step(0.05), exact.step(0.05)
        assert float(losses[i]) == pytest.approx(float(loss), rel=2**-8)
        assert float(privileged[i]) == pytest.approx(single.privileged_loss(), rel=2**-7)
        rounded, unrounded = (
            ParameterSample(run.parameters, ObservationSpec().num_entries).gradients()
            for run in (single, exact)
        )
        error, error_of_single = runs.gradients()[i] - unrounded, rounded - unrounded
        assert 0.0 < float(error.norm()) <= 1.5 * float(error_of_single.norm())


def test_channels_of_all_runs_lie_side_by_side_for_a_grouped_convolution() -> None:
    images = torch.randn(3, 5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    laid_out = runs_and_channels_last(images)
    assert torch.equal(laid_out, images)
    groups = laid_out.transpose(0, 1).flatten(1, 2)
    assert groups.is_contiguous(memory_format=torch.channels_last)
    assert groups.data_ptr() == laid_out.data_ptr()


CHANNELS_LAST = {
    **NORMALIZED,
    "cnn": small_cnn,
    "resnet18": partial(resnet18, widths=(4, 4, 8, 8)),
}


@dataclass(frozen=True, kw_only=True)
class ChannelsLastTask(ImageTask):
    """Lays out images as on a GPU."""

    def start_batch(self, num_runs: int) -> BatchedImageRuns:
        runs = super().start_batch(num_runs)
        runs._lies_channels_last = True
        return runs


@pytest.mark.parametrize("model", CHANNELS_LAST)
def test_runs_that_lie_channels_last_equal_single_runs(model: str) -> None:
    task = make_task(model=Double(CHANNELS_LAST[model]))
    compare(ChannelsLastTask(**vars(task)), 5)


@pytest.mark.parametrize(
    ("model", "expected"), [("cnn", True), ("normalized cnn", False), ("adaptive", False)]
)
def test_only_a_network_that_can_be_mapped_so_lies_channels_last(
    model: str, expected: bool
) -> None:
    adaptive = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 10))
    network = adaptive if model == "adaptive" else MODELS[model](1, 10)
    assert can_lie_channels_last(network) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", [*MODELS.values(), *NORMALIZED.values()])
def test_runs_on_a_gpu_equal_single_runs_there(model: Any) -> None:
    compare(make_task(model=Double(model), augment=True, device="cuda"))


def test_a_model_of_two_dtypes_is_refused() -> None:
    def make(channels: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8).double(), nn.Linear(8, num_classes))

    with pytest.raises(ValueError, match="`model` of batched runs must have one dtype, got"):
        make_task(model=make).start_batch(2)


def test_augmented_runs_equal_single_runs() -> None:
    compare(make_task("cnn", augment=True, crop_padding=2))


def test_runs_of_so_many_weights_that_they_are_sampled_equal_single_runs() -> None:
    task = make_task(model=Double(partial(mlp, width=400)))
    compare(task)
    assert start_batch(task).weights().shape == (3, ObservationSpec().num_entries)


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    task = make_task()
    alone, beside = start_batch(task), start_batch(task)
    for _ in range(10):
        expected = alone.step(torch.tensor([0.05, 0.05, 0.05]), EVERYONE)
        losses = beside.step(torch.tensor([0.05, math.inf, 0.05]), EVERYONE)
    assert losses[0] == expected[0]
    assert losses[1].isnan()
    assert losses[2] == expected[2]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_step_is_linear_in_the_learning_rate(optimizer: str) -> None:
    moves = []
    for lr in (0.0, 0.01, 0.02):
        runs = start_batch(make_task(optimizer=optimizer))
        runs.step(torch.full((3,), 0.01), EVERYONE)
        before = runs.parameters.clone()
        runs.step(torch.full((3,), lr), EVERYONE)
        moves.append(runs.parameters - before)
    assert not moves[0].any()
    torch.testing.assert_close(2 * moves[1], moves[2], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_through_a_file_continues_bit_identically(optimizer: str) -> None:
    task = make_task(optimizer=optimizer)
    first, second = start_batch(task), task.start_batch(3)
    lrs = lrs_of(task)
    for _ in range(5):
        first.step(lrs, EVERYONE)
    second.load_state_dict(through_file(first.state_dict()))
    # 74 steps are an epoch: a new order is drawn
    for _ in range(75):
        assert torch.equal(first.step(lrs, EVERYONE), second.step(lrs, EVERYONE))
    assert torch.equal(first.weights(), second.weights())
    assert torch.equal(first.gradients(), second.gradients())


def test_runs_share_one_copy_of_the_data() -> None:
    task = make_task()
    assert task.start_batch(2).data is task.start_batch(3).data is task.start(0).data


def test_runs_leave_the_global_generator_alone() -> None:
    task = make_task()
    start_batch(task)
    before = torch.get_rng_state()
    runs = start_batch(task)
    runs.step(lrs_of(task), EVERYONE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": torch.optim.Adagrad}, "must be torch's SGD, Adam, AdamW or RMSprop"),
        ({"optimizer": partial(SGD, momentum=0.9, dampening=0.1)}, "`dampening` of batched runs"),
        ({"optimizer": partial(ADAM, amsgrad=True)}, "`amsgrad` of batched runs must be off"),
        ({"optimizer": partial(ADAMW, maximize=True)}, "`maximize` of batched runs must be off"),
        (
            {"optimizer": partial(torch.optim.RMSprop, momentum=0.9)},
            "`momentum` of batched runs must be off, got 0.9",
        ),
        (
            {"optimizer": partial(torch.optim.RMSprop, centered=True)},
            "`centered` of batched runs must be off, got True",
        ),
        (
            {"model": lambda *_: nn.Sequential(nn.Flatten(), nn.LSTM(64, 10))},
            "`model` of batched runs must be without recurrent layers, got LSTM",
        ),
        (
            {"model": lambda *_: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))},
            "`model` of batched runs must drop by `RunDropout`",
        ),
        (
            {
                "model": lambda *_: nn.Sequential(
                    nn.BatchNorm2d(1, momentum=None), nn.Conv2d(1, 1, 8)
                )
            },
            "`momentum` of batch normalization in batched runs must be a number, got None",
        ),
    ],
)
def test_what_cannot_be_batched_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**change).start_batch(2)


def test_networks_have_no_cap() -> None:
    with pytest.raises(ValueError, match="`cap` must be asked of runs that have one"):
        start_batch(make_task()).cap()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_instances_equal_single_environments_through_their_resets(optimizer: str) -> None:
    task = make_task(optimizer=optimizer, total_steps=24)
    check_batched_environments(task, 4)
