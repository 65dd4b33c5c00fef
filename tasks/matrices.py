"""Matrices to factorize: random instances with a known structure, and real ones."""

import io
import re
from collections import Counter
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.files import DataError, cache_folder, has_files, local_folders, read_files

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
        tasks.data.DataError: if a file is missing or damaged.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        matrix = load_digits().data.T
    elif name == "olivetti":
        matrix = _load_olivetti(data_dir)
    elif name == "shakespeare":
        folders = (*local_folders(data_dir), cache_folder())
        (content,) = read_files("shakespeare", folders).values()
        matrix = count_terms(content.decode())
    else:
        raise ValueError(f"`matrix` must be one of {REAL_MATRICES}, got {name!r}")
    matrix = np.asarray(matrix, dtype=np.float32)
    matrix = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
    return torch.from_numpy(matrix / matrix.mean())


def check_matrix(matrix: Tensor) -> Tensor:
    """A matrix of the user's own, float32, divided by its mean.

    Raises:
        ValueError: if it is no matrix, or has negative, NaN or infinite entries, or a row or a
            column of zeros (whose factors nothing would determine).
    """
    if matrix.ndim != 2:
        raise ValueError(f"`matrix` must have two dimensions, got shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise ValueError("`matrix` must be finite, got NaN or infinity")
    if bool((matrix < 0).any()):
        raise ValueError(f"`matrix` must not be negative, got {float(matrix.min())}")
    for name, dim in (("column", 0), ("row", 1)):
        empty = (matrix == 0).all(dim=dim).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"`matrix` must have no {name} of zeros, got {name}s {empty[:5]}")
    return (matrix / matrix.double().mean()).float()


def _load_olivetti(data_dir: str | None) -> npt.NDArray[np.float32]:
    folders = (*local_folders(data_dir), cache_folder())
    if has_files("olivetti", folders):
        from scipy.io import loadmat

        (content,) = read_files("olivetti", folders).values()
        faces: npt.NDArray[np.float32] = loadmat(io.BytesIO(content))["faces"]
        return faces
    from sklearn.datasets import fetch_olivetti_faces

    try:
        images = fetch_olivetti_faces(data_home=cache_folder(), n_retries=1, delay=0.1).images
    except OSError as error:
        looked_in = ", ".join(map(str, folders))
        raise DataError(
            f"no olivettifaces.mat in {looked_in}, and scikit-learn could not download it "
            f"({error}). Either set `data_dir` or LRPILOT_DATA to a folder that has it, put it "
            f"into {folders[-1]}, or connect to the network."
        ) from error
    # scikit-learn transposes each image of the file
    return np.ascontiguousarray(images.transpose(2, 1, 0).reshape(4096, 400))


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
