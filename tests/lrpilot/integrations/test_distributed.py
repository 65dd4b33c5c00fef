import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lrpilot.integrations.distributed import mean_over_ranks
from tests.lrpilot.integrations.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


def test_without_a_process_group_the_loss_comes_back_as_it_is() -> None:
    loss = torch.tensor(0.3, requires_grad=True)
    assert mean_over_ranks(loss) is loss


@pytest.mark.slow
def test_all_ranks_get_the_same_mean_in_float64() -> None:
    values = [0.1, 0.2, 1e-9]
    ranks = run_ranks("mean_of", values, num_ranks=3)
    assert ranks[0] == ranks[1] == ranks[2]
    of_float, of_float32, of_float64 = ranks[0]
    assert of_float == of_float64 == pytest.approx(sum(values) / 3, rel=1e-15)
    assert of_float32 == pytest.approx(of_float, rel=1e-7)


@pytest.mark.slow
def test_nan_on_one_rank_is_nan_on_all() -> None:
    ranks = run_ranks("mean_of", [0.1, None])
    assert all(math.isnan(mean) for rank in ranks for mean in rank)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_learning_rates_of_the_ranks_agree_only_if_the_loss_is_reduced(strategy: Any) -> None:
    (reduced, own), (other_reduced, other_own) = run_ranks("plain", strategy)
    assert reduced == other_reduced
    assert len(set(reduced)) == 12
    assert all(mine != other for mine, other in zip(own, other_own, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["huggingface", "lightning"])
def test_the_callbacks_give_every_rank_the_same_learning_rates(
    library: str, tmp_path: Path
) -> None:
    pytest.importorskip({"huggingface": "transformers"}.get(library, library))
    first, second = run_ranks(library, str(tmp_path))
    assert first == second
    assert len(set(first)) > 4


@pytest.mark.slow
def test_a_policy_sees_the_movement_of_sharded_weights_as_if_they_were_whole() -> None:
    (sharded, whole), (other_sharded, _) = run_ranks("policy")
    assert sharded == other_sharded
    assert len(set(sharded)) > 6
    assert sharded == pytest.approx(whole, rel=1e-6)
