"""The notebook runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path
from typing import Any

import pytest

nbformat: Any = pytest.importorskip("nbformat")
nbclient: Any = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"AGENT_STEPS": 1856, "NUM_SEEDS": 1}


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook: Any) -> None:
    assert not [
        cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")
    ]


@pytest.mark.slow
def test_the_notebook_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.count("\n") == 1
    first.source = "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": tmp_path}}
    )
    done.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
