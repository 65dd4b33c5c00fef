"""A task from what everybody has: a model, a loss, data and an optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from lrpilot.tasks.data.splits import Data, Splits, read_splits
from lrpilot.tasks.devices import chosen_device
from lrpilot.tasks.networks.randomness import seeded
from lrpilot.tasks.networks.supervised import LossFunction, SupervisedTask
from lrpilot.tasks.runs import OptimizerFactory


@dataclass(frozen=True, kw_only=True)
class ModelTask(SupervisedTask):
    """Train a network of the user's on examples of the user's; see `from_model`.

    Args:
        model: called without arguments, under the run's seed; returns a new network.
        splits: the examples, on the device.

    Raises:
        ValueError: if an argument is out of range, or a size is above what the data has.
    """

    model: Callable[[], nn.Module]
    splits: Splits = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes(self.splits)
        # computes a first loss, so that a model, loss and data that do not fit say so now
        _ = self.draws_globally

    def load(self) -> Splits:
        """The examples."""
        return self.splits

    def make_model(self, seed: int) -> nn.Module:
        """The network of this seed, on the device; no global generator is touched."""
        with seeded(seed, self.device):
            model = self.model()
            if not isinstance(model, nn.Module):
                raise ValueError(
                    "`model` must be a function that makes a new torch module, got "
                    f"{type(model).__name__} from it"
                )
            return model.to(self.device)


def from_model(
    *,
    model: Callable[[], nn.Module],
    loss: LossFunction,
    data: Data | Mapping[str, Data],
    optimizer: OptimizerFactory,
    base_lr: float,
    total_steps: int,
    batch_size: int = 64,
    held_out_share: float = 0.2,
    test_share: float = 0.0,
    split_seed: int = 0,
    num_privileged: int | None = None,
    max_gradient_norm: float | None = None,
    device: str = "cpu",
    precision: str = "float32",
    name: str = "from_model",
    reward_scale: float = 1.0,
) -> ModelTask:
    """A task that trains a network by minibatches, for an agent or a comparison.

    Every run makes a new network and shuffles the training examples anew, both from its seed.
    Dropout and the like are drawn from the run's seed, too. Where network, loss and optimizer
    allow it, hundreds of runs are one computation (see `BatchedSupervisedRuns`).

    Args:
        model: called without arguments; returns a new network with random weights. A class or a
            function, not a module: every run needs a network of its own.
        loss: called as `loss(outputs, targets)`; returns the mean over a minibatch, such as
            `torch.nn.functional.cross_entropy`.
        data: inputs and targets, as two tensors or arrays; or a dataset of such pairs, which is
            read once; or a mapping of "train", and if given "held_out" and "test", to such.
        optimizer: a torch optimizer's class, or a `functools.partial` of it.
        base_lr: the learning rate that you would try first; episodes begin around it.
        total_steps: optimizer steps of a run.
        batch_size: examples per step; epochs are shuffled, an incomplete batch is dropped.
        held_out_share: share of the training examples that become the held-out split, if `data`
            names none: what rewards and tuning look at.
        test_share: share that becomes the test split, if `data` names none; 0 makes none.
        split_seed: of the choice of these examples.
        num_privileged: held-out examples in the privileged loss, which is the reward's; by default
            256, or all if there are fewer.
        max_gradient_norm: gradients of a larger norm are shortened to it; None leaves them.
        device: where network and examples live; see `DeviceTask`.
        precision: "float32" (the network's own), or "bfloat16" by autocast.
        name: in tables and run folders.
        reward_scale: multiplies the rewards, so that a good run returns about 3.

    Raises:
        ValueError: if an argument is out of range, the data are not pairs, or the network's output
            on one minibatch is not what `loss` takes.

    >>> import torch
    >>> task = from_model(
    ...     model=lambda: nn.Linear(4, 1),
    ...     loss=nn.functional.mse_loss,
    ...     data=(torch.ones(100, 4), torch.zeros(100, 1)),
    ...     optimizer=torch.optim.SGD,
    ...     base_lr=0.01,
    ...     total_steps=50,
    ...     batch_size=20,
    ... )
    >>> task.start(seed=0).step(lr=0.02).shape
    torch.Size([])
    """
    device = chosen_device(device)
    splits = read_splits(
        data, held_out_share=held_out_share, test_share=test_share, seed=split_seed
    ).to(device)
    if num_privileged is None:
        num_privileged = min(ModelTask.num_privileged, len(splits.held_out_x))
    return ModelTask(
        name=name,
        optimizer=optimizer,
        base_lr=base_lr,
        total_steps=total_steps,
        reward_scale=reward_scale,
        loss=loss,
        batch_size=batch_size,
        num_privileged=num_privileged,
        max_gradient_norm=max_gradient_norm,
        device=device,
        precision=precision,
        model=model,
        splits=splits,
    )
