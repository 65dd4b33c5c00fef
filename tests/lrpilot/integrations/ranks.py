"""Real data-parallel runs on the CPU: one process per rank, joined by gloo.

Run as a program it is one rank: it calls one of the functions below and prints what it returns.
"""

import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lrpilot.integrations.distributed import mean_over_ranks
from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from lrpilot.schedulers.policy_lr import PolicyLR
from tests import programs
from tests.lrpilot.integrations.loss_lr import LossLR
from tests.programs import ROOT
from tests.scheduling import plain_action


def run_ranks(function: str, *arguments: Any, num_ranks: int = 2) -> list[Any]:
    """What `function` returned on every rank."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [__file__, function, json.dumps(arguments)]
    ranks = [
        programs.start(*command, cwd=ROOT, environment=shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(num_ranks))
    ]
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, outputs
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def batches(num: int) -> list[tuple[Tensor, Tensor]]:
    """This rank's own data."""
    generator = torch.Generator().manual_seed(100 + int(os.environ["RANK"]))
    xs = torch.randn(num, 4, 3, generator=generator)
    return [(x, x.sum(1)) for x in xs]


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def loss_of(network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    loss: Tensor = (network(batch[0])[:, 0] - batch[1]).square().mean()
    return loss


def mean_of(values: list[float | None]) -> list[float]:
    """The mean over ranks of this rank's value, given as a float and as two kinds of tensor."""
    dist.init_process_group("gloo")
    value = values[dist.get_rank()]
    number = torch.nan if value is None else value
    kinds: list[float | Tensor] = [
        number,
        torch.tensor([number]),
        torch.tensor(number, dtype=torch.float64),
    ]
    return [float(mean_over_ranks(kind)) for kind in kinds]


def moving_policy() -> Policy:
    """A policy that follows the movement of the weights and the norm of the gradient."""
    observation = ObservationSpec(("movement", "gradient"), num_entries=8)
    weights = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)).numpy()
    layers = [(weights, np.zeros(1, np.float32))]
    return Policy(layers, observation, plain_action(), ClockSpec(num_decisions=12))


def rates_of(strategy: str, make_scheduler: Any, *, is_reduced: bool = True) -> list[float]:
    """The learning rates of this rank in twelve steps of plain DDP or of FSDP2."""
    network: Any = model()
    if strategy == "ddp":
        network = DistributedDataParallel(network)
    else:
        fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    scheduler = make_scheduler(optimizer)
    rates = []
    for batch in batches(12):
        optimizer.zero_grad()
        loss = loss_of(network, batch)
        loss.backward()
        optimizer.step()
        scheduler.step(mean_over_ranks(loss) if is_reduced else loss.detach())
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def plain(strategy: str) -> list[list[float]]:
    """The learning rates with the mean loss, and with each rank's own."""
    dist.init_process_group("gloo")
    return [rates_of(strategy, LossLR, is_reduced=is_reduced) for is_reduced in (True, False)]


def policy() -> list[list[float]]:
    """The learning rates of a policy that follows the weights, in FSDP2 and in DDP."""
    dist.init_process_group("gloo")

    def make_scheduler(optimizer: torch.optim.Optimizer) -> PolicyLR:
        return PolicyLR(optimizer, moving_policy(), total_steps=12)

    return [rates_of(strategy, make_scheduler) for strategy in ("fsdp", "ddp")]


def accelerate(stepped_by: str, accumulation: int) -> dict[str, list[float]]:
    """The losses that an Accelerate run of twelve batches gave to the scheduler."""
    from accelerate import Accelerator

    from lrpilot.integrations.accelerate import LossStepper

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    network: Any = model()
    optimizer: Any = torch.optim.SGD(network.parameters(), lr=0.05)
    scheduler = LossLR(optimizer)
    network, optimizer = accelerator.prepare(network, optimizer)
    stepper: Any = (
        LossStepper(accelerator, scheduler)
        if stepped_by == "stepper"
        else accelerator.prepare(scheduler)
    )
    micro_losses = []
    for batch in batches(12):
        with accelerator.accumulate(network):
            loss = loss_of(network, batch)
            accelerator.backward(loss)
            optimizer.step()
            stepper.step(loss.detach())
            optimizer.zero_grad()
        micro_losses.append(loss.item())
    return {"seen": scheduler.losses, "micro": micro_losses}


def huggingface(folder: str) -> list[float]:
    """The learning rates of this rank in a Trainer run."""
    from tests.lrpilot.integrations import test_huggingface

    trainer = test_huggingface.make_trainer(Path(folder), test_huggingface.language_model())
    trainer.train()
    assert dist.get_world_size() == 2
    last: list[float] = trainer.lr_scheduler.get_last_lr()
    return test_huggingface.logged(trainer, "learning_rate") + last


def lightning(folder: str) -> list[float]:
    """The learning rates of this rank in a Lightning run."""
    from lrpilot.integrations.lightning import LossCallback
    from tests.lrpilot.integrations import test_lightning

    callback = LossCallback()
    options: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    trainer = test_lightning.make_trainer(Path(folder), callback, **options)
    fitted = test_lightning.fit(test_lightning.Regression(), trainer)
    assert trainer.world_size == 2
    rates: list[float] = fitted.rates
    return rates


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))), flush=True)
    if dist.is_initialized():
        gc.collect()  # a DDP model that outlives its gloo group can hang or abort at exit
        dist.destroy_process_group()
