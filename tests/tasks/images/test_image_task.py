import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lrpilot.tasks.data.images import ImageData, load_image_data
from lrpilot.tasks.images import task as image_task
from lrpilot.tasks.images.models import small_cnn
from lrpilot.tasks.images.task import ImageTask
from tests.tasks.images.builders import digits_task

# an `id` would come again, and the data of a name are kept
NAMES = itertools.count()


def with_nan(data: ImageData, *splits: str) -> ImageData:
    names = [f"{split}_x" for split in splits]
    poison: dict[str, Any] = {
        name: torch.full_like(getattr(data, name), math.nan) for name in names
    }
    return dataclasses.replace(data, **poison)


@pytest.fixture
def use_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageData], str]:
    """Makes a data set available under a name of its own."""

    def use(data: ImageData) -> str:
        monkeypatch.setattr(image_task, "load_image_data", lambda *args, **kwargs: data)
        return f"made by a test: {next(NAMES)}"

    return use


@pytest.mark.parametrize("optimizer_name", ["momentum", "adamw"])
def test_a_run_equals_a_plain_training_loop(optimizer_name: str) -> None:
    seed, batch_size, num_steps = 11, 64, 40
    kwargs: dict[str, Any] = {"momentum": {"momentum": 0.9}, "adamw": {}}[optimizer_name]
    optimizer_class: Any = torch.optim.SGD if optimizer_name == "momentum" else torch.optim.AdamW
    run = digits_task(optimizer=partial(optimizer_class, **kwargs), base_lr=0.01).start(seed)
    observed = [float(run.step()) for _ in range(num_steps)]

    data = load_image_data("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_cnn(1, 10)
    optimizer = optimizer_class(model.parameters(), lr=0.01, **kwargs)
    criterion = nn.CrossEntropyLoss()
    shuffle = torch.Generator().manual_seed(seed)
    expected: list[float] = []
    while len(expected) < num_steps:
        order = torch.randperm(1197, generator=shuffle)
        for batch in order[: 1197 // batch_size * batch_size].view(-1, batch_size):
            if len(expected) == num_steps:
                break
            loss = criterion(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())

    assert observed == expected
    assert all(map(torch.equal, run.parameters, model.parameters()))


def test_an_epoch_visits_each_image_at_most_once_and_drops_the_rest() -> None:
    run = digits_task(batch_size=100).start(0)
    seen: list[float] = []
    run.model.register_forward_pre_hook(
        lambda _, args: seen.extend(args[0].sum((1, 2, 3)).tolist())
    )
    for _ in range(11):
        run.step()
    available = run.data.train_x.sum((1, 2, 3)).tolist()

    assert len(seen) == 1100
    assert all(seen.count(value) <= available.count(value) for value in set(seen))


def test_batches_of_all_images_have_the_same_loss_in_any_order() -> None:
    run = digits_task(batch_size=1197).start(0)

    assert float(run.step(0.0)) == pytest.approx(float(run.step(0.0)), rel=1e-5)


def test_epochs_are_shuffled_anew() -> None:
    run = digits_task(batch_size=600).start(0)
    first_images = []
    run.model.register_forward_pre_hook(lambda _, args: first_images.append(args[0][0].clone()))
    for _ in range(3):
        run.step()

    assert not torch.equal(first_images[0], first_images[1])
    assert not torch.equal(first_images[1], first_images[2])


def test_all_runs_share_one_copy_of_the_data() -> None:
    # an earlier test may have made the tensors be loaded anew
    image_task._load.cache_clear()
    first = digits_task().start(0)
    second = digits_task(batch_size=32, model=partial(small_cnn), base_lr=0.2).start(1)

    assert first.data is second.data
    loaded = load_image_data("digits")
    assert first.data.train_x.data_ptr() == loaded.train_x.data_ptr()


def test_training_does_not_write_into_the_data() -> None:
    data = load_image_data("digits")
    before = {name: value.clone() for name, value in vars(data).items() if name != "num_classes"}
    run = digits_task().start(0)
    for _ in range(20):
        run.step()
    run.evaluate()

    assert all(torch.equal(getattr(data, name), value) for name, value in before.items())


def test_training_and_privileged_loss_never_read_the_test_split(
    use_data: Callable[[ImageData], str],
) -> None:
    plain = digits_task().start(0)
    poisoned = digits_task(data=use_data(with_nan(load_image_data("digits"), "test"))).start(0)

    for _ in range(20):
        assert float(poisoned.step()) == float(plain.step())
        assert poisoned.privileged_loss() == plain.privileged_loss()
    assert math.isnan(poisoned.evaluate()["test_loss"])


def test_training_never_reads_the_held_out_split(use_data: Callable[[ImageData], str]) -> None:
    plain = digits_task().start(0)
    data = with_nan(load_image_data("digits"), "held_out", "test")
    poisoned = digits_task(data=use_data(data)).start(0)

    assert [float(poisoned.step()) for _ in range(20)] == [float(plain.step()) for _ in range(20)]
    assert math.isnan(poisoned.privileged_loss())


def test_privileged_loss_is_the_loss_of_the_first_held_out_images() -> None:
    run = digits_task(num_privileged=17).start(0)
    run.step()
    data = load_image_data("digits")
    logits = run.model(data.held_out_x[:17])
    expected = nn.functional.cross_entropy(logits, data.held_out_y[:17])

    assert run.privileged_loss() == float(expected.detach())


def test_evaluate_measures_whole_splits_also_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = digits_task().start(0)
    for _ in range(20):
        run.step()
    data = load_image_data("digits")
    expected = {}
    for split in ("held_out", "test"):
        labels = getattr(data, f"{split}_y")
        with torch.no_grad():
            logits = run.model(getattr(data, f"{split}_x"))
        expected[f"{split}_loss"] = float(nn.functional.cross_entropy(logits, labels))
        expected[f"{split}_accuracy"] = float((logits.argmax(1) == labels).float().mean())

    for batch in (1000, 128):
        monkeypatch.setattr(ImageTask, "evaluation_batch", batch)
        assert run.evaluate() == pytest.approx(expected, rel=1e-5)


def test_a_trained_network_classifies_digits() -> None:
    run = digits_task(base_lr=0.1).start(0)
    for _ in range(250):
        run.step()

    assert run.evaluate()["test_accuracy"] > 0.9


def test_num_train_keeps_so_many_training_images() -> None:
    run = digits_task(num_train=100).start(0)

    assert len(run.data.train_x) == 100


@pytest.mark.parametrize("name", ["batch_size", "num_privileged"])
def test_a_size_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        digits_task(**{name: 0})


def test_a_batch_above_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`batch_size` must be at most the 1197 training examples, got 1198"
    ):
        digits_task(batch_size=1198).start(0)


def test_a_batch_above_num_train_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`batch_size` must be at most the 10 training examples, got 64"
    ):
        digits_task(num_train=10).start(0)


def test_more_privileged_than_held_out_images_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`num_privileged` must be at most the 300 held-out examples, got 301"
    ):
        digits_task(num_privileged=301).start(0)


def test_an_epoch_has_as_many_steps_as_there_are_whole_batches() -> None:
    assert digits_task(batch_size=64, num_train=200).steps_per_epoch() == 3
