"""Batched runs of the language tasks against single runs of the same seeds."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.tasks.data.texts import SentenceData, TextData
from lrpilot.tasks.language import lora
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.lora import LoRATask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.language.task import LanguageTask
from tests.batched import EVERYONE, SEEDS, compare, lrs_of, start_batch
from tests.made_up import NUM_WORDS, TEXT, made_up_sentences
from tests.running import check_batched_environments, through_file
from tests.tasks.language.builders import ADAMW, COMMON, WINDOWS, gpt_task

OPTIMIZERS: dict[str, Any] = {
    "adamw": ADAMW,
    "adam": torch.optim.Adam,
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
# on other sentences the training of so small an encoder can be chaotic: a run whose weights are
# changed by one rounding error is then 1e-6 away after 50 steps
SENTENCES = SentenceData(
    *(part for i, n in enumerate((90, 40, 41)) for part in made_up_sentences(n, i, longest=12)),
    num_words=NUM_WORDS,
)


@pytest.fixture(autouse=True)
def _made_up(
    use_text: Callable[[TextData], None],
    use_sentences: Callable[[SentenceData], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made-up texts in the place of the real ones, and an empty cache folder."""
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path))
    lora._pretrained.cache_clear()
    use_text(TEXT)
    use_sentences(SENTENCES)


class DoubleGPTTask(GPTTask):
    def make_model(self, seed: int) -> nn.Module:
        return super().make_model(seed).double()


class DoubleSentenceTask(SentenceTask):
    def make_model(self, seed: int) -> nn.Module:
        return super().make_model(seed).double()


class DoubleLoRATask(LoRATask):
    def make_model(self, seed: int) -> nn.Module:
        return super().make_model(seed).double()


TASKS: dict[str, Any] = {
    "gpt": (GPTTask, DoubleGPTTask, WINDOWS),
    "sst2": (SentenceTask, DoubleSentenceTask, {"batch_size": 8, "num_privileged": 20}),
    "lora": (LoRATask, DoubleLoRATask, {**WINDOWS, "pretraining_steps": 10, "rank": 2}),
}


def make_task(
    name: str = "gpt", optimizer: str = "adamw", *, is_double: bool = True, **changes: Any
) -> LanguageTask:
    if name == "lora":
        pytest.importorskip("peft")
    single, double, sizes = TASKS[name]
    arguments = {
        **COMMON,
        "name": name,
        "optimizer": OPTIMIZERS[optimizer],
        "base_lr": 0.1 if optimizer == "nesterov" else 3e-3,
        "total_steps": 50,
        **sizes,
    }
    task: LanguageTask = (double if is_double else single)(**{**arguments, **changes})
    return task


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", ["gpt", "sst2", "lora"])
def test_runs_in_bfloat16_equal_single_runs_to_its_rounding(name: str, dropout: float) -> None:
    # rounding is 2^-8 relative, at different places: each side is compared with float32
    make = partial(make_task, name, "nesterov", is_double=False, dropout=dropout)
    task = make(precision="bfloat16")
    runs, singles = start_batch(task), [task.start(seed) for seed in SEEDS]
    exact_runs = [make().start(seed) for seed in SEEDS]
    losses = runs.step(torch.full((3,), 0.05), EVERYONE)
    assert losses.dtype == runs.weights().dtype == torch.float32
    for i, (single, exact) in enumerate(zip(singles, exact_runs, strict=True)):
        expected, exact_loss = float(single.step(0.05)), float(exact.step(0.05))
        assert float(losses[i]) == pytest.approx(expected, rel=2**-8)
        assert expected != exact_loss
        rounded, unrounded = (
            ParameterSample(run.parameters, ObservationSpec().num_entries).gradients()
            for run in (single, exact)
        )
        error, error_of_single = runs.gradients()[i] - unrounded, rounded - unrounded
        assert 0.0 < float(error.norm()) <= 1.5 * float(error_of_single.norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dropout"), [("gpt", 0.0), ("gpt", 0.2), ("sst2", 0.0), ("sst2", 0.2), ("lora", 0.2)]
)
def test_runs_equal_single_runs_for_20_steps_in_float64(name: str, dropout: float) -> None:
    compare(make_task(name, dropout=dropout))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer"), [("gpt", "nesterov"), ("gpt", "adamw"), ("sst2", "nesterov")]
)
def test_runs_equal_single_runs_for_20_steps_in_float32(name: str, optimizer: str) -> None:
    compare(make_task(name, optimizer, is_double=False))


@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
def test_a_gpt_under_another_optimizer_equals_single_runs(optimizer: str) -> None:
    compare(make_task(optimizer=optimizer), 12)


def test_gradients_are_clipped_run_by_run() -> None:
    task = make_task(max_gradient_norm=0.5)
    compare(task)
    runs = start_batch(task)
    runs.step(lrs_of(task), EVERYONE)
    assert runs.gradients().norm(dim=1).tolist() == pytest.approx([0.5] * 3, rel=1e-4)


def test_the_embedding_of_a_gpt_is_one_row_of_numbers_that_input_and_output_share() -> None:
    task = make_task()
    num_entries = sum(part.numel() for part in task.start(0).parameters)
    assert start_batch(task).parameters.shape[1] == num_entries


def test_only_adapters_are_stacked() -> None:
    task = make_task("lora")
    runs = start_batch(task)
    assert runs.parameters.shape[1] == sum(part.numel() for part in task.start(0).parameters)
    frozen = [part for part in runs._model.parameters() if not part.requires_grad]
    before = [part.clone() for part in frozen]
    runs.step(lrs_of(task), EVERYONE)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_state_through_a_file_continues_bit_identically(name: str) -> None:
    task = make_task(name, dropout=0.2, is_double=False)
    first = start_batch(task)
    second = task.start_batch(3)
    for _ in range(5):
        first.step(lrs_of(task), EVERYONE)
    second.load_state_dict(through_file(first.state_dict()))
    # 11 steps are an epoch of the sentences: a new order is drawn
    for _ in range(12):
        assert torch.equal(first.step(lrs_of(task), EVERYONE), second.step(lrs_of(task), EVERYONE))
    assert torch.equal(first.weights(), second.weights())
    assert torch.equal(first.privileged_losses(), second.privileged_losses())


@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_a_run_that_diverges_leaves_the_others_alone(name: str) -> None:
    task = make_task(name, dropout=0.2, is_double=False)
    alone, beside = start_batch(task), start_batch(task)
    lr = task.base_lr
    for _ in range(5):
        expected = alone.step(torch.full((3,), lr), EVERYONE)
        losses = beside.step(torch.tensor([lr, math.inf, lr]), EVERYONE)
    assert losses[1].isnan()
    assert losses[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_measuring_draws_nothing(name: str) -> None:
    runs = start_batch(make_task(name, dropout=0.2))
    before = [generator.get_state() for generator in runs.generators]
    first, second = runs.privileged_losses(), runs.privileged_losses()
    after = [generator.get_state() for generator in runs.generators]
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_runs_leave_the_global_generator_alone(name: str) -> None:
    task = make_task(name, dropout=0.2)
    before = torch.get_rng_state()
    runs = start_batch(task)
    runs.step(lrs_of(task), EVERYONE)
    runs.privileged_losses()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimizer_that_cannot_be_batched_is_refused() -> None:
    with pytest.raises(ValueError, match="must be torch's SGD, Adam, AdamW or RMSprop"):
        gpt_task(optimizer=torch.optim.Adagrad).start_batch(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_instances_equal_single_environments_through_their_resets(name: str) -> None:
    task = make_task(name, dropout=0.1, total_steps=24)
    check_batched_environments(task, 3)
