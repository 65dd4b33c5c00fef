"""Examples as tensors in disjoint parts."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lrpilot.tasks.data.splits import Data, read_splits

POINTS = torch.randn(240, 6, generator=torch.Generator().manual_seed(0)), torch.arange(240) % 3


class Pairs(Dataset[Any]):
    """Reads its items one by one, with a random transform."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return index + torch.rand(2), index


def test_a_dataset_is_read_into_tensors() -> None:
    splits = read_splits(Pairs(), held_out_share=0.2)
    assert splits.train_x.shape == (40, 2)
    assert splits.held_out_y.dtype == torch.int64
    assert torch.equal(splits.train_x.floor().long()[:, 0], splits.train_y)


def test_random_transforms_are_drawn_once_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = read_splits(Pairs()), read_splits(Pairs())
    assert torch.equal(first.train_x, second.train_x)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_splits_are_disjoint_and_hold_every_example() -> None:
    data = torch.arange(100), torch.arange(100)
    splits = read_splits(data, held_out_share=0.3, test_share=0.1, seed=4)
    assert splits.test_y is not None
    parts = [splits.train_y, splits.held_out_y, splits.test_y]
    assert [len(part) for part in parts] == [60, 30, 10]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))


def test_another_seed_chooses_other_held_out_examples() -> None:
    first, second = (read_splits(POINTS, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.held_out_x, second.held_out_x)
    assert torch.equal(first.held_out_x, read_splits(POINTS, seed=0).held_out_x)


def test_given_splits_stay_as_they_are() -> None:
    x, y = POINTS
    given: dict[str, Data] = {
        "train": (x[:100], y[:100]),
        "held_out": TensorDataset(x[100:], y[100:]),
    }
    splits = read_splits(given)
    assert torch.equal(splits.train_x, x[:100])
    assert torch.equal(splits.held_out_x, x[100:])
    assert splits.test_x is None


def test_a_given_test_split_leaves_the_held_out_one_to_the_training_examples() -> None:
    x, y = POINTS
    splits = read_splits({"train": (x[:100], y[:100]), "test": (x[100:], y[100:])})
    assert splits.test_x is not None
    assert [len(splits.train_x), len(splits.held_out_x), len(splits.test_x)] == [80, 20, 140]


def test_arrays_are_taken_as_they_are() -> None:
    x, y = POINTS
    assert torch.equal(read_splits((x.numpy(), y.numpy())).train_x, read_splits((x, y)).train_x)


class Singles(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return index


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ({"held_out": POINTS}, {}, "`data` must map 'train'"),
        ({"train": POINTS, "valid": POINTS}, {}, r"`data` must map 'train', .* 'valid'"),
        (POINTS[0], {}, r"must be \(inputs, targets\)"),
        (Singles(), {}, r"must be \(inputs, targets\), or a dataset of such pairs, got Tensor"),
        ((POINTS[0], POINTS[1][:5]), {}, "a target for every input, got 240 inputs and 5"),
        (POINTS, {"held_out_share": 1.0}, r"`held_out_share` must be in \[0, 1\), got 1.0"),
        (POINTS, {"held_out_share": 0.0}, "`held_out_share` must be positive where"),
        (POINTS, {"test_share": 0.9}, "an example in every split, got none in 'train'"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    data: Any, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_splits(data, **arguments)  # type: ignore[arg-type]
