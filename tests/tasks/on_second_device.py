"""Prints, for every kind of task, what became of its runs on a second device (see the tests)."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrpilot.envs import LRControlEnv
from lrpilot.envs.vec_lr_control import LRControlVecEnv
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.networks.from_model import from_model
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.small_trainings.task import SmallTrainingTask
from lrpilot.tasks.task import Task
from lrpilot.tasks.theory.lazy import LazyTask
from lrpilot.tasks.theory.width import WidthTask
from tests.second_device import NAME, Remote, register, second_device

NUM_RUNS = 3
COMMON: dict[str, Any] = {"optimizer": torch.optim.SGD, "base_lr": 0.01, "total_steps": 20}
SMALL: dict[str, Any] = {"base_lr": 0.05, "total_steps": 20, "num_setups": 4}


def own(**arguments: Any) -> Task:
    """A task of a user's model and data."""
    data = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 3
    loss = nn.functional.cross_entropy
    return from_model(
        model=partial(nn.Linear, 4, 3), loss=loss, data=data, batch_size=8, **COMMON, **arguments
    )


def mixture(**arguments: Any) -> Task:
    """Two tasks as one."""
    tasks: dict[str, Task] = {
        "nmf": NMFTask(name="nmf", **COMMON),
        "small": SmallNetworkTask(name="small", **SMALL),
    }
    return MixtureTask(tasks=tasks, **arguments)


MAKERS: dict[str, Callable[..., Task]] = {
    "quadratic": partial(QuadraticTask, name="quadratic", **COMMON),
    "nmf": partial(NMFTask, name="nmf", **COMMON),
    "nmf under a cap": partial(
        NMFTask, name="nmf", noise="gaussian", cap_kind="segment", smallest_shape=(20, 20), **COMMON
    ),
    "small_networks": partial(SmallNetworkTask, name="small_networks", **SMALL),
    # of setups with dropout, batch normalization and every family
    "small_trainings": partial(
        SmallTrainingTask, name="small_trainings", calibrate=False, setup_seed=3, **SMALL
    ),
    "lazy": partial(LazyTask, name="lazy", width=16, **COMMON),
    "linearized": partial(LazyTask, name="lazy", width=16, linearized=True, **COMMON),
    "width": partial(WidthTask, name="width", width=8, **COMMON),
    "digits": partial(ImageTask, name="digits", data="digits", augment=True, **COMMON),
    "from_model": own,
    "mixture": mixture,
}
UNBATCHED = ("quadratic", "linearized")
CAPPED = ("nmf under a cap", "lazy", "linearized")


def followed(make: Callable[..., Task], name: str, device: str) -> dict[str, Any]:
    """Numbers of an episode of one run, and of one of many at once, broken off and resumed."""
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {"num_decisions": 5, "use_cap": name in CAPPED}
    env, other = (LRControlEnv(make(device=device), **settings) for _ in range(2))
    first = env.reset(seed=1)[0]
    other.reset(seed=2)
    other.load_state_dict(env.state_dict())
    steps = [e.step(np.ones(1))[:2] for e in (env, other)]
    assert steps[0][1] == steps[1][1]
    found["one"] = [*first.tolist(), *steps[0][0].tolist(), steps[0][1]]
    found["evaluated"] = env.run.evaluate()
    tensors = [*env.run.parameters, *(p.grad for p in env.run.parameters if p.grad is not None)]
    found["devices"] = sorted({describe(tensor) for tensor in tensors})
    if name not in UNBATCHED:
        envs, others = (
            LRControlVecEnv(make(device=device), NUM_RUNS, **settings) for _ in range(2)
        )
        envs.seed(1)
        start = envs.reset()
        others.seed(5)
        others.reset()
        others.load_state_dict(envs.state_dict())
        many = []
        for e in (envs, others):
            e.step_async(np.ones((NUM_RUNS, 1), np.float32))
            many.append(e.step_wait()[:2])
        assert (many[0][1] == many[1][1]).all()
        found["many"] = [array.ravel().tolist() for array in (start, *many[0])]
        runs = envs.runs
        vectors = [runs.privileged_losses(), runs.weights(), runs.gradients()]
        if name in CAPPED:
            vectors.append(runs.cap()[0])
        found["devices of many"] = sorted({describe(tensor) for tensor in vectors})
    return found


def describe(tensor: Tensor) -> str:
    """Where a tensor is."""
    return NAME if isinstance(tensor, Remote) else tensor.device.type


def main() -> None:
    """Prints a dictionary: for each task its numbers on both devices."""
    torch.set_num_threads(1)
    register()
    found = {name: {"cpu": followed(make, name, "cpu")} for name, make in MAKERS.items()}
    with second_device():
        for name, make in MAKERS.items():
            try:
                found[name][NAME] = followed(make, name, "auto")
            except Exception as error:
                found[name]["error"] = {"message": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
