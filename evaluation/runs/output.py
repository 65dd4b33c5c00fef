"""Where an experiment keeps its runs, and writes its tables."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrpilot.evaluation.runs.cell import Cell
from lrpilot.evaluation.runs.cluster import Cluster
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.runner import Progress, Runner
from lrpilot.evaluation.runs.store import Store, write_results
from lrpilot.evaluation.statistics import Rows
from lrpilot.files import write_whole

RUNS_FILE = "runs.parquet"
QUICK_NOTE = "quick: shows that everything runs, means nothing"


@dataclass(frozen=True)
class Output:
    """Where and how an experiment reports.

    Args:
        folder: gets tables, figures and runs.
        origin: machine, versions and commit, for the heads of tables.
        progress: called as `progress(iterable, total=..., desc=...)`; shows how far it is.
        is_quick: whether this is the experiment's quick version, which judges nothing.
        store: folder of finished runs, which are not trained again; default `cells` in `folder`,
            where those of another version are trained again.
        num_workers: see `Runner`.
        cluster: see `Runner`.
    """

    folder: Path
    origin: str
    progress: Progress
    is_quick: bool = False
    store: Path | None = None
    num_workers: int = 0
    cluster: Cluster | None = None

    def train(self, cells: Sequence[Cell], desc: str) -> list[Result]:
        """The results of the cells, in their order; see `Runner.run`."""
        store = Store(self.store or self.folder / "cells", renews=self.store is None)
        return Runner(store, self.progress, self.num_workers, self.cluster).run(cells, desc)

    def write_runs(self, results: Sequence[Result]) -> None:
        """Write runs as `RUNS_FILE`, with their curves, whatever they are for."""
        write_results(results, self.folder / RUNS_FILE)

    def write_rows(self, rows: Rows, name: str) -> None:
        """Write rows as a CSV file of this name."""
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.folder / name, file.getvalue())

    def write_table(
        self, title: str, *tables: str, name: str, details: Sequence[str] = (), verdict: str = ""
    ) -> None:
        """Write and print tables below a title, details and origin; a quick one has no verdict."""
        parts = [f"{title}\n({'; '.join([*details, self.origin])})", *tables]
        if self.is_quick:
            parts.insert(0, QUICK_NOTE)
        elif verdict:
            parts.append(verdict)
        text = "\n\n".join(parts) + "\n"
        write_whole(self.folder / name, text)
        print(f"\n{text}")
