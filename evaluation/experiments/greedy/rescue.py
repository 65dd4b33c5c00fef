"""What a wrong initial learning rate costs: the regret of every method over five decades of it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from lrpilot import Policy
from lrpilot.evaluation.experiments.claims import (
    NO_FIGURE,
    Claim,
    compared,
    write_claims,
)
from lrpilot.evaluation.report import describe_spread, format_interval, line_style, write_figure
from lrpilot.evaluation.runs.cell import grid_of
from lrpilot.evaluation.runs.grid import Method, Result, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.evaluation.statistics import bounded_loss, select, unique
from lrpilot.tasks.task import Task

POLICY = "policy"


class Losses(NamedTuple):
    """Losses of one method on one task, each at most that at the start."""

    training: NDArray[np.float64]
    """(seeds, initial learning rates)"""
    held_out: NDArray[np.float64]
    """(seeds, initial learning rates)"""
    num_diverged: int

    @property
    def best(self) -> NDArray[np.float64]:
        """Held-out losses at the initial learning rate with the lowest mean, one per seed."""
        return self.held_out[:, self.held_out.mean(axis=0).argmin()]


def rescue(
    *,
    tasks: Mapping[str, Task],
    schedulers: Mapping[str, Callable[..., Any]],
    rivals: Mapping[str, Mapping[str, Any]],
    initial_lr_factors: Sequence[float],
    num_seeds: int,
    policy: Policy,
    output: Output,
) -> None:
    """Train every method on every task from every initial learning rate, and write the regrets.

    The regret of a method is the mean over initial learning rates of its loss, minus the lowest
    loss that any method has at any of them (by its mean over seeds): what it costs not to know the
    initial learning rate. A run that diverged has the loss of its start.

    Args:
        tasks: by name.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        rivals: arguments of a `Method` by name; `scheduler` is its `make`.
        initial_lr_factors: initial learning rates over each task's `base_lr`.
        num_seeds: evaluation seeds; nothing is tuned.
        policy: the learned policy.
        output: gets runs.parquet, rescue.png and table.md.

    References:
        Wortsman et al. Small-scale proxies for large-scale transformer training instabilities.
        2023.
    """
    methods = [Method(POLICY, partial(deployed, policy=policy))]
    methods += [Method(name, make) for name, make in schedulers.items()]
    for name, arguments in rivals.items():
        given = dict(arguments)
        methods.append(Method(name, given.pop("scheduler"), **given))
    cells = [
        cell
        for task in tasks.values()
        for cell in grid_of(
            task,
            methods,
            initial_lr_factors=initial_lr_factors,
            seeds=evaluation_seeds(num_seeds),
        )
    ]
    results = output.train(cells, "every initial learning rate")
    output.write_runs(results)
    losses = {task.name: losses_by_method(results, task) for task in tasks.values()}
    draw(losses, {t.name: t.base_lr for t in tasks.values()}, initial_lr_factors, output)
    write_claims(
        output,
        f"Regret over {len(initial_lr_factors)} initial learning rates, from "
        f"{min(initial_lr_factors):g} to {max(initial_lr_factors):g} of a usual one",
        [claim for name in losses for claim in regret_claims(name, losses[name])],
        details=[
            f"policy {policy.fingerprint[:12]}",
            "paper's protocol: training loss, one seed, the initial learning rates beside the "
            "usual one being ours",
            f"fair: held-out loss, nothing tuned, {num_seeds} seeds, {describe_spread(num_seeds)}",
        ],
    )


def losses_by_method(results: Sequence[Result], task: Task) -> dict[str, Losses]:
    """The losses of every method on one task."""
    rows = select([result.row for result in results], task=task.name)
    losses = {}
    for name in unique(rows, "scheduler"):
        mine = select(rows, scheduler=name)
        cells = {(row["seed"], row["initial_lr_factor"]): row for row in mine}
        seeds, factors = unique(mine, "seed"), unique(mine, "initial_lr_factor")
        training, held_out = (
            np.array([[bounded_loss(cells[s, f], column) for f in factors] for s in seeds])
            for column in ("train_loss", "held_out_loss")
        )
        losses[name] = Losses(training, held_out, sum(row["diverged"] for row in mine))
    return losses


def regrets(
    losses: Mapping[str, NDArray[np.float64]],
) -> dict[str, NDArray[np.float64]]:
    """Of every method, its mean over initial learning rates minus the best of all, per seed.

    Args:
        losses: by method, of shape (seeds, initial learning rates).

    >>> found = regrets({"a": np.array([[1.0, 3.0]]), "b": np.array([[2.0, 2.5]])})
    >>> {name: values.tolist() for name, values in found.items()}
    {'a': [1.0], 'b': [1.25]}
    """
    best = min((values.mean(axis=0).min(), name) for name, values in losses.items())[1]
    column = losses[best].mean(axis=0).argmin()
    return {name: values.mean(axis=1) - losses[best][:, column] for name, values in losses.items()}


def regret_claims(task: str, losses: Mapping[str, Losses]) -> list[Claim]:
    """A line per method, the least regret first; the paper has no such figure."""
    untuned = regrets({name: own.training[:1] for name, own in losses.items()})
    fair = regrets({name: own.held_out for name, own in losses.items()})
    claims = []
    for name in sorted(fair, key=lambda name: float(fair[name].mean())):
        own = losses[name]
        _, verdict = compared(fair[name].tolist(), fair[POLICY].tolist(), POLICY)
        claims.append(
            Claim(
                f"{task}: {name}",
                NO_FIGURE,
                f"{untuned[name][0]:.3f}",
                f"{format_interval(fair[name].tolist())}; at its best rate {own.best.mean():.3f}; "
                f"diverged {own.num_diverged}/{own.held_out.size}",
                "" if name == POLICY else verdict,
            )
        )
    return claims


def draw(
    losses: Mapping[str, Mapping[str, Losses]],
    base_lrs: Mapping[str, float],
    initial_lr_factors: Sequence[float],
    output: Output,
) -> None:
    """Held-out loss over the initial learning rate, as a factor of the usual one."""
    figure, axes = plt.subplots(1, len(losses), figsize=(6 * len(losses), 4.5), squeeze=False)
    for axis, (task, methods) in zip(axes[0], losses.items(), strict=True):
        for i, (name, own) in enumerate(methods.items()):
            style = line_style(name, i, is_policy=name == POLICY)
            axis.plot(initial_lr_factors, own.held_out.mean(axis=0), marker="o", **style)
        axis.set(
            title=f"{task}: usual rate {base_lrs[task]:g}",
            xlabel="initial learning rate over the usual one",
            xscale="log",
            yscale="log",
        )
    axes[0, 0].set_ylabel("held-out loss")
    write_figure(figure, output.folder / "rescue.png", num_legend_columns=5)
