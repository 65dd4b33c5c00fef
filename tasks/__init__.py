"""Inner training problems: a `Task` describes one, a `Run` is one training in progress."""

from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.networks.from_model import from_model
from lrpilot.tasks.runs import BatchedRuns, Closure, ClosureRun, OptimizerFactory, Run
from lrpilot.tasks.shipped import load_task, shipped_tasks
from lrpilot.tasks.task import Task

__all__ = [
    "BatchedRuns",
    "Closure",
    "ClosureRun",
    "MixtureTask",
    "OptimizerFactory",
    "Run",
    "Task",
    "from_model",
    "load_task",
    "shipped_tasks",
]
