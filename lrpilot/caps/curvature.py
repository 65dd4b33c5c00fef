"""CurvatureCap: the largest stable learning rate of a network, measured while it trains."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Optimizer

from lrpilot.arguments import require_sgd_or_adam, require_within
from lrpilot.caps.eigenvalue import (
    Eigenpair,
    flatten,
    hessian_vector_product,
    largest_eigenvalue,
)
from lrpilot.state import Stateful, state_fields

LARGEST_CAP = torch.finfo(torch.float32).max
"""The cap where the loss does not curve upwards: finite, so that it may be multiplied by 0."""

_NOISE = 0.1


@contextmanager
def _undisturbed(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Fixed random numbers inside; generators and the buffers of `model` as before afterwards."""
    kind = device.type
    devices = [] if kind == "cpu" else list(range(torch.get_device_module(kind).device_count()))
    buffers = [] if model is None else [(b, b.clone()) for b in model.buffers()]
    # the fused attention kernels have no second derivative
    with torch.random.fork_rng(devices, device_type=kind), sdpa_kernel(SDPBackend.MATH):
        torch.default_generator.manual_seed(0)
        if devices:
            torch.get_device_module(kind).manual_seed_all(0)
        try:
            with torch.enable_grad():
                yield
        finally:
            with torch.no_grad():
                for buffer, old in buffers:
                    if not torch.equal(buffer, old):
                        buffer.copy_(old)


def _momentum_gain(optimizer: Optimizer) -> float:
    """How much larger the largest stable rate is than 2 / lambda, by the optimizer's momentum."""
    gains = []
    for group in optimizer.param_groups:
        if isinstance(optimizer, SGD):
            beta = float(group["momentum"])
            damping = 1.0 + 2.0 * beta if group["nesterov"] else 1.0 - float(group["dampening"])
        else:
            beta = float(group["betas"][0])
            damping = 1.0 - beta
        gains.append((1.0 + beta) / damping)
    return min(gains)


class CurvatureCap(Stateful):
    """A `Cap`: the learning rate above which a step is locally unstable, times `safety`.

    With lambda the largest eigenvalue of P^{-1/2} H P^{-1/2}, H the Hessian of `loss_fn` (plus the
    coupled weight decay), and omega the decoupled weight decay::

        cap = safety * 2 / (lambda / gain + omega)

    - SGD: P = 1; gain = (1 + beta) / (1 - dampening), with Nesterov (1 + beta) / (1 + 2 beta).
    - Adam, AdamW: P = (1 - beta1^{t+1}) (sqrt(v^) + eps), v^ the optimizer's own (before its first
      step: the squared gradient of `loss_fn`); gain = (1 + beta1) / (1 - beta1), so that at
      beta1 = 0.9 the cap is safety * 38 / lambda. In the first ten steps or so some entries of v^
      are next to nothing, and the cap is far below what Adam stands: a warm-up.

    The gains follow from the characteristic polynomial of the iteration on a quadratic with P
    frozen. In P, every group's learning rate enters relative to the largest, so that the cap is
    for the largest. It is an estimate, never a certificate: one batch stands for all, P and H
    move between measurements, and power iteration reaches the eigenvalue from below (the
    residual is added to it). Where the loss does not curve upwards, the cap is `LARGEST_CAP`;
    where it is not finite (a diverged model), the last finite cap is kept::

        x, y = next(iter(batches))  # one batch, kept for the whole run
        cap = CurvatureCap(optimizer, lambda: criterion(model(x), y), model=model)
        scheduler = GreedyLR(optimizer, cap=cap)  # or Guard(scheduler, cap=cap) for torch's own

    A measurement changes no `.grad`, no random generator of torch, and no buffer of `model`; it
    runs with the same dropout every time. It costs about `max_products` times two gradients of
    `loss_fn`, and holds about ten vectors of the parameters' size; between measurements it is one.
    `loss_fn` must be twice differentiable: give it the model before `torch.compile` and DDP, on
    every rank with the same batch.

    Args:
        optimizer: SGD, Adam or AdamW; its parameters are those of the Hessian.
        loss_fn: the loss on a fixed batch that is not the step's (see `Cap`).
        model: whose buffers (BatchNorm) are put back after a measurement; None if it has none.
        safety: fraction of the stability limit. On full batches 0.8 is stable; the noise of
            minibatches and the time between measurements ask for less.
        interval_steps: calls (one per step) between two measurements; before, the curvature moves
            fast, and is measured at calls 0, 1, 2, 4, 8, ...
        max_products: Hessian-vector products per measurement, at most.

    Raises:
        TypeError: if the optimizer is another one, whose P is not known, or `loss_fn` is no
            function that returns a tensor.
        ValueError: if an argument is out of range, or the optimizer maximises.
        RuntimeError: by a call, if the first measurement is not finite.

    References:
        Cohen, Kaur, Li, Kolter, Talwalkar. Gradient descent on neural networks typically occurs
        at the edge of stability. 2021.
        Cohen, Ghorbani, Krishnan, Agarwal, Medapati, Badura, Suo, Cardoze, Nado, Dahl, Gilmer.
        Adaptive gradient methods at the edge of stability. 2022.

    >>> w = torch.tensor([3.0, 1.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> cap = CurvatureCap(optimizer, lambda: 2.0 * w[0] ** 2 + w[1] ** 2, safety=0.5)
    >>> [(round(eta_max, 4), guarantee) for eta_max, guarantee in [cap()]]  # 0.5 * 2 / 4
    [(0.25, 'estimate')]
    """

    _state_fields = state_fields("num_calls", "eigenpair", eta_max="_eta_max")

    def __init__(
        self,
        optimizer: Optimizer,
        loss_fn: Callable[[], Tensor],
        *,
        model: nn.Module | None = None,
        safety: float = 0.2,
        interval_steps: int = 100,
        max_products: int = 20,
    ) -> None:
        require_sgd_or_adam(optimizer)
        if not callable(loss_fn):
            raise TypeError(f"`loss_fn` must be a function that returns the loss, got {loss_fn!r}")
        if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("`optimizer` must hold a parameter that requires gradients, got none")
        if any(group["maximize"] for group in optimizer.param_groups):
            raise ValueError("`optimizer` must minimise, got maximize=True")
        require_within("safety", safety, "(0, inf)")
        require_within("interval_steps", interval_steps, "[1, inf]")
        require_within("max_products", max_products, "[1, inf)")
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.model = model
        self.safety = safety
        self.interval_steps = interval_steps
        self.max_products = max_products
        self.num_calls = 0
        self.eigenpair: Eigenpair | None = None
        self._eta_max: float | None = None

    def __call__(self) -> tuple[float, str]:
        """The cap, measured anew if that is due."""
        count = self.num_calls
        is_early = count < self.interval_steps and count & (count - 1) == 0
        if self._eta_max is None or is_early or count % self.interval_steps == 0:
            self.measure()
        self.num_calls += 1
        assert self._eta_max is not None
        return self._eta_max, "estimate"

    def measure(self) -> Eigenpair:
        """Measure now; returns the largest eigenpair of the preconditioned Hessian."""
        groups = zip(self.optimizer.param_groups, self._shares(), strict=True)
        members = [(g, s, p) for g, s in groups for p in g["params"] if p.requires_grad]
        parameters = [parameter for _, _, parameter in members]
        with _undisturbed(self.model, parameters[0].device):
            gradient = torch.autograd.grad(
                self._loss(), parameters, create_graph=True, materialize_grads=True
            )
            root, decay = self._preconditioner(members, gradient)

            def product(vector: Tensor) -> Tensor:
                moved = root * vector
                curved = hessian_vector_product(gradient, parameters, moved)
                return root * (curved + decay * moved)

            pair = largest_eigenvalue(product, self._start(root), max_products=self.max_products)
        if math.isfinite(pair.value) and math.isfinite(pair.residual):
            self.eigenpair = pair
            self._eta_max = self._limit(max(pair.value + pair.residual, 0.0))
        elif self._eta_max is None:
            raise RuntimeError(
                f"`loss_fn` must have a finite Hessian when it is first measured, got {pair.value}"
            )
        return pair

    def _loss(self) -> Tensor:
        loss = self.loss_fn()
        if not isinstance(loss, Tensor):
            raise TypeError(f"`loss_fn` must return the loss as a tensor, got {loss!r}")
        if loss.numel() != 1:
            raise ValueError(
                f"`loss_fn` must return a loss of one element, got shape {tuple(loss.shape)}"
            )
        if not loss.requires_grad:
            raise ValueError(
                "`loss_fn` must return a loss that depends on the optimizer's parameters, got "
                f"{loss!r} without a graph: do not detach it, or call `item()` on it"
            )
        return loss

    def _limit(self, curvature: float) -> float:
        decay = max(
            share * _decays(group)[1]
            for group, share in zip(self.optimizer.param_groups, self._shares(), strict=True)
        )
        slope = curvature / _momentum_gain(self.optimizer) + decay
        return min(self.safety * 2.0 / slope, LARGEST_CAP) if slope > 0.0 else LARGEST_CAP

    def _shares(self) -> list[float]:
        """The learning rate of every group over the largest one."""
        lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        largest = max(lrs)
        return [lr / largest if largest > 0.0 else 1.0 for lr in lrs]

    @torch.no_grad()
    def _preconditioner(
        self, members: list[tuple[dict[str, Any], float, Tensor]], gradient: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """P^{-1/2} and the coupled weight decay, per entry."""
        roots, decays = [], []
        for (group, share, parameter), g in zip(members, gradient, strict=True):
            decay, _ = _decays(group)
            decays.append(torch.full_like(parameter, decay))
            squares = torch.full_like(parameter, share)
            if not isinstance(self.optimizer, SGD):
                state = self.optimizer.state.get(parameter, {})
                squares = squares / _adam_scale(group, state, g + decay * parameter)
            roots.append(squares.sqrt())
        is_double = any(parameter.dtype == torch.float64 for _, _, parameter in members)
        like = torch.empty(
            0, dtype=torch.float64 if is_double else torch.float32, device=roots[0].device
        )
        return flatten(roots, like=like), flatten(decays, like=like)

    def _start(self, like: Tensor) -> Tensor:
        """The last eigenvector with a little noise, so that another one may overtake it."""
        generator = torch.Generator(like.device).manual_seed(self.num_calls)
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        if self.eigenpair is None or self.eigenpair.vector.shape != noise.shape:
            return noise  # also where a parameter was unfrozen, or joined in a new group
        return noise * (_NOISE / float(noise.norm())) + self.eigenpair.vector.to(like)

    def _derive(self) -> None:
        if self.eigenpair is not None:
            self.eigenpair = Eigenpair(*self.eigenpair)


def _decays(group: dict[str, Any]) -> tuple[float, float]:
    """The coupled weight decay (part of the gradient) and the decoupled one of a group."""
    decay = float(group["weight_decay"])
    return (0.0, decay) if group.get("decoupled_weight_decay", False) else (decay, 0.0)


def _adam_scale(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    """What Adam's next step divides the averaged gradient by, but for the momentum's start."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step = float(state["step"]) if state else 0.0
    if step:
        second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        deviation: Tensor = (second / (1.0 - beta2**step)).sqrt()
    else:
        deviation = gradient.abs()
    scale: Tensor = (1.0 - beta1 ** (step + 1.0)) * (deviation + float(group["eps"]))
    return scale
