"""Adapter runs: what is trained, where the pretrained network lies, and how a run is resumed."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lrpilot.envs  # noqa: F401 (registers the environment)
from lrpilot.tasks.data.texts import TextData, encode_characters, load_text
from lrpilot.tasks.language import gpt, lora
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.lora import ADAPTED_LAYERS, Pretraining
from tests.running import advance, check_environment, through_file
from tests.tasks.language.builders import lora_task

pytest.importorskip("peft")

PLAYS = ["Speak", "Citizen", "Sir", "Away", "My lord"]
FILMS = ["a dull film", "a charming story", "no plot", "great acting"]
SIZES: dict[str, Any] = {"context": 16, "num_layers": 2, "num_heads": 2, "width": 16}


def made_up_text(phrases: list[str], seed: int) -> TextData:
    rng = random.Random(seed)
    parts = (encode_characters(" ".join(rng.choices(phrases, k=k))) for k in (600, 90, 91))
    return TextData(*parts)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder and made-up texts in the place of the real ones."""
    texts = {"shakespeare": made_up_text(PLAYS, 0), "sst2": made_up_text(FILMS, 1)}
    monkeypatch.setattr(gpt, "load_text", lambda name, **kwargs: texts[name])
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path))
    gpt._data_on_device.cache_clear()
    lora._pretrained.cache_clear()
    yield tmp_path / "pretrained"
    gpt._data_on_device.cache_clear()
    lora._pretrained.cache_clear()


def test_only_adapters_are_trained() -> None:
    run = lora_task().start(0)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    advance(run, 5)
    after = run.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    in_optimizer = [p for group in run.optimizer.param_groups for p in group["params"]]

    assert changed == {name for name in before if "lora_" in name}
    assert len(run.parameters) == len(in_optimizer) == len(changed) == 2 * 2 * len(ADAPTED_LAYERS)
    assert all(a is b for a, b in zip(run.parameters, in_optimizer, strict=True))
    assert sum(p.numel() for p in run.parameters) == 2 * 2 * 16 * (4 + 2 + 5 + 5)


def test_a_run_starts_at_the_pretrained_network(cache: Path) -> None:
    run = lora_task().start(0)
    (path,) = cache.glob("*.safetensors")
    plain = GPTTask(
        name="plain",
        optimizer=torch.optim.SGD,
        base_lr=1.0,
        total_steps=1,
        data="sst2",
        num_privileged=8,
        **SIZES,
    ).start(0)
    from_scratch = plain.privileged_loss()
    plain.model.load_state_dict(load_file(path))

    assert run.privileged_loss() == plain.privileged_loss()
    assert run.privileged_loss() < from_scratch


def test_an_adapted_layer_adds_a_scaled_product_of_low_rank() -> None:
    run = lora_task(rank=2, alpha=3).start(0)
    advance(run, 5)
    layer: Any = run.model.get_submodule("blocks.0.mlp_input")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    expected = x @ (layer.base_layer.weight + 3.0 / 2 * b @ a).T

    assert a.shape == (2, 16)
    torch.testing.assert_close(layer(x), expected)


def test_pretraining_equals_a_plain_run_on_shakespeare(cache: Path) -> None:
    lora_task().start(0)
    (path,) = cache.glob("*.safetensors")
    run = GPTTask(
        name="plain",
        optimizer=lambda p, lr: torch.optim.AdamW(p, lr, betas=(0.9, 0.99), weight_decay=0.1),
        base_lr=1.0,
        total_steps=30,
        num_privileged=1,
        max_gradient_norm=1.0,
        **SIZES,
    ).start(0)
    for step in range(30):
        run.step(lora_task().pretraining.lr(step))
    expected = run.model.state_dict()

    assert all(torch.equal(value, expected[name]) for name, value in load_file(path).items())


def test_pretraining_warms_up_and_decays_to_a_tenth() -> None:
    pretraining = Pretraining(4, 4, 128, 64, 12, 2000)
    lrs = [pretraining.lr(step) for step in range(2000)]

    assert lrs[0] == pytest.approx(1e-5)
    assert max(lrs) == lrs[99] == 1e-3
    assert lrs[-1] == pytest.approx(1e-4, rel=1e-3)
    assert sorted(lrs[100:], reverse=True) == lrs[100:]


def test_pretraining_is_done_once_and_the_file_gives_the_same_run(cache: Path) -> None:
    task = lora_task()
    losses = advance(task.start(0), 5)
    (path,) = cache.glob("*.safetensors")
    written = path.stat().st_mtime_ns
    lora._pretrained.cache_clear()

    assert advance(task.start(0), 5) == losses
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("change", [{"pretraining_steps": 31}, {"width": 8}, {"context": 8}])
def test_another_pretraining_has_another_file(change: dict[str, int], cache: Path) -> None:
    lora_task().start(0)
    lora_task(**change).start(0)

    assert len(list(cache.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("change", [{"rank": 3}, {"batch_size": 3}, {"base_lr": 1.0}])
def test_what_changes_the_adaptation_alone_keeps_the_file(
    change: dict[str, Any], cache: Path
) -> None:
    lora_task().start(0)
    lora_task(**change).start(0)

    assert len(list(cache.glob("*.safetensors"))) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = advance(lora_task().start(0), 5)
    lora._pretrained.cache_clear()
    (tmp_path / "file").write_bytes(b"a file, not a folder")
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path / "file"))

    assert advance(lora_task().start(0), 5) == losses


def test_a_damaged_file_is_made_anew(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    losses = advance(lora_task().start(0), 5)
    (path,) = cache.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)
    lora._pretrained.cache_clear()

    assert advance(lora_task().start(0), 5) == losses
    assert f"{path} is damaged and is made anew" in caplog.text


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_two_runs_of_one_seed_are_identical_whatever_the_global_seed(dropout: float) -> None:
    task = lora_task(dropout=dropout)
    losses = []
    for global_seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            before = torch.get_rng_state()
            losses.append(advance(task.start(3), 10))
            assert torch.equal(before, torch.get_rng_state())

    assert losses[0] == losses[1]


def test_runs_of_different_seeds_share_the_network_and_differ_in_adapters() -> None:
    task = lora_task()
    first, second = task.start(0), task.start(1)

    assert first.privileged_loss() == second.privileged_loss()
    assert not torch.equal(first.parameters[0], second.parameters[0])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_state_through_a_file_continues_bit_identically(dropout: float) -> None:
    task = lora_task(dropout=dropout)
    run = task.start(5)
    advance(run, 7)
    resumed = task.start(6)
    resumed.load_state_dict(through_file(run.state_dict()))

    assert advance(resumed, 20) == advance(run, 20)
    assert resumed.evaluate() == run.evaluate()


def test_adapters_learn_the_other_text() -> None:
    run = lora_task(pretraining_steps=100).start(0)
    before = run.evaluate()["test_loss"]
    advance(run, 100)

    assert run.evaluate()["test_loss"] < before - 0.2


def test_both_environment_checkers_pass_without_a_warning() -> None:
    check_environment(lora_task())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "`rank` must be at least 1, got 0"),
        ({"pretraining_steps": 0}, "`pretraining_steps` must be at least 1, got 0"),
        ({"alpha": 0}, "`alpha` must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora_task(**arguments)


def test_without_peft_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "lrpilot\[lora\]"'):
        lora_task().start(0)


@pytest.mark.skipif(not os.environ.get("LRPILOT_DATA"), reason="needs SST-2: set LRPILOT_DATA")
@pytest.mark.slow
def test_adapters_learn_film_sentences_from_a_network_that_knows_shakespeare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpt, "load_text", load_text)
    run = lora_task(width=32, context=32, pretraining_steps=300, batch_size=12).start(0)
    before = run.evaluate()["held_out_loss"]
    advance(run, 200)

    assert run.evaluate()["held_out_loss"] < before - 0.03
