from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from tests.running import check_batched_runs, through_file
from tests.tasks.nmf.builders import make_task as make_nmf

CONF = Path(__file__).resolve().parents[2] / "conf"
NMF = make_nmf(base_lr=0.003, total_steps=15)
NUM_RUNS = 8
SEEDS = list(range(NUM_RUNS))
EVERYONE = torch.ones(NUM_RUNS, dtype=torch.bool)
LRS = 0.01 * torch.linspace(0.5, 1.5, NUM_RUNS, dtype=torch.float64)


def small_networks(**changes: Any) -> SmallNetworkTask:
    arguments = {"num_setups": 4, "num_train_range": (64, 100), "num_privileged": 32}
    return SmallNetworkTask(name="small", base_lr=0.05, total_steps=20, **{**arguments, **changes})


def quadratic() -> QuadraticTask:
    return QuadraticTask(
        name="bowl", optimizer=torch.optim.SGD, base_lr=0.2, total_steps=30, dimension=9
    )


def digits() -> ImageTask:
    return ImageTask(
        name="digits",
        data="digits",
        model=partial(mlp, width=8),
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.1,
        total_steps=12,
    )


def make_mixture(**weights: float) -> MixtureTask:
    tasks = {"networks": small_networks(), "quadratic": quadratic(), "digits": digits()}
    return MixtureTask(tasks=tasks, weights=weights)


def make_batchable(**changes: Any) -> MixtureTask:
    networks = small_networks(dtype="float64", **changes)
    return MixtureTask(tasks={"networks": networks, "digits": digits(), "nmf": NMF})


def test_a_run_is_the_one_that_its_own_task_starts() -> None:
    mixture = make_mixture()
    for seed in range(12):
        run, own = mixture.start(seed), mixture.member_of_seed(seed).start(seed)
        assert type(run) is type(own)
        assert [run.step().item() for _ in range(3)] == [own.step().item() for _ in range(3)]


def test_the_members_are_renamed_to_their_keys() -> None:
    assert [task.name for task in make_mixture().members()] == ["digits", "networks", "quadratic"]


def test_the_draw_does_not_depend_on_the_order_of_the_tasks() -> None:
    tasks = dict(make_mixture().tasks)
    other = MixtureTask(tasks=dict(reversed(tasks.items())))
    for seed in range(30):
        assert make_mixture().member_of_seed(seed).name == other.member_of_seed(seed).name


def test_tasks_are_drawn_in_proportion_to_their_weights() -> None:
    mixture = make_mixture(quadratic=2.5, digits=0.5)
    counts = Counter(mixture.member_of_seed(seed).name for seed in range(4000))

    # four standard errors of a share of 4000 draws are at most 0.032
    expected = {"networks": 1 / 4, "quadratic": 2.5 / 4, "digits": 0.5 / 4}
    for name, share in expected.items():
        assert counts[name] / 4000 == pytest.approx(share, abs=0.032)


def test_the_runs_of_a_task_are_spread_as_those_of_the_task_alone() -> None:
    mixture = MixtureTask(
        tasks={"rest": quadratic(), "networks": small_networks()}, weights={"rest": 3.0}
    )
    networks = mixture.tasks["networks"]
    assert isinstance(networks, SmallNetworkTask)
    seeds = [seed for seed in range(1600) if mixture.member_of_seed(seed) is networks]
    drawn = Counter(
        networks.setups.index(networks.draw_setup(torch.Generator().manual_seed(seed)))
        for seed in seeds
    )

    assert len(networks.setups) == 4
    # about 100 draws each, four standard errors are 35
    assert min(drawn[k] for k in range(4)) >= 65


def test_a_mixture_at_another_lr_starts_all_its_runs_there() -> None:
    mixture = MixtureTask(tasks={"quadratic": quadratic(), "digits": digits()}).at_lr(0.03)
    lrs = {mixture.start(seed).optimizer.param_groups[0]["lr"] for seed in range(12)}
    assert lrs == {0.03}


def test_a_mixture_of_one_task_is_that_task() -> None:
    mixture = MixtureTask(tasks={"only": quadratic()})
    assert {mixture.member_of_seed(seed).name for seed in range(50)} == {"only"}


def test_its_horizon_is_the_longest_and_its_learning_rate_the_smallest() -> None:
    mixture = make_mixture()
    assert (mixture.total_steps, mixture.base_lr) == (30, 0.05)


@pytest.mark.parametrize("task", [quadratic(), small_networks(), digits(), NMF])
def test_a_plain_task_is_its_own_only_member(task: Task) -> None:
    assert task.member_of_seed(3) is task
    assert list(task.members()) == [task]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": {}}, "`tasks` must hold at least one task, got {}"),
        ({"tasks": {"inner": make_mixture()}}, "`tasks` must not hold a mixture, got 'inner'"),
        ({"weights": {"nmf": 1.0}}, r"`weights` must be of \['a'\], got one of 'nmf'"),
        ({"weights": {"a": 0.0}}, "`weights` must be positive and finite, got 0.0"),
        ({"weights": {"a": float("nan")}}, "`weights` must be positive and finite, got nan"),
    ],
)
def test_a_wrong_mixture_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureTask(**{"tasks": {"a": quadratic()}, **arguments})


def test_batched_runs_equal_those_of_their_own_tasks() -> None:
    mixture = make_batchable()
    assert len({mixture.index_of_seed(seed) for seed in SEEDS}) == 3
    # the digits' networks are in float32 and under momentum
    check_batched_runs(mixture, SEEDS, tolerance=1e-3)


def test_batched_state_continues_bit_identically_through_a_file() -> None:
    mixture = make_batchable(num_setups=1)
    first, second = mixture.start_batch(NUM_RUNS), mixture.start_batch(NUM_RUNS)
    first.reset(SEEDS, SEEDS)
    for _ in range(4):
        first.step(LRS, EVERYONE)
    second.load_state_dict(through_file(first.state_dict()))
    for _ in range(4):
        assert torch.equal(first.step(LRS, EVERYONE), second.step(LRS, EVERYONE))
    assert torch.equal(first.privileged_losses(), second.privileged_losses())


def test_a_mixture_with_a_task_that_cannot_be_batched_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one that can be batched, got 'quadratic'"):
        make_mixture().start_batch(2)


def test_a_batched_mixture_has_no_cap() -> None:
    with pytest.raises(ValueError, match="`cap` must be asked of runs that have one"):
        make_batchable().start_batch(2).cap()


def built(*overrides: str) -> MixtureTask:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train_agent", ["task=mixture", *overrides])
    mixture = instantiate(cfg.task, _convert_="all")
    assert isinstance(mixture, MixtureTask)
    return mixture


def test_the_config_mixes_three_kinds_of_networks() -> None:
    assert list(built().tasks) == ["digits", "shakespeare_tiny", "small_networks"]


def test_the_config_takes_a_task_more_and_one_less_and_weights() -> None:
    mixture = built(
        "+task@task.tasks.cifar=cifar",
        "~task@task.tasks.digits",
        "task.tasks.cifar.base_lr=0.02",
        "+task.weights={cifar:3}",
    )
    assert list(mixture.tasks) == ["cifar", "shakespeare_tiny", "small_networks"]
    assert mixture.tasks["cifar"].base_lr == 0.02
    assert mixture.weights == {"cifar": 3}
