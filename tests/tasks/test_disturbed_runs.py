"""Runs whose minibatches or labels change midway."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lrpilot.tasks.data.texts import SentenceData, TextData
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.networks.from_model import from_model
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.runs import ClosureRun
from lrpilot.tasks.small_trainings.task import SmallTrainingTask
from tests.made_up import SENTENCES, TEXT
from tests.tasks.language.builders import gpt_task, sentence_task

NUM_CLASSES = {"digits": 10, "gpt": 65, "sst2": 2}


@pytest.fixture(autouse=True)
def _made_up(
    use_text: Callable[[TextData], None], use_sentences: Callable[[SentenceData], None]
) -> None:
    use_text(TEXT)
    use_sentences(SENTENCES)


def small_training(family: str, loss: str) -> tuple[Any, int]:
    """A run that has this loss, and the number of its outputs."""
    task = SmallTrainingTask(
        name="small_trainings", base_lr=0.1, total_steps=9, families=(family,), calibrate=False
    )
    runs = (task.start(seed) for seed in range(1000))
    run = next(run for run in runs if run.instance.setup.ends.loss == loss)
    return run, run.instance.setup.ends.num_outputs


def started(name: str) -> ClosureRun:
    if name == "gpt":
        return gpt_task().start(0)
    if name == "sst2":
        return sentence_task().start(0)
    task = ImageTask(
        name="digits",
        data="digits",
        model=partial(mlp, width=8),
        optimizer=torch.optim.SGD,
        base_lr=0.1,
        total_steps=9,
    )
    return task.start(0)


def check_shifts(run: Any, num_classes: int) -> None:
    """A shift by C changes nothing; one by 1 changes what is trained, rewarded and measured."""

    def measured() -> list[Any]:
        return [
            float(run.repeat_loss().detach()),
            run.privileged_loss(),
            run.evaluate()["held_out_loss"],
        ]

    run.step()
    plain = measured()
    run.shift_labels(num_classes)
    assert measured() == pytest.approx(plain, rel=1e-6)
    run.shift_labels(1)
    shifted = run.privileged_loss(), run.evaluate()["held_out_loss"]
    assert shifted[0] != plain[1]
    assert shifted[1] != plain[2]


@pytest.mark.parametrize("name", ["digits", "gpt", "sst2"])
def test_labels_of_networks_shift_in_all_data(name: str) -> None:
    check_shifts(started(name), NUM_CLASSES[name])


@pytest.mark.parametrize(("family", "loss"), [("mlp", "classes"), ("rnn", "next")])
def test_labels_of_small_trainings_shift_in_all_data(family: str, loss: str) -> None:
    check_shifts(*small_training(family, loss))


@pytest.mark.parametrize("name", ["digits", "gpt", "sst2"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_minibatches_of_networks_change_their_size(name: str, factor: float) -> None:
    run: Any = started(name)
    run.step()
    before = len(run._next_batch()[0])
    run.scale_batch_size(factor)
    assert len(run._next_batch()[0]) == factor * before
    assert torch.isfinite(run.step())


def test_minibatches_of_small_trainings_change_their_size_with_their_dropout() -> None:
    task = SmallTrainingTask(
        name="small_trainings", base_lr=0.1, total_steps=9, families=("mlp",), calibrate=False
    )
    run = next(r for r in map(task.start, range(1000)) if r.instance.setup.has_dropout)
    before = run.instance.setup.batch_size
    run.step()
    run.scale_batch_size(0.25)
    assert run.instance.setup.batch_size == round(before / 4)
    assert torch.isfinite(run.step())


def test_predicted_values_have_no_labels_to_shift() -> None:
    run, _ = small_training("mlp", "values")
    with pytest.raises(ValueError, match="`shift_labels` must be asked of a run that classifies"):
        run.shift_labels(1)
    regression = from_model(
        model=lambda: nn.Linear(4, 1),
        loss=nn.functional.mse_loss,
        data=(torch.ones(100, 4), torch.zeros(100, 1)),
        optimizer=torch.optim.SGD,
        base_lr=0.01,
        total_steps=50,
        batch_size=20,
        name="line",
    )
    with pytest.raises(ValueError, match=r"`shift_labels` must be asked of .* got task 'line'"):
        regression.start(0).shift_labels(1)


def test_a_bowl_has_neither_minibatches_nor_labels() -> None:
    run = QuadraticTask(name="bowl", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=3).start(0)
    with pytest.raises(ValueError, match=r"`scale_batch_size` must be .* got QuadraticRun"):
        run.scale_batch_size(0.5)
    with pytest.raises(ValueError, match=r"`shift_labels` must be .* got QuadraticRun"):
        run.shift_labels(1)
