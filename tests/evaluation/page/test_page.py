"""The page is one file with all figures and tables, small enough to send."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lrpilot import Policy
from lrpilot.evaluation.evaluate import evaluate
from lrpilot.evaluation.methods.schedules import cosine
from lrpilot.evaluation.page import write_page
from lrpilot.evaluation.page.data import read_runs
from lrpilot.evaluation.report import comparison_cells
from tests.evaluation.page.made_up_runs import make_rows, write_runs
from tests.full_disk import full_disk

HOSTILE = "</script><b>\"x\" & 'y'"


class Cells(HTMLParser):
    """The tables of a page, as lists of lines of cells, and the references to other files."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.links: list[str] = []
        self.is_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.is_cell = True
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.is_cell = False

    def handle_data(self, data: str) -> None:
        if self.is_cell:
            self.tables[-1][-1][-1] += data.strip()


def written(rows: list[dict[str, Any]], folder: Path) -> str:
    write_page(write_runs(rows, folder), folder / "report.html")
    return (folder / "report.html").read_text()


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_has_the_tables_of_every_task(tmp_path: Path) -> None:
    page = written(make_rows(tasks=["digits", "nmf"]), tmp_path)
    runs = read_runs([tmp_path])

    tables = [comparison_cells(runs.of_task(task).rows) for task in ("digits", "nmf")]
    assert Cells(page).tables == [table for of_task in tables for table in of_task]


def test_five_seeds_have_a_table_of_paired_differences(tmp_path: Path) -> None:
    page = written(make_rows(["policy", "cosine"], num_seeds=5), tmp_path)
    assert [table[0][0] for table in Cells(page).tables][-1] == "policy minus"
    assert "Paired differences" in page
    assert "Paired differences" not in written(make_rows(["policy", "cosine"]), tmp_path)


def test_tables_take_the_initial_lrs_that_the_tuning_rows_choose(tmp_path: Path) -> None:
    rows = make_rows() + [
        {**row, "held_out_loss": row["initial_lr"]} for row in make_rows(part="tuning")
    ]
    tuned, *_ = Cells(written(rows, tmp_path)).tables

    assert [line[1] for line in tuned[1:]] == ["0.005"] * 3


@pytest.mark.slow
def test_an_evaluation_has_its_page(tmp_path: Path) -> None:
    rows = evaluate(
        "quadratic",
        policy=Policy.load("small_networks"),
        schedulers={"cosine": cosine},
        initial_lr_factors=[0.1, 1.0],
        num_seeds=2,
        total_steps=160,
        out_dir=tmp_path,
        show_progress=False,
    )
    write_page(tmp_path, tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text()
    assert Cells(page).tables == comparison_cells(rows)
    assert len(data_of(page)["figures"]) == 4


def test_the_page_says_where_it_comes_from(tmp_path: Path) -> None:
    page = written(make_rows(), tmp_path)

    for said in ("scripts/evaluate.py task=digits", "0.9.0", "2.13.0", "0123456789ab"):
        assert f"{said}</code>" in page
    assert '<a href="runs.parquet">' in page


def test_the_page_refers_to_no_file_but_the_rows(tmp_path: Path) -> None:
    assert Cells(written(make_rows(), tmp_path)).links == ["data:,", "runs.parquet"]


def test_pages_may_share_one_copy_of_the_library(tmp_path: Path) -> None:
    folder, library = write_runs(make_rows(), tmp_path / "a"), tmp_path / "plotly.min.js"
    write_page(folder, folder / "report.html", library=library)

    assert "../plotly.min.js" in Cells((folder / "report.html").read_text()).links
    assert library.stat().st_size > 1e6 > (folder / "report.html").stat().st_size
    # the page's own policy lets it be read, from a disk and from a server
    assert "script-src 'unsafe-inline' 'self' file:;" in (folder / "report.html").read_text()


def test_rows_are_linked_from_where_the_page_is(tmp_path: Path) -> None:
    folders = [write_runs(make_rows(tasks=[name]), tmp_path / f"run {name}") for name in ("a", "b")]
    write_page(folders, tmp_path / "pages" / "report.html")
    page = (tmp_path / "pages" / "report.html").read_text()

    links = Cells(page).links[1:]
    assert links == ["../run%20a/runs.parquet", "../run%20b/runs.parquet"]


def test_one_task_has_four_figures_and_several_have_profiles_besides(tmp_path: Path) -> None:
    one = data_of(written(make_rows(), tmp_path / "one"))
    two = data_of(written(make_rows(tasks=["digits", "nmf"]), tmp_path / "two"))

    assert len(one["figures"]) == 4
    assert len(two["figures"]) == 2 * 4 + 2


def test_one_initial_lr_has_curves_and_one_table_alone(tmp_path: Path) -> None:
    page = written(make_rows(factors=[1.0]), tmp_path)

    assert list(data_of(page)["figures"]) == ["0-schedules", "0-losses"]
    assert len(Cells(page).tables) == 1


@pytest.mark.parametrize("name", ["scheduler", "task"])
def test_a_name_is_a_text_whatever_its_characters(tmp_path: Path, name: str) -> None:
    page = written([{**row, name: HOSTILE} for row in make_rows(["linear"])], tmp_path)

    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert len(data_of(page)["figures"]) == 4


def test_the_same_runs_are_the_same_page(tmp_path: Path) -> None:
    assert written(make_rows(), tmp_path) == written(make_rows(), tmp_path)


def test_a_page_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    write_runs(make_rows(), tmp_path)
    path = tmp_path / "report.html"
    path.write_text("old")

    with full_disk(), pytest.raises(OSError, match=r"report\.html"):
        write_page(tmp_path, path)

    assert path.read_text() == "old"


@pytest.mark.slow
def test_a_page_of_a_thousand_runs_has_less_than_eight_megabytes(tmp_path: Path) -> None:
    names = ["policy", *(f"rival {i}" for i in range(9))]
    rows = make_rows(names, tasks=[f"task {i}" for i in range(10)], factors=(0.1, 0.3, 1, 3, 10))
    page = written(rows, tmp_path)

    assert len(rows) == 1000
    assert len(page.encode()) < 8e6
