import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from lrpilot.loss import check_loss_tensor, read_loss

ACCEPTED = [
    2.5,
    Fraction(5, 2),
    np.float16(2.5),
    np.float32(2.5),
    np.float64(2.5),
    np.array(2.5),
    np.array([2.5]),
    torch.tensor(2.5),
    torch.tensor([[2.5]]),
    torch.tensor(2.5, dtype=torch.bfloat16),
    torch.tensor(2.5, requires_grad=True),
]


@pytest.mark.parametrize("loss", ACCEPTED, ids=repr)
def test_numbers_and_tensors_of_one_element_are_read(loss: Any) -> None:
    value = read_loss(loss)
    assert value == 2.5
    assert type(value) is float


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, 0.0, -3.0])
def test_extreme_values_are_values(value: float) -> None:
    assert read_loss(value) == value
    assert read_loss(torch.tensor(value, dtype=torch.float64)) == value


def test_nan_is_a_value() -> None:
    assert math.isnan(read_loss(math.nan))


NO_NUMBERS = [
    *("2.5", None, [2.5], {"loss": 2.5}, True, np.bool_(True), torch.tensor(True)),
    *(2.5j, np.complex64(2.5), np.array([2.5j]), torch.tensor(2.5j), Decimal("2.5")),
]


@pytest.mark.slow
@pytest.mark.parametrize("loss", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match="`loss` must be a number or a tensor of one element, got"):
        read_loss(loss)


@pytest.mark.parametrize("loss", [torch.ones(2), torch.ones(0), np.ones((2, 1))], ids=repr)
def test_more_or_less_than_one_element_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="`loss` must have one element, got shape"):
        read_loss(loss)


def test_an_integer_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="`loss` must be in the range of a float"):
        read_loss(10**400)


@pytest.mark.parametrize("loss", [torch.tensor(2.5j), torch.tensor(True)], ids=repr)
def test_a_tensor_may_be_refused_without_reading_it(loss: Any) -> None:
    with pytest.raises(TypeError, match="`loss` must be real, got a tensor of"):
        check_loss_tensor(loss.to("meta"))
