"""Sentence runs: against a plain loop, resumed, measured, and in an environment."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lrpilot.envs  # noqa: F401 (registers the environment)
from lrpilot.tasks.data.texts import PADDING, SentenceData, load_sentences
from lrpilot.tasks.language.sentences import SentenceTask
from tests.made_up import SENTENCES, made_up_sentences
from tests.running import advance, check_environment
from tests.tasks.language.builders import sentence_task

NEEDS_SENTENCES = pytest.mark.skipif(
    not os.environ.get("LRPILOT_DATA"), reason="needs SST-2: set LRPILOT_DATA"
)


@pytest.fixture(autouse=True)
def _made_up(use_sentences: Callable[[SentenceData], None]) -> None:
    use_sentences(SENTENCES)


class PlainEncoder(nn.Module):
    """The same network sentence by sentence, without padding and without a mask."""

    def __init__(self, num_words: int, longest: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(num_words, width)
        self.places = nn.Embedding(longest, width)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
            self.layers.append(nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2 * layers + 1))
        self.head = nn.Linear(width, 2, bias=False)
        small = 0.02 / (2 * layers) ** 0.5
        blocks: list[Any] = list(self.layers)
        for module in (self.words, self.places, *(m for block in blocks for m in block)):
            is_branch_end = any(module is block[1] or module is block[3] for block in blocks)
            nn.init.normal_(module.weight, 0.0, small if is_branch_end else 0.02)
        nn.init.normal_(self.head.weight, 0.0, 0.02)

    def forward(self, sentence: Tensor) -> Tensor:
        x = self.words(sentence) + self.places.weight[: len(sentence)]
        blocks: list[Any] = list(self.layers)
        for i, (query_key_value, output, up, down) in enumerate(blocks):
            parts = query_key_value(self.norms[2 * i](x)).chunk(3, dim=1)
            mixed = []
            for q, k, v in zip(*(part.chunk(self.heads, dim=1) for part in parts), strict=True):
                mixed.append((q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v)
            x = x + output(torch.cat(mixed, 1))
            x = x + down(functional.gelu(up(self.norms[2 * i + 1](x))))
        logits: Tensor = self.head(self.norms[-1](x).mean(0))
        return logits


@pytest.mark.parametrize("data", ["made_up", pytest.param("sst2", marks=NEEDS_SENTENCES)])
def test_a_run_equals_a_plain_loop_over_unpadded_sentences(
    data: str, use_sentences: Callable[[SentenceData], None]
) -> None:
    loaded = SENTENCES if data == "made_up" else load_sentences()
    use_sentences(loaded)
    seed, num_steps = 11, 12
    run = sentence_task(optimizer=torch.optim.SGD, base_lr=0.5).start(seed)
    observed = advance(run, num_steps)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainEncoder(loaded.num_words, loaded.train_x.shape[1], 2, 2, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rng = torch.Generator().manual_seed(seed)
    expected: list[float] = []
    while len(expected) < num_steps:
        order = torch.randperm(len(loaded.train_x), generator=rng)
        for batch in order[: len(order) // 16 * 16].view(-1, 16)[: num_steps - len(expected)]:
            texts = [row[row != PADDING] for row in loaded.train_x[batch]]
            logits = torch.stack([model(text) for text in texts])
            loss = functional.cross_entropy(logits, loaded.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())

    assert observed == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch", [256, 7])
def test_evaluate_measures_whole_splits_also_in_parts(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentenceTask, "evaluation_batch", batch)
    run = sentence_task(dropout=0.3).start(0)
    advance(run, 30)
    metrics = run.evaluate()
    run.model.eval()
    for split in ("held_out", "test"):
        x, y = getattr(SENTENCES, f"{split}_x"), getattr(SENTENCES, f"{split}_y")
        with torch.no_grad():
            logits = run.model(x)
        loss = float(functional.cross_entropy(logits, y))
        assert metrics[f"{split}_loss"] == pytest.approx(loss, rel=1e-5)
        is_right = logits.argmax(1) == y
        assert metrics[f"{split}_accuracy"] == float(is_right.double().mean())


def test_the_privileged_loss_is_that_of_the_first_held_out_sentences() -> None:
    run = sentence_task().start(0)
    with torch.no_grad():
        logits = run.model(SENTENCES.held_out_x[:20])
    expected = functional.cross_entropy(logits, SENTENCES.held_out_y[:20])

    assert run.privileged_loss() == pytest.approx(float(expected), rel=1e-6)


def test_training_and_privileged_loss_do_not_read_the_test_sentences(
    use_sentences: Callable[[SentenceData], None],
) -> None:
    plain = sentence_task().start(0)
    x, y = made_up_sentences(41, 7)
    use_sentences(replace(SENTENCES, test_x=x, test_y=y))
    other = sentence_task().start(0)

    assert advance(other, 10) == advance(plain, 10)
    assert other.privileged_loss() == plain.privileged_loss()
    assert other.evaluate()["test_loss"] != plain.evaluate()["test_loss"]


def test_both_environment_checkers_pass_without_a_warning() -> None:
    task = sentence_task(dropout=0.1, max_gradient_norm=1.0)
    check_environment(task)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 101}, "`batch_size` must be at most the 100 training examples, got 101"),
        (
            {"num_privileged": 41},
            "`num_privileged` must be at most the 40 held-out examples, got 41",
        ),
    ],
)
def test_a_size_above_the_data_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sentence_task(**arguments).start(0)


@NEEDS_SENTENCES
@pytest.mark.slow
def test_an_encoder_learns_to_tell_sentiment(
    use_sentences: Callable[[SentenceData], None],
) -> None:
    use_sentences(load_sentences())
    run = sentence_task(batch_size=32, num_heads=4, width=64, base_lr=1e-3).start(0)
    advance(run, 216)

    assert run.evaluate()["test_accuracy"] > 0.75
