"""The layers against torch's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.small_trainings.layers import Layers

RUNS, EXAMPLES = 2, 6


def randn(*shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.double
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_torchs(stride: int) -> None:
    x, weight, bias = randn(RUNS, EXAMPLES, 8, 8, 3), randn(RUNS, 27, 4), randn(RUNS, 4)
    x.requires_grad_()
    found = Layers([weight, bias]).convolve(x, 4, stride=stride)
    for run in range(RUNS):
        kernel = weight[run].view(3, 3, 3, 4).permute(3, 2, 0, 1)
        images = x[run].permute(0, 3, 1, 2)
        expected = functional.conv2d(images, kernel, bias[run], stride=stride, padding=1)
        torch.testing.assert_close(found[run].permute(0, 3, 1, 2), expected)
        wanted = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)[0]
        got = torch.autograd.grad(found[run].square().sum(), x, retain_graph=True)[0]
        torch.testing.assert_close(got, wanted)


def test_max_pooling_is_torchs() -> None:
    x = randn(RUNS, EXAMPLES, 8, 4, 3)
    found = Layers([]).max_pool(x)
    for run in range(RUNS):
        expected = functional.max_pool2d(x[run].permute(0, 3, 1, 2), 2)
        assert torch.equal(found[run].permute(0, 3, 1, 2), expected)


def test_batch_normalization_is_torchs_in_training_and_measuring() -> None:
    x, weight, bias = randn(RUNS, EXAMPLES, 4, 4, 3), randn(RUNS, 3), randn(RUNS, 3)
    statistics = [torch.zeros(RUNS, 3).double(), torch.ones(RUNS, 3).double()]
    training = Layers([weight, bias], statistics)
    trained = training.batch_norm(x)
    measured = Layers([weight, bias], training.new_statistics, is_training=False).batch_norm(x)
    for run in range(RUNS):
        norm = nn.BatchNorm2d(3).double()
        norm.weight.data, norm.bias.data = weight[run], bias[run]
        images = x[run].permute(0, 3, 1, 2)
        torch.testing.assert_close(trained[run].permute(0, 3, 1, 2), norm(images))
        norm.eval()
        torch.testing.assert_close(measured[run].permute(0, 3, 1, 2), norm(images))


def test_group_normalization_is_torchs() -> None:
    x, weight, bias = randn(RUNS, EXAMPLES, 4, 4, 6), randn(RUNS, 6), randn(RUNS, 6)
    found = Layers([weight, bias]).group_norm(x, 2)
    for run in range(RUNS):
        expected = functional.group_norm(x[run].permute(0, 3, 1, 2), 2, weight[run], bias[run])
        torch.testing.assert_close(found[run].permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_is_torchs(is_causal: bool) -> None:
    x = randn(RUNS, EXAMPLES, 5, 8)
    parameters = [randn(RUNS, 8, 24), randn(RUNS, 24), randn(RUNS, 8, 8), randn(RUNS, 8)]
    found = Layers(parameters).attend(x, 2, is_causal=is_causal)
    mask = torch.full((5, 5), float("-inf")).double().triu(1) if is_causal else None
    for run in range(RUNS):
        attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
        attention.in_proj_weight.data, attention.in_proj_bias.data = (
            parameters[0][run].T,
            parameters[1][run],
        )
        attention.out_proj.weight.data, attention.out_proj.bias.data = (
            parameters[2][run].T,
            parameters[3][run],
        )
        expected, _ = attention(x[run], x[run], x[run], attn_mask=mask, need_weights=False)
        torch.testing.assert_close(found[run], expected)


# torch's order of the gates, by the places of ours
CELLS = {"tanh": (nn.RNN, (0,)), "gru": (nn.GRU, (0, 1, 2)), "lstm": (nn.LSTM, (0, 2, 3, 1))}


@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_cell_is_torchs(cell: str) -> None:
    make, places = CELLS[cell]
    x, width, gates = randn(RUNS, EXAMPLES, 5, 3), 4, len(places)
    parameters = [
        randn(RUNS, 3, gates * width),
        randn(RUNS, gates * width),
        randn(RUNS, width, gates * width),
        randn(RUNS, gates * width),
    ]
    found = Layers(parameters).recur(x, width, cell)
    for run in range(RUNS):
        theirs = make(3, width, batch_first=True).double()
        names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
        for name, parameter in zip(names, parameters, strict=True):
            parts = parameter[run].chunk(gates, dim=-1)
            ordered = torch.cat([parts[place] for place in places], dim=-1)
            getattr(theirs, name).data = ordered.t().contiguous()
        torch.testing.assert_close(found[run], theirs(x[run])[0])
