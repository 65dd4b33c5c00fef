import functools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lrpilot.tasks.nmf.problem import NOISES
from lrpilot.tasks.nmf.task import NMFTask
from tests.tasks.nmf.builders import (
    ADDED,
    CAPPED,
    VARIED,
    batch_of,
    make_task,
    objective,
)


def capped_losses(task: NMFTask, num_steps: int) -> tuple[Tensor, Tensor]:
    """Float64 losses of 500 runs at their caps, (steps + 1, 500), and 1/2 ||V||^2."""
    runs = batch_of(task, list(range(500)))
    v = runs.objective.matrix.double()
    active = torch.ones(500, dtype=torch.bool)
    losses = [objective(runs.w, runs.h, v)]
    for _ in range(num_steps):
        runs.step(runs.cap()[0], active)
        losses.append(objective(runs.w, runs.h, v))
    return torch.stack(losses), v.square().sum((-2, -1)) / 2


@pytest.mark.parametrize(
    ("cap_kind", "update"),
    [
        ("segment", "simultaneous"),
        ("segment", "alternating"),
        ("ball", "simultaneous"),
        ("ball", "alternating"),
        ("block", "alternating"),
    ],
)
def test_noise_free_steps_at_the_cap_never_raise_the_loss(cap_kind: str, update: str) -> None:
    task = make_task(**VARIED, noise="none", cap_kind=cap_kind, update=update)
    losses, largest = capped_losses(task, 60)

    # rounding of the iterates to float32 changes f by less than 1e-7 of 1/2 ||V||^2
    assert float((losses.diff(dim=0) / largest).max()) <= 1e-7
    assert bool((losses[-1] < losses[0]).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "cap_kind", "update"),
    [case for case in CAPPED if case[0] != "none"],
)
def test_no_run_at_its_cap_diverges(noise: str, cap_kind: str, update: str) -> None:
    task = make_task(**VARIED, noise=noise, cap_kind=cap_kind, update=update)
    losses, _ = capped_losses(task, 60)

    # NaN compares as false
    assert bool((losses <= 10 * losses[0]).all())


@pytest.mark.parametrize(
    ("noise", "cap_kind", "update", "guarantee"),
    [
        ("none", "segment", "simultaneous", "deterministic"),
        ("gaussian", "segment", "simultaneous", "stationary"),
        ("relative", "segment", "alternating", "stationary"),
        ("none", "ball", "simultaneous", "deterministic"),
        ("minibatch", "ball", "simultaneous", "stationary"),
        ("none", "block", "alternating", "deterministic"),
        ("minibatch", "block", "alternating", "stationary"),
    ],
)
def test_a_cap_names_its_guarantee(noise: str, cap_kind: str, update: str, guarantee: str) -> None:
    run = make_task(noise=noise, cap_kind=cap_kind, update=update).start(0)

    assert run.cap()[1] == guarantee


@pytest.mark.parametrize("noise", ADDED)
def test_noise_lowers_the_segment_cap(noise: str) -> None:
    noisy, plain = (
        make_task(noise=n, cap_kind="segment").start(0).cap()[0] for n in (noise, "none")
    )

    assert noisy < plain


@pytest.mark.parametrize("noise", ["gaussian", "relative", "none"])
def test_the_cap_does_not_depend_on_the_noise_of_the_step_that_it_bounds(noise: str) -> None:
    run = make_task(noise=noise, cap_kind="segment").start(0)
    before = run.cap()
    run.step(0.0)

    assert run.cap() == before


@pytest.mark.parametrize("cap_kind", ["segment", "ball"])
def test_asking_for_the_cap_does_not_change_what_follows(cap_kind: str) -> None:
    task = make_task(noise="gaussian", cap_kind=cap_kind)
    asked, plain = task.start(0), task.start(0)
    for _ in range(20):
        asked.cap()
        assert float(asked.step()) == float(plain.step())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"rank": r}, f"`rank` must be in [1, min(m, n) = 8], got {r}") for r in (0, -1, 9)),
        (
            {"rank": 6, "smallest_shape": (7, 5)},
            "`rank` must be in [1, min(m, n) = 5], got 6",
        ),
        *(
            ({"batch_size": b}, f"`batch_size` must be in [1, min(m, n) = 8], got {b}")
            for b in (0, -1, 9)
        ),
        (
            {"batch_size": 6, "smallest_shape": (7, 5)},
            "`batch_size` must be in [1, min(m, n) = 5], got 6",
        ),
        *(
            ({"smallest_rank": r}, f"`smallest_rank` must be in [1, rank = 3], got {r}")
            for r in (-1, 0, 4)
        ),
        *(
            (
                {"smallest_shape": s},
                f"`smallest_shape` must not exceed `shape` = (12, 8), got {s}",
            )
            for s in ((13, 8), (12, 9))
        ),
        ({"scale_range": (2.0, 1.0)}, "`scale_range` must be 0 < low <= high, got (2.0, 1.0)"),
        ({"scale_range": (0.0, 1.0)}, "`scale_range` must be 0 < low <= high, got (0.0, 1.0)"),
        (
            {"scale_range": (1.0, math.inf)},
            "`scale_range` must be 0 < low <= high, got (1.0, inf)",
        ),
        (
            {"condition_range": (9.0, 3.0)},
            "`condition_range` must be 0 < low <= high, got (9.0, 3.0)",
        ),
        ({"noise_range": (1.0, 0.5)}, "`noise_range` must be 0 < low <= high, got (1.0, 0.5)"),
        (
            {"noise_range": (math.nan, 1.0)},
            "`noise_range` must be 0 < low <= high, got (nan, 1.0)",
        ),
        ({"sparsity_range": (0.5, 1.0)}, "`sparsity_range` must be in [0, 1), got (0.5, 1.0)"),
        ({"sparsity_range": (0.5, 0.4)}, "`sparsity_range` must be in [0, 1), got (0.5, 0.4)"),
        ({"sparsity_range": (-0.1, 0.4)}, "`sparsity_range` must be in [0, 1), got (-0.1, 0.4)"),
        ({"data_noise": -0.1}, "`data_noise` must not be negative, got -0.1"),
        ({"start_scale": 0.0}, "`start_scale` must be positive, got 0.0"),
        ({"data_noise": math.nan}, "`data_noise` must not be negative, got nan"),
        ({"noise": "white"}, f"`noise` must be one of {NOISES}, got 'white'"),
        (
            {"update": "block"},
            "`update` must be one of ('simultaneous', 'alternating'), got 'block'",
        ),
        (
            {"matrix": "faces"},
            "`matrix` must be one of ('olivetti', 'digits', 'shakespeare', 'fashion_mnist'), an "
            "array or a path that ends in one of ('.npy', '.npz', '.csv'), got 'faces'",
        ),
        *(
            (
                {"cap_kind": "ball", "cap_c": c},
                f"`cap_c` must be in (0, 2), got {c}",
            )
            for c in (0.0, 2.0, math.nan)
        ),
        (
            {"cap_kind": "block"},
            "`update` must be 'alternating' for block caps, got 'simultaneous'",
        ),
        ({"cap_kind": "segment"}, "`cap_kind` 'segment' needs a bounded gradient"),
    ],
)
def test_errors_name_argument_constraint_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_task(**changes)


def test_an_unknown_cap_kind_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"`cap_kind` must be one of .*, got 'line'"):
        make_task(noise="none", cap_kind="line")


def test_a_real_matrix_of_drawn_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="`smallest_shape`"):
        make_task(matrix="digits", smallest_shape=(30, 30))


@pytest.mark.parametrize("make", [lambda task: task.start(0), lambda task: batch_of(task, [0])])
def test_the_cap_of_a_task_without_one_is_refused(make: Any) -> None:
    message = "`cap_kind` must name a cap before it is asked for, got None"
    with pytest.raises(ValueError, match=message):
        make(make_task()).cap()


@pytest.mark.parametrize("num_runs", [0, -1])
def test_a_batch_of_no_runs_is_refused(num_runs: int) -> None:
    with pytest.raises(ValueError, match=f"`num_runs` must be at least 1, got {num_runs}"):
        make_task().start_batch(num_runs)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, functools.partial(torch.optim.SGD, momentum=0.9)]
)
def test_batched_runs_of_another_optimizer_are_refused(optimizer: Any) -> None:
    with pytest.raises(ValueError, match="`optimizer` of batched runs must be plain SGD, got"):
        make_task(optimizer=optimizer).start_batch(2)


@pytest.mark.parametrize("noise", ADDED)
def test_a_block_cap_under_added_noise_is_refused(noise: str) -> None:
    # it grows without limit as noise drives the other factor to zero
    with pytest.raises(ValueError, match="`cap_kind` 'block' bounds no iterates under added noise"):
        make_task(noise=noise, cap_kind="block", update="alternating")
