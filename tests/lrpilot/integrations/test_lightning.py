import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.lrpilot.integrations.loss_lr import LossLR

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lrpilot.integrations.lightning import LossCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:`total_steps` = .* is outside"),
]

PLATEAU = {"reduce_on_plateau": True, "monitor": "train_loss"}


class Regression(LightningModule):
    def __init__(
        self,
        make_scheduler: Any = LossLR,
        *,
        lr: float = 0.05,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.make_scheduler = make_scheduler
        self.lr = lr
        self.config = config or {}
        self.micro_losses: list[float] = []
        self.rates: list[float] = []

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        loss: torch.Tensor = (self.layer(x)[:, 0] - y).square().mean()
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        self.micro_losses.append(loss.item())
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        self.scheduler = self.make_scheduler(optimizer)
        config = {"scheduler": self.scheduler, "interval": "step", **self.config}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Manual(Regression):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()


def points(num: int = 28) -> DataLoader[Any]:
    x = torch.randn(num, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1)), batch_size=4)


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        **{
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            **options,
        },
    )


def fit(model: Any, trainer: Trainer, **options: Any) -> Any:
    trainer.fit(model, points(), points() if trainer.check_val_every_n_epoch else None, **options)
    return model


def test_the_plateau_style_dictionary_steps_with_the_logged_loss(tmp_path: Path) -> None:
    model = fit(Regression(config=PLATEAU), make_trainer(tmp_path))
    assert model.scheduler.losses == model.micro_losses
    assert model.scheduler.last_epoch == 14


def test_the_plateau_style_dictionary_sees_only_the_last_micro_batch(tmp_path: Path) -> None:
    model = fit(Regression(config=PLATEAU), make_trainer(tmp_path, accumulate_grad_batches=2))
    losses = model.micro_losses
    assert model.scheduler.losses == [losses[i] for i in (1, 3, 5, 6, 8, 10, 12, 13)]


@pytest.mark.parametrize("kind", [Regression, Manual])
def test_the_callback_gives_the_loss_of_every_step(tmp_path: Path, kind: Any) -> None:
    model = fit(kind(), make_trainer(tmp_path, LossCallback()))
    assert model.scheduler.losses == model.micro_losses
    means = [sum(model.micro_losses[:k]) / k for k in range(1, 14)]
    assert model.rates == [0.05, *(0.05 * mean for mean in means)]


def test_the_callback_averages_accumulated_micro_batches(tmp_path: Path) -> None:
    model = fit(Regression(), make_trainer(tmp_path, LossCallback(), accumulate_grad_batches=3))
    first = model.micro_losses[:7]
    # the last optimizer step of an epoch has one micro-batch, which counts as it is
    expected = [sum(first[:3]) / 3, sum(first[3:6]) / 3, first[6]]
    assert model.scheduler.losses[:3] == pytest.approx(expected, rel=1e-6)
    assert model.scheduler.last_epoch == 6


def test_validation_does_not_leak_into_the_training_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, LossCallback(), val_check_interval=2)
    model = fit(Regression(), trainer)
    assert model.scheduler.losses == model.micro_losses


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_the_loss_is_not_scaled_in_mixed_precision(tmp_path: Path, precision: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if precision == "16-mixed" else None
    plugin = MixedPrecision(precision, "cpu", scaler)
    model = fit(Regression(), make_trainer(tmp_path, LossCallback(), plugins=[plugin]))
    assert model.scheduler.losses == model.micro_losses


def test_a_warm_up_comes_before_the_losses_count(tmp_path: Path) -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        warm_up = LinearLR(optimizer, start_factor=0.25, total_iters=4)
        return SequentialLR(optimizer, [warm_up, LossLR(optimizer)], milestones=[4])

    model = fit(Regression(scheduler), make_trainer(tmp_path, LossCallback()))
    assert model.rates[:5] == pytest.approx([0.0125, 0.021875, 0.03125, 0.040625, 0.05])
    assert model.rates[5] == 0.05 * (sum(model.micro_losses[:5]) / 5)


def greedy(optimizer: torch.optim.Optimizer) -> GreedyLR:
    return GreedyLR(optimizer, semantics="paper", patience=0, min_lr=1e-4)


def resume(
    folder: Path, *, steps: int, config: dict[str, Any], make_scheduler: Any = LossLR
) -> tuple[Any, Any]:
    """A whole run, and the continuation of its checkpoint after some steps."""

    def callbacks() -> list[Callback]:
        saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1)
        return [saves, *([] if config else [LossCallback()])]

    whole = fit(Regression(make_scheduler, config=config), make_trainer(folder, *callbacks()))
    resumed = fit(
        Regression(make_scheduler, config=config),
        make_trainer(folder, *callbacks()),
        ckpt_path=folder / f"step={steps}.ckpt",
        weights_only=True,
    )
    return whole, resumed


@pytest.mark.parametrize("make_scheduler", [LossLR, greedy])
def test_with_the_callback_resuming_after_an_epoch_continues_bit_for_bit(
    tmp_path: Path, make_scheduler: Any
) -> None:
    whole, resumed = resume(tmp_path, steps=7, config={}, make_scheduler=make_scheduler)
    assert len(set(whole.rates)) > 3
    assert resumed.rates == whole.rates[7:]
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_with_the_callback_a_checkpoint_within_an_epoch_has_every_loss(tmp_path: Path) -> None:
    # Lightning starts the epoch's data anew, so only the state can be the same
    whole, resumed = resume(tmp_path, steps=5, config={})
    assert resumed.scheduler.losses == whole.micro_losses[:5] + resumed.micro_losses


def test_a_plateau_style_checkpoint_within_an_epoch_lacks_the_last_loss(tmp_path: Path) -> None:
    # Lightning saves before it steps schedulers of this style
    whole, resumed = resume(tmp_path, steps=5, config=PLATEAU)
    assert resumed.scheduler.losses == whole.micro_losses[:4] + resumed.micro_losses


def test_lightnings_own_monitor_logs_the_learning_rate(tmp_path: Path) -> None:
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "max_epochs": 1}
    monitor = LearningRateMonitor("step")
    model = fit(Regression(), make_trainer(tmp_path, LossCallback(), monitor, **options))
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rates = [row["lr-AdamW"] for row in csv.DictReader(file) if row["lr-AdamW"]]
    assert [float(rate) for rate in rates] == pytest.approx(model.rates, rel=1e-6)


def test_each_optimizer_has_the_loss_of_its_own_backward_pass(tmp_path: Path) -> None:
    class TwoOptimizers(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for i, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch) * (10.0**i))
                optimizer.step()
                self.lr_schedulers()[i].step()

        def configure_optimizers(self) -> Any:
            optimizers = [torch.optim.SGD(self.parameters(), lr=0.0001) for _ in range(2)]
            self.both = [LossLR(optimizer) for optimizer in optimizers]
            return optimizers, self.both

    small, large = fit(TwoOptimizers(), make_trainer(tmp_path, LossCallback())).both
    assert len(small.losses) == len(large.losses) == 14
    assert all(5.0 < b / a < 15.0 for a, b in zip(small.losses, large.losses, strict=True))


def test_a_training_without_an_observing_scheduler_is_refused(tmp_path: Path) -> None:
    model = Regression(lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer))
    with pytest.raises(TypeError, match=r"scheduler that observes losses, got \['ConstantLR'\]"):
        fit(model, make_trainer(tmp_path, LossCallback()))


class Skipping(Regression):
    """Returns None for some batches of every epoch."""

    def __init__(self, skipped: set[int], **options: Any) -> None:
        super().__init__(**options)
        self.skipped = skipped

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx in self.skipped else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("skipped", [{3}, {0}, {6}, {0, 1, 4}, set(range(7))], ids=str)
def test_without_a_loss_a_scheduler_neither_observes_nor_steps(
    tmp_path: Path, skipped: set[int]
) -> None:
    model = fit(Skipping(skipped), make_trainer(tmp_path, LossCallback()))
    assert model.scheduler.losses == model.micro_losses
    assert model.scheduler.last_epoch == len(model.micro_losses) == 2 * (7 - len(skipped))


def test_of_accumulated_micro_batches_those_without_a_loss_do_not_count(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, LossCallback(), accumulate_grad_batches=2, max_epochs=1)
    model = fit(Skipping({1, 2, 4, 5}), trainer)
    # the windows are (0, 1), (2, 3), (4, 5) and (6)
    assert model.scheduler.losses == model.micro_losses
    assert model.scheduler.last_epoch == 3


def policy_lr(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return PolicyLR(optimizer, "small_networks", total_steps=14)


def guarded(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return Guard(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14))


def warmed_up(optimizer: torch.optim.Optimizer) -> LRScheduler:
    warm_up = LinearLR(optimizer, total_iters=3)
    return SequentialLR(optimizer, [warm_up, GreedyLR(optimizer)], milestones=[3])


@pytest.mark.filterwarnings("ignore:`total_steps`")
@pytest.mark.parametrize("make_scheduler", [greedy, policy_lr, guarded, warmed_up])
def test_a_batch_without_a_loss_stops_no_training(tmp_path: Path, make_scheduler: Any) -> None:
    model = Skipping({0, 3}, make_scheduler=make_scheduler)
    fit(model, make_trainer(tmp_path, LossCallback()))
    assert model.scheduler.last_epoch == 10


def test_after_training_the_module_steps_schedulers_as_before(tmp_path: Path) -> None:
    model = fit(Regression(), make_trainer(tmp_path, LossCallback()))
    assert "lr_scheduler_step" not in vars(model)


class MatricesAndRest(LightningModule):
    """Two optimizers with a scheduler each; `order` says what one training step does."""

    def __init__(self, order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.order = order
        self.body = torch.nn.Linear(3, 4, bias=False)
        self.head = torch.nn.Linear(4, 1)
        self.seen: list[float] = []

    def go_back(self, batch: Any, scale: float = 1.0) -> None:
        x, y = batch
        loss = scale * (self.head(self.body(x).tanh())[:, 0] - y).square().mean()
        self.manual_backward(loss)
        self.seen.append(loss.item())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        if self.order == "backward, step, backward, step":
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.zero_grad()
                self.go_back(batch)
                optimizer.step()
                scheduler.step()
            return
        self.go_back(batch)
        if self.order == "backward, backward, step, step":
            self.go_back(batch, scale=10.0)
        elif self.order == "two batches, step, step" and batch_idx % 2 == 0:
            return
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()

    def configure_optimizers(self) -> Any:
        parts = (torch.optim.Muon, self.body), (torch.optim.AdamW, self.head)
        optimizers = [kind(part.parameters(), lr=1e-3) for kind, part in parts]
        self.both = [LossLR(optimizer) for optimizer in optimizers]
        return optimizers, self.both


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("backward, step, backward, step", lambda seen: (seen[::2], seen[1::2])),
        ("backward, step, step", lambda seen: (seen, seen)),
        ("backward, backward, step, step", lambda seen: (means(seen), means(seen))),
        ("two batches, step, step", lambda seen: (means(seen), means(seen))),
    ],
)
def test_a_loss_counts_for_every_optimizer_that_steps_after_it(
    tmp_path: Path, order: str, expected: Any
) -> None:
    trainer = make_trainer(tmp_path, LossCallback(), max_epochs=1)
    model = MatricesAndRest(order)
    trainer.fit(model, points(24))
    for scheduler, losses in zip(model.both, expected(model.seen), strict=True):
        assert scheduler.losses == pytest.approx(losses, rel=1e-6)
        assert scheduler.last_epoch == len(losses)


def means(losses: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]


def warned(fit_once: Any) -> list[str]:
    """What a training warns of, without Lightning's own advice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        fit_once()
    ours = ("`total_steps`", '`"interval"`')
    return [str(one.message) for one in caught if str(one.message).startswith(ours)]


def horizon(total_steps: int) -> Any:
    """A guarded schedule for this number of steps."""

    def make_scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        kind = torch.optim.lr_scheduler.OneCycleLR
        return Guard(kind(optimizer, 0.05, total_steps=total_steps, cycle_momentum=False))

    return make_scheduler


def after_warm_up(total_steps: int) -> Any:
    """The same after a warm-up of four steps."""

    def make_scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        parts = [LinearLR(optimizer, total_iters=4), horizon(total_steps)(optimizer)]
        return SequentialLR(optimizer, parts, milestones=[4])

    return make_scheduler


@pytest.mark.parametrize(
    ("make_scheduler", "options", "expected"),
    [
        (horizon(14), {}, None),
        (horizon(7), {"accumulate_grad_batches": 2, "max_epochs": 1}, 4),
        (horizon(20), {}, 14),
        (horizon(20), {"max_steps": 9}, 9),
        (after_warm_up(10), {}, None),
        (after_warm_up(14), {}, 10),
    ],
)
def test_another_horizon_than_the_trainers_is_warned_of_once(
    tmp_path: Path, make_scheduler: Any, options: dict[str, Any], expected: int | None
) -> None:
    trainer = make_trainer(tmp_path, LossCallback(), **options)
    messages = warned(lambda: fit(Regression(make_scheduler), trainer))
    assert len(messages) == (expected is not None)
    for message in messages:
        assert message.endswith(f"give `total_steps={expected}`")


def test_a_resumed_training_has_the_horizon_of_the_whole(tmp_path: Path) -> None:
    assert not warned(lambda: resume(tmp_path, steps=7, config={}, make_scheduler=horizon(14)))


def test_an_infinite_training_has_no_horizon_to_compare(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            trainer.should_stop = trainer.global_step == 5

    trainer = make_trainer(tmp_path, LossCallback(), Stop(), max_epochs=-1)
    assert not warned(lambda: fit(Regression(horizon(20)), trainer))


@pytest.mark.parametrize(
    ("config", "num_warnings"),
    [
        ({"interval": "epoch"}, 1),
        ({"frequency": 2}, 1),
        ({"interval": "step"}, 0),
        ({"interval": "epoch", **PLATEAU}, 0),
    ],
)
def test_a_scheduler_that_steps_less_often_than_the_optimizer_is_warned_of_once(
    tmp_path: Path, config: dict[str, Any], num_warnings: int
) -> None:
    model = Regression(config=config)
    messages = warned(lambda: fit(model, make_trainer(tmp_path, LossCallback())))
    assert len(messages) == num_warnings
    for message in messages:
        assert '"interval": "step"' in message


def test_with_manual_optimization_nothing_is_known_of_the_clock(tmp_path: Path) -> None:
    model = Manual(make_scheduler=horizon(20), config={"interval": "epoch"})
    assert not warned(lambda: fit(model, make_trainer(tmp_path, LossCallback())))


class Transfer(Regression):
    """A frozen backbone under a head."""

    def __init__(self, make_scheduler: Any) -> None:
        super().__init__(make_scheduler)
        self.backbone = torch.nn.Linear(3, 3)
        self.seen: list[list[float]] = []

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        if self.trainer.training:
            self.seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        loss: torch.Tensor = (self.layer(self.backbone(x).tanh())[:, 0] - y).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)
        self.scheduler = self.make_scheduler(optimizer)
        config = {"scheduler": self.scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}


@pytest.mark.filterwarnings("ignore:`total_steps`")
@pytest.mark.parametrize("make_scheduler", [greedy, policy_lr, guarded])
def test_lightnings_own_callback_unfreezes_a_backbone(tmp_path: Path, make_scheduler: Any) -> None:
    unfreezing = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    model = Transfer(make_scheduler)
    before = model.backbone.weight.detach().clone()
    fit(model, make_trainer(tmp_path, LossCallback(), unfreezing))
    assert [len(lrs) for lrs in model.seen] == [1] * 7 + [2] * 7
    assert model.scheduler.last_epoch == 14
    # from its first step on it has the factor of the head
    ratios = [backbone / head for head, backbone in model.seen[8:]]
    assert ratios == pytest.approx([ratios[0]] * 6)
    assert not torch.equal(model.backbone.weight, before)
