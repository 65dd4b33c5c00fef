import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from lrpilot.policy.observation import ObservationSpec
from tests.observing import Script, loss_observer, observe, observer_of
from tests.running import through_file

INF, NAN = math.inf, math.nan


# ---- what counts as a loss


@pytest.mark.parametrize(
    "loss",
    [
        1.5,
        torch.tensor(1.5),
        torch.tensor([1.5]),
        torch.tensor([[1.5]], dtype=torch.float64),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor(1.5, requires_grad=True),
        np.float32(1.5),
        np.float64(1.5),
        np.array(1.5),
    ],
    ids=repr,
)
def test_every_kind_of_number_is_the_same_loss(loss: Any) -> None:
    observer = loss_observer(3.0)
    observer.add_loss(loss)
    assert np.array_equal(observe(observer), observe(loss_observer(3.0, 1.5)))


def test_a_whole_number_is_a_loss() -> None:
    assert np.array_equal(observe(loss_observer(2, 1)), observe(loss_observer(2.0, 1.0)))


def test_a_negative_first_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`loss` must be positive at the start.* got -1\.0"):
        loss_observer(-1.0)


def test_a_negative_later_loss_is_observed() -> None:
    assert loss_observer(1.0, -3.0).interval_loss == -1.0


@pytest.mark.parametrize("loss", [None, "1.5", [1.0], {}, object], ids=repr)
def test_what_is_not_a_number_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match="`loss` must be a number or a tensor of one element, got"):
        loss_observer(loss)


@pytest.mark.parametrize("shape", [(2,), (0,), (2, 3)])
def test_a_tensor_of_several_elements_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`loss` must have one element, got shape \("):
        loss_observer(torch.ones(shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [None, -1.0, torch.ones(2)], ids=["None", "negative", "vector"])
def test_a_refused_loss_leaves_the_state_as_it_was(loss: Any) -> None:
    observer = loss_observer()
    before = observer.state_dict()
    with pytest.raises((TypeError, ValueError)):
        observer.add_loss(loss)
    assert observer.state_dict() == before


def test_nonfinite_losses_are_counted() -> None:
    assert loss_observer(1.0, NAN, INF, 2.0, -INF).num_nonfinite == 3


def test_the_first_positive_loss_is_the_reference() -> None:
    assert loss_observer(NAN, 0.0, 4.0, 2.0).state["initial_loss"] == 4.0


# ---- state


def num_numbers(value: Any) -> int:
    """How many numbers a state holds, or the attributes of an object."""
    if isinstance(value, Tensor | np.ndarray):
        return math.prod(value.shape)
    if isinstance(value, dict):
        return sum(map(num_numbers, value.values()))
    return sum(map(num_numbers, value)) if isinstance(value, list | tuple) else 1


def test_neither_observer_nor_state_grows_with_the_number_of_losses() -> None:
    script = Script()
    script.interval(0)
    script.update(1, 0)
    held, kept = num_numbers(vars(script.observer)), num_numbers(script.observer.state_dict())
    for i in range(1, 2000):
        script.update(1, i)
    assert num_numbers(vars(script.observer)) == held
    assert num_numbers(script.observer.state_dict()) == kept


def test_the_state_does_not_grow_with_the_number_of_intervals() -> None:
    script = Script()
    script.interval(0)
    kept = num_numbers(script.observer.state_dict())
    for k in range(1, 50):
        script.interval(k, num_losses=20)
    assert num_numbers(script.observer.state_dict()) == kept


def test_the_size_of_the_state_follows_num_entries_and_not_the_model() -> None:
    def state_numbers(model_size: int) -> int:
        observer = observer_of(ObservationSpec(num_entries=10), [torch.ones(model_size)])
        return sum(v.numel() for v in observer.state_dict().values() if isinstance(v, Tensor))

    assert state_numbers(100) == state_numbers(100_000)


@pytest.mark.parametrize("copied", [through_file, copy.deepcopy, dict])
@pytest.mark.parametrize("num_intervals", [0, 1, 3])
def test_a_state_taken_inside_an_interval_continues_bit_identically(
    copied: Callable[[dict[str, Any]], dict[str, Any]], num_intervals: int
) -> None:
    whole = Script()
    for k in range(num_intervals):
        whole.interval(k)
    whole.update(num_intervals, 0)
    whole.update(num_intervals, 1)
    resumed = Script()
    resumed.observer.load_state_dict(copied(whole.observer.state_dict()))
    for script in (whole, resumed):
        script.update(num_intervals, 2)
    assert np.array_equal(whole.close(num_intervals), resumed.close(num_intervals))
    for k in range(num_intervals + 1, num_intervals + 4):
        assert np.array_equal(whole.interval(k), resumed.interval(k))


def test_a_state_is_not_changed_by_the_run_that_goes_on() -> None:
    script = Script()
    script.interval(0)
    script.interval(1)
    state = script.observer.state_dict()
    before = copy.deepcopy(state)
    script.interval(2)
    (values, names), (old, old_names) = tree_flatten(state), tree_flatten(before)
    assert names == old_names
    assert sum(isinstance(value, Tensor) for value in old) == 2
    for now, then in zip(values, old, strict=True):
        same = torch.equal if isinstance(then, Tensor) else operator.eq
        assert same(now, then)


def test_a_run_is_not_changed_by_writing_into_its_state() -> None:
    first, second = Script(), Script()
    for script in (first, second):
        script.interval(0)
        script.interval(1)
    tensors = [x for x in tree_leaves(first.observer.state_dict()) if isinstance(x, Tensor)]
    assert len(tensors) == 2
    for tensor in tensors:
        tensor.fill_(NAN)
    assert np.array_equal(first.interval(2), second.interval(2))


def test_a_run_is_not_changed_by_writing_into_the_state_it_loaded() -> None:
    first, second = Script(), Script()
    for script in (first, second):
        script.interval(0)
        script.interval(1)
    state = first.observer.state_dict()
    first.observer.load_state_dict(state)
    for value in state.values():
        if isinstance(value, Tensor):
            value.fill_(NAN)
    assert np.array_equal(first.interval(2), second.interval(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_loaded_on_the_cpu_continues_on_the_device_of_the_parameters() -> None:
    parameter = torch.ones(5, device="cuda")
    observer = observer_of(ObservationSpec(("movement",)), [parameter])
    state = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in observer.state_dict().items()}
    observer.load_state_dict(state)
    parameter.mul_(2.0)
    assert np.isfinite(observe(observer)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_losses_on_a_device_give_the_features_of_the_same_losses_on_the_cpu() -> None:
    losses = torch.tensor([2.0, 1.0, NAN, 0.5], dtype=torch.float64)
    cpu, device = loss_observer(), loss_observer()
    for loss in losses:
        cpu.add_loss(loss)
        device.add_loss(loss.cuda())
    assert np.array_equal(observe(cpu), observe(device))
