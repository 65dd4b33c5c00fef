from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrpilot.policy.lstm import lstm_step

Array = NDArray[np.float32]


def cell(inputs: int, units: int, scale: float = 1.0) -> tuple[torch.nn.LSTM, Array, Array]:
    """Torch's LSTM, and its weights as `lstm_step` takes them."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(inputs, units)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(scale)
    of_input, of_hidden, *biases = (p.detach().numpy() for p in lstm.parameters())
    return lstm, np.concatenate((of_input, of_hidden), axis=1).T.copy(), biases[0] + biases[1]


@pytest.mark.parametrize("rows", [(), (7,)], ids=["one run", "seven runs"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_sequence_gives_the_hidden_values_of_torchs_lstm(rows: Any, scale: float) -> None:
    lstm, weight, bias = cell(5, 16, scale)
    sequence = np.random.default_rng(1).normal(0, 2, (30, *rows, 5)).astype(np.float32)
    with torch.no_grad():
        expected = lstm(torch.tensor(sequence))[0].numpy()
    memory = np.zeros((2, *rows, 16), np.float32)
    found = [lstm_step(weight, bias, inputs, memory).copy() for inputs in sequence]
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_the_memory_holds_the_hidden_and_cell_values_of_torchs_lstm() -> None:
    lstm, weight, bias = cell(5, 16)
    sequence = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    with torch.no_grad():
        _, expected = lstm(torch.tensor(sequence))
    memory = np.zeros((2, 16), np.float32)
    for inputs in sequence:
        lstm_step(weight, bias, inputs, memory)
    np.testing.assert_allclose(memory, torch.cat(expected), rtol=0, atol=2e-6)


def test_huge_gates_saturate_without_a_warning() -> None:
    _, weight, bias = cell(5, 16, scale=1e6)
    memory = np.zeros((2, 16), np.float32)
    for sign in (1, -1, 1):
        hidden = lstm_step(weight, bias, np.full(5, 5 * sign, np.float32), memory)
    assert np.isfinite(memory).all()
    assert abs(hidden).max() <= 1.0


def test_the_inputs_stay_as_they_were() -> None:
    _, weight, bias = cell(5, 16)
    inputs = np.ones(5, np.float32)
    lstm_step(weight, bias, inputs, np.zeros((2, 16), np.float32))
    assert (inputs == 1.0).all()
