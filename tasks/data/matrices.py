"""Matrices to factorize: random instances with a known structure, and real ones."""

import io
import re
from collections import Counter
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrpilot.tasks.data.files import cache_folder, local_folders, read_files

REAL_MATRICES = ("olivetti", "digits", "shakespeare")
NUM_TERMS = 1000


@lru_cache(maxsize=4)
def load_matrix(name: str, data_dir: str | None = None) -> Tensor:
    """A real non-negative matrix, float32, divided by its mean.

    =========== ============ ==========================================================
    name        shape        what
    =========== ============ ==========================================================
    olivetti    4096 x 400   faces: pixels x images (AT&T Laboratories Cambridge)
    digits      61 x 1797    scikit-learn's digits: pixels x images
    shakespeare 1000 x 301   Tiny Shakespeare: most frequent terms x speakers, counts
    =========== ============ ==========================================================

    Pixels and terms that are zero everywhere are left out.

    Raises:
        ValueError: if the name is unknown.
        lrpilot.tasks.data.archives.DataError: if a file is missing or damaged.
    """
    if name not in REAL_MATRICES:
        raise ValueError(f"`matrix` must be one of {REAL_MATRICES}, got {name!r}")
    if name == "digits":
        from sklearn.datasets import load_digits

        matrix = load_digits().data.T
    else:
        (content,) = read_files(name, (*local_folders(data_dir), cache_folder())).values()
        matrix = _faces(content) if name == "olivetti" else count_terms(content.decode())
    matrix = np.asarray(matrix, dtype=np.float32)
    matrix = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
    return torch.from_numpy(matrix / matrix.mean())


def _faces(content: bytes) -> npt.NDArray[np.uint8]:
    from scipy.io import loadmat

    faces: npt.NDArray[np.uint8] = loadmat(io.BytesIO(content))["faces"]
    return faces


def count_terms(text: str) -> npt.NDArray[np.float32]:
    """Counts of the most frequent terms (rows) in the lines of each speaker (columns)."""
    speeches: dict[str, Counter[str]] = {}
    for block in text.split("\n\n"):
        speaker, _, words = block.partition(":\n")
        if words:
            speeches.setdefault(speaker, Counter()).update(re.findall(r"[a-z']+", words.lower()))
    total = sum(speeches.values(), Counter())
    terms = [term for term, _ in total.most_common(NUM_TERMS)]
    return np.array(
        [[counts[term] for counts in speeches.values()] for term in terms], dtype=np.float32
    )
