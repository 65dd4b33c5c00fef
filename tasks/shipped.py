"""The tasks that come with the project, by name."""

from pathlib import Path
from typing import Any

from lrpilot.tasks.task import Task

CONF = Path(__file__).resolve().parents[1] / "conf"


def shipped_tasks() -> list[str]:
    """The names of the tasks that have a file in `conf/task`; `own` names none of ours."""
    return sorted(path.stem for path in (CONF / "task").glob("*.yaml") if path.stem != "own")


def load_task(task: Task | str, **changes: Any) -> Task:
    """A shipped task by its name; a task is returned as it is.

    Args:
        task: a name of `shipped_tasks()`, or a task.
        **changes: arguments of the named task that replace those of its file.

    Raises:
        TypeError: if `task` is neither, or a change is no argument of the task.
        ValueError: if no task has that name.

    >>> load_task("quadratic", dimension=3).total_steps
    60
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str):
        raise TypeError(
            f"`task` must be a Task or the name of a shipped one, {', '.join(shipped_tasks())}, "
            f"got {task!r}"
        )
    if task not in shipped_tasks():
        raise ValueError(f"`task` must be one of {', '.join(shipped_tasks())}, got {task!r}")
    # half a second that only a name needs
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(CONF), version_base=None):
        values = compose(f"task/{task}").task
    made = instantiate(values, _convert_="all", **changes)
    assert isinstance(made, Task)
    return made
