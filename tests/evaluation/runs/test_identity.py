import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrpilot import Policy
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.cell import Cell
from lrpilot.evaluation.runs.grid import Method, deployed
from lrpilot.evaluation.runs.identity import fingerprint
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.quadratic import QuadraticTask

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def cell_of(task: QuadraticTask, **changes: Any) -> Cell:
    return replace(Cell(task, Method("cosine", schedules.cosine), 0.1, 7), **changes)


@given(PLAIN, PLAIN)
def test_plain_values_have_one_fingerprint_where_they_are_the_same(a: Any, b: Any) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (repr(a) == repr(b))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"initial_lr_factor": 0.10000000000000002},
        {"total_steps": 41},
        {"method": Method("cosine", schedules.linear)},
        {"method": Method("cosine", partial(schedules.wsd, decay_share=0.5))},
        {"method": Method("cosine", schedules.cosine, base_lr=0.2)},
    ],
)
def test_another_run_has_another_name(task: QuadraticTask, changes: dict[str, Any]) -> None:
    assert cell_of(task, **changes).name != cell_of(task).name


def test_another_task_of_the_same_name_has_other_names(task: QuadraticTask) -> None:
    momentum = partial(torch.optim.SGD, momentum=0.9)
    others = replace(task, base_lr=0.02), replace(task, optimizer=momentum)
    assert len({cell_of(other).name for other in (task, *others)}) == 3


def test_what_a_run_is_for_does_not_change_it(task: QuadraticTask) -> None:
    other = cell_of(task, part="tuning", labels={"width": 3})
    assert other.name == cell_of(task).name


def test_another_policy_has_another_name(task: QuadraticTask, policy: Policy) -> None:
    other = replace(policy, layers=[(2.0 * weight, bias) for weight, bias in policy.layers])
    names = {
        cell_of(task, method=Method("policy", partial(deployed, policy=p))).name
        for p in (policy, other)
    }
    assert len(names) == 2


def test_where_data_lie_does_not_matter() -> None:
    common: Any = {"optimizer": torch.optim.SGD, "base_lr": 0.1, "total_steps": 3}
    tasks = [
        ImageTask(name="digits", data="digits", data_dir=folder, batch_size=8, **common)
        for folder in (None, "/somewhere")
    ]
    assert fingerprint(tasks[0]) == fingerprint(tasks[1])


def test_functions_made_within_others_are_told_apart_by_what_they_hold() -> None:
    def make(gamma: float) -> Any:
        return lambda t: gamma**t

    assert fingerprint(make(0.5)) == fingerprint(make(0.5)) != fingerprint(make(0.6))
    assert fingerprint(lambda t: t + 1) != fingerprint(lambda t: t + 2)


def test_functions_are_told_apart_by_their_defaults() -> None:
    positional = [lambda t, gamma=gamma: gamma**t for gamma in (0.5, 0.6)]
    by_name = [lambda t, *, gamma=gamma: gamma**t for gamma in (0.5, 0.6)]
    assert len({fingerprint(function) for function in (*positional, *by_name)}) == 4


def test_a_users_function_of_the_same_name_is_another_one_when_its_code_is() -> None:
    made: list[Any] = []
    for factor in (1, 2):
        namespace: dict[str, Any] = {"__name__": "mine"}
        exec(f"def make(lr):\n    return lr * {factor} in {{'a', 'b'}}", namespace)
        made.append(namespace["make"])
    assert fingerprint(made[0]) != fingerprint(made[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_are_told_apart_by_content_shape_and_type(dtype: Any) -> None:
    array = np.arange(6, dtype=dtype)
    assert fingerprint(array) == fingerprint(torch.tensor(array))
    others = [array.reshape(2, 3), array + 1, array.astype(np.int64)]
    assert len({fingerprint(x) for x in (array, *others)}) == 4


def test_the_name_is_the_same_in_another_process() -> None:
    code = (
        "import torch\n"
        "from lrpilot.evaluation.methods import schedules\n"
        "from lrpilot.evaluation.runs.cell import Cell\n"
        "from lrpilot.evaluation.runs.grid import Method\n"
        "from lrpilot.tasks.quadratic import QuadraticTask\n"
        "task = QuadraticTask(name='q', optimizer=torch.optim.SGD, base_lr=.1, total_steps=3)\n"
        "def make(optimizer, total_steps):\n"
        "    return schedules.wsd(optimizer, total_steps=total_steps + (optimizer in {'a', 'b'}))\n"
        "print(Cell(task, Method('wsd', make), 0.1, 7).name)\n"
    )
    root = Path(__file__).resolve().parents[3]
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONPATH": str(root), "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1
