"""What the jobs of a sweep came to: a table over seeds, and learning curves."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from lrpilot.evaluation.palette import NUM_STYLES
from lrpilot.evaluation.report import (
    describe_spread,
    format_interval,
    line_style,
    write_figure,
)
from lrpilot.evaluation.statistics import mean_and_spread

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RETURN = "return_mean_last_rollouts"


@dataclass(frozen=True)
class Trained:
    """A job that trained an agent to the end.

    Args:
        swept: what distinguishes it, by key, with the seed if that was swept.
        summary: its `summary.json`.
        metrics: path of its `metrics.csv`.
    """

    swept: Mapping[str, str]
    summary: Mapping[str, Any]
    metrics: Path


def distinguishing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys in whose values some settings differ, in order of first appearance.

    >>> distinguishing([{"task": "nmf", "seed": "0"}, {"task": "nmf", "seed": "1"}])
    ['seed']
    """
    keys = dict.fromkeys(key for given in settings for key in given)
    return [key for key in keys if len({given.get(key) for given in settings}) > 1]


def by_setting(jobs: Sequence[Trained]) -> dict[tuple[tuple[str, str], ...], list[Trained]]:
    """The jobs that differ in their seed alone, by what they have in common."""
    groups: dict[tuple[tuple[str, str], ...], list[Trained]] = {}
    for job in jobs:
        setting = tuple((key, value) for key, value in job.swept.items() if key != "seed")
        groups.setdefault(setting, []).append(job)
    return groups


def _returns(jobs: Sequence[Trained]) -> list[float]:
    """The final returns; a training without a whole episode has none."""
    return [float(job.summary[RETURN]) for job in jobs if job.summary[RETURN] is not None]


def setting_rows(jobs: Sequence[Trained]) -> list[dict[str, Any]]:
    """One row per setting: what was swept, and the return's mean and spread over seeds.

    The spread is that of `mean_and_spread`; where no job had a whole episode there is none.
    """
    rows = []
    for setting, mine in by_setting(jobs).items():
        returns = _returns(mine)
        mean, low, high = mean_and_spread(returns) if returns else (math.nan,) * 3
        rows.append(
            {
                **dict(setting),
                "num_jobs": len(mine),
                "num_env_steps": max(int(job.summary["num_env_steps"]) for job in mine),
                "return_mean": mean,
                "return_low": low,
                "return_high": high,
                "seconds": sum(float(job.summary["seconds"]) for job in mine) / len(mine),
            }
        )
    return rows


def setting_table(jobs: Sequence[Trained]) -> list[list[str]]:
    """A header, and a line per setting, for `format_table`."""
    groups = by_setting(jobs)
    keys = list(dict.fromkeys(key for setting in groups for key, _ in setting))
    counts = {len(_returns(mine)) for mine in groups.values()}
    spread = describe_spread(counts.pop()) if len(counts) == 1 else "mean and spread"
    lines = []
    for (setting, mine), row in zip(groups.items(), setting_rows(jobs), strict=True):
        returns = _returns(mine)
        lines.append(
            [
                *(dict(setting).get(key, "") for key in keys),
                str(row["num_jobs"]),
                str(row["num_env_steps"]),
                format_interval(returns) if returns else "no episode",
                f"{row['seconds']:.1f}",
            ]
        )
    return [[*keys, "jobs", "env steps", f"return: {spread}", "seconds"], *lines]


def _curve(path: Path) -> dict[int, float]:
    """Mean return of the episodes that ended in a rollout, by the env steps until then."""
    with open(path, encoding="utf-8", newline="") as file:
        points = {int(row["num_env_steps"]): row["return_mean"] for row in csv.DictReader(file)}
    values = {steps: float(value) for steps, value in points.items() if value}
    return {steps: value for steps, value in values.items() if math.isfinite(value)}


def draw_learning_curves(jobs: Sequence[Trained], path: Path) -> None:
    """Draw return over env steps, of every setting: mean and spread over seeds.

    Args:
        jobs: at most `NUM_STYLES` settings of them can be told apart.
        path: of the PNG; the SVG lies beside it.
    """
    figure, axis = plt.subplots(figsize=(9, 5.5))
    for i, (setting, mine) in enumerate(by_setting(jobs).items()):
        curves = [_curve(job.metrics) for job in mine]
        steps = sorted({step for curve in curves for step in curve})
        spreads = [mean_and_spread([c[step] for c in curves if step in c]) for step in steps]
        label = ", ".join(f"{key}={value}" for key, value in setting) or "all jobs"
        style = line_style(label, i % NUM_STYLES, is_policy=False)
        axis.plot(steps, [mean for mean, _, _ in spreads], **style)
        low, high = ([spread[k] for spread in spreads] for k in (1, 2))
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.set(xlabel="environment steps", ylabel="return, mean over seeds")
    num_seeds = max(len(mine) for mine in by_setting(jobs).values())
    axis.set_title(f"band: {describe_spread(num_seeds)} over up to {num_seeds} jobs")
    write_figure(figure, path, num_legend_columns=min(3, len(by_setting(jobs))))
