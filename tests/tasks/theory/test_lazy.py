import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from lrpilot import CurvatureCap
from lrpilot.caps.eigenvalue import flatten, largest_eigenvalue
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.data.images import load_image_data
from lrpilot.tasks.theory.lazy import BatchedLazyRuns, LazyRun, LazyTask
from lrpilot.tasks.theory.linearized import LinearizedModel
from tests.running import check_batched_environments, check_batched_runs, through_file
from tests.scheduling import plain_action

ACTIVATIONS = ("relu", "linear")


make_task = partial(
    LazyTask,
    name="lazy",
    optimizer=torch.optim.SGD,
    base_lr=1.0,
    total_steps=200,
    width=64,
    num_train=32,
)


def advance(run: LazyRun, lr: float, num_steps: int) -> list[float]:
    return [float(run.step(lr)) for _ in range(num_steps)] + [run.privileged_loss()]


def data(num_train: int = 32) -> tuple[Tensor, Tensor]:
    digits = load_image_data("digits")
    signs = torch.where(digits.train_y % 2 == 1, 1.0, -1.0)
    return digits.train_x[:num_train].flatten(1).double(), signs[:num_train].double()


def two_layers(weights: Any, x: Tensor) -> Tensor:
    inner, outer = weights
    hidden = (math.sqrt(2.0) * x @ inner / math.sqrt(x.shape[1])).clamp(min=0.0)
    outputs: Tensor = hidden @ outer / math.sqrt(len(outer))
    return outputs


def start_weights(run: LazyRun) -> tuple[Tensor, ...]:
    return tuple(weight.detach().clone() for weight in run.parameters)


def largest(kernel: Tensor) -> float:
    return float(torch.linalg.eigvalsh(kernel)[-1])


# ---- the model and its kernel


def test_a_run_equals_a_plain_loop() -> None:
    run = make_task().start(3)
    x, y = data()
    weights = [weight.requires_grad_() for weight in start_weights(run)]
    expected = []
    for _ in range(40):
        loss = ((two_layers(weights, x) - y) ** 2).sum() / (2 * 32)
        expected.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 1.5 * gradient

    assert advance(run, 1.5, 39) == pytest.approx(expected, rel=1e-11)


def test_a_linearized_run_equals_a_plain_loop_over_the_explicit_jacobian() -> None:
    run = make_task(linearized=True).start(3)
    x, y = data()
    start = start_weights(run)
    outputs = two_layers(start, x)
    jacobian = jacrev(lambda weights: two_layers(weights, x))(start)
    change = [torch.zeros_like(weight, requires_grad=True) for weight in start]
    expected = []
    for _ in range(40):
        moved = torch.einsum("nij,ij->n", jacobian[0], change[0]) + jacobian[1] @ change[1]
        loss = ((outputs + moved - y) ** 2).sum() / (2 * 32)
        expected.append(loss.item())
        gradients = torch.autograd.grad(loss, change)
        with torch.no_grad():
            for part, gradient in zip(change, gradients, strict=True):
                part -= 1.5 * gradient

    assert advance(run, 1.5, 39) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_kernel_is_that_of_the_jacobian(activation: str, depth: int) -> None:
    task = make_task(activation=activation, depth=depth, width=24)
    run = task.start(0)
    advance(run, 0.1, 3)
    parts = jacrev(task.network(data()[0]))(list(start_weights(run)))
    jacobian = torch.cat([part.reshape(32, -1) for part in parts], dim=1)

    torch.testing.assert_close(run.tangent_kernel(), jacobian @ jacobian.T, rtol=1e-12, atol=1e-12)


def test_everything_is_in_float64() -> None:
    for linearized in (False, True):
        run = make_task(linearized=linearized).start(0)
        tensors = [*run.parameters, run.step(), run.residuals(), run.tangent_kernel()]
        assert {tensor.dtype for tensor in tensors} == {torch.float64}


def test_the_linearized_residual_follows_the_kernel() -> None:
    run = make_task(linearized=True, depth=2).start(1)
    lr = 0.7 * run.cap()[0]
    step = torch.eye(32, dtype=torch.float64) - lr / 32 * run.tangent_kernel()
    expected = torch.linalg.matrix_power(step, 25) @ run.residuals()
    advance(run, lr, 25)

    torch.testing.assert_close(run.residuals(), expected, rtol=1e-9, atol=1e-12)


def test_the_kernel_of_a_linearized_run_stays_and_that_of_a_network_moves() -> None:
    for linearized in (False, True):
        run = make_task(linearized=linearized).start(0)
        before = run.tangent_kernel()
        advance(run, 1.0, 5)
        assert torch.equal(run.tangent_kernel(), before) == linearized


def test_the_linearized_model_is_fresh_at_every_input() -> None:
    # evaluation goes through models of other inputs, linearized at the same weights
    task = make_task(linearized=True)
    run, network = task.start(0), make_task().start(0)
    assert run.evaluate() == network.evaluate()
    advance(run, 1.0, 30)
    assert 0.7 < run.evaluate()["held_out_accuracy"] < 1.0


# ---- the limit


def test_the_cap_agrees_with_power_iteration_on_the_gauss_newton_matrix() -> None:
    task = make_task()
    run = task.start(0)
    model = LinearizedModel(task.network(data()[0]), run.parameters)
    sizes = [weight.numel() for weight in run.parameters]
    start = flatten(run.parameters, like=run.parameters[0])

    def product(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        shaped = [p.view_as(w) for p, w in zip(parts, run.parameters, strict=True)]
        return flatten(model.pull(model.push(shaped)), like=start) / 32

    pair = largest_eigenvalue(product, start, max_products=60, tolerance=1e-8)
    assert run.cap()[0] == pytest.approx(2.0 / pair.value, rel=1e-9)


def test_the_cap_of_a_wide_network_agrees_with_its_measured_curvature() -> None:
    run = make_task(width=8192).start(0)
    x, y = data()
    measured = CurvatureCap(
        run.optimizer,
        lambda: (two_layers(run.parameters, x) - y).square().mean() / 2,
        safety=1.0,
        max_products=40,
    )
    assert run.cap()[0] == pytest.approx(measured()[0], rel=0.02)


def test_the_cap_is_certified_for_the_linearized_model_alone() -> None:
    caps = [make_task(linearized=linearized).start(0).cap() for linearized in (False, True)]
    assert caps[0][0] == caps[1][0]
    assert [guarantee for _, guarantee in caps] == ["estimate", "deterministic"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("activation", "depth", "width"),
    [("relu", 1, 16), ("relu", 1, 128), ("relu", 1, 512), ("linear", 1, 128), ("relu", 2, 64)],
)
def test_the_linearized_model_converges_below_the_limit_and_diverges_above(
    activation: str, depth: int, width: int, seed: int
) -> None:
    task = make_task(activation=activation, depth=depth, width=width, linearized=True)
    below, above = task.start(seed), task.start(seed)
    limit, _ = below.cap()
    top = torch.linalg.eigh(below.tangent_kernel()).eigenvectors[:, -1]
    before = abs(float(top @ below.residuals()))

    losses = advance(below, 0.98 * limit, 100)
    assert all(after < loss for loss, after in itertools.pairwise(losses))
    # |1 - 2 * 0.98|^100
    assert abs(float(top @ below.residuals())) == pytest.approx(before * 0.96**100, rel=1e-6)
    losses = advance(above, 1.02 * limit, 100)
    assert losses[-1] > 5.0 * losses[50]
    assert abs(float(top @ above.residuals())) == pytest.approx(before * 1.04**100, rel=1e-6)


def test_an_environment_under_the_cap_never_raises_the_loss_of_the_linearized_model() -> None:
    env = LRControlEnv(
        make_task(linearized=True), action=plain_action(start_factor=1.0), use_cap=True
    )
    _, info = env.reset(seed=0, options={"initial_lr": 1e6})
    losses, terminated = list(info["losses"]), False
    while not terminated:
        _, _, terminated, _, info = env.step(np.ones(1, np.float32))
        losses += info["losses"]
    assert len(losses) == 200
    assert info["guarantee"] == "deterministic"
    assert info["num_capped"] == len(info["losses"])
    assert all(after <= loss * (1 + 1e-12) for loss, after in itertools.pairwise(losses))


# ---- finite width


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_approaches_its_linearized_model_as_it_widens(activation: str) -> None:
    def distance(width: int, seed: int) -> float:
        task = make_task(activation=activation, width=width)
        network = task.start(seed)
        linearized = make_task(activation=activation, width=width, linearized=True).start(seed)
        for run in (network, linearized):
            advance(run, 0.5 * network.cap()[0], 20)
        return float((network.residuals() - linearized.residuals()).norm())

    narrow, wide = (sum(distance(width, seed) for seed in range(2)) for width in (32, 2048))
    # at least as 1 / sqrt(width), which is 8, but for the spread of the seeds
    assert narrow > 4.0 * wide


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_network_is_catapulted_to_a_flatter_place(seed: int) -> None:
    run = make_task(activation="linear", width=512).start(seed)
    limit, start = run.cap()[0], largest(run.tangent_kernel())
    losses = advance(run, 1.5 * limit, 200)
    assert max(losses) > 5.0 * losses[0]
    assert losses[-1] < 0.1 * losses[0]
    # below 1/1.5 the place that it ends in is stable
    assert largest(run.tangent_kernel()) < start / 1.5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_network_diverges_above_twice_the_limit(seed: int) -> None:
    task = make_task(activation="linear", width=512)
    limit, _ = task.start(seed).cap()
    assert advance(task.start(seed), 1.9 * limit, 100)[-1] < 0.2
    assert not advance(task.start(seed), 2.2 * limit, 100)[-1] < 1e12


def test_a_relu_network_far_above_the_limit_dies_instead_of_diverging() -> None:
    run = make_task(width=64).start(0)
    losses = advance(run, 32.0 * run.cap()[0], 50)
    assert losses[-1] == 0.5
    assert largest(run.tangent_kernel()) == 0.0


# ---- runs


def test_a_seed_fixes_the_weights_and_all_seeds_share_the_data() -> None:
    task = make_task()
    first, again, other = task.start(0), task.start(0), task.start(1)
    assert all(map(torch.equal, first.parameters, again.parameters))
    assert not torch.equal(first.parameters[0], other.parameters[0])
    assert torch.equal(first._targets, other._targets)
    assert set(first._targets.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("linearized", [False, True])
def test_a_run_continues_identically_from_its_state(linearized: bool) -> None:
    task = make_task(linearized=linearized)
    whole, resumed = task.start(0), task.start(1)
    advance(whole, 1.0, 7)
    resumed.load_state_dict(through_file(whole.state_dict()))

    assert resumed.cap() == whole.cap()
    assert advance(resumed, 1.0, 9) == advance(whole, 1.0, 9)


def test_a_diverged_run_is_data() -> None:
    run = make_task(activation="linear").start(0)
    losses = advance(run, 1e3, 30)
    assert not math.isfinite(losses[-1])
    assert not math.isfinite(run.evaluate()["held_out_loss"])


@pytest.mark.parametrize(
    "optimizer",
    [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam],
    ids=["momentum", "adam"],
)
def test_another_optimizer_has_no_cap(optimizer: Any) -> None:
    run = make_task(optimizer=optimizer).start(0)
    with pytest.raises(ValueError, match="`optimizer` must be SGD without momentum"):
        run.cap()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "`width` must be at least 1, got 0"),
        ({"depth": 0}, "`depth` must be at least 1, got 0"),
        ({"num_train": 0}, "`num_train` must be at least 1, got 0"),
        ({"activation": "gelu"}, "`activation` must be one of .*, got 'gelu'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_train` must be at most 1197, got 2000"):
        make_task(num_train=2000).start(0)


# ---- batched runs

SEEDS = [3, 4, 5]


def started(task: LazyTask) -> BatchedLazyRuns:
    runs = task.start_batch(len(SEEDS))
    runs.reset([0, 1, 2], SEEDS)
    return runs


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9)])
@pytest.mark.parametrize("depth", [1, 2])
def test_batched_runs_equal_single_runs(depth: int, optimizer: Any) -> None:
    check_batched_runs(make_task(depth=depth, optimizer=optimizer), SEEDS, num_steps=50)


def test_batched_runs_have_the_caps_of_single_runs_also_after_steps_and_resets() -> None:
    task = make_task()
    runs = started(task)
    runs.step(torch.full((3,), 0.1).double(), torch.ones(3, dtype=torch.bool))
    runs.reset([1], [9])
    caps, guarantee = runs.cap()
    expected = [task.start(seed).cap() for seed in (3, 9, 5)]
    assert caps.tolist() == pytest.approx([cap for cap, _ in expected], rel=1e-12)
    assert guarantee == expected[0][1] == "estimate"


def test_batched_runs_continue_from_their_state_exactly() -> None:
    task = make_task()
    lrs, everyone = torch.full((3,), 0.1).double(), torch.ones(3, dtype=torch.bool)
    runs, others = started(task), task.start_batch(3)
    runs.step(lrs, everyone)
    others.load_state_dict(through_file(runs.state_dict()))
    assert torch.equal(others.step(lrs, everyone), runs.step(lrs, everyone))
    assert torch.equal(others.cap()[0], runs.cap()[0])


@pytest.mark.slow
@pytest.mark.parametrize("use_cap", [False, True])
def test_batched_environments_equal_single_ones(use_cap: bool) -> None:
    task = make_task(base_lr=0.05, width=16)
    check_batched_environments(task, 3, use_cap=use_cap)


def test_linearized_runs_are_not_batched() -> None:
    with pytest.raises(ValueError, match="`linearized` of batched runs must be False, got True"):
        make_task(linearized=True).start_batch(2)


def test_batched_runs_of_another_optimizer_have_no_cap() -> None:
    runs = started(make_task(optimizer=partial(torch.optim.SGD, momentum=0.9)))
    with pytest.raises(ValueError, match="`optimizer` must be SGD without momentum"):
        runs.cap()
