"""Robustness to noise: of the losses that GreedyLR is told, and of the gradients themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from lrpilot.evaluation.experiments.claims import NO_FIGURE, Claim, compared, write_claims
from lrpilot.evaluation.experiments.greedy.perturbed import KINDS, perturbed
from lrpilot.evaluation.experiments.greedy.protocols import (
    Contest,
    Runs,
    describe_protocols,
    train_protocols,
)
from lrpilot.evaluation.report import write_figure
from lrpilot.evaluation.runs.grid import Method
from lrpilot.evaluation.runs.output import Output
from lrpilot.tasks.small_networks.task import SmallNetworkTask

PAPER_MEDIANS = {"greedy": 0.148, "cosine": 0.232, "cosine_restarts": 0.226, "exponential": 0.249}
GREEDY = "greedy"
PERTURBED = tuple(f"greedy, {kind}" for kind in KINDS)
VALUES, GRADIENTS = "noise of the loss value", "noise of the gradient"


def compare_under_noise(
    *,
    network: SmallNetworkTask,
    greedy: Callable[..., Any],
    schedules: Mapping[str, Callable[..., Any]],
    strength: float,
    noisy_batch_size: int,
    num_networks: int,
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    output: Output,
) -> None:
    """Train networks under both kinds of noise, and write table, figure and runs.

    A schedule does not look at the loss, so noise of its value cannot change what it does; only
    noise of the gradient, from small minibatches, reaches every method.

    Args:
        network: what the trainings are made from: one for each setup, as in `compare_pairs`.
        greedy: GreedyLR that is told the true losses.
        schedules: its rivals, by name.
        strength: of the perturbations; see `Perturbation`.
        noisy_batch_size: examples per step where the gradient is noisy.
        num_networks: setups.
        initial_lr_factors: as for `train_protocols`.
        num_tuning: as for `train_protocols`.
        num_seeds: as for `train_protocols`.
        output: gets runs.parquet, noise.png and table.md.
    """
    methods = [Method(GREEDY, greedy), *(Method(n, make) for n, make in schedules.items())]
    told = [
        Method(name, partial(perturbed, kind=kind, strength=strength))
        for name, kind in zip(PERTURBED, KINDS, strict=True)
    ]
    tasks: dict[str, list[SmallNetworkTask]] = {VALUES: [], GRADIENTS: []}
    for i in range(num_networks):
        data = [network.data[i % len(network.data)]]
        task = replace(network, name=f"{i}", num_setups=1, setup_seed=i, data=data)
        tasks[VALUES].append(task)
        sizes = (noisy_batch_size, noisy_batch_size)
        tasks[GRADIENTS].append(replace(task, name=f"{i}-noisy", batch_size_range=sizes))
    runs = train_protocols(
        [
            *(Contest(task, [*methods, *told]) for task in tasks[VALUES]),
            *(Contest(task, methods) for task in tasks[GRADIENTS]),
        ],
        initial_lr_factors=initial_lr_factors,
        num_tuning=num_tuning,
        num_seeds=num_seeds,
        output=output,
    )
    claims = noise_claims(runs, tasks, list(schedules))
    draw(runs, tasks, list(schedules), output)
    write_claims(
        output,
        f"GreedyLR and {len(schedules)} schedules on {num_networks} networks, under noise of the "
        "loss value and of the gradient",
        claims,
        details=[
            f"{network.total_steps} steps per run",
            *describe_protocols(initial_lr_factors, num_tuning, num_seeds),
            "losses are medians over networks (greedy's over perturbations, too); differences are "
            "means over networks, paired by network",
            f"perturbations of strength {strength:g}, minibatches of {noisy_batch_size} as noise",
        ],
    )


def losses_of(
    runs: Runs, tasks: Sequence[SmallNetworkTask], names: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Training losses under the paper's protocol, and mean held-out losses, of every network.

    Of several methods, those of a network are averaged.
    """
    as_in_paper = [
        float(np.mean([runs.result_as_in_paper(task.name, n).row["train_loss"] for n in names]))
        for task in tasks
    ]
    fair = [float(np.mean([runs.fair_losses(task.name, n) for n in names])) for task in tasks]
    return as_in_paper, fair


def noise_claims(
    runs: Runs, tasks: Mapping[str, Sequence[SmallNetworkTask]], schedules: Sequence[str]
) -> list[Claim]:
    """Medians of every method under both kinds of noise, and its difference to GreedyLR's."""
    claims = []
    for noise, own in tasks.items():
        lines = {GREEDY: PERTURBED if noise == VALUES else (GREEDY,)}
        lines |= {name: (name,) for name in schedules}
        if noise == VALUES:
            lines |= {"greedy, told the true loss": (GREEDY,)}
            lines |= {name: (name,) for name in PERTURBED}
        reference = losses_of(runs, own, lines[GREEDY])
        for line, names in lines.items():
            as_in_paper, fair = losses_of(runs, own, names)
            paper = PAPER_MEDIANS.get(line) if noise == VALUES else None
            difference, verdict = compared(fair, reference[1], GREEDY)
            is_reference = line == GREEDY
            claims.append(
                Claim(
                    f"{noise}: {line}",
                    NO_FIGURE if paper is None else f"{paper:.3f}",
                    f"{np.median(as_in_paper):.3f}",
                    f"{np.median(fair):.3f}"
                    + ("" if is_reference else f"; minus greedy {difference}"),
                    "" if is_reference else verdict,
                )
            )
    return claims


def draw(
    runs: Runs,
    tasks: Mapping[str, Sequence[SmallNetworkTask]],
    schedules: Sequence[str],
    output: Output,
) -> None:
    """Median losses under both protocols, beside the paper's."""
    figure, axes = plt.subplots(1, len(tasks), figsize=(10, 4), sharey=True)
    for axis, (noise, own) in zip(axes, tasks.items(), strict=True):
        names = [GREEDY, *schedules]
        lines = [PERTURBED if n == GREEDY and noise == VALUES else (n,) for n in names]
        losses = [losses_of(runs, own, line) for line in lines]
        x = np.arange(len(names))
        axis.bar(x - 0.2, [np.median(a) for a, _ in losses], 0.4, label="paper's protocol")
        axis.bar(x + 0.2, [np.median(b) for _, b in losses], 0.4, label="fair protocol")
        if noise == VALUES:
            papers = [PAPER_MEDIANS.get(name, np.nan) for name in names]
            axis.plot(x, papers, "kx", label="in the paper, on other networks")
        axis.set_xticks(x, names, rotation=20)
        axis.set(title=noise)
    axes[0].set_ylabel("median loss")
    write_figure(figure, output.folder / "noise.png", num_legend_columns=3)
