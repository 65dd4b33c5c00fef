import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpilot import ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.envs import LRControlEnv
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.observation import FEATURES
from lrpilot.tasks.images.models import mlp, small_cnn
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.runs import OptimizerFactory, Run, as_closure_run
from tests.observing import observer_of
from tests.running import through_file
from tests.scheduling import plain_action

CURVATURES = torch.tensor([4.0, 1.0, 0.5])
ALL_GROUPS = (*FEATURES, "curvature")
SGD, ADAM = torch.optim.SGD, torch.optim.Adam
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": partial(SGD, weight_decay=1e-3),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
}
MODELS: dict[str, Any] = {
    "mlp": partial(mlp, width=8),
    "cnn": small_cnn,
    "batch norm": partial(small_cnn, normalization="batch"),
}


def bowl(optimizer: OptimizerFactory, lr: float) -> tuple[Tensor, EdgeDistance]:
    """A quadratic whose largest curvature is 4, and its measurement."""
    w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    return w, EdgeDistance(optimizer([w], lr=lr), lambda: (CURVATURES * w.square()).sum() / 2)


def digits(model: str = "mlp", optimizer: str = "sgd", total_steps: int = 18) -> ImageTask:
    return ImageTask(
        name="digits",
        data="digits",
        model=MODELS[model],
        optimizer=OPTIMIZERS[optimizer],
        base_lr=0.002 if optimizer == "adamw" else 0.05,
        total_steps=total_steps,
        batch_size=32,
        num_privileged=32,
    )


def random_policy(groups: tuple[str, ...] = ALL_GROUPS, scale: float = 1.0) -> Policy:
    rng = np.random.default_rng(3)
    observation = ObservationSpec(groups=groups)
    sizes = [len(observation.names), 16, 1]
    layers = [
        (
            (scale * rng.normal(0, 1 / math.sqrt(a), (a, b))).astype(np.float32),
            (scale * rng.normal(0, 0.3, b)).astype(np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]
    return Policy(layers, observation, plain_action(max_log_change=0.4), ClockSpec(num_decisions=6))


def scheduler_of(policy: Policy, run: Run, **arguments: Any) -> PolicyLR:
    return PolicyLR(
        run.optimizer,
        policy,
        total_steps=18,
        curvature=as_closure_run(run).repeat_loss,
        model=getattr(run, "model", None),
        **arguments,
    )


def train_steps(run: Run, scheduler: PolicyLR, num_steps: int) -> list[float]:
    """The learning rates and the losses."""
    values = []
    for _ in range(num_steps):
        values += scheduler.current_lrs()
        loss = run.step()
        values.append(loss.item())
        scheduler.step(loss)
    return values


# ---- what the feature says


@pytest.mark.parametrize(
    ("optimizer", "edge"),
    [
        (SGD, 2 / 4),
        (partial(SGD, momentum=0.9), 2 * 1.9 / 4),
        (partial(SGD, momentum=0.8, nesterov=True), 2 * 1.8 / (4 * 2.6)),
        (partial(SGD, weight_decay=1.0), 2 / 5),
    ],
)
def test_on_a_quadratic_it_is_the_log_of_the_lr_over_its_stability_limit(
    optimizer: OptimizerFactory, edge: float
) -> None:
    for lr in (0.003, 0.3, 30.0):
        _, distance = bowl(optimizer, lr)
        for _ in range(3):
            value = distance()
        assert value == pytest.approx(math.log10(lr / edge), abs=5e-3)


@pytest.mark.parametrize("optimizer", [SGD, partial(SGD, momentum=0.9)])
@pytest.mark.parametrize("side", [-0.1, 0.1])
def test_its_sign_tells_whether_a_quadratic_diverges(
    optimizer: OptimizerFactory, side: float
) -> None:
    edge = 0.5 * (1.9 if isinstance(optimizer, partial) else 1.0)
    w, distance = bowl(optimizer, edge * 10**side)
    descent = optimizer([w], lr=edge * 10**side)
    for _ in range(300):
        w.grad = CURVATURES * w.detach()
        descent.step()
    with torch.no_grad():
        is_far = not w.norm() < 10.0
        w.copy_(torch.tensor([1.0, -2.0, 0.5]))

    assert is_far == (side > 0.0)
    assert math.copysign(1.0, distance()) == math.copysign(1.0, side)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_it_is_unchanged_when_the_loss_is_scaled_and_the_lr_against_it(scale: float) -> None:
    run = digits("cnn").start(0)
    run.step()

    def measured(factor: float) -> float:
        optimizer = SGD(run.parameters, lr=0.05 / factor)
        return EdgeDistance(optimizer, lambda: factor * run.repeat_loss())()

    assert measured(scale) == pytest.approx(measured(1.0), abs=1e-3)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_three_products_per_decision_follow_the_exact_eigenvalue(model: str) -> None:
    run = digits(model).start(0)
    distance = EdgeDistance(run.optimizer, run.repeat_loss)
    errors = []
    for _ in range(4):
        for _ in range(5):
            run.step()
        gradient = torch.autograd.grad(run.repeat_loss(), run.parameters, create_graph=True)
        flat = torch.cat([part.flatten() for part in gradient])
        vector = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
        for _ in range(40):
            product = torch.autograd.grad(flat @ vector, run.parameters, retain_graph=True)
            vector = torch.cat([part.flatten() for part in product])
            largest = float(vector.norm())
            vector /= largest
        exact = math.log10(0.05 * (largest + 1e-3) / 2)
        errors.append(abs(distance() - exact))

    assert np.mean(errors) < 0.1


def test_where_the_loss_does_not_curve_it_has_the_least_value() -> None:
    w = torch.ones(3, requires_grad=True)
    spec = ObservationSpec(groups=("curvature",))
    observer = observer_of(spec, [w], curvature=EdgeDistance(SGD([w], lr=1.0), lambda: w.sum()))
    observer.add_loss(1.0)
    assert observer.close_interval(progress=0.0, factor=1.0, previous_action=0.0).tolist() == [-5.0]


def test_a_loss_that_is_not_finite_from_the_first_measurement_on_has_the_largest_value() -> None:
    w = torch.full((3,), math.nan, requires_grad=True)
    spec = ObservationSpec(groups=("curvature",))
    curvature = EdgeDistance(SGD([w], lr=1e-3), lambda: w.pow(4).sum())
    observer = observer_of(spec, [w], curvature=curvature)
    observer.add_loss(1.0)
    assert observer.close_interval(progress=0.0, factor=1.0, previous_action=0.0).tolist() == [5.0]


def test_after_weights_that_broke_the_last_limit_is_kept() -> None:
    w = torch.ones(3, requires_grad=True)
    distance = EdgeDistance(SGD([w], lr=0.05), lambda: w.pow(4).sum())
    known = distance()
    with torch.no_grad():
        w.fill_(math.nan)
    assert distance() == known


def test_an_interval_without_a_step_has_the_value_zero() -> None:
    w, distance = bowl(SGD, 0.05)
    observer = observer_of(ObservationSpec(groups=("curvature",)), [w], curvature=distance)
    assert observer.close_interval(progress=0.0, factor=1.0, previous_action=0.0).tolist() == [0.0]


# ---- training and deployment


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_the_env_and_the_scheduler_give_identical_lrs_and_losses(
    model: str, optimizer: str
) -> None:
    task, policy = digits(model, optimizer), random_policy()
    env = LRControlEnv(task, observation=policy.observation, action=policy.action, num_decisions=6)
    options = {"task_seed": 5, "initial_lr": task.base_lr, "total_steps": 18}
    observation, info = env.reset(options=options)
    lrs, losses = [info["lr"]] * len(info["losses"]), [*info["losses"]]
    terminated = False
    while not terminated:
        action = np.array([policy.act(observation)])
        observation, _, terminated, _, info = env.step(action)
        lrs += [info["lr"]] * len(info["losses"])
        losses += info["losses"]

    def make(optimizer: torch.optim.Optimizer, *, total_steps: int, run: Run) -> PolicyLR:
        return scheduler_of(policy, run)

    deployed = train(task, Method("policy", make), initial_lr_factor=1.0, seed=5)
    assert len(set(lrs)) > 3
    assert deployed.lrs == lrs
    assert deployed.losses == losses


@pytest.mark.parametrize("model", MODELS)
def test_measuring_leaves_a_run_as_it_is(model: str) -> None:
    task = digits(model)
    measured, plain = task.start(1), task.start(1)
    policies = [random_policy(scale=0.0), random_policy(("progress",), scale=0.0)]
    before = torch.get_rng_state()
    found = train_steps(measured, scheduler_of(policies[0], measured), 18)
    expected = train_steps(plain, PolicyLR(plain.optimizer, policies[1], total_steps=18), 18)

    assert found == expected
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(measured.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_state_through_a_file_continues_bit_identically() -> None:
    task, policy = digits("cnn"), random_policy()
    whole, resumed = task.start(2), task.start(2)
    first = scheduler_of(policy, whole)
    train_steps(whole, first, 8)
    run_state, state = through_file([whole.state_dict(), first.state_dict()])
    second = scheduler_of(policy, resumed)
    resumed.load_state_dict(run_state)
    second.load_state_dict(state)
    assert train_steps(whole, first, 10) == train_steps(resumed, second, 10)


def test_the_loss_is_computed_at_decisions_only() -> None:
    run = digits().start(0)
    calls = []

    def counted() -> Tensor:
        calls.append(run.num_steps)
        return run.repeat_loss()

    scheduler = PolicyLR(run.optimizer, random_policy(), total_steps=18, curvature=counted)
    train_steps(run, scheduler, 12)
    assert calls == [3, 6, 9, 12]


# ---- what is refused, and what stays


def test_a_policy_that_observes_curvature_asks_for_the_loss() -> None:
    optimizer = SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"`curvature` is required: .* the loss on a batch"):
        PolicyLR(optimizer, random_policy(), total_steps=9)


def never() -> torch.Tensor:
    raise AssertionError("the curvature was asked for")


def test_a_policy_that_does_not_observe_curvature_never_asks_for_it() -> None:
    run = digits().start(0)
    scheduler = PolicyLR(run.optimizer, random_policy(("loss",)), total_steps=18, curvature=never)
    train_steps(run, scheduler, 18)


def test_an_optimizer_whose_stability_limit_is_not_known_is_refused() -> None:
    optimizer = torch.optim.Adagrad(nn.Linear(2, 1).parameters())
    loss: Callable[[], Tensor] = lambda: torch.zeros(())  # noqa: E731
    with pytest.raises(TypeError, match="must be torch's SGD, Adam or AdamW, got Adagrad"):
        PolicyLR(optimizer, random_policy(), total_steps=9, curvature=loss)


def test_a_policy_that_observes_curvature_cannot_be_simulated() -> None:
    with pytest.raises(ValueError, match=r"must observe losses alone .*'curvature'"):
        PolicyLR.simulate([1.0], random_policy(("curvature",)))


def test_curvature_is_off_by_default() -> None:
    assert "edge_distance" not in ObservationSpec().names
    assert ObservationSpec(groups=ALL_GROUPS).names[-1] == "edge_distance"


def test_shipped_policies_keep_their_fingerprint() -> None:
    # written before the group existed
    expected = "e6893bf719ae7ee4cf33175cdd88bbe145294f367278266220d49fc34ae63a6c"
    assert Policy.load("small_networks").fingerprint == expected
