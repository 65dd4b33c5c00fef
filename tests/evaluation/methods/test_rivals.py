"""The rivals' own packages, on convex problems whose optimum is known."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dadaptation import DAdaptSGD
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lrpilot import GreedyLR
from lrpilot.evaluation.methods.adaptive import schedule_free
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask

CONF = Path(__file__).parents[3] / "conf" / "rival"
PACKAGES = ("schedule_free", "prodigy", "prodigy_cosine", "d_adaptation")
Objective = Callable[[Tensor], Tensor]


def rival(name: str) -> Method:
    config: Any = OmegaConf.select(OmegaConf.load(CONF / f"{name}.yaml"), name)
    return Method(
        name,
        instantiate(config.scheduler),
        optimizer=instantiate(config.optimizer),
        base_lr=config.base_lr,
    )


def quadratic() -> tuple[Objective, int]:
    curvatures = torch.logspace(0, 1, 10)
    return lambda w: (curvatures * (w - 1.0).square()).sum() / 2 + 1.0, 10


def logistic_regression() -> tuple[Objective, int]:
    x, y = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    labels = torch.tensor(y, dtype=torch.float32)
    return (
        lambda w: binary_cross_entropy_with_logits(inputs @ w, labels) + 0.005 * w.square().sum(),
        30,
    )


def optimum(objective: Objective, size: int) -> float:
    w = torch.zeros(size, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w], max_iter=500, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(w)
        loss.backward()
        return loss

    solver.step(closure)
    return float(objective(w).detach())


@pytest.mark.slow
@pytest.mark.parametrize("problem", [quadratic, logistic_regression])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_rival_reaches_the_known_optimum(
    name: str, problem: Callable[[], tuple[Objective, int]]
) -> None:
    objective, size = problem()
    method = rival(name)
    assert method.optimizer is not None
    w = torch.zeros(size, requires_grad=True)
    optimizer = method.optimizer([w], lr=method.base_lr or 0.1)
    getattr(optimizer, "train", lambda: None)()
    start = float(objective(w).detach())
    for _ in range(3000):
        optimizer.zero_grad()
        objective(w).backward()
        optimizer.step()
    getattr(optimizer, "eval", lambda: None)()
    best = optimum(objective, size)
    assert float(objective(w).detach()) - best < 1e-2 * (start - best)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [quadratic, logistic_regression])
@pytest.mark.parametrize("semantics", ["robust", "paper", "transformers"])
def test_greedy_lr_reaches_the_known_optimum(
    semantics: str, problem: Callable[[], tuple[Objective, int]]
) -> None:
    objective, size = problem()
    w = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.05)
    scheduler = GreedyLR(optimizer, semantics=semantics)
    start = float(objective(w).detach())
    for _ in range(3000):
        optimizer.zero_grad()
        loss = objective(w)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    best = optimum(objective, size)
    assert float(objective(w).detach()) - best < 1e-4 * (start - best)


@pytest.mark.parametrize("name", [*PACKAGES, "line_search", "guarded_cosine", "range_test"])
def test_a_rival_trains_in_the_comparison_at_its_own_scale(name: str) -> None:
    task = ImageTask(
        name="digits", data="digits", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=30
    )
    result = train(task, rival(name), initial_lr_factor=1.0, seed=3)
    assert result.row["initial_lr"] == (0.1 if name in ("guarded_cosine", "range_test") else 1.0)
    assert len(result.losses) == 30
    assert not result.row["diverged"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PACKAGES, "range_test"])
def test_a_rival_learns_digits_at_its_own_scale(name: str) -> None:
    """At chance the loss is log 10 = 2.3: a rival that is misused stays there."""
    task = ImageTask(
        name="digits_mlp",
        data="digits",
        model=partial(mlp, width=32),
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.1,
        total_steps=300,
    )
    losses = [
        train(task, rival(name), initial_lr_factor=1.0, seed=seed).row["held_out_loss"]
        for seed in (3, 4)
    ]
    assert max(losses) < 0.5


def test_d_adaptation_at_its_defaults_overshoots_and_stays_at_chance() -> None:
    task = ImageTask(
        name="digits_mlp",
        data="digits",
        model=partial(mlp, width=32),
        optimizer=partial(DAdaptSGD, momentum=0.9),
        base_lr=1.0,
        total_steps=300,
    )
    run = task.start(3)
    for _ in range(50):
        run.step()
    assert run.optimizer.param_groups[0]["d"] > 0.5
    assert run.privileged_loss() > 2.2


def test_schedule_free_warms_up_over_a_share_of_the_steps() -> None:
    method = rival("schedule_free")
    assert method.optimizer is not None
    optimizer = method.optimizer([torch.zeros(1)], lr=1.0)
    method.make(optimizer, total_steps=300)
    assert optimizer.param_groups[0]["warmup_steps"] == 15


def test_an_optimizer_without_a_warm_up_of_its_own_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(ValueError, match="`optimizer` must be one of schedulefree, got SGD"):
        schedule_free(optimizer, total_steps=300)
