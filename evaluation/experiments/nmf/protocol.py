"""The protocol of `experiment=iclr2023_nmf`: tune, compare, and report, problem by problem."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lrpilot import Policy
from lrpilot.evaluation.experiments.nmf import experiment as nmf_experiment
from lrpilot.evaluation.experiments.nmf import report as nmf_report
from lrpilot.evaluation.report import describe_spread, write_table
from lrpilot.tasks.nmf.task import NMFTask

Progress = Callable[..., Iterable[Any]]


def compare_on_problems(
    *,
    task: NMFTask,
    schedulers: Mapping[str, Callable[..., Any]],
    real_matrices: Mapping[str, int],
    num_tuning: int,
    num_held_out: int,
    num_real_seeds: int,
    initial_lrs: Sequence[float],
    real_initial_lrs: Sequence[float],
    cap_fractions: Sequence[float],
    policy: Policy,
    out_dir: Path,
    origin: str,
    progress: Progress,
    is_quick: bool = False,
) -> None:
    """Random problems, then real matrices; a table, a figure and a CSV of runs for each.

    Args:
        task: the random problems.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        real_matrices: name of each real matrix, and its rank.
        num_tuning: random problems that schedules are tuned on.
        num_held_out: others that all controls are compared on.
        num_real_seeds: held-out runs on a real matrix.
        initial_lrs: initial learning rates that are tried on random problems.
        real_initial_lrs: the same on real matrices.
        cap_fractions: fractions of the cap that are tried.
        policy: the learned policy.
        out_dir: gets outcomes_<problem>.csv, table_<problem>.md and curves_<problem>.png.
        origin: machine, versions and commit.
        progress: called as `progress(iterable, desc=...)`.
        is_quick: whether this is the experiment's quick version, which judges nothing.
    """

    def compare(name: str, task: NMFTask, num_tuning: int, num_held_out: int) -> None:
        is_random = task.matrix is None
        tuned = nmf_experiment.tune_schedules(
            task,
            schedulers,
            initial_lrs=initial_lrs if is_random else real_initial_lrs,
            cap_fractions=cap_fractions,
            num_seeds=num_tuning,
            modes=nmf_experiment.MODES if is_random else ("raw", "fraction"),
            progress=partial(progress, desc=f"{name}: tuning"),
        )
        outcomes = nmf_experiment.compare(
            task,
            policy,
            schedulers,
            tuned,
            cap_fractions=cap_fractions,
            num_seeds=num_held_out,
            num_replay_seeds=num_tuning,
            progress=partial(progress, desc=f"{name}: held-out"),
        )
        text = (
            f"{name}: {num_held_out} held-out runs, tuned on {num_tuning} others, "
            f"{task.total_steps} steps; {describe_spread(num_held_out)}\n({origin})\n\n"
            f"{nmf_report.comparison_table(outcomes)}\n"
        )
        if not is_quick:
            text += f"\n{nmf_report.verdict(outcomes)}\n"
        write_table(text, out_dir / f"table_{name}.md", is_quick=is_quick)
        nmf_report.write_outcomes(outcomes, name, out_dir / f"outcomes_{name}.csv")
        nmf_report.draw_outcomes(outcomes, f"NMF, {name}", out_dir / f"curves_{name}.png")

    compare("random", task, num_tuning, num_held_out)
    for matrix, rank in real_matrices.items():
        real = replace(
            task,
            matrix=matrix,
            rank=rank,
            smallest_shape=None,
            smallest_rank=None,
            scale_range=(1.0, 1.0),
        )
        compare(matrix, real, 1, num_real_seeds)
