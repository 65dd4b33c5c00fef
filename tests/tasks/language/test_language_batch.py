"""Batched runs of the language tasks against single runs of the same seeds."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.tasks.data.texts import SentenceData
from lrpilot.tasks.language import gpt, lora, sentences
from lrpilot.tasks.language.base import LanguageTask
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.lora import LoRATask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.runs import Run
from tests.made_up import NUM_WORDS, TEXT, made_up_sentences
from tests.running import through_file

SEEDS = [5, 6, 7]
EVERYONE = torch.ones(len(SEEDS), dtype=torch.bool)
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1)
OPTIMIZERS: dict[str, Any] = {
    "adamw": ADAMW,
    "adam": torch.optim.Adam,
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
LRS = {"adamw": 3e-3, "adam": 3e-3, "nesterov": 0.1}
SIZES: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "width": 16}
# on other sentences the training of so small an encoder can be chaotic: a run whose weights are
# changed by one rounding error is then 1e-6 away after 50 steps
SENTENCES = SentenceData(
    *(part for i, n in enumerate((90, 40, 41)) for part in made_up_sentences(n, i, longest=12)),
    num_words=NUM_WORDS,
)


@pytest.fixture(autouse=True)
def _made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Made-up texts in the place of the real ones, and an empty cache folder."""
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path))
    monkeypatch.setattr(gpt, "load_text", lambda *args, **kwargs: TEXT)
    monkeypatch.setattr(sentences, "load_sentences", lambda *args, **kwargs: SENTENCES)
    caches: list[Any] = [gpt._data_on_device, sentences._data_on_device, lora._pretrained]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


class DoubleGPTTask(GPTTask):
    def make_model(self, seed: int, generator: torch.Generator) -> nn.Module:
        return super().make_model(seed, generator).double()


class DoubleSentenceTask(SentenceTask):
    def make_model(self, seed: int, generator: torch.Generator) -> nn.Module:
        return super().make_model(seed, generator).double()


class DoubleLoRATask(LoRATask):
    def make_model(self, seed: int, generator: torch.Generator) -> nn.Module:
        return super().make_model(seed, generator).double()


SHORT: dict[str, Any] = {"context": 16, "batch_size": 6, "num_privileged": 8}
TASKS: dict[str, Any] = {
    "gpt": (GPTTask, DoubleGPTTask, SHORT),
    "sst2": (SentenceTask, DoubleSentenceTask, {"batch_size": 8, "num_privileged": 20}),
    "lora": (LoRATask, DoubleLoRATask, {**SHORT, "pretraining_steps": 10, "rank": 2}),
}


def make_task(
    name: str = "gpt", optimizer: str = "adamw", *, is_double: bool = True, **changes: Any
) -> LanguageTask:
    if name == "lora":
        pytest.importorskip("peft")
    single, double, arguments = TASKS[name]
    task: LanguageTask = (double if is_double else single)(
        name=name,
        optimizer=OPTIMIZERS.get(optimizer, optimizer),
        base_lr=LRS.get(optimizer, 0.01),
        **{"total_steps": 50, **SIZES, **arguments, **changes},
    )
    return task


def started(task: LanguageTask) -> tuple[Any, list[Run]]:
    runs = task.start_batch(len(SEEDS))
    runs.reset(list(range(len(SEEDS))), SEEDS)
    return runs, [task.start(seed) for seed in SEEDS]


def check_step(
    runs: Any, singles: list[Run], lrs: Tensor, *, tolerance: float, active: Tensor = EVERYONE
) -> None:
    losses = runs.step(lrs, active)
    expected = [
        float(single.step(lr)) if is_active else 0.0
        for single, lr, is_active in zip(singles, lrs.tolist(), active.tolist(), strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, abs=tolerance)


def lrs_of(task: LanguageTask, step: int = 0) -> Tensor:
    """Another learning rate for each run."""
    return task.base_lr * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) * (1 - step / 60)


def compare(task: LanguageTask, num_steps: int, *, tolerance: float) -> None:
    runs, singles = started(task)
    for step in range(num_steps):
        check_step(runs, singles, lrs_of(task, step), tolerance=tolerance)
    privileged = [single.privileged_loss() for single in singles]
    assert runs.privileged_losses().tolist() == pytest.approx(privileged, abs=tolerance)
    for row, single in zip(runs.parameters, singles, strict=True):
        expected = nn.utils.parameters_to_vector(single.parameters)
        torch.testing.assert_close(row, expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", ["gpt", "sst2", "lora"])
def test_runs_in_bfloat16_equal_single_runs_to_its_rounding(name: str, dropout: float) -> None:
    # rounding is 2^-8 relative, at different places: each side is compared with float32
    make = partial(make_task, name, "nesterov", is_double=False, dropout=dropout)
    runs, singles = started(make(precision="bfloat16"))
    exact_runs = [make().start(seed) for seed in SEEDS]
    losses = runs.step(torch.full((3,), 0.05), EVERYONE)
    assert losses.dtype == runs.weights().dtype == torch.float32
    for i, (single, exact) in enumerate(zip(singles, exact_runs, strict=True)):
        expected, exact_loss = float(single.step(0.05)), float(exact.step(0.05))
        assert float(losses[i]) == pytest.approx(expected, rel=2**-8)
        assert expected != exact_loss
        rounded, unrounded = (
            ParameterSample(run.parameters, ObservationSpec().num_entries).gradient()
            for run in (single, exact)
        )
        error, error_of_single = runs.gradients()[i] - unrounded, rounded - unrounded
        assert 0.0 < float(error.norm()) <= 1.5 * float(error_of_single.norm())


@pytest.mark.parametrize(
    ("name", "dropout"), [("gpt", 0.0), ("gpt", 0.2), ("sst2", 0.0), ("sst2", 0.2), ("lora", 0.2)]
)
def test_runs_equal_single_runs_for_20_steps_in_float64(name: str, dropout: float) -> None:
    compare(make_task(name, dropout=dropout), 20, tolerance=1e-9)


# Adam divides by the root of tiny second moments, so that rounding grows
@pytest.mark.parametrize(
    ("name", "optimizer", "tolerance"),
    [("gpt", "nesterov", 1e-5), ("gpt", "adamw", 5e-3), ("sst2", "nesterov", 1e-5)],
)
def test_runs_equal_single_runs_for_20_steps_in_float32(
    name: str, optimizer: str, tolerance: float
) -> None:
    compare(make_task(name, optimizer, is_double=False), 20, tolerance=tolerance)


@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
def test_a_gpt_under_another_optimizer_equals_single_runs(optimizer: str) -> None:
    compare(make_task(optimizer=optimizer), 10, tolerance=1e-9)


def test_gradients_are_clipped_run_by_run() -> None:
    task = make_task(max_gradient_norm=0.5)
    runs, singles = started(task)
    for step in range(10):
        check_step(runs, singles, lrs_of(task, step), tolerance=1e-9)
    assert runs.gradients().norm(dim=1).tolist() == pytest.approx([0.5] * 3, rel=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_what_an_observer_reads_equals_single_runs(name: str) -> None:
    task = make_task(name, max_gradient_norm=0.5)
    runs, singles = started(task)
    for step in range(3):
        check_step(runs, singles, lrs_of(task, step), tolerance=1e-9)
    for i, single in enumerate(singles):
        sample = ParameterSample(single.parameters, ObservationSpec().num_entries)
        torch.testing.assert_close(runs.weights()[i], sample.values(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(runs.gradients()[i], sample.gradient(), rtol=1e-6, atol=1e-9)


def test_the_embedding_of_a_gpt_is_one_row_of_numbers_that_input_and_output_share() -> None:
    task = make_task()
    runs, singles = started(task)
    assert runs.parameters.shape[1] == sum(part.numel() for part in singles[0].parameters)


def test_only_adapters_are_stacked() -> None:
    runs, singles = started(make_task("lora"))
    assert runs.parameters.shape[1] == sum(part.numel() for part in singles[0].parameters)
    frozen = [part for part in runs._model.parameters() if not part.requires_grad]
    before = [part.clone() for part in frozen]
    runs.step(lrs_of(make_task("lora")), EVERYONE)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_runs_rest_and_start_anew_while_the_others_go_on(name: str) -> None:
    task = make_task(name, dropout=0.2)
    runs, singles = started(task)
    for step in range(12):
        if step == 5:
            runs.reset([1], [99])
            singles[1] = task.start(99)
        active = torch.tensor([step % (i + 1) == 0 for i in range(3)])
        check_step(runs, singles, lrs_of(task), active=active, tolerance=1e-9)


@pytest.mark.parametrize("name", TASKS)
def test_state_through_a_file_continues_bit_identically(name: str) -> None:
    task = make_task(name, dropout=0.2, is_double=False)
    first, _ = started(task)
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
    (alone, _), (beside, _) = started(task), started(task)
    lr = task.base_lr
    for _ in range(5):
        expected = alone.step(torch.full((3,), lr), EVERYONE)
        losses = beside.step(torch.tensor([lr, math.inf, lr]), EVERYONE)
    assert losses[1].isnan()
    assert losses[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_measuring_draws_nothing(name: str) -> None:
    runs, _ = started(make_task(name, dropout=0.2))
    before = [generator.get_state() for generator in runs.generators]
    first, second = runs.privileged_losses(), runs.privileged_losses()
    after = [generator.get_state() for generator in runs.generators]
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_runs_leave_the_global_generator_alone(name: str) -> None:
    task = make_task(name, dropout=0.2)
    before = torch.get_rng_state()
    runs, _ = started(task)
    runs.step(lrs_of(task), EVERYONE)
    runs.privileged_losses()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimizer_that_cannot_be_batched_is_refused() -> None:
    with pytest.raises(ValueError, match="must be torch's SGD, Adam or AdamW"):
        make_task(optimizer=torch.optim.RMSprop).start_batch(2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt", "sst2"])
def test_instances_equal_single_environments_through_their_resets(name: str) -> None:
    task = make_task(name, dropout=0.1, total_steps=12)
    arguments: dict[str, Any] = {"num_decisions": 4, "horizon_factors": (0.5, 1.0)}
    batch = LRControlVecEnv(task, 3, **arguments)
    singles = [LRControlEnv(task, **arguments) for _ in range(3)]
    batch.seed(3)
    expected = [env.reset(seed=3 + i)[0] for i, env in enumerate(singles)]
    np.testing.assert_allclose(batch.reset(), expected, atol=1e-4)
    num_ended = 0
    for step in range(6):
        actions = np.random.default_rng(step).uniform(-1, 1, size=(3, 1)).astype(np.float32)
        observations, rewards, dones, _ = batch.step(actions)
        for i, env in enumerate(singles):
            observation, reward, done, _, _ = env.step(actions[i])
            assert done == dones[i]
            assert reward == pytest.approx(float(rewards[i]), abs=1e-5)
            if done:
                num_ended += 1
                observation, _ = env.reset()
            np.testing.assert_allclose(observations[i], observation, atol=1e-4)
    assert num_ended >= 3
