"""Dropout from a run's own generator."""

import pytest
import torch

from lrpilot.tasks.networks.randomness import RunDropout


def test_dropout_keeps_the_mean_and_drops_the_stated_share() -> None:
    dropout = RunDropout(0.25)
    y = dropout(torch.ones(100_000))

    assert y.unique().tolist() == pytest.approx([0.0, 1.0 / 0.75])
    assert float((y == 0.0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_dropout_follows_its_own_generator_alone() -> None:
    masks = []
    for seed, global_seed in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        dropout = RunDropout(0.5)
        dropout.generator.manual_seed(seed)
        masks.append(dropout(torch.ones(64)))
        assert torch.equal(before, torch.get_rng_state())

    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dropout_of_nothing_draws_nothing() -> None:
    x = torch.ones(5)
    for dropout in (RunDropout(0.0), RunDropout(0.5).eval()):
        before = dropout.generator.get_state()
        assert dropout(x) is x
        assert torch.equal(before, dropout.generator.get_state())
