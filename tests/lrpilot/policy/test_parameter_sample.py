import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpilot.policy.parameter_sample import ParameterSample


def numbered(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Parameters whose entries are their own positions in the model."""
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(torch.arange(start, start + size).reshape(shape).to(dtype))
        start += size
    return parts


def test_positions_are_the_same_for_two_models_of_the_same_sizes() -> None:
    shapes = [(30, 20), (20,), (500,)]
    first = ParameterSample(numbered(*shapes), 100).weights()
    assert torch.equal(first, ParameterSample(numbered(*shapes), 100).weights())


def test_positions_do_not_depend_on_the_values_of_the_parameters() -> None:
    parameters = [torch.randn(30, 20), torch.randn(20)]
    sample = ParameterSample(parameters, 100)
    for parameter, position in zip(parameters, numbered((30, 20), (20,)), strict=True):
        parameter.copy_(position)
    assert torch.equal(sample.weights(), ParameterSample(numbered((30, 20), (20,)), 100).weights())


def test_positions_do_not_depend_on_shapes_and_kinds_of_the_parameters() -> None:
    flat = ParameterSample(numbered((600,), (20,)), 100).weights()
    shaped = ParameterSample(numbered((5, 4, 30), (4, 5), dtype=torch.float64), 100).weights()
    assert torch.equal(flat, shaped)


def test_drawing_the_positions_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    ParameterSample(numbered((1000,)), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_entries", [13, 26, 1000])
def test_a_small_model_is_read_whole(num_entries: int) -> None:
    sample = ParameterSample(numbered((4, 5), (6,)), num_entries)
    assert torch.equal(sample.weights(), torch.arange(26.0))


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), num_entries=st.integers(1, 120))
def test_a_sample_of_a_larger_model_has_num_entries_and_stays_inside_the_model(
    sizes: list[int], num_entries: int
) -> None:
    values = ParameterSample(numbered(*((size,) for size in sizes)), num_entries).weights()
    assert len(values) == (sum(sizes) if sum(sizes) <= 2 * num_entries else num_entries)
    assert ((values >= 0) & (values < sum(sizes))).all()


def test_a_sample_of_a_transposed_parameter_reads_its_logical_entries() -> None:
    (weight,) = numbered((30, 20))
    transposed = weight.T.contiguous().T
    assert torch.equal(
        ParameterSample([transposed], 50).weights(), ParameterSample([weight], 50).weights()
    )


@pytest.mark.parametrize("num_entries", [2, 100])
def test_sampled_values_do_not_alias_the_parameter(num_entries: int) -> None:
    parameter = torch.ones(5)
    values = ParameterSample([parameter], num_entries).weights()
    parameter.zero_()
    assert torch.equal(values, torch.ones(min(5, num_entries)))


def test_half_precision_parameters_are_read_as_float32() -> None:
    assert (
        ParameterSample([torch.ones(3, dtype=torch.bfloat16)], 5).weights().dtype == torch.float32
    )
