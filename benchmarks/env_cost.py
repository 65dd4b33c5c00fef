"""What an environment costs beside the bare training steps: time, memory, and shared data.

`python benchmarks/env_cost.py` (set LRPILOT_DATA to a folder with CIFAR-10, Fashion-MNIST and the
texts; what is not there is left out, and the output says so). The bare steps are a plain PyTorch
loop on the same model, batch size, optimizer and in-memory data; beside the ratio to it stands that
to the steps of the task's own `Run`, which clears gradients in a cheaper way. Ratios compare
processor time between interleaved repetitions of the same number of inner steps, which another
process on the machine disturbs little. The adapters of `lora` sit on a network that is not
pretrained.
"""

import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.plain_loops import bare_step
from benchmarks.problems import CIFAR, ENDLESS, IMAGES, MOMENTUM, available, decision, own_step
from benchmarks.side_by_side import compare_with, medians, print_origin, read_options, seconds_of
from lrpilot.envs import LRControlEnv, WorkerVecEnv, looped, make_vec_env
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.images.models import lenet, mlp, resnet9, resnet18, small_cnn
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.lora import LoRATask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from lrpilot.tasks.theory.lazy import LazyTask
from lrpilot.tasks.theory.width import WidthTask

INTERVAL_STEPS = 10
# processor time of one turn
TURN_SECONDS = 0.15
MEMORY_STEPS = 30

ADAMW: dict[str, Any] = {
    "optimizer": torch.optim.AdamW,
    "base_lr": 1e-3,
    "total_steps": ENDLESS,
}
TASKS: list[Task] = [
    IMAGES(name="digits_mlp", data="digits", model=partial(mlp, width=32)),
    SmallNetworkTask(name="small_networks", optimizer=MOMENTUM, base_lr=0.01, total_steps=ENDLESS),
    IMAGES(name="digits", data="digits", model=small_cnn),
    IMAGES(name="fashion_mnist", data="fashion_mnist", model=small_cnn, num_train=10_000),
    CIFAR(name="cifar", model=small_cnn),
    CIFAR(name="cifar, lenet", model=lenet),
    CIFAR(name="cifar, resnet9 / 4", model=partial(resnet9, widths=(16, 32, 64, 128))),
    CIFAR(name="cifar, resnet18 / 8", model=partial(resnet18, widths=(8, 16, 32, 64))),
    GPTTask(name="shakespeare", **ADAMW),
    SentenceTask(name="sst2", batch_size=32, num_layers=2, width=64, **ADAMW),
    LoRATask(name="lora", pretraining_steps=1, **ADAMW),
    WidthTask(name="width", optimizer=MOMENTUM, base_lr=0.3, total_steps=ENDLESS, width=64),
    LazyTask(name="lazy", optimizer=torch.optim.SGD, base_lr=1.0, total_steps=ENDLESS),
]


def measure_time(task: Task, num_rounds: int, interval_steps: int) -> list[str]:
    """The cells of a row: the bare step, and the median ratios."""
    decide = {
        reward: decision(task, interval_steps=interval_steps, reward=reward)
        for reward in ("training", "privileged")
    }
    bare, own = bare_step(task), own_step(task)
    for step in (bare, own):
        seconds_of(step, 2 * interval_steps)
    for action in decide.values():
        seconds_of(action, 2)
    num_calls = max(1, round(TURN_SECONDS / seconds_of(decide["training"])))
    compare = partial(
        compare_with,
        num_calls=num_calls,
        num_rounds=num_rounds,
        steps_per_call=interval_steps,
    )
    seconds, ratios = compare(bare, decide)
    _, own_ratios = compare(own, {"training": decide["training"]})
    training, privileged = medians(ratios)
    return [task.name, f"{seconds * 1e3:.3f}", training, *medians(own_ratios), privileged]


def private_mebibytes(process_id: int | str = "self") -> float:
    """Memory that no other process has a share in (unique set size)."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def memory_of(task: Task, reward: str | None) -> tuple[float, float]:
    """MiB of this process after `MEMORY_STEPS` steps, bare or in an environment; at the peak."""
    torch.set_num_threads(1)
    if reward is None:
        seconds_of(bare_step(task), MEMORY_STEPS)
    else:
        decide = decision(task, interval_steps=INTERVAL_STEPS, reward=reward)
        seconds_of(decide, MEMORY_STEPS // INTERVAL_STEPS)
    # not `ru_maxrss`, which begins at that of the process that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return private_mebibytes(), peak / 1024


def measure_memory(task: Task) -> list[str]:
    """The cells of a row: memory settled and at the peak, each in a process of its own."""
    found = []
    for reward in (None, "training", "privileged"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(memory_of, task, reward).result())
    bare, *others = found
    ratios = [
        f"{mib / base:.3f}" for other in others for mib, base in zip(other, bare, strict=True)
    ]
    return [task.name, f"{bare[0]:.0f}", *ratios]


def measure_sharing(task: ImageTask) -> list[str]:
    """The cells of a row: MiB of the data, and of what each further environment adds."""
    data = task.load()
    tensors = [value for value in vars(data).values() if isinstance(value, Tensor)]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # all of it is in memory now, and no environment is charged for having touched it first
    for tensor in tensors:
        tensor.sum()
    in_one_process = []
    for num_envs in (1, 9):
        env = make_vec_env(task, num_envs, runner="looped", interval_steps=INTERVAL_STEPS)
        env.reset()
        in_one_process.append(private_mebibytes())
        del env
    workers = []
    for num_envs in (2, 10):
        make_env = partial(LRControlEnv, task, interval_steps=INTERVAL_STEPS)
        env = WorkerVecEnv(partial(looped, make_env), num_envs, num_workers=2)
        env.reset()
        workers.append([private_mebibytes(pid) for pid in env.pids])
        env.close()
    worker = statistics.mean(workers[0])
    return [
        task.name,
        f"{num_bytes / 2**20:.0f}",
        f"{(in_one_process[1] - in_one_process[0]) / 8:.1f}",
        f"{(sum(workers[1]) - sum(workers[0])) / 8:.1f}",
        f"{worker:.0f}",
    ]


def main() -> None:
    """Measure everything and print it."""
    options = read_options(
        __doc__,
        num_rounds=15,
        interval_steps=INTERVAL_STEPS,
        tasks=[task.name for task in TASKS],
    )
    print_origin(
        f"medians of {options.num_rounds} rounds, interval {options.interval_steps}, all features, "
        "seed 0"
    )
    tasks = list(available(task for task in TASKS if task.name in options.tasks))
    print("Environment over the bare steps, by what is rewarded")
    lines = [measure_time(task, options.num_rounds, options.interval_steps) for task in tasks]
    header = ["task", "bare ms/step", "training loss", "over own steps", "held-out loss"]
    print(format_table(header, lines))
    print(f"\nMemory of the process after {MEMORY_STEPS} steps, and its peak, over the bare steps'")
    header = ["task", "bare MiB", "training loss", "peak", "held-out loss", "peak"]
    print(format_table(header, [measure_memory(task) for task in tasks]))
    print("\nMiB of private memory that one more environment adds, of 9 looped or 10 in 2 workers")
    header = ["task", "data", "looped", "in a worker", "a worker with one"]
    shared = [task for task in tasks if isinstance(task, ImageTask)]
    print(format_table(header, [measure_sharing(task) for task in shared]))


if __name__ == "__main__":
    main()
