"""The page of a comparison: one HTML file that needs no server and no network."""

import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from lrpilot.evaluation.page.data import Runs, read_runs
from lrpilot.evaluation.page.figures import (
    draw_losses,
    draw_profiles,
    draw_regrets,
    draw_schedules,
    draw_searches,
    styles_of,
)
from lrpilot.evaluation.palette import Style
from lrpilot.evaluation.report import comparison_cells, describe_spread
from lrpilot.evaluation.runs.store import ORIGIN
from lrpilot.evaluation.statistics import unique
from lrpilot.files import write_whole

PAGE_FILE = "report.html"
CAPTIONS = {
    "schedules": (
        "Schedule",
        "Learning rate at each step, from the initial learning rate that is best for the "
        "scheduler; mean over seeds.",
    ),
    "losses": (
        "Training loss",
        "Minibatch loss in the same runs, a moving mean over a fiftieth of them. The band reaches "
        "from the least to the largest seed. Seeds that diverged are left out.",
    ),
    "regrets": (
        "Regret",
        "Held-out loss minus the lowest of any method on this task: lower and flatter is better. A "
        "run that diverged counts as one that was not trained; a cross marks where one did.",
    ),
    "searches": (
        "Worth in runs",
        "Lowest held-out loss to expect of so many runs, at initial learning rates drawn from the "
        "grid. The policy, which is not tuned, is one point; where a line crosses the thin one, "
        "the search equals it.",
    ),
    "tuned_profile": (
        "Performance profile, tuned",
        "How often a scheduler is how close to the best, each at its best initial learning rate. 0 "
        "is the best of any method on a task, 1 no training; further up and left is better.",
    ),
    "untuned_profile": (
        "Performance profile, untuned",
        "The same over all initial learning rates: one run without tuning.",
    ),
}
# by the first cell of a table's header
TABLE_CAPTIONS = {
    "scheduler": (
        "Tuned",
        "Each scheduler at its best initial learning rate; divergence is counted over all of them.",
    ),
    "held-out loss at initial lr": (
        "Robustness",
        "Held-out loss at every initial learning rate, mean over seeds.",
    ),
    "held-out loss, untuned": (
        "Cost of tuning",
        "Held-out loss over the initial learning rates, where a run that diverged counts with the "
        "loss at its start. Sensitivity is the mean minus the best of any method; worth is how "
        "many runs of the line's method equal one untuned run of the first.",
    ),
}
PAIRED_CAPTION = (
    "Paired differences",
    "Of the first scheduler's held-out loss to that of each other one, on the same seeds: mean, "
    "95 % bootstrap interval, probability that it is lower, and p of a Wilcoxon signed-rank test "
    "with Holm's correction.",
)


def write_page(folders: Path | Sequence[Path], path: Path, *, library: Path | None = None) -> None:
    """Write a page of the runs of comparisons: figures, tables, and where they come from.

    The page holds all that it shows, plotly.js included: it opens from a disk, offline. It links
    the Parquet files by their place relative to it.

    Args:
        folders: output folders that hold a `runs.parquet`, or one of them.
        path: the HTML file.
        library: a file that the page refers to for plotly.js, by its place relative to it, and that
            is written if need be; many pages in one place then hold it once.

    Raises:
        ValueError: if the runs cannot be read or do not belong together, as `read_runs` says.
        OSError: if the page cannot be written.

    Example:
        >>> write_page(Path("outputs/evaluate/digits"), Path("report.html"))  # doctest: +SKIP
    """
    runs = read_runs([folders] if isinstance(folders, Path) else folders)
    styles = styles_of(runs.schedulers)
    drawn: dict[str, go.Figure] = {}
    tasks = [_task(runs.of_task(task), task, i, styles, drawn) for i, task in enumerate(runs.tasks)]
    profiles: list[dict[str, str]] = []
    if len(tasks) > 1:
        names = ("tuned_profile", "untuned_profile")
        drawn |= dict(zip(names, draw_profiles(runs, styles), strict=True))
        profiles = [_plot(name, name) for name in names]
    here = files(__package__)
    if library is not None and not library.exists():
        write_whole(library, get_plotlyjs())
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    page = template.render(
        tasks=tasks,
        profiles=profiles,
        styles=styles,
        num_runs=len(runs.rows),
        origin={name: unique(runs.rows, name) for name in ORIGIN},
        files=[(link, quote(link)) for link in (_from(path, file) for file in runs.files)],
        css=(here / "style.css").read_text(encoding="utf-8"),
        script=(here / "script.js").read_text(encoding="utf-8"),
        plotly="" if library else get_plotlyjs(),
        library=quote(_from(path, library)) if library else None,
        data=_as_json(drawn, styles),
    )
    write_whole(path, page)


def _task(
    runs: Runs, name: str, index: int, styles: dict[str, Style], drawn: dict[str, go.Figure]
) -> dict[str, Any]:
    """What the template shows of a task, whose figures are added to those that are drawn."""
    mine = {
        "schedules": draw_schedules(runs, styles),
        "losses": draw_losses(runs, styles),
    }
    factors, seeds = unique(runs.rows, "initial_lr_factor"), unique(runs.rows, "seed")
    if len(factors) > 1:
        mine["regrets"] = draw_regrets(runs, styles)
        mine["searches"] = draw_searches(runs, styles)
    drawn |= {f"{index}-{kind}": figure for kind, figure in mine.items()}
    tables = comparison_cells(runs.rows, runs.tuning_rows or None)
    return {
        "name": name,
        "num_steps": runs.rows[0]["total_steps"],
        "seeds": seeds,
        "spread": describe_spread(len(seeds)),
        "factors": factors,
        "is_tuned_elsewhere": bool(runs.tuning_rows),
        "plots": [_plot(f"{index}-{kind}", kind) for kind in mine],
        "tables": [(*TABLE_CAPTIONS.get(table[0][0], PAIRED_CAPTION), table) for table in tables],
    }


def _plot(name: str, kind: str) -> dict[str, str]:
    title, caption = CAPTIONS[kind]
    return {"id": name, "title": title, "caption": caption}


def _from(page: Path, file: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _as_json(drawn: dict[str, go.Figure], styles: dict[str, Style]) -> str:
    plots = {name: json.loads(figure.to_json()) for name, figure in drawn.items()}
    colors = {name: [style.color, style.dark_color] for name, style in styles.items()}
    text = json.dumps({"figures": plots, "colors": colors}, separators=(",", ":"), allow_nan=False)
    # a name with "</script>" would end the element
    return text.replace("<", "\\u003c")
