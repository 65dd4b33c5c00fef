import copy
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from lrpilot.tasks.data.texts import SentenceData, TextData
from lrpilot.tasks.images.models import resnet9
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.networks.task import measuring
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.runs import Closure, OptimizerFactory, as_closure_run, backpropagate
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from lrpilot.tasks.theory.width import WidthTask
from tests.made_up import SENTENCES, TEXT
from tests.running import advance, through_file
from tests.tasks.nmf.builders import make_task as make_nmf
from tests.tasks.nmf.builders import padded_task as padded_nmf

TASKS = ("quadratic", "nmf", "padded-nmf", "digits", "resnet", "width", "gpt", "sst2")
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# digits has 18 batches of 64 and sst2 6 of 16: inside different epochs
MID_RUN = (7, 23)


def make_task(name: str, optimizer: str = "momentum") -> Task:
    common: dict[str, Any] = {
        "name": name,
        "optimizer": OPTIMIZERS[optimizer],
        "total_steps": 60,
        "base_lr": 0.001 if "adam" in optimizer else 0.01,
    }
    if name == "quadratic":
        return QuadraticTask(**common)
    if name == "nmf":
        return make_nmf(**common)
    if name == "padded-nmf":
        return padded_nmf(
            **common,
            scale_range=(0.2, 5.0),
            noise="gaussian",
            noise_range=(0.1, 1.0),
            cap_kind="segment",
        )
    small: dict[str, Any] = {
        "num_layers": 1,
        "num_heads": 2,
        "width": 16,
        "num_privileged": 8,
        "dropout": 0.2,
    }
    if name == "gpt":
        return GPTTask(**common, **small, batch_size=6, context=16, max_gradient_norm=0.5)
    if name == "sst2":
        return SentenceTask(**common, **small, batch_size=16)
    if name == "width":
        return WidthTask(**common, width=12, num_train=100, batch_size=30)
    images: dict[str, Any] = {"data": "digits", "num_privileged": 32}
    if name == "resnet":
        model = partial(resnet9, widths=(2, 4, 4, 4))
        return ImageTask(**common, **images, model=model, batch_size=16, augment=True)
    return ImageTask(**common, **images)


@pytest.fixture(autouse=True)
def _made_up(
    use_text: Callable[[TextData], None], use_sentences: Callable[[SentenceData], None]
) -> None:
    use_text(TEXT)
    use_sentences(SENTENCES)


def is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def global_generators() -> list[Any]:
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    keys, position = state["state"]["key"], state["state"]["pos"]
    return [torch.get_rng_state(), random.getstate(), torch.from_numpy(keys.copy()), position]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_runs_of_one_seed_have_identical_losses_and_parameters(
    name: str, optimizer: str
) -> None:
    task = make_task(name, optimizer)
    first, second = task.start(3), task.start(3)

    assert advance(first, 25) == advance(second, 25)
    assert is_same(first.parameters, second.parameters)
    assert first.privileged_loss() == second.privileged_loss()


@pytest.mark.parametrize("name", TASKS)
def test_interleaved_runs_do_not_disturb_each_other(name: str) -> None:
    task = make_task(name)
    alone = advance(task.start(0), 10)
    first, other = task.start(0), task.start(1)
    interleaved = []
    for _ in range(10):
        interleaved.append(float(first.step()))
        other.step()

    assert interleaved == alone


@pytest.mark.parametrize("name", TASKS)
def test_runs_of_different_seeds_differ_in_start_and_losses(name: str) -> None:
    task = make_task(name)
    first, second = task.start(0), task.start(1)

    assert not any(map(torch.equal, first.parameters[:1], second.parameters[:1]))
    # the first losses may be equal: a network of task width starts at zero
    losses = zip(advance(first, 6), advance(second, 6), strict=True)
    assert all(a != b for a, b in [*losses][1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("num_steps", MID_RUN)
def test_state_through_a_file_continues_bit_identically(
    name: str, optimizer: str, num_steps: int
) -> None:
    task = make_task(name, optimizer)
    run = task.start(5)
    advance(run, num_steps)
    resumed = task.start(5)
    resumed.load_state_dict(through_file(run.state_dict()))

    assert advance(resumed, 20) == advance(run, 20)
    assert is_same(resumed.parameters, run.parameters)
    assert is_same(resumed.state_dict(), run.state_dict())


@pytest.mark.parametrize("name", TASKS)
def test_state_continues_in_a_run_of_another_seed(name: str) -> None:
    task = make_task(name)
    run = task.start(5)
    advance(run, 7)
    resumed = task.start(6)
    resumed.load_state_dict(run.state_dict())

    assert advance(resumed, 5) == advance(run, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_state_is_not_changed_by_the_run_it_was_taken_from(name: str, optimizer: str) -> None:
    run = make_task(name, optimizer).start(0)
    advance(run, 7)
    state = run.state_dict()
    before = copy.deepcopy(state)
    advance(run, 20)

    assert is_same(state, before)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_state_is_not_changed_by_the_run_that_loaded_it(name: str, optimizer: str) -> None:
    task = make_task(name, optimizer)
    run = task.start(0)
    advance(run, 7)
    state = run.state_dict()
    before = copy.deepcopy(state)
    resumed = task.start(0)
    resumed.load_state_dict(state)
    advance(resumed, 20)

    assert is_same(state, before)


@pytest.mark.parametrize("name", TASKS)
def test_loading_keeps_the_parameter_objects_that_a_scheduler_or_observer_holds(name: str) -> None:
    task = make_task(name)
    run = task.start(0)
    held = [*run.parameters]
    run.load_state_dict(task.start(0).state_dict())

    in_optimizer = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert all(a is b is c for a, b, c in zip(held, run.parameters, in_optimizer, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_a_run_leaves_every_global_generator_alone(name: str) -> None:
    task = make_task(name)
    task.start(0)  # loading data is not part of a run
    before = global_generators()

    run = task.start(1)
    advance(run, 20)
    run.privileged_loss()
    run.evaluate()
    run.load_state_dict(run.state_dict())

    assert is_same(global_generators(), before)


def test_starting_an_image_run_does_not_seed_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    make_task("digits").start(1)

    assert seeds == []


@pytest.mark.parametrize("name", TASKS)
def test_global_seeds_do_not_change_a_run(name: str) -> None:
    task = make_task(name)
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            losses.append(advance(task.start(0), 5))

    assert losses[0] == losses[1]


@pytest.mark.parametrize("lr", [0.0, 0.003, 0.25])
def test_step_uses_the_given_lr_in_this_very_step(lr: float) -> None:
    run = make_task("quadratic", "sgd").start(0)
    before = run.parameters[0].detach().clone()
    run.step(lr)
    gradient = run.parameters[0].grad
    assert gradient is not None

    assert torch.equal(run.parameters[0], before.add(gradient, alpha=-lr))
    assert run.optimizer.param_groups[0]["lr"] == lr


@pytest.mark.parametrize("name", TASKS)
def test_step_without_lr_uses_the_optimizers(name: str) -> None:
    task = make_task(name)
    implicit, explicit = task.start(0), task.start(0)
    implicit.optimizer.param_groups[0]["lr"] = 0.004
    losses = [float(explicit.step(0.004)) for _ in range(5)]

    assert advance(implicit, 5) == losses


@pytest.mark.parametrize("name", TASKS)
def test_a_run_starts_at_the_tasks_base_lr(name: str) -> None:
    task = make_task(name)

    assert [group["lr"] for group in task.start(0).optimizer.param_groups] == [task.base_lr]


@pytest.mark.parametrize("name", TASKS)
def test_a_torch_scheduler_on_the_optimizer_equals_steps_with_its_lrs(name: str) -> None:
    task = make_task(name)
    scheduled, stepped = task.start(0), task.start(0)
    scheduler = StepLR(scheduled.optimizer, 3, gamma=0.5)
    for _ in range(12):
        lr = float(scheduled.optimizer.param_groups[0]["lr"])
        assert float(scheduled.step()) == float(stepped.step(lr))
        scheduler.step()

    assert is_same(scheduled.parameters, stepped.parameters)


@pytest.mark.parametrize("name", TASKS)
def test_step_returns_a_detached_scalar_of_the_forward_pass_before_the_step(name: str) -> None:
    task = make_task(name)
    small, large = task.start(0).step(1e-6), task.start(0).step(1e3)

    assert small.shape == ()
    assert not small.requires_grad
    assert float(small) == float(large)


@pytest.mark.parametrize("name", TASKS)
def test_num_steps_counts_steps_and_comes_back_with_the_state(name: str) -> None:
    task = make_task(name)
    run = task.start(0)
    advance(run, 4)
    resumed = task.start(0)
    resumed.load_state_dict(run.state_dict())

    assert (run.num_steps, resumed.num_steps) == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_measuring_a_run_does_not_change_what_follows(name: str) -> None:
    task = make_task(name)
    measured, plain = task.start(0), task.start(0)
    losses = []
    for _ in range(20):
        assert measured.privileged_loss() == measured.privileged_loss()
        assert measured.evaluate() == measured.evaluate()
        losses.append(float(measured.step()))

    assert losses == advance(plain, 20)


@pytest.mark.parametrize("name", TASKS)
def test_evaluate_reports_a_held_out_loss(name: str) -> None:
    metrics = make_task(name).start(0).evaluate()

    assert metrics["held_out_loss"] > 0.0
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("base_lr", [0.0, -0.1, float("nan")])
def test_a_base_lr_that_is_not_positive_is_refused(base_lr: float) -> None:
    with pytest.raises(ValueError, match=f"`base_lr` must be positive, got {base_lr}"):
        QuadraticTask(name="q", optimizer=torch.optim.SGD, base_lr=base_lr, total_steps=1)


@pytest.mark.parametrize("total_steps", [0, -3])
def test_a_horizon_below_one_is_refused(total_steps: int) -> None:
    with pytest.raises(ValueError, match=f"`total_steps` must be at least 1, got {total_steps}"):
        QuadraticTask(name="q", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=total_steps)


def test_measuring_leaves_a_frozen_layer_in_the_mode_it_was_in() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2).eval())
    with measuring(model):
        assert not model[0].training
    assert (model[0].training, model[1].training) == (True, False)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_at_another_lr_starts_the_same_run_with_its_optimizer_at_that_lr(name: str) -> None:
    task = make_task(name)
    run, same = task.at_lr(0.02).start(0), task.start(0)

    assert [group["lr"] for group in run.optimizer.param_groups] == [0.02]
    assert is_same(run.parameters, same.parameters)
    assert [float(same.step(0.02)) for _ in range(3)] == advance(run, 3)


def test_what_a_task_found_out_is_known_at_every_lr() -> None:
    task = load_task("small_networks", num_setups=3)
    assert isinstance(task, SmallNetworkTask)

    assert task.at_lr(0.02).setups is task.at_lr(0.03).setups is task.setups


def test_what_a_task_found_out_is_not_sent_to_other_processes() -> None:
    task = make_nmf(matrix="digits", scale_range=(1.0, 1.0))
    size = len(pickle.dumps(task))
    assert task.real_matrix.numel() > 10_000

    assert len(pickle.dumps(task)) == size


def test_a_task_at_an_lr_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`base_lr` must be positive, got 0\.0"):
        make_task("quadratic").at_lr(0.0)


def test_the_loss_of_a_run_without_a_closure_is_not_asked_for_again() -> None:
    with pytest.raises(ValueError, match="`run` must be one whose loss a closure repeats, got Qua"):
        as_closure_run(make_task("quadratic").start(0))


@pytest.mark.parametrize("name", ["digits", "resnet", "width", "gpt", "sst2"])
def test_a_repeated_loss_is_that_of_the_last_step(name: str) -> None:
    run = as_closure_run(make_task(name).start(0))
    loss = run.step(0.0)

    assert float(run.repeat_loss().detach()) == float(loss)


def test_what_differentiates_the_closure_can_be_replaced() -> None:
    run, plain = (as_closure_run(make_task("width").start(0)) for _ in range(2))
    seen = []

    def differentiate(closure: Closure) -> torch.Tensor:
        seen.append(float(closure().detach()))
        return backpropagate(closure)

    run.differentiate_with(differentiate)
    assert advance(run, 4) == advance(plain, 4) == seen
