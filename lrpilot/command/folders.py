"""What run folders hold: an evaluation's tables and figure, and the summaries of a sweep."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrpilot.environment import research_module
from lrpilot.files import write_whole

SUMMARIES_FILE = "summaries.csv"
# what is printed of every job, beside what differs between jobs
RESULTS = ("num_env_steps", "return_mean_last_rollouts", "stopped_by")
# these differ always
UNSHOWN = ("policy_fingerprint", "seconds")


def report(folder: Path) -> list[str]:
    """Draw the figure of an evaluation's run folder anew; returns its tables.

    Raises:
        ValueError: if it is no such folder.
    """
    if not (folder / "runs.csv").is_file():
        raise ValueError(f"`runs` must be run folders of evaluate.py, with runs.csv, got {folder}")
    text: str = research_module("lrpilot.evaluation.evaluate", "report").report_again(folder)
    return [*text.splitlines(), ""]


def collect(folder: Path) -> list[str]:
    """Write what the jobs of a sweep came to in one CSV file; returns a table of it.

    Raises:
        ValueError: if there is no summary in the folder.
    """
    paths = sorted(folder.rglob("summary.json"), key=_in_order)
    if not paths:
        raise ValueError(f"`folder` must hold run folders with a summary.json, got {folder}")
    rows = [
        {"job": str(path.parent.relative_to(folder)), **dict(_flat(json.loads(path.read_text())))}
        for path in paths
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / SUMMARIES_FILE, file.getvalue())
    shown = [
        name
        for name in columns
        if name in ("job", *RESULTS)
        or (name not in UNSHOWN and len({str(row.get(name)) for row in rows}) > 1)
    ]
    failed = sorted(folder.rglob("error.txt"), key=_in_order)
    return [
        *_table([shown, *([_text(row.get(name)) for name in shown] for row in rows)]),
        *(f"failed: {path.parent.relative_to(folder)}" for path in failed),
        str(folder / SUMMARIES_FILE),
    ]


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Job 10 comes after job 9."""
    return [(int(part) if part.isdigit() else -1, part) for part in path.parts]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
