import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.lrpilot.integrations.loss_lr import LossLR

pytest.importorskip("transformers")

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lrpilot.integrations.huggingface import LossCallback
from tests.scheduling import plain_action

pytestmark = pytest.mark.filterwarnings("ignore:`total_steps` = .* is outside")


class Regression(torch.nn.Module):
    """A model that leaves the scaling of its loss to the Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(x)[:, 0] - labels).square().mean()}


def language_model(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=16,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return GPT2LMHeadModel(config)


def regression() -> Regression:
    torch.manual_seed(0)
    return Regression()


def sentences(num: int = 28) -> list[dict[str, torch.Tensor]]:
    """Sentences with labels of very different numbers."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for i in range(num):
        tokens = torch.randint(16, (8,), generator=generator)
        labels = torch.where(torch.arange(8) < 2 + i % 7, tokens, -100)
        examples.append({"input_ids": tokens, "labels": labels})
    return examples


def points(num: int = 28) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, generator=generator)
    return [{"x": row, "labels": row.sum()} for row in x]


def random_policy(*groups: str) -> Policy:
    rng = np.random.default_rng(0)
    observation = ObservationSpec(groups)
    sizes = (len(observation.names), 8, 1)
    layers = [
        (rng.normal(0.0, 1.0, pair).astype(np.float32), np.zeros(pair[1], np.float32))
        for pair in pairwise(sizes)
    ]
    return Policy(layers, observation, plain_action(), ClockSpec(num_decisions=10))


def make_trainer(
    folder: Path,
    model: torch.nn.Module,
    *,
    scheduler: Any = LossLR,
    lr: float = 0.05,
    trainer_class: type[Trainer] = Trainer,
    trainer_options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trainer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    data = points() if isinstance(model, Regression) else sentences()
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "no"}
    trainer = trainer_class(
        model,
        TrainingArguments(
            str(folder),
            use_cpu=True,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            dataloader_pin_memory=False,
            **{**defaults, **arguments},
        ),
        train_dataset=data,
        eval_dataset=data,
        optimizers=(optimizer, scheduler(optimizer)),
        **(trainer_options or {}),
    )
    trainer.add_callback(LossCallback(trainer))
    return trainer


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if "learning_rate" in entry]


def train(trainer: Trainer, **options: Any) -> Any:
    trainer.train(**options)
    return trainer.lr_scheduler


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("make_model", [language_model, regression])
def test_the_scheduler_sees_the_losses_that_the_trainer_logs(
    tmp_path: Path, make_model: Any, accumulation: int
) -> None:
    # 7 batches an epoch: the last optimizer step of each has fewer micro-batches
    trainer = make_trainer(tmp_path, make_model(), gradient_accumulation_steps=accumulation)
    scheduler = train(trainer)
    assert len(scheduler.losses) == 2 * -(-7 // accumulation)
    assert scheduler.losses == logged(trainer, "loss")


@pytest.mark.slow
def test_accumulated_micro_batches_weigh_as_their_numbers_of_labels(tmp_path: Path) -> None:
    whole = train(make_trainer(tmp_path, language_model(), per_device_train_batch_size=14))
    split = train(
        make_trainer(
            tmp_path,
            language_model(),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=7,
        )
    )
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)


def smooth_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs["logits"].flatten(0, 1)
    total = torch.nn.functional.cross_entropy(
        logits, labels.flatten(), reduction="sum", label_smoothing=0.3
    )
    mean: torch.Tensor = total / num_items_in_batch
    return mean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "trainer_options"),
    [
        ({"label_smoothing_factor": 0.2}, {}),
        ({}, {"compute_loss_func": smooth_loss}),
        ({"bf16": True}, {}),
        ({"max_grad_norm": 0.01}, {}),
    ],
    ids=["label smoothing", "loss function", "bf16", "clipping"],
)
def test_losses_computed_outside_the_model_are_seen_too(
    tmp_path: Path, arguments: dict[str, Any], trainer_options: dict[str, Any]
) -> None:
    trainer = make_trainer(
        tmp_path,
        language_model(),
        trainer_options=trainer_options,
        gradient_accumulation_steps=3,
        **arguments,
    )
    scheduler = train(trainer)
    assert scheduler.losses == logged(trainer, "loss")


def test_the_log_shows_the_learning_rate_that_each_step_had(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, regression())
    scheduler = train(trainer)
    means = [sum(scheduler.losses[:k]) / k for k in range(1, 14)]
    assert logged(trainer, "learning_rate") == [0.05, *(0.05 * mean for mean in means)]


def test_the_scheduler_type_of_the_arguments_is_left_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, regression(), lr_scheduler_type="cosine")
    scheduler = trainer.lr_scheduler
    assert train(trainer) is scheduler
    assert trainer.args.lr_scheduler_type == "cosine"


@pytest.mark.slow
def test_evaluation_does_not_leak_into_the_training_loss(tmp_path: Path) -> None:
    plain = train(make_trainer(tmp_path, language_model()))
    evaluated = train(
        make_trainer(
            tmp_path, language_model(), eval_strategy="steps", eval_steps=2, eval_on_start=True
        )
    )
    assert evaluated.losses == plain.losses


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["loss", "greedy", "policy"])
def test_resuming_from_a_checkpoint_continues_bit_for_bit(
    tmp_path: Path, kind: str, accumulation: int
) -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        if kind == "loss":
            return LossLR(optimizer)
        if kind == "greedy":
            return GreedyLR(optimizer, semantics="paper", patience=0, min_lr=1e-4)
        policy = random_policy("progress", "loss", "lr", "movement", "gradient")
        return PolicyLR(optimizer, policy, total_steps=14 if accumulation == 1 else 8)

    def build() -> Trainer:
        return make_trainer(
            tmp_path,
            language_model(dropout=0.1),
            scheduler=scheduler,
            gradient_accumulation_steps=accumulation,
            save_strategy="steps",
            save_steps=3,
        )

    whole = build()
    train(whole)
    resumed = build()
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(set(logged(whole, "learning_rate"))) > 3
    assert logged(resumed, "learning_rate") == logged(whole, "learning_rate")
    assert logged(resumed, "loss") == logged(whole, "loss")
    for mine, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_gradients_are_there_when_the_trainer_steps_the_scheduler(tmp_path: Path) -> None:
    policy = random_policy("loss", "gradient")
    trainer = make_trainer(
        tmp_path,
        language_model(),
        scheduler=lambda optimizer: PolicyLR(optimizer, policy, total_steps=8),
        gradient_accumulation_steps=2,
    )
    scheduler = train(trainer)
    assert scheduler.last_epoch == 8
    assert scheduler.factor != 1.0


def test_a_warm_up_comes_before_the_losses_count(tmp_path: Path) -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> SequentialLR:
        warm_up = LinearLR(optimizer, start_factor=0.25, total_iters=4)
        return SequentialLR(optimizer, [warm_up, LossLR(optimizer)], milestones=[4])

    trainer = make_trainer(tmp_path, regression(), scheduler=scheduler)
    losses = train(trainer)._schedulers[1].losses
    rates = logged(trainer, "learning_rate")
    assert rates[:5] == pytest.approx([0.0125, 0.021875, 0.03125, 0.040625, 0.05])
    assert rates[5] == 0.05 * (sum(losses[:5]) / 5)


def test_a_nan_loss_reaches_the_scheduler_though_the_log_filters_it(tmp_path: Path) -> None:
    class OneNan(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss * (torch.nan if self.state.global_step == 3 else 1.0)

    trainer = make_trainer(tmp_path, regression(), trainer_class=OneNan, max_steps=4)
    losses = train(trainer).losses
    assert np.isnan(losses).tolist() == [False, False, False, True]


def test_a_skipped_optimizer_step_gives_no_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, regression(), max_steps=5)
    # 2^125 overflows float32: the scaler skips steps until its scale is small enough
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    scheduler = train(trainer)
    assert 0 < scheduler.last_epoch < 5
    assert scheduler.losses == logged(trainer, "loss")[5 - scheduler.last_epoch :]


def test_a_scheduler_that_observes_nothing_is_refused_before_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, regression(), scheduler=ConstantLR)
    with pytest.raises(TypeError, match=r"`scheduler` must observe losses, .* got ConstantLR"):
        trainer.train()


@pytest.mark.slow
def test_an_interrupted_training_leaves_no_loss_behind(tmp_path: Path) -> None:
    class InterruptOnce(TrainerCallback):
        is_done = False

        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            if not self.is_done:
                self.is_done = True
                raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, regression(), gradient_accumulation_steps=2)
    trainer.add_callback(InterruptOnce())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    scheduler = train(trainer)
    assert scheduler.losses == logged(trainer, "loss")


def warned(train_once: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train_once()
    return [str(one.message) for one in caught if "`total_steps`" in str(one.message)]


def horizon(total_steps: int) -> Any:
    """A guarded schedule for this number of steps."""

    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return Guard(OneCycleLR(optimizer, 0.05, total_steps=total_steps, cycle_momentum=False))

    return scheduler


def chained_after_warm_up(total_steps: int) -> Any:
    """The same after a warm-up of three steps, in a chain."""

    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        parts = [LinearLR(optimizer, total_iters=3), horizon(total_steps)(optimizer)]
        return ChainedScheduler([SequentialLR(optimizer, parts, milestones=[3])])

    return scheduler


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "arguments", "expected"),
    [
        (horizon(14), {}, None),
        (horizon(20), {}, 14),
        (horizon(14), {"gradient_accumulation_steps": 2}, 8),
        (horizon(14), {"max_steps": 5}, 5),
        (chained_after_warm_up(11), {}, None),
        (chained_after_warm_up(14), {}, 11),
    ],
)
def test_another_horizon_than_the_trainers_is_warned_of_once(
    tmp_path: Path, scheduler: Any, arguments: dict[str, Any], expected: int | None
) -> None:
    trainer = make_trainer(tmp_path, regression(), scheduler=scheduler, **arguments)
    messages = warned(trainer.train)
    assert len(messages) == (expected is not None)
    for message in messages:
        assert message.endswith(f"give `total_steps={expected}`")


def test_a_resumed_training_has_the_horizon_of_the_whole(tmp_path: Path) -> None:
    options = {"scheduler": horizon(14), "save_strategy": "steps", "save_steps": 6}
    make_trainer(tmp_path, regression(), **options).train()
    resumed = make_trainer(tmp_path, regression(), **options)
    checkpoint = str(tmp_path / "checkpoint-6")
    assert not warned(lambda: resumed.train(resume_from_checkpoint=checkpoint))


class Transfer(Regression):
    """A frozen body under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(self.body(x).tanh(), labels)


class Unfreeze(TrainerCallback):
    """The body joins the optimizer in the second epoch, at a tenth of the head's initial rate."""

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **kwargs: Any
    ) -> None:
        if state.epoch == 1.0:
            model.body.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.005})


def small_networks(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return PolicyLR(optimizer, "small_networks", total_steps=14)


def greedy(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return GreedyLR(optimizer, semantics="paper", patience=0, min_lr=1e-4)


def guarded(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return Guard(greedy(optimizer))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`total_steps`")
@pytest.mark.parametrize("scheduler", [small_networks, greedy, guarded])
def test_what_a_callback_unfreezes_joins_at_its_own_rate(tmp_path: Path, scheduler: Any) -> None:
    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, Transfer(), scheduler=scheduler)
    before = trainer.model.body.weight.detach().clone()
    trainer.add_callback(Unfreeze())
    assert train(trainer).last_epoch == 14
    head, body = (group["lr"] for group in trainer.optimizer.param_groups)
    assert body == pytest.approx(head / 10)
    assert not torch.equal(trainer.model.body.weight, before)


def policy_for(total_steps: int) -> Any:
    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return PolicyLR(optimizer, random_policy("progress", "loss"), total_steps=total_steps)

    return scheduler


def test_a_second_training_past_the_horizon_is_warned_of_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, regression(), scheduler=policy_for(14))
    assert not warned(trainer.train)
    (message,) = warned(trainer.train)
    assert message.startswith("step 14 + 1 is past `total_steps` = 14")
    assert "extend" in message


def test_a_checkpoint_of_another_horizon_is_refused_by_name(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    make_trainer(tmp_path, regression(), scheduler=policy_for(14), **options).train()
    longer = make_trainer(
        tmp_path, regression(), scheduler=policy_for(28), num_train_epochs=4, **options
    )
    with pytest.raises(ValueError, match=r"`total_steps` = 28 .* got 14: .* `extend\(28\)`"):
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.mark.slow
def test_a_callback_extends_a_training_that_is_resumed(tmp_path: Path) -> None:
    class Extend(TrainerCallback):
        def on_train_begin(self, *args: Any, lr_scheduler: Any, **kwargs: Any) -> None:
            lr_scheduler.extend(28)

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "num_train_epochs": 4}
    make_trainer(tmp_path, regression(), scheduler=policy_for(14), **options, max_steps=14).train()
    longer = make_trainer(
        tmp_path,
        regression(),
        scheduler=policy_for(14),
        trainer_options={"callbacks": [Extend()]},
        **options,
    )
    checkpoint = str(tmp_path / "checkpoint-6")
    assert not warned(lambda: longer.train(resume_from_checkpoint=checkpoint))
    assert longer.lr_scheduler.last_epoch == longer.lr_scheduler.total_steps == 28
