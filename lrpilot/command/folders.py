"""What run folders hold: an evaluation's tables and figure, and the summaries of a sweep."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
    paths = sorted(folder.rglob("summary.json"), key=in_order)
    if not paths:
        raise ValueError(f"`folder` must hold run folders with a summary.json, got {folder}")
    rows = [
        {"job": str(path.parent.relative_to(folder)), **dict(flat(json.loads(path.read_text())))}
        for path in paths
    ]
    write_whole(folder / SUMMARIES_FILE, csv_of(rows))
    shown = [
        name
        for name in _columns(rows)
        if name in ("job", *RESULTS)
        or (name not in UNSHOWN and len({str(row.get(name)) for row in rows}) > 1)
    ]
    failed = sorted(folder.rglob("error.txt"), key=in_order)
    return [
        *_table([shown, *([_text(row.get(name)) for name in shown] for row in rows)]),
        *(f"failed: {path.parent.relative_to(folder)}" for path in failed),
        str(folder / SUMMARIES_FILE),
    ]


def in_order(path: Path) -> list[tuple[int, str]]:
    """A key to sort paths by, in which job 10 comes after job 9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The content of a CSV file; the columns are those of all rows."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(rows))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
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
