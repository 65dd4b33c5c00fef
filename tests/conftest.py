"""One thread per process: the networks are too small for more. The user's data stays as it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_written_where_the_data_lies() -> Iterator[None]:
    """The folder `$LRPILOT_DATA` holds after all tests what it held before."""
    folder = os.environ.get("LRPILOT_DATA")
    before = sorted(Path(folder).rglob("*")) if folder else []
    yield
    after = sorted(Path(folder).rglob("*")) if folder else []
    assert after == before
