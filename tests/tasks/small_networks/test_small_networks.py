from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from lrpilot.tasks.small_networks.batch import BatchedSmallNetworks
from lrpilot.tasks.small_networks.problem import RandomOptimizer
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from tests.running import check_batched_environments, check_batched_runs, through_file

NUM_RUNS = 12
SEEDS = list(range(NUM_RUNS))


make_task = partial(
    SmallNetworkTask,
    name="small",
    base_lr=0.03,
    total_steps=40,
    num_setups=4,
    num_train_range=(64, 100),
    num_privileged=32,
    dtype="float64",
)


def started(task: SmallNetworkTask) -> BatchedSmallNetworks:
    runs = task.start_batch(NUM_RUNS)
    runs.reset(SEEDS, SEEDS)
    return runs


EVERYONE = torch.ones(NUM_RUNS, dtype=torch.bool)
LRS = 0.03 * torch.linspace(0.5, 1.5, NUM_RUNS, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("setup_seed", [0, 1])
def test_batched_runs_equal_single_runs(setup_seed: int) -> None:
    check_batched_runs(make_task(num_setups=8, setup_seed=setup_seed), SEEDS, num_steps=50)


def test_batched_runs_equal_single_runs_in_float32() -> None:
    check_batched_runs(make_task(num_setups=8, dtype="float32"), SEEDS, tolerance=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("adam_share", [0.0, 0.5, 1.0])
def test_instances_equal_single_environments_through_their_resets(adam_share: float) -> None:
    task = make_task(optimizer=RandomOptimizer(adam_share=adam_share), total_steps=24)
    check_batched_environments(task, 6)


def test_state_with_setups_that_no_run_has_continues_bit_identically() -> None:
    task = make_task(num_setups=12)
    first, second = task.start_batch(2), task.start_batch(2)
    first.reset([0, 1], [0, 1])
    second.load_state_dict(first.state_dict())
    lrs, everyone = LRS[:2], EVERYONE[:2]
    for _ in range(3):
        assert torch.equal(first.step(lrs, everyone), second.step(lrs, everyone))


def test_state_through_a_file_continues_bit_identically_through_resets() -> None:
    task = make_task()
    first, second = started(task), started(task)
    first.reset([0, 3, 5], [70, 71, 72])
    for _ in range(3):
        first.step(LRS, EVERYONE)
    second.load_state_dict(through_file(first.state_dict()))
    for step in range(12):
        if step == 5:
            for runs in (first, second):
                runs.reset([1, 2, 3], [80, 81, 82])
        assert torch.equal(first.step(LRS, EVERYONE), second.step(LRS, EVERYONE))
    assert torch.equal(first.weights(), second.weights())
    assert torch.equal(first.privileged_losses(), second.privileged_losses())


def test_state_of_a_single_run_through_a_file_continues_bit_identically() -> None:
    task = make_task()
    run, resumed = task.start(3), task.start(3)
    for _ in range(7):
        run.step(0.05)
    resumed.load_state_dict(through_file(run.state_dict()))
    assert [float(run.step()) for _ in range(20)] == [float(resumed.step()) for _ in range(20)]
    assert run.evaluate() == resumed.evaluate()


def test_state_of_a_run_of_another_seed_is_refused() -> None:
    task = make_task()
    with pytest.raises(ValueError, match=r"`state` must be of a run of seed 4, .* got seed 3"):
        task.start(4).load_state_dict(task.start(3).state_dict())


def test_a_given_learning_rate_is_multiplied_by_the_drawn_optimizers_factor() -> None:
    task = make_task(optimizer=RandomOptimizer(adam_share=1.0, adam_lr_factor=0.125))
    run = task.start(0)
    assert isinstance(run.optimizer, torch.optim.Adam)
    assert run.optimizer.param_groups[0]["lr"] == 0.03 * 0.125
    run.step(0.4)
    assert run.optimizer.param_groups[0]["lr"] == 0.05


def test_an_optimizer_that_is_given_trains_every_run_at_the_given_learning_rate() -> None:
    task = replace(make_task(), optimizer=torch.optim.AdamW, base_lr=0.02)
    for seed in range(4):
        optimizer = task.start(seed).optimizer
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.param_groups[0]["lr"] == 0.02


def test_everything_that_may_be_drawn_is_drawn() -> None:
    task = make_task(num_setups=200)
    setups = task.setups
    assert {setup.depth for setup in setups} == {1, 2, 3, 4, 5}
    assert {setup.num_classes for setup in setups} == set(range(2, 11))
    assert {setup.activation for setup in setups} == {"relu", "tanh", "gelu"}
    assert {setup.normalization for setup in setups} == {"none", "layer"}
    for name in ("width", "dimension"):
        values = [getattr(setup, name) for setup in setups]
        assert 8 <= min(values) <= 9
        assert 58 <= max(values) <= 64
    assert all(8 <= setup.batch_size <= 64 <= setup.num_train <= 100 for setup in setups)
    optimizers = Counter(type(task.start(seed).optimizer) for seed in range(100))
    assert min(optimizers.values()) > 30
    assert len(optimizers) == 2


def test_another_setup_seed_gives_other_setups() -> None:
    assert not set(make_task(setup_seed=0).setups) & set(make_task(setup_seed=1).setups)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["teacher", "mixture", "digits"])
def test_data_have_variance_1_and_all_classes_and_can_be_learned(data: str) -> None:
    task = make_task(
        data=(data,),
        optimizer=torch.optim.Adam,
        num_setups=1,
        label_noise_range=(0.0, 0.0),
        num_train_range=(1000, 1000),
        num_privileged=256,
        dimension_range=(16, 16),
        classes_range=(4, 4),
        width_range=(32, 32),
        depth_range=(1, 1),
    )
    for seed in range(3):
        run = task.start(seed)
        assert float(run.instance.train.x.square().mean()) == pytest.approx(1.0)
        assert set(run.instance.train.y.tolist()) == {0, 1, 2, 3}
        before = run.privileged_loss()
        for _ in range(200):
            run.step(0.01)
        assert run.privileged_loss() < 0.85 * before
        assert run.evaluate()["test_accuracy"] > 0.4


def test_label_noise_is_a_share_of_labels_in_all_splits() -> None:
    common: dict[str, Any] = {"num_setups": 1, "data": ("mixture",), "num_train_range": (999, 999)}
    noisy = make_task(label_noise_range=(0.5, 0.5), **common).start(0).instance
    clean = make_task(label_noise_range=(0.0, 0.0), **common).start(0).instance
    changed = (noisy.train.y != clean.train.y).double().mean()
    expected = 0.5 * (1 - 1 / noisy.setup.num_classes)
    assert float(changed) == pytest.approx(expected, abs=0.06)
    assert (noisy.held_out.y != clean.held_out.y).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_range": (0, 3)}, r"`depth_range` must be 1 <= low <= high, got \(0, 3\)"),
        ({"classes_range": (1, 3)}, r"`classes_range` must be 2 <= low <= high, got \(1, 3\)"),
        ({"classes_range": (2, 11)}, "`classes_range` must end at 10 digits, got 11"),
        ({"num_train_range": (10, 99)}, r"`num_train_range` must be 64 <= low <= high, got"),
        ({"label_noise_range": (0.0, 1.5)}, r"`label_noise_range` must be in \[0, 1\], got"),
        ({"activations": ("relu", "sine")}, "`activations` must be some of .* got"),
        ({"data": ()}, r"`data` must be some of .* got \(\)"),
        ({"num_setups": 0}, "`num_setups` must be at least 1, got 0"),
        ({"num_privileged": 0}, "`num_privileged` must be at least 1, got 0"),
        ({"dtype": "half"}, "`dtype` must be float32 or float64, got 'half'"),
    ],
)
def test_what_is_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"adam_share": -0.1}, r"`adam_share` must be in \[0, 1\], got -0.1"),
        ({"adam_lr_factor": 0.0}, "`adam_lr_factor` must be positive, got 0.0"),
    ],
)
def test_a_random_optimizer_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomOptimizer(**change)


def test_networks_have_no_cap() -> None:
    with pytest.raises(ValueError, match="`cap` must be asked of runs that have one"):
        started(make_task()).cap()


def test_runs_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    started(make_task()).step(LRS, EVERYONE)
    make_task().start(0).step(0.1)
    assert torch.equal(torch.get_rng_state(), before)
