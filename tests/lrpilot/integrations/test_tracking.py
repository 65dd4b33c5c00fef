import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpilot.integrations.tracking import to_tensorboard, to_wandb
from tests.lrpilot.integrations.loss_lr import LossLR


def capped_scheduler() -> LossLR:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
    scheduler = LossLR(optimizer, cap=lambda: (0.75, "estimate"))
    optimizer.step()
    return scheduler


def test_tensorboard_shows_every_decision_with_its_rule(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    scheduler = capped_scheduler()
    with SummaryWriter(tmp_path) as writer:
        scheduler.log.subscribe(to_tensorboard(writer))
        for loss in (1.5, 2.5):
            scheduler.step(loss)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(f"lr_decisions/{tag}")]
        for tag in ("new_lr", "signal")
    }
    assert scalars == {"new_lr": [(1, 0.75), (2, 0.75)], "signal": [(1, 1.5), (2, 2.5)]}
    assert math.isnan(events.Scalars("lr_decisions/threshold")[0].value)
    texts = events.Tensors("lr_decisions/rule/text_summary")
    rules = [event.tensor_proto.string_val[0].decode() for event in texts]
    assert rules == ["mean", "mean, bound by estimate"]


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """What an offline run wrote: records in pieces that do not cross blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, record, history = file.read_bytes(), 7, b"", []
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            items = Record.FromString(record).history.item
            if items:
                history.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
            record = b""
    return history


@pytest.mark.slow
def test_wandb_shows_decisions_on_the_runs_own_step_axis(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    scheduler = capped_scheduler()
    with wandb.init(mode="offline", dir=tmp_path, settings={"silent": True}) as run:
        scheduler.log.subscribe(to_wandb(run))
        for step, loss in enumerate((1.2, 2.2)):
            run.log({"loss": loss}, step=10 * step)
            scheduler.step(loss)
    wandb.teardown()  # the file is complete when the process that writes it has ended
    first, second = wandb_history(tmp_path)
    assert math.isnan(first.pop("lr_decisions/threshold"))
    assert {key: value for key, value in first.items() if key[0] != "_"} == {
        "loss": 1.2,
        "lr_decisions/step": 1,
        "lr_decisions/new_lr": 0.6,
        "lr_decisions/signal": 1.2,
        "lr_decisions/rule": "mean",
        "lr_decisions/bound_by": "",
    }
    assert second["lr_decisions/bound_by"] == "estimate"
    assert [row["_step"] for row in (first, second)] == [0, 10]
