"""Hashes of small trainings: whoever changes the code sees whether any number moved.

`python benchmarks/traces.py > before.txt` at one commit, `> after.txt` at another, and `diff` (set
LRPILOT_DATA to a folder with the texts; what is not there is left out). Every line is of the bits
of losses and learning rates, or of the weights of an agent's policy. They depend on machine, torch
and number of threads, so compare on one machine.
"""

import hashlib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from stable_baselines3 import PPO

from benchmarks.network_batch import gpt
from benchmarks.problems import IMAGES, available
from benchmarks.side_by_side import print_origin, read_options
from lrpilot import ControlSettings, Policy
from lrpilot.agents.training import train as train_agent
from lrpilot.evaluation.methods import adaptive, schedules
from lrpilot.evaluation.runs.grid import Method, deployed, train
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from lrpilot.tasks.theory.lazy import LazyTask
from lrpilot.tasks.theory.width import WidthTask

SGD: dict[str, Any] = {"optimizer": torch.optim.SGD, "base_lr": 0.01, "total_steps": 60}
TASKS: list[Task] = [
    QuadraticTask(name="quadratic", **SGD),
    NMFTask(name="nmf", cap_kind="segment", noise="gaussian", noise_range=(0.1, 1.0), **SGD),
    IMAGES(name="digits_mlp", data="digits", model=partial(mlp, width=16)),
    IMAGES(name="digits", data="digits", batch_size=16),
    SmallNetworkTask(name="small_networks", **SGD),
    WidthTask(name="width", width=64, **SGD),
    LazyTask(name="lazy", **SGD),
    gpt(num_layers=1, num_heads=2, width=16, context=16, batch_size=4),
    SentenceTask(name="sst2", batch_size=8, num_layers=1, width=32, **SGD),
]
METHODS = [
    *(
        Method(name, partial(deployed, policy=Policy.load(name)))
        for name in ("small_networks", "cifar")
    ),
    Method("cosine", schedules.cosine),
    Method("greedy", adaptive.greedy),
]
INITIAL_LR_FACTORS = (0.1, 1.0, 10.0)
NUM_STEPS = 60
(SEED,) = evaluation_seeds(1)


def digest(*values: Any) -> str:
    """A hash of the bits of arrays or lists."""
    found = hashlib.sha256()
    for value in values:
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def scheduled(task: Task, method: Method) -> str:
    """Of single runs under a scheduler, from three initial learning rates."""
    results = [
        train(task, method, initial_lr_factor=factor, seed=SEED, total_steps=NUM_STEPS)
        for factor in INITIAL_LR_FACTORS
    ]
    return digest(*(value for result in results for value in (result.losses, result.lrs)))


def batched(task: Task) -> str:
    """Of four batched runs at the task's own learning rate."""
    runs = task.start_batch(4)
    runs.reset([0, 1, 2, 3], [SEED + i for i in range(4)])
    lrs, everyone = torch.full((4,), task.base_lr), torch.ones(4, dtype=torch.bool)
    return digest(*(runs.step(lrs, everyone) for _ in range(NUM_STEPS)))


def trained(task: Task, runner: str) -> str:
    """Of the policy that PPO learns in two updates."""
    with tempfile.TemporaryDirectory() as folder:
        train_agent(
            task,
            ControlSettings(num_decisions=10),
            algorithm=partial(PPO, "MlpPolicy", n_steps=20, batch_size=40, n_epochs=2, gamma=1.0),
            total_steps=160,
            num_envs=4,
            run_dir=Path(folder),
            runner=runner,
            show_progress=False,
        )
        layers = Policy.load(folder).layers
    return digest(*(array for layer in layers for array in layer))


def traces() -> Iterator[tuple[str, str]]:
    """What is hashed, and its hash."""
    tasks = list(available(TASKS))
    for task in tasks:
        for method in METHODS:
            yield f"{task.name}, {method.name}", scheduled(task, method)
        if task.name != "quadratic":  # which cannot be batched
            yield f"{task.name}, batched", batched(task)
    for name, runner in (("quadratic", "looped"), ("nmf", "looped"), ("nmf", "batched")):
        task = next(task for task in tasks if task.name == name)
        yield f"{name}, PPO {runner}", trained(task, runner)


def main() -> None:
    """Print a line per trace."""
    read_options(__doc__)
    print_origin(f"{NUM_STEPS} steps a run")
    warnings.simplefilter("ignore")  # horizons that no policy was trained on
    for name, value in traces():
        print(f"{value}  {name}", flush=True)


if __name__ == "__main__":
    main()
