"""Image runs with normalization and augmentation."""

import copy
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lrpilot.envs  # noqa: F401 (registers the environment)
from lrpilot import LineSearchLR
from lrpilot.tasks.data.images import load_image_data
from lrpilot.tasks.images.models import mlp, resnet9, resnet18, small_cnn
from lrpilot.tasks.images.task import ImageRun, ImageTask
from tests.running import advance, check_environment, through_file
from tests.tasks.images.builders import digits_task

WIDTHS = (8, 12, 16, 20)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": partial(mlp, width=64, normalization="batch"),
    "small_cnn": partial(small_cnn, normalization="group"),
    "resnet9": partial(resnet9, widths=WIDTHS),
    "resnet18": partial(resnet18, widths=WIDTHS),
}
# one residual network is enough for the fast set
NAMES = ["mlp", "small_cnn", "resnet9", pytest.param("resnet18", marks=pytest.mark.slow)]
NEEDS_CIFAR10 = pytest.mark.skipif(
    not os.environ.get("LRPILOT_DATA"), reason="needs the image files: set LRPILOT_DATA"
)


def make_task(model: str = "resnet9", **changes: Any) -> ImageTask:
    return digits_task(model=MODELS[model], **changes)


def buffers(run: ImageRun) -> list[Tensor]:
    return [buffer.clone() for buffer in run.model.buffers()]


class PlainResNet9(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        a, b, c, d = widths
        sizes = [(channels, a), (a, b), (b, b), (b, b), (b, c), (c, d), (d, d), (d, d)]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in sizes:
            self.convs.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(outputs))
        self.fc = nn.Linear(d, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        def layer(i: int, x: Tensor) -> Tensor:
            return torch.relu(self.norms[i](self.convs[i](x)))

        x = functional.max_pool2d(layer(1, layer(0, x)), 2)
        x = x + layer(3, layer(2, x))
        x = functional.max_pool2d(layer(4, x), 2)
        x = functional.max_pool2d(layer(5, x), 2)
        x = x + layer(7, layer(6, x))
        logits: Tensor = self.fc(functional.max_pool2d(x, x.shape[-1]).flatten(1)) / 8
        return logits


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.conv3 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = self.bn3(self.conv3(x)) if self.projects else x
        return functional.relu(y + shortcut)


class PlainResNet18(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        a, b, c, d = widths
        self.conv = nn.Conv2d(channels, a, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(a)
        shapes = [(a, a, 1), (a, a, 1), (a, b, 2), (b, b, 1)]
        shapes += [(b, c, 2), (c, c, 1), (c, d, 2), (d, d, 1)]
        self.blocks = nn.ModuleList(PlainBlock(*shape) for shape in shapes)
        self.fc = nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def plain_losses(
    model: nn.Module, data: Any, *, seed: int, num_steps: int, augment: bool
) -> list[float]:
    """An ordinary training loop that crops and flips image by image."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rng = torch.Generator().manual_seed(seed)
    num_images, _, size, _ = data.train_x.shape
    losses: list[float] = []
    while len(losses) < num_steps:
        order = torch.randperm(num_images, generator=rng)
        for batch in order.split(64)[: min(num_images // 64, num_steps - len(losses))]:
            x = data.train_x[batch]
            if augment:
                corners = torch.randint(0, 9, (2, 64), generator=rng)
                flips = torch.randint(0, 2, (64,), generator=rng)
                images = []
                for image, top, left, flip in zip(x, *corners.tolist(), flips, strict=True):
                    image = functional.pad(image, (4, 4, 4, 4), mode="reflect")
                    image = image[:, top : top + size, left : left + size]
                    images.append(torch.flip(image, [-1]) if flip else image)
                x = torch.stack(images)
            loss = functional.cross_entropy(model(x), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "data",
    ["digits", pytest.param("cifar10", marks=[pytest.mark.slow, NEEDS_CIFAR10])],
)
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(
    ("model", "plain"), [("resnet9", PlainResNet9), ("resnet18", PlainResNet18)]
)
def test_a_resnet_run_equals_a_plain_training_loop(
    model: str, plain: Callable[..., nn.Module], augment: bool, data: str
) -> None:
    seed, num_steps = 11, 25
    run = make_task(model, data=data, augment=augment, num_train=1000).start(seed)
    loaded = load_image_data(data, num_train=1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected_model = plain(loaded.train_x.shape[1], WIDTHS)
    expected = plain_losses(expected_model, loaded, seed=seed, num_steps=num_steps, augment=augment)

    assert advance(run, num_steps) == expected
    assert all(map(torch.equal, run.model.buffers(), expected_model.buffers()))
    expected_model.eval()
    with torch.no_grad():
        logits = expected_model(loaded.held_out_x[:256])
    held_out_loss = float(functional.cross_entropy(logits, loaded.held_out_y[:256]))
    assert run.privileged_loss() == held_out_loss


@pytest.mark.parametrize("model", NAMES)
def test_two_augmented_runs_of_one_seed_are_identical(model: str) -> None:
    task = make_task(model, augment=True)
    first, second = task.start(3), task.start(3)

    assert advance(first, 25) == advance(second, 25)
    assert first.evaluate() == second.evaluate()


def test_runs_of_different_seeds_are_augmented_differently() -> None:
    """With a batch of all images and a learning rate of 0, only the crops change the loss."""
    task = make_task(augment=True, batch_size=1197)
    losses = {float(task.start(seed).step(0.0)) for seed in (0, 1)}
    run = task.start(0)
    losses |= {float(run.step(0.0)), float(run.step(0.0))}

    assert len(losses) == 3


@pytest.mark.slow
@pytest.mark.parametrize("model", NAMES)
# digits has 18 batches of 64: inside epoch 1 and inside epoch 2
@pytest.mark.parametrize("num_steps", [7, 23])
def test_state_through_a_file_continues_bit_identically(model: str, num_steps: int) -> None:
    task = make_task(model, augment=True)
    run = task.start(5)
    advance(run, num_steps)
    state = run.state_dict()
    before = copy.deepcopy(state)
    resumed = task.start(6)
    resumed.load_state_dict(through_file(state))

    assert advance(resumed, 20) == advance(run, 20)
    assert all(map(torch.equal, buffers(resumed), buffers(run)))
    assert resumed.evaluate() == run.evaluate()
    assert all(map(torch.equal, state["fixed"], before["fixed"]))


@pytest.mark.parametrize("model", NAMES)
def test_measuring_a_run_changes_nothing_that_follows(model: str) -> None:
    task = make_task(model, augment=True)
    measured, plain = task.start(0), task.start(0)
    losses = []
    for _ in range(20):
        before = buffers(measured)
        measured.privileged_loss()
        measured.evaluate()
        assert all(map(torch.equal, before, buffers(measured)))
        losses.append(float(measured.step()))

    assert losses == advance(plain, 20)
    assert all(map(torch.equal, buffers(measured), buffers(plain)))
    assert all(module.training for module in measured.model.modules())


def test_a_run_trains_on_after_a_measurement_that_failed() -> None:
    run = make_task().start(0)
    hook = run.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.privileged_loss()
    hook.remove()

    assert run.model.training


@pytest.mark.parametrize("model", ["mlp", "resnet9", "resnet18"])
def test_measurements_use_running_statistics_and_plain_images(model: str) -> None:
    run = make_task(model, augment=True, num_privileged=50).start(0)
    advance(run, 20)
    network = copy.deepcopy(run.model).eval()
    data = load_image_data("digits")
    with torch.no_grad():
        loss = functional.cross_entropy(network(data.held_out_x[:50]), data.held_out_y[:50])
        is_right = network(data.test_x).argmax(1) == data.test_y

    assert run.privileged_loss() == float(loss)
    assert run.evaluate()["test_accuracy"] == float(is_right.sum()) / 300


def test_running_statistics_follow_the_training_batches() -> None:
    run = make_task("resnet9").start(0)
    first = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    run.step()
    run.step()

    means = [x.mean((0, 2, 3)) for x in seen]
    assert first.running_mean is not None
    torch.testing.assert_close(first.running_mean, 0.09 * means[0] + 0.1 * means[1])
    assert int(first.num_batches_tracked or 0) == 2


@pytest.mark.parametrize("model", NAMES)
def test_the_closure_of_a_step_sees_one_minibatch_however_often_it_is_called(model: str) -> None:
    run = make_task(model, augment=True).start(0)
    losses: list[float] = []

    def backward(closure: Callable[[], Tensor]) -> Tensor:
        loss = closure()
        losses.append(float(closure().detach()))
        loss.backward()
        return loss.detach()

    run.differentiate_with(backward)

    assert advance(run, 5) == losses


def test_a_line_search_trains_a_run_with_batch_normalization() -> None:
    run = make_task(optimizer=torch.optim.SGD, base_lr=1.0).start(0)
    scheduler = LineSearchLR(run.optimizer, run.model, batches_per_epoch=18)
    run.differentiate_with(scheduler.search)
    losses = []
    for _ in range(40):
        loss = run.step()
        scheduler.step(loss)
        losses.append(float(loss))

    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    counters = [m.num_batches_tracked for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(counter) for counter in counters if counter is not None} == {40}


@pytest.mark.slow
@pytest.mark.parametrize("model", NAMES)
def test_a_trained_network_classifies_digits(model: str) -> None:
    run = make_task(model).start(0)
    advance(run, 150)

    assert run.evaluate()["test_accuracy"] > 0.9


@pytest.mark.parametrize("model", NAMES)
def test_bfloat16_trains_almost_as_float32(model: str) -> None:
    single = make_task(model).start(0)
    half = make_task(model, precision="bfloat16").start(0)

    losses, expected = advance(half, 20), advance(single, 20)
    assert losses != expected
    assert losses[0] == pytest.approx(expected[0], rel=0.01)
    assert sum(losses) == pytest.approx(sum(expected), rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters)


def test_an_mlp_learns_the_size_of_the_images_from_the_data() -> None:
    run = make_task("mlp").start(0)

    assert run.parameters[0].shape == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("model", NAMES)
def test_both_environment_checkers_pass_without_a_warning(model: str) -> None:
    task = make_task(model, augment=True, total_steps=20, batch_size=16, num_privileged=32)
    check_environment(task)


def test_a_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="`crop_padding` must be at least 0, got -1"):
        make_task(crop_padding=-1)


def test_a_padding_as_large_as_the_images_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`crop_padding` must be below the images' 8 pixels, got 8"
    ):
        make_task(augment=True, crop_padding=8).start(0)


@pytest.mark.parametrize(("name", "first"), [("padding_mode", "reflect"), ("precision", "float32")])
def test_an_unknown_name_is_refused(name: str, first: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be one of \('{first}', .*got 'other'"):
        make_task(**{name: "other"})
