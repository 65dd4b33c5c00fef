"""Matrices to factorize: real ones by their name, and a user's own, checked and normalized."""

import gzip
import io
import os
import re
import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrpilot.arguments import require_choice
from lrpilot.tasks.data.files import read_files, search_folders
from lrpilot.tasks.data.images import parse_idx

REAL_MATRICES = ("olivetti", "digits", "shakespeare", "fashion_mnist")
NUM_FASHION_IMAGES = 1000
NUM_TERMS = 1000
SUFFIXES = (".npy", ".npz", ".csv")
Matrix = npt.NDArray[Any]


@lru_cache(maxsize=4)
def load_matrix(name: str, data_dir: str | None = None) -> Tensor:
    """A real non-negative matrix, float32, divided by its mean.

    ============= ============ ========================================================
    name          shape        what
    ============= ============ ========================================================
    olivetti      4096 x 400   faces: pixels x images (AT&T Laboratories Cambridge)
    digits        61 x 1797    scikit-learn's digits: pixels x images
    shakespeare   1000 x 301   Tiny Shakespeare: most frequent terms x speakers, counts
    fashion_mnist 781 x 1000   Fashion-MNIST: pixels x the first training images
    ============= ============ ========================================================

    Pixels and terms that are zero everywhere are left out.

    Raises:
        ValueError: if the name is unknown.
        lrpilot.tasks.data.archives.DataError: if a file is missing or damaged.
    """
    require_choice("matrix", name, REAL_MATRICES)
    if name == "digits":
        from sklearn.datasets import load_digits

        matrix = load_digits().data.T
    else:
        content, *_ = read_files(name, search_folders(data_dir)).values()
        if name == "fashion_mnist":
            images = parse_idx(gzip.decompress(content))[:NUM_FASHION_IMAGES]
            matrix = images.reshape(NUM_FASHION_IMAGES, -1).T
        elif name == "olivetti":
            from scipy.io import loadmat

            matrix = loadmat(io.BytesIO(content))["faces"]
        else:
            matrix = count_terms(content.decode())
    matrix = np.asarray(matrix, dtype=np.float32)
    matrix = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
    return torch.from_numpy(matrix / matrix.mean())


def count_terms(text: str) -> Matrix:
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


def read_matrix(path: str | os.PathLike[str]) -> Matrix:
    """The matrix in a file; no code in it is run.

    ======= ==================================================================================
    suffix  content
    ======= ==================================================================================
    .npy    an array, as `numpy.save` writes it
    .npz    one array, as `numpy.savez` writes it, or a sparse one of `scipy.sparse.save_npz`
    .csv    numbers between commas, a row in each line, without a header
    ======= ==================================================================================

    Raises:
        ValueError: if there is no such file, or it cannot be read as a matrix.
    """
    path = Path(path).expanduser()
    read = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}.get(path.suffix)
    if read is None:
        raise ValueError(
            f"`matrix` must be one of {REAL_MATRICES}, an array or a path that ends in one of "
            f"{SUFFIXES}, got {str(path)!r}"
        )
    if path.is_dir():
        raise ValueError(f"`matrix` must be the path of a file, got the folder '{path}'")
    try:
        return read(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"`matrix` must be a file that can be read, got '{path}': {reason}") from (
            error
        )
    # What is wrong with a damaged file has many names: those of NumPy, SciPy, zip and zlib.
    except Exception as error:
        raise ValueError(f"`matrix` must be a readable file, got '{path}': {error}") from error


def to_tensor(matrix: Any) -> Tensor:
    """The entries of any matrix as a dense tensor in float64.

    Args:
        matrix: a tensor (dense or sparse), an array or a sparse array of SciPy, a data frame, or
            a list of rows; floats, integers or booleans.

    Raises:
        ValueError: if it is no matrix of real numbers.
    """
    if isinstance(matrix, Tensor):
        if matrix.is_complex():
            raise ValueError(f"`matrix` must be real, got {matrix.dtype}")
        return matrix.detach().to_dense().to("cpu", torch.float64)
    if hasattr(matrix, "tocsr"):
        matrix = _dense(matrix)
    if isinstance(matrix, np.ma.MaskedArray):
        matrix = np.ma.filled(matrix.astype(np.float64), np.nan)
    try:
        array = np.asarray(matrix)
    except ValueError as error:
        raise ValueError(f"`matrix` must have rows of equal length: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`matrix` must hold real numbers, got {array.dtype}")
    return torch.from_numpy(array.astype(np.float64))


def normalize_matrix(matrix: Tensor) -> Tensor:
    """A matrix, float32, divided by its mean.

    Raises:
        ValueError: if it has no entries, not two dimensions, a negative, NaN or infinite entry,
            or a row or a column of zeros (whose factors nothing would determine).
    """
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(
            f"`matrix` must have two dimensions and at least one entry, got shape "
            f"{tuple(matrix.shape)}"
        )
    if not bool(matrix.isfinite().all()):
        place = (~matrix.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"`matrix` must be finite, got {float(matrix[*place])} at {place}")
    if bool((matrix < 0).any()):
        raise ValueError(f"`matrix` must not be negative, got {float(matrix.min())}")
    if not bool(matrix.any()):
        raise ValueError("`matrix` must not be zero everywhere, got only zeros")
    # first by the largest entry, so that no mean is too large or too small for a float
    matrix = matrix.double() / matrix.max()
    matrix = (matrix / matrix.mean()).float()
    for name, dim in (("column", 0), ("row", 1)):
        empty = (matrix == 0).all(dim=dim).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(
                f"`matrix` must have no {name} of zeros, got {name}s {empty[:5]}: leave them out"
            )
    return matrix


def _read_npy(path: Path) -> Matrix:
    # mapped, so that a file that is shorter than it says is refused before memory is taken
    return np.array(np.lib.format.open_memmap(path, mode="r"))


def _read_npz(path: Path) -> Matrix:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is no archive of arrays")
    with file:
        if {"format", "shape", "data"} <= set(file.files):
            from scipy import sparse

            return _dense(sparse.load_npz(path))
        if len(file.files) != 1:
            raise ValueError(f"it must hold one array, got {file.files}")
        array: Matrix = file[file.files[0]]
        return array


def _read_csv(path: Path) -> Matrix:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the file is empty is said later
        return np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")


def _dense(matrix: Any) -> Matrix:
    if hasattr(matrix, "check_format"):
        # else indices from a damaged file would be used without a check
        matrix.check_format(full_check=True)
    array: Matrix = matrix.toarray()
    return array
