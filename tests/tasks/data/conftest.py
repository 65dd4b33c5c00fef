"""A place without data."""

from pathlib import Path

import pytest


@pytest.fixture
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No local folder, an empty cache, and a proxy that refuses every download."""
    monkeypatch.delenv("LRPILOT_DATA", raising=False)
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
