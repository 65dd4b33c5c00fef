"""Examples in three disjoint parts: for training, for rewards and tuning, for the final test."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from lrpilot.arguments import require_within

Data = tuple[Any, Any] | Dataset[Any]
"""Inputs and targets, as two tensors or arrays, or as a dataset of such pairs."""

SPLITS = ("train", "held_out", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Splits:
    """Inputs and targets, an example a row; shared by all runs: never write into them.

    Attributes:
        train_x: inputs for training; `train_y` are their targets, and so on.
        held_out_x: inputs for rewards and tuning.
        test_x: inputs for the final measurement only; None if there is no test split.
    """

    train_x: Tensor
    train_y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    test_x: Tensor | None = None
    test_y: Tensor | None = None

    def to(self, device: str) -> Self:
        """The same examples on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


def read_splits(
    data: Data | Mapping[str, Data],
    *,
    held_out_share: float = 0.2,
    test_share: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Read the examples into tensors, and split off the training ones what is not given.

    Args:
        data: inputs and targets (two tensors or arrays, or a dataset of such pairs), or a mapping
            of "train", "held_out" and "test" to such. A dataset is read once, from its first item
            to its last: transforms that draw at random are drawn once.
        held_out_share: share of the training examples that become the held-out split, if `data`
            names none.
        test_share: share that becomes the test split, if `data` names none; 0 makes none.
        seed: of the random choice, and of random transforms.

    Raises:
        ValueError: if a split is missing, empty or not made of pairs, or a share is out of range.

    >>> splits = read_splits((torch.zeros(10, 3), torch.zeros(10)), test_share=0.1)
    >>> len(splits.train_x), len(splits.held_out_x), len(splits.test_x)
    (7, 2, 1)
    """
    given = dict(data) if isinstance(data, Mapping) else {"train": data}
    if "train" not in given or not set(given) <= set(SPLITS):
        raise ValueError(f"`data` must map 'train', and may map {SPLITS[1:]}, got {list(given)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        read = {name: _read(part, name) for name, part in given.items()}
    shares = {"held_out": held_out_share, "test": test_share}
    inputs, targets = read["train"]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    start = 0
    for name, share in shares.items():
        require_within(f"{name}_share", share, "[0, 1)")
        if name not in read and share > 0.0:
            index = order[start : start + max(1, round(share * len(inputs)))]
            read[name] = inputs[index], targets[index]
            start += len(index)
    if "held_out" not in read:
        raise ValueError("`held_out_share` must be positive where no held-out split is given")
    if start:
        read["train"] = inputs[order[start:]], targets[order[start:]]
    for name, (rows, _) in read.items():
        if len(rows) == 0:
            raise ValueError(f"`data` must leave an example in every split, got none in {name!r}")
    tensors = {f"{name}_{k}": part[i] for name, part in read.items() for i, k in enumerate("xy")}
    return Splits(**tensors)


def _read(data: Any, name: str) -> tuple[Tensor, Tensor]:
    pair = data
    if isinstance(data, Dataset):
        is_stream = isinstance(data, IterableDataset)
        items = iter(data) if is_stream else (data[i] for i in range(len(data)))  # type: ignore[arg-type]
        try:
            pair = default_collate(list(items))
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"`data` of the split {name!r} must be pairs that stack into tensors: {error}"
            ) from error
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"`data` of the split {name!r} must be (inputs, targets), or a dataset of such pairs, "
            f"got {type(pair).__name__}"
        )
    inputs, targets = map(torch.as_tensor, pair)
    if not len(inputs) == len(targets):
        raise ValueError(
            f"`data` of the split {name!r} must have a target for every input, got {len(inputs)} "
            f"inputs and {len(targets)} targets"
        )
    return inputs, targets
