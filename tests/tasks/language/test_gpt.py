"""GPT runs: against a plain loop, resumed, measured, and driven by environments and schedulers."""

import math
import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lrpilot.envs  # noqa: F401 (registers the environment)
from lrpilot import ActionSpec, ClockSpec, LineSearchLR, ObservationSpec, Policy, PolicyLR
from lrpilot.tasks.data.texts import TextData, load_text
from lrpilot.tasks.language import gpt
from tests.made_up import TEXT, made_up_text
from tests.running import advance, check_environment
from tests.tasks.language.builders import WINDOWS, gpt_task

CONTEXT: int = WINDOWS["context"]
NEEDS_TEXT = pytest.mark.skipif(
    not os.environ.get("LRPILOT_DATA"), reason="needs the texts: set LRPILOT_DATA"
)


@pytest.fixture(autouse=True)
def _made_up(use_text: Callable[[TextData], None]) -> None:
    use_text(TEXT)


class PlainGPT(nn.Module):
    """Written from the description of nanoGPT's network, apart from ours."""

    def __init__(self, vocabulary: int, block: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(block, width)
        self.h = nn.ModuleList()
        for _ in range(layers):
            sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
            self.h.append(nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in sizes))
        self.gains = nn.ParameterList(torch.ones(width) for _ in range(2 * layers + 1))
        for matrix in (self.wte, self.wpe):
            nn.init.normal_(matrix.weight, 0.0, 0.02)
        blocks: list[Any] = list(self.h)
        for c_attn, attn_proj, c_fc, mlp_proj in blocks:
            nn.init.normal_(c_attn.weight, 0.0, 0.02)
            nn.init.normal_(attn_proj.weight, 0.0, 0.02 / math.sqrt(2 * layers))
            nn.init.normal_(c_fc.weight, 0.0, 0.02)
            nn.init.normal_(mlp_proj.weight, 0.0, 0.02 / math.sqrt(2 * layers))

    def forward(self, index: Tensor) -> Tensor:
        batch, length = index.shape
        x = self.wte(index) + self.wpe(torch.arange(length))
        width = x.shape[-1]
        blocks: list[Any] = list(self.h)
        for i, (c_attn, attn_proj, c_fc, mlp_proj) in enumerate(blocks):
            y = functional.layer_norm(x, (width,), self.gains[2 * i])
            q, k, v = (
                part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
                for part in c_attn(y).split(width, dim=2)
            )
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + attn_proj(y.transpose(1, 2).contiguous().view(batch, length, width))
            y = functional.layer_norm(x, (width,), self.gains[2 * i + 1])
            x = x + mlp_proj(nn.GELU()(c_fc(y)))
        logits: Tensor = functional.layer_norm(x, (width,), self.gains[-1]) @ self.wte.weight.t()
        return logits


def plain_losses(
    model: nn.Module, text: Tensor, *, seed: int, num_steps: int, clip: float | None
) -> list[float]:
    """An ordinary training loop that cuts out window after window."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
    rng = torch.Generator().manual_seed(seed)
    ids = text.tolist()
    losses = []
    for _ in range(num_steps):
        places = torch.randint(len(ids) - CONTEXT, (6,), generator=rng).tolist()
        x = torch.tensor([ids[place : place + CONTEXT] for place in places])
        y = torch.tensor([ids[place + 1 : place + 1 + CONTEXT] for place in places])
        loss = functional.cross_entropy(model(x).view(-1, 65), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("text", ["made_up", pytest.param("shakespeare", marks=NEEDS_TEXT)])
def test_a_run_equals_a_plain_training_loop(
    text: str, clip: float | None, use_text: Callable[[TextData], None]
) -> None:
    seed, num_steps = 11, 40
    data = TEXT if text == "made_up" else load_text(text)
    use_text(data)
    run = gpt_task(max_gradient_norm=clip).start(seed)
    observed = advance(run, num_steps)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainGPT(65, CONTEXT, 2, 2, 16)
    expected = plain_losses(model, data.train, seed=seed, num_steps=num_steps, clip=clip)

    # torch adds up a norm in the order of the parameters, which are another's here
    assert observed == (expected if clip is None else pytest.approx(expected, rel=1e-3))
    assert observed[-1] < observed[0] - 0.5


def test_the_closure_of_a_step_sees_one_minibatch_and_one_mask() -> None:
    run, plain = gpt_task(dropout=0.2).start(0), gpt_task(dropout=0.2).start(0)
    seen: list[list[float]] = []

    def backward(closure: Callable[[], Tensor]) -> Tensor:
        losses = [closure() for _ in range(3)]
        losses[-1].backward()
        seen.append([float(loss.detach()) for loss in losses])
        return losses[-1].detach()

    run.differentiate_with(backward)

    assert advance(run, 5) == advance(plain, 5)
    assert all(len(set(losses)) == 1 for losses in seen)


def test_a_line_search_trains_a_gpt() -> None:
    run = gpt_task(optimizer=torch.optim.SGD, base_lr=1.0, dropout=0.1).start(0)
    scheduler = LineSearchLR(run.optimizer, run.model, batches_per_epoch=20)
    run.differentiate_with(scheduler.search)
    losses = []
    for _ in range(40):
        losses.append(float(run.step()))
        scheduler.step(losses[-1])

    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_runs_share_one_copy_of_the_text() -> None:
    task = gpt_task()

    assert task.start(0).data.train.data_ptr() == task.start(1).data.train.data_ptr()


def test_training_reads_the_training_text_alone(use_text: Callable[[TextData], None]) -> None:
    plain = gpt_task().start(0)
    other = made_up_text(900, 7)
    use_text(TextData(TEXT.train, other, other))

    assert advance(gpt_task().start(0), 10) == advance(plain, 10)


def test_the_privileged_loss_does_not_read_the_test_text(
    use_text: Callable[[TextData], None],
) -> None:
    plain = gpt_task().start(0)
    use_text(TextData(TEXT.train, TEXT.held_out, made_up_text(900, 7)))
    other = gpt_task().start(0)

    assert other.privileged_loss() == plain.privileged_loss()
    assert other.evaluate()["test_loss"] != plain.evaluate()["test_loss"]


@pytest.mark.parametrize("num_privileged", [1, 8])
def test_the_privileged_loss_is_that_of_evenly_spaced_windows(num_privileged: int) -> None:
    run = gpt_task(num_privileged=num_privileged).start(0)
    text = TEXT.held_out.long()
    starts = np.linspace(0, len(text) - 1 - CONTEXT, num_privileged).astype(int)
    with torch.no_grad():
        losses = [
            functional.cross_entropy(
                run.model(text[None, s : s + CONTEXT])[0], text[s + 1 :][:CONTEXT]
            )
            for s in starts
        ]

    assert run.privileged_loss() == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [128, 3])
def test_evaluate_predicts_every_character_but_the_first_once(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt, "EVALUATION_BATCH", batch)
    run = gpt_task(dropout=0.3).start(0)
    advance(run, 5)
    metrics = run.evaluate()
    run.model.eval()
    for split, part in (("held_out", TEXT.held_out), ("test", TEXT.test)):
        text, losses = part.long(), []
        for place in range(len(text) - 1):
            start = place // CONTEXT * CONTEXT
            with torch.no_grad():
                logits = run.model(text[None, start : place + 1])[0, -1]
            losses.append(functional.cross_entropy(logits, text[place + 1]))
        expected = float(torch.stack(losses).mean())
        assert metrics[f"{split}_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_lengths_of_the_test_texts_leave_a_rest() -> None:
    """Without it the test above would not see the last, shorter window."""
    assert (len(TEXT.held_out) - 1) % CONTEXT
    assert (len(TEXT.test) - 1) % CONTEXT


def test_gradients_are_shortened_to_the_given_norm() -> None:
    run = gpt_task(max_gradient_norm=0.01).start(0)
    run.step()
    norm = torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]).norm()

    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_a_large_limit_of_the_gradient_changes_nothing() -> None:
    assert advance(gpt_task(max_gradient_norm=1e9).start(0), 10) == advance(gpt_task().start(0), 10)


def test_a_diverging_run_is_data_not_an_exception() -> None:
    run = gpt_task(base_lr=1e20, optimizer=torch.optim.SGD).start(0)
    losses = advance(run, 10)

    assert not math.isfinite(losses[-1])
    assert not math.isfinite(run.privileged_loss())


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_both_environment_checkers_pass_without_a_warning(dropout: float) -> None:
    task = gpt_task(dropout=dropout, max_gradient_norm=1.0)
    check_environment(task)


def test_a_policy_drives_a_run_as_in_its_environment() -> None:
    observation, clock = ObservationSpec(), ClockSpec(num_decisions=5, horizon_range=(20, 20))
    rng = np.random.default_rng(0)
    sizes = [(len(observation.names), 8), (8, 1)]
    layers = [
        (rng.normal(size=size).astype(np.float32), np.zeros(size[1], np.float32)) for size in sizes
    ]
    policy = Policy(layers, observation, ActionSpec(), clock)
    env: Any = gymnasium.make(
        "lrpilot/LRControl-v0", task=gpt_task(), num_decisions=5, initial_lr_factors=(1.0, 1.0)
    ).unwrapped
    options = {"task_seed": 3, "initial_lr": 3e-3, "total_steps": 20}
    seen, info = env.reset(options=options)
    expected, is_over = [*info["losses"]], False
    while not is_over:
        seen, _, is_over, _, info = env.step(np.array([policy.act(seen)], np.float32))
        expected += info["losses"]

    run = gpt_task().start(3)
    scheduler = PolicyLR(run.optimizer, policy, total_steps=20)
    losses = []
    for _ in range(20):
        loss = run.step()
        scheduler.step(loss)
        losses.append(float(loss))

    assert losses == pytest.approx(expected, rel=1e-5)
    assert len({entry.new_lr for entry in scheduler.log}) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"context": 0}, "`context` must be at least 1, got 0"),
        ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
        ({"num_privileged": 0}, "`num_privileged` must be at least 1, got 0"),
        ({"num_heads": 3}, "`width` must be a multiple of `num_heads` = 3, got 16"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"`dropout` must be in \[0, 1\), got nan"),
        ({"max_gradient_norm": 0.0}, "`max_gradient_norm` must be positive, got 0.0"),
        (
            {"precision": "half"},
            r"`precision` must be one of \(.float32., .bfloat16.\), got .half.",
        ),
        ({"data": "bible"}, r"`data` must be one of \('shakespeare', 'sst2'\), got 'bible'"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt_task(**arguments)


def test_more_privileged_windows_than_the_text_has_are_refused() -> None:
    largest = (len(TEXT.held_out) - 1) // CONTEXT
    message = f"must be at most the {largest} held-out windows of 16 characters, got 1000"
    with pytest.raises(ValueError, match=message):
        gpt_task(num_privileged=1000).start(0)


@pytest.mark.slow
@NEEDS_TEXT
def test_a_gpt_learns_shakespeare(use_text: Callable[[TextData], None]) -> None:
    use_text(load_text("shakespeare"))
    run = gpt_task(width=32, num_heads=4, context=32, batch_size=12, base_lr=1e-2).start(0)
    before = run.evaluate()
    advance(run, 300)
    after = run.evaluate()

    assert before["held_out_loss"] == pytest.approx(math.log(65), abs=0.05)
    # the entropy of single characters is 3.3 nats
    assert after["held_out_loss"] < 2.8
    assert after["test_loss"] < 2.8
