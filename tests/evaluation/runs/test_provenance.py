import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from lrpilot.evaluation.runs import provenance


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own, with a copy of the file in its place."""
    copy = tmp_path / "evaluation" / "runs" / "provenance.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, copy)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    return tmp_path


def commit_of(repository: Path) -> str:
    path = repository / "evaluation" / "runs" / "provenance.py"
    spec = importlib.util.spec_from_file_location("provenance_of_a_copy", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commit: str = module.describe_provenance()["commit"]
    return commit


def test_a_clean_tree_is_its_commit(repository: Path) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert head.startswith(commit_of(repository))


def test_two_changes_of_one_commit_are_two_versions(repository: Path) -> None:
    path = repository / "evaluation" / "runs" / "provenance.py"
    code, found = path.read_text(), []
    for line in ("# one\n", "# another\n"):
        path.write_text(code + line)
        found.append(commit_of(repository))
    assert found[0] != found[1]
    assert all("-dirty-" in commit for commit in found)
