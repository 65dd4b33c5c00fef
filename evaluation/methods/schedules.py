"""The fixed schedules that a policy is compared with: functions of (optimizer, total_steps).

Torch's own classes, and of lrpilot those that torch lacks. Every one of them starts from, or peaks
at, the optimizer's learning rate.
"""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler

from lrpilot import D2ZLR, WSDLR, CosineWarmupLR


def constant(optimizer: Optimizer, *, total_steps: int) -> LRScheduler:
    """Lr = lr_0."""
    return torch_schedulers.ConstantLR(optimizer, factor=1.0, total_iters=total_steps)


def step(
    optimizer: Optimizer, *, total_steps: int, num_drops: int = 2, gamma: float = 0.1
) -> LRScheduler:
    """Lr = lr_0 gamma^k after k of `num_drops` equally spaced drops."""
    period = max(1, math.ceil(total_steps / (num_drops + 1)))
    return torch_schedulers.StepLR(optimizer, period, gamma=gamma)


def exponential(
    optimizer: Optimizer, *, total_steps: int, final_factor: float = 0.01
) -> LRScheduler:
    """Lr = lr_0 final_factor^(t/T)."""
    return torch_schedulers.ExponentialLR(optimizer, gamma=final_factor ** (1 / total_steps))


def linear(optimizer: Optimizer, *, total_steps: int) -> LRScheduler:
    """Lr = lr_0 (1 - t/T)."""
    return torch_schedulers.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=total_steps
    )


def cosine(optimizer: Optimizer, *, total_steps: int) -> LRScheduler:
    """Lr = lr_0 (1 + cos(pi t/T)) / 2."""
    return torch_schedulers.CosineAnnealingLR(optimizer, T_max=total_steps)


def cosine_restarts(optimizer: Optimizer, *, total_steps: int, num_cycles: int = 3) -> LRScheduler:
    """Cosine from lr_0 to 0, `num_cycles` times."""
    period = max(1, math.ceil(total_steps / num_cycles))
    return torch_schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=period)


def one_cycle(optimizer: Optimizer, *, total_steps: int, warmup_share: float = 0.3) -> LRScheduler:
    """Cosine warm-up from lr_0/25 to lr_0, then cosine to lr_0/250,000; momentum untouched."""
    return torch_schedulers.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        # torch refuses the step after the last one
        total_steps=total_steps + 1,
        # torch divides by zero at a warm-up that ends at step 0
        pct_start=warmup_share if warmup_share * (total_steps + 1) > 1.0 else 0.0,
        cycle_momentum=False,
    )


def cosine_warmup(optimizer: Optimizer, *, total_steps: int, **arguments: Any) -> CosineWarmupLR:
    """Cosine after a linear warm-up of a tenth."""
    return CosineWarmupLR(optimizer, total_steps=total_steps, **arguments)


def wsd(optimizer: Optimizer, *, total_steps: int, **arguments: Any) -> WSDLR:
    """Warm-up, stable, decay: linear to lr_0, constant, and linear to 0 in the last fifth."""
    return WSDLR(optimizer, total_steps=total_steps, **arguments)


def d2z(optimizer: Optimizer, *, total_steps: int, **arguments: Any) -> D2ZLR:
    """Warm-up over a tenth, then linear decay to zero."""
    return D2ZLR(optimizer, total_steps=total_steps, **arguments)


def polynomial(optimizer: Optimizer, *, total_steps: int, power: float = 2.0) -> LRScheduler:
    """Lr = lr_0 (1 - t/T)^power."""
    return torch_schedulers.PolynomialLR(optimizer, total_iters=total_steps, power=power)
