"""`scripts/report.py` writes a page of the folders that it is given."""

from pathlib import Path

import pytest

from tests.evaluation.page.made_up_runs import make_rows, write_runs
from tests.programs import run_scripts

pytestmark = pytest.mark.slow


def test_one_folder_and_several_become_a_page_whose_path_is_printed(tmp_path: Path) -> None:
    for task in ("digits", "nmf"):
        write_runs(make_rows(tasks=[task]), tmp_path / f"{task} run")
    commands = [
        ["report.py", "runs=digits run", "hydra.run.dir=one"],
        ["report.py", "runs=[digits run,nmf run]", "hydra.run.dir=two"],
    ]
    for (code, out, err), name in zip(run_scripts(commands, tmp_path), ("one", "two"), strict=True):
        assert code == 0, err
        assert out.startswith(f"{tmp_path / name}/report.html (")
    texts = [(tmp_path / name / "report.html").read_text() for name in ("one", "two")]
    assert ['data-task="nmf"' in text for text in texts] == [False, True]
    assert all('href="../digits%20run/runs.parquet"' in text for text in texts)
