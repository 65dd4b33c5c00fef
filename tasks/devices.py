"""Where a task's runs are computed."""

from dataclasses import dataclass, replace

import torch

from lrpilot.tasks.task import Task

AUTO = "auto"
"""Chooses the GPU that torch sees, else the CPU."""
# single precision alone, and batched runs need more
_WITHOUT_FLOAT64 = ("mps",)


def known_devices() -> list[str]:
    """The names of this machine's devices, as torch has them.

    >>> known_devices()[0]
    'cpu'
    """
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if gpu is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", gpu.type, *(f"{gpu.type}:{i}" for i in range(count))]


def chosen_device(name: str) -> str:
    """The device of this name, or the one that "auto" stands for.

    "auto" is the kind of GPU that torch sees ("cuda" of NVIDIA, and of AMD under ROCm, or "xpu"),
    of which torch takes the first, else "cpu". Apple's "mps", which has no float64, has to be asked
    for by name.

    Raises:
        ValueError: if this machine has no such device.

    >>> chosen_device("cpu")
    'cpu'
    """
    known = known_devices()
    if name == AUTO:
        return next((gpu for gpu in known[1:2] if gpu not in _WITHOUT_FLOAT64), "cpu")
    if name not in known:
        raise ValueError(f"`device` must be one of {', '.join([AUTO, *known])}, got {name!r}")
    return name


@dataclass(frozen=True, kw_only=True)
class DeviceTask(Task):
    """A task whose runs live on a device that can be chosen.

    All random numbers are drawn on the CPU, by the generators of the runs, and moved: a seed is
    the same run, to rounding, on every device.

    Args:
        device: where the runs live: "cpu", "cuda", "cuda:1", ..., or "auto", which is replaced by
            the GPU's name, or by "cpu" if there is none.

    Raises:
        ValueError: if this machine has no such device.
    """

    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "device", chosen_device(self.device))


def on_device(task: Task, device: str) -> Task:
    """The task with its runs on this device.

    Raises:
        ValueError: if the machine has no such device, or the task lets none be chosen.
    """
    if not isinstance(task, DeviceTask):
        raise ValueError(f"`device` must be asked of a task that has one, got {task.name!r}")
    return replace(task, device=device)
