"""A user's own matrix: what is taken, from where, and what is refused in which words."""

import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy import sparse

from lrpilot.tasks.nmf.task import NMFTask

ROOT = Path(__file__).resolve().parents[3]
VALUES = np.random.default_rng(0).integers(1, 9, (9, 7)).astype(np.float32)
HOLES = np.where(VALUES > 3, VALUES, 0.0)


def make_task(matrix: Any, **changes: Any) -> NMFTask:
    arguments: dict[str, Any] = {
        "name": "mine",
        "optimizer": torch.optim.SGD,
        "base_lr": 0.01,
        "total_steps": 20,
        "matrix": matrix,
        "rank": 1,
        "batch_size": 1,
        "noise": "none",
        "cap_kind": "segment",
    }
    return NMFTask(**{**arguments, **changes})


def factorized(matrix: Any) -> np.ndarray:
    """What is factorized, in units of its mean."""
    return make_task(matrix).start(0).matrix.numpy()


class Frame:
    """A table that becomes an array as those of pandas do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return VALUES.astype(dtype or VALUES.dtype)


KINDS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.from_numpy(VALUES),
    "float64": lambda: torch.from_numpy(VALUES).double(),
    "float16": lambda: torch.from_numpy(VALUES).half(),
    "bfloat16": lambda: torch.from_numpy(VALUES).bfloat16(),
    "int64": lambda: torch.from_numpy(VALUES).long(),
    "uint8": lambda: torch.from_numpy(VALUES).byte(),
    "requires_grad": lambda: torch.from_numpy(VALUES).clone().requires_grad_(),
    "transposed": lambda: torch.from_numpy(VALUES.T.copy()).T,
    "torch sparse COO": lambda: torch.from_numpy(VALUES).to_sparse(),
    "array": lambda: VALUES,
    "array, float16": lambda: VALUES.astype(np.float16),
    "array, other byte order": lambda: VALUES.astype(">f8"),
    "array, uint16": lambda: VALUES.astype(np.uint16),
    "list": lambda: VALUES.tolist(),
    "data frame": Frame,
    "scipy csr": lambda: sparse.csr_matrix(VALUES),
    "scipy coo array": lambda: sparse.coo_array(VALUES),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_any_kind_is_factorized_as_float32(kind: str) -> None:
    found = factorized(KINDS[kind]())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, VALUES / VALUES.mean(), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_sparse_csr_tensor_is_factorized() -> None:
    found = factorized(torch.from_numpy(VALUES).to_sparse_csr())
    np.testing.assert_allclose(found, VALUES / VALUES.mean(), rtol=1e-6)


def test_booleans_are_zeros_and_ones() -> None:
    found = factorized(torch.eye(3, 3).bool())
    np.testing.assert_allclose(found, 3 * np.eye(3), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_the_scale_does_not_matter(scale: float) -> None:
    np.testing.assert_allclose(
        factorized(VALUES.astype(np.float64) * scale), VALUES / VALUES.mean(), rtol=1e-6
    )


def test_a_factorization_of_ones_own_matrix_gets_better() -> None:
    run = make_task(VALUES, rank=2).start(0)
    start = run.privileged_loss()
    for _ in range(20):
        run.step(run.cap()[0])
    assert run.privileged_loss() < 0.5 * start


def test_single_and_batched_runs_factorize_the_same_matrix() -> None:
    task = make_task(VALUES.tolist())
    batch = task.start_batch(2)
    batch.reset([0, 1], [0, 1])
    assert torch.equal(batch.objective.matrix[1], task.start(1).matrix)


def test_a_changed_task_keeps_the_matrix_to_the_bit() -> None:
    task = make_task(VALUES / 3)
    changed = replace(task, base_lr=1.0)
    assert torch.equal(changed.start(0).matrix, task.start(0).matrix)


# files


def save_csv(path: Path) -> None:
    np.savetxt(path, VALUES, delimiter=",")


FILES: dict[str, tuple[str, Callable[[Path], None], np.ndarray]] = {
    "npy": ("my.npy", lambda path: np.save(path, VALUES), VALUES),
    "npy, columns first": ("my.npy", lambda path: np.save(path, np.asfortranarray(VALUES)), VALUES),
    "npz": ("my.npz", lambda path: np.savez(path, anything=VALUES), VALUES),
    "npz, compressed": ("my.npz", lambda path: np.savez_compressed(path, VALUES), VALUES),
    "npz, csr": ("my.npz", lambda path: sparse.save_npz(path, sparse.csr_matrix(HOLES)), HOLES),
    "npz, coo": ("my.npz", lambda path: sparse.save_npz(path, sparse.coo_matrix(HOLES)), HOLES),
    "csv": ("my.csv", save_csv, VALUES),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("type_", [str, Path])
def test_a_matrix_is_read_from_a_file(kind: str, type_: type, tmp_path: Path) -> None:
    name, save, expected = FILES[kind]
    save(tmp_path / name)
    np.testing.assert_allclose(
        factorized(type_(tmp_path / name)), expected / expected.mean(), rtol=1e-6
    )


def test_a_path_is_taken_from_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "my.npy", VALUES)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["task=nmf", f"+task.matrix={tmp_path / 'my.npy'}", "+task.batch_size=7"]
        config = compose("train_agent", overrides)
    task = instantiate(config.task, _convert_="all")
    assert tuple(task.shape) == (9, 7)


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("my.npy", lambda path: None, "no such file or directory"),
    "a folder": ("my.npy", lambda path: path.mkdir(), "got the folder"),
    "empty": ("my.npy", write(b""), "be a readable file"),
    "truncated": ("my.npy", lambda path: path.write_bytes(npy()[:-1]), "be a readable file"),
    "a huge size": (
        "my.npy",
        lambda path: path.write_bytes(
            npy().replace(b"(9, 7), }          ", b"(9, 700000000000), }")
        ),
        "be a readable file",
    ),
    "not npz": ("my.npz", write(b"PK no archive"), "be a readable file"),
    "an array, not npz": ("my.npz", lambda path: path.write_bytes(npy()), "no archive of arrays"),
    "two arrays": ("my.npz", lambda path: np.savez(path, a=VALUES, b=VALUES), "one array, got"),
    "a header": ("my.csv", write(b"a,b\n1,2\n"), "could not convert string 'a'"),
    "a ragged table": ("my.csv", write(b"1,2\n1\n"), "number of columns changed"),
    "an empty table": ("my.csv", write(b""), "at least one entry, got shape (0, 1)"),
    "bytes": ("my.csv", write(b"\xff\xfe\x00"), "be a readable file"),
    "text": ("my.npy", lambda path: np.save(path, VALUES.astype(str)), "hold real numbers"),
    "objects": (
        "my.npy",
        lambda path: np.save(path, np.array([[None]]), allow_pickle=True),
        "be a readable file",
    ),
    "foreign indices": ("my.npz", lambda path: save_foreign(path), "be a readable file"),
}


def npy(shape: str = "(9, 7)") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n" + VALUES.tobytes()


def save_foreign(path: Path) -> None:
    """A sparse matrix whose last index lies far outside."""
    matrix = sparse.csr_matrix(VALUES)
    indices = matrix.indices.copy()
    indices[3] = 10**9
    np.savez(
        path,
        format=b"csr",
        shape=matrix.shape,
        data=matrix.data,
        indices=indices,
        indptr=matrix.indptr,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_holds_no_matrix_is_refused_in_words(case: str, tmp_path: Path) -> None:
    name, save, message = BAD_FILES[case]
    save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^`matrix` must .*{re.escape(message)}"):
        make_task(str(tmp_path / name))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_no_code_in_a_file_is_run(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.{suffix}"
    objects = np.array([Payload(tmp_path / "executed")], dtype=object)
    if suffix == "npz":
        np.savez(path, objects)
    else:
        path.write_bytes(pickle.dumps(objects))
    with pytest.raises(ValueError, match=r"^`matrix` must be a readable file"):
        make_task(str(path))
    assert not (tmp_path / "executed").exists()


# entries and shapes


def altered(value: float) -> np.ndarray:
    matrix = VALUES.copy()
    matrix[2, 3] = value
    return matrix


@pytest.mark.slow
@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (altered(-1.0), "`matrix` must not be negative, got -1.0"),
        (altered(np.nan), "`matrix` must be finite, got nan at [2, 3]"),
        (altered(np.inf), "`matrix` must be finite, got inf at [2, 3]"),
        (np.ma.masked_equal(VALUES, VALUES[0, 0]), "`matrix` must be finite, got nan at [0, 0]"),
        (VALUES * 1j, "`matrix` must hold real numbers, got complex64"),
        (torch.from_numpy(VALUES) * 1j, "`matrix` must be real, got torch.complex64"),
        ([["a"]], "`matrix` must hold real numbers, got <U1"),
        ({"a": 1}, "`matrix` must hold real numbers, got object"),
        ([[1.0, 2.0], [1.0]], "`matrix` must have rows of equal length"),
        (VALUES[0], "`matrix` must have two dimensions and at least one entry, got shape (7,)"),
        (VALUES[None], "`matrix` must have two dimensions and at least one entry, got shape (1, 9"),
        (VALUES[:0], "`matrix` must have two dimensions and at least one entry, got shape (0, 7)"),
        (VALUES * 0, "`matrix` must not be zero everywhere"),
        (VALUES * (np.arange(9) != 3)[:, None], "no row of zeros, got rows [3]: leave them out"),
        (VALUES * (np.arange(7) != 3), "no column of zeros, got columns [3]: leave them out"),
    ],
)
def test_a_bad_matrix_is_refused_in_words(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_task(matrix)
