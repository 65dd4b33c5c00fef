"""The updates of torch's SGD, Adam, AdamW and RMSprop for many runs at once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

_STATE = ("first", "second", "num_steps")


class UpdateSettings(NamedTuple):
    """One optimizer's hyperparameters, as `StackedOptimizer` takes them."""

    first_decay: float
    """Momentum, or beta_1."""
    first_weight: float
    """Weight of a new gradient in the first moment: 1, or 1 - beta_1."""
    second_decay: float
    """beta_2, or alpha; unused without a second moment."""
    has_second: float
    """1 for Adam, AdamW and RMSprop, 0 for SGD."""
    epsilon: float
    """Added to the root of the second moment."""
    l2: float
    """Weight decay that is added to the gradient."""
    decay: float
    """Weight decay that is apart from the gradient (AdamW)."""
    nesterov: float
    """1 for Nesterov's momentum."""
    is_corrected: float = 1.0
    """0 where the second moment is not corrected for its start at 0 (RMSprop)."""


def read_settings(optimizer: Optimizer) -> UpdateSettings:
    """The hyperparameters of a torch optimizer.

    Raises:
        ValueError: if it is not SGD, Adam, AdamW or RMSprop, has parameter groups that differ, or
            an option that is not batched (dampening, AMSGrad, maximize, RMSprop's momentum).

    >>> weight = torch.zeros(1, requires_grad=True)
    >>> read_settings(SGD([weight], lr=0.1, momentum=0.9)).first_decay
    0.9
    """
    # a subclass may do anything; AdamW itself is one of Adam
    if type(optimizer) not in (SGD, Adam, AdamW, RMSprop) or len(optimizer.param_groups) != 1:
        raise ValueError(
            "`optimizer` of batched runs must be torch's SGD, Adam, AdamW or RMSprop with one "
            f"parameter group, got {optimizer}"
        )
    group = optimizer.param_groups[0]
    refused = ["dampening", "amsgrad", "maximize"]
    if isinstance(optimizer, RMSprop):
        refused += ["momentum", "centered"]
    for name in refused:
        if group.get(name):
            raise ValueError(f"`{name}` of batched runs must be off, got {group[name]}")
    weight_decay = float(group["weight_decay"])
    if isinstance(optimizer, SGD):
        momentum = float(group["momentum"])
        nesterov = float(group["nesterov"])
        return UpdateSettings(momentum, 1.0, 0.0, 0.0, 1.0, weight_decay, 0.0, nesterov)
    if isinstance(optimizer, RMSprop):
        alpha, epsilon = float(group["alpha"]), float(group["eps"])
        return UpdateSettings(0.0, 1.0, alpha, 1.0, epsilon, weight_decay, 0.0, 0.0, 0.0)
    beta_1, beta_2 = map(float, group["betas"])
    is_decoupled = isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay"))
    return UpdateSettings(
        first_decay=beta_1,
        first_weight=1.0 - beta_1,
        second_decay=beta_2,
        has_second=1.0,
        epsilon=float(group["eps"]),
        l2=0.0 if is_decoupled else weight_decay,
        decay=weight_decay if is_decoupled else 0.0,
        nesterov=0.0,
    )


def extend(tensor: Tensor, num_rows: int) -> Tensor:
    """The tensor with rows of zeros after its own.

    >>> extend(torch.ones(1, 2), 2)
    tensor([[1., 1.],
            [0., 0.]])
    """
    rest = tensor.new_zeros(num_rows - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, rest])


def clip_norms(gradients: Tensor, max_norm: float | Tensor) -> Tensor:
    """Each run's gradient, shortened to a norm of at most `max_norm` as torch does it.

    g <- g min(1, max_norm / (||g|| + 1e-6)), of gradients (rows, entries); `max_norm` is a number,
    or one for each run, (rows, 1), infinite where nothing is shortened.

    >>> clip_norms(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    shares = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    return gradients * shares


class StackedOptimizer:
    """One update for B runs, each with an optimizer and a learning rate of its own.

    With gradient g, weights w, learning rate eta, and t the number of the step from 1::

        g <- g + l2 w
        m <- first_decay m + first_weight g
        v <- second_decay v + (1 - second_decay) g^2
        u  = m                                            SGD
        u  = g + first_decay m                            SGD with Nesterov's momentum
        u  = (m / (1 - first_decay^t)) / (sqrt(v / (1 - second_decay^t)) + epsilon)     Adam
        u  = g / (sqrt(v) + epsilon)                      RMSprop
        w <- (1 - eta decay) w - eta u

    The step is linear in eta. Without momentum m is g, and is not kept.

    Args:
        num_runs: B.
        num_entries: of each run's flat vector of weights.
        dtype: of the weights.
        device: where they live.
    """

    def __init__(
        self, num_runs: int, num_entries: int, *, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        self._settings = torch.zeros(
            len(UpdateSettings._fields), num_runs, 1, device=device
        ).double()
        self._rounded = self._settings.to(dtype)
        self._shape = num_runs, num_entries
        self._dtype = dtype
        self.first = self.second = torch.zeros(num_runs, 0, dtype=dtype, device=device)
        self.num_steps = torch.zeros(num_runs, 1, dtype=torch.float64, device=device)

    def start(self, rows: Tensor, settings: list[UpdateSettings]) -> None:
        """Forget the moments of the runs of these indices, and give them these optimizers."""
        new = torch.tensor(settings, dtype=torch.float64, device=self._settings.device)
        self._settings[:, rows] = new.T.unsqueeze(2)
        self._rounded = self._settings.to(self._dtype)
        needs = UpdateSettings(*self._settings.ne(0.0).flatten(1).any(1).tolist())
        self._needs = needs
        for name, is_needed in (("first", needs.first_decay), ("second", needs.has_second)):
            moment = getattr(self, name)
            if is_needed and moment.shape != self._shape:
                setattr(self, name, moment.new_zeros(self._shape))
            getattr(self, name)[rows] = 0.0
        self.num_steps[rows] = 0.0

    def grow(self, num_runs: int) -> None:
        """Make room for as many runs; those that are here keep their indices."""
        self._shape = num_runs, self._shape[1]
        self._settings = extend(self._settings.transpose(0, 1), num_runs).transpose(0, 1)
        self._rounded = self._settings.to(self._dtype)
        for name in _STATE:
            setattr(self, name, extend(getattr(self, name), num_runs))

    def step(self, weights: Tensor, gradients: Tensor, lrs: Tensor, rows: Tensor | None) -> Tensor:
        """The weights after one step of the runs of these indices (None means all).

        Args:
            weights: (rows, entries).
            gradients: (rows, entries).
            lrs: (rows,).
            rows: indices of the runs, each once.
        """
        pick = slice(None) if rows is None else rows
        self.num_steps[pick] += 1.0
        rounded, exact = self._rounded[:, pick].unbind(), self._settings[:, pick].unbind()
        first_decay, first_weight, second_decay, _, epsilon, l2, _, nesterov, _ = rounded
        beta_1, _, beta_2, has_second, _, _, decay, _, is_corrected = exact
        scale = lrs.double().unsqueeze(1)
        kept = 1.0 - scale * decay
        if self._needs.l2:
            gradients = torch.addcmul(gradients, weights, l2)
        update = gradients
        if self._needs.first_decay:
            weighted = first_weight * gradients if self._needs.has_second else gradients
            update = self._moment(self.first, pick, first_decay, weighted)
        if self._needs.nesterov:
            ahead = torch.addcmul(gradients, update, first_decay)
            update = torch.where(nesterov != 0.0, ahead, update)
        if self._needs.has_second:
            steps = self.num_steps[pick]
            weighted = (1.0 - second_decay) * gradients
            second = self._moment(self.second, pick, second_decay, weighted.mul_(gradients))
            correction = (1.0 - is_corrected * beta_2**steps).rsqrt() * has_second
            # for SGD: no second moment, and the epsilon is 1
            denominator = second.sqrt().mul_(correction.to(self._dtype)).add_(epsilon)
            update = update / denominator
            scale = torch.where(has_second != 0.0, scale / (1.0 - beta_1**steps), scale)
        if self._needs.decay:
            weights = weights * kept.to(self._dtype)
        return torch.addcmul(weights, update, scale.to(self._dtype), value=-1)

    def _moment(self, moments: Tensor, pick: slice | Tensor, decay: Tensor, new: Tensor) -> Tensor:
        if isinstance(pick, slice):
            return moments.mul_(decay).add_(new)
        moments[pick] = moment = torch.addcmul(new, moments[pick], decay)
        return moment

    def state_dict(self) -> dict[str, Any]:
        """The moments and the hyperparameters, copied."""
        state = {name: getattr(self, name).clone() for name in _STATE}
        return {**state, "settings": self._settings[:, :, 0].T.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        settings = [UpdateSettings(*values) for values in state["settings"]]
        self.start(torch.arange(len(settings), device=self._settings.device), settings)
        for name in _STATE:
            setattr(self, name, state[name].to(self._settings.device, copy=True))
