import functools
from collections.abc import Iterator
from pathlib import Path

import joblib  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.data.files import read_files
from lrpilot.tasks.data.matrices import NUM_TERMS, REAL_MATRICES, count_terms, load_matrix
from tests.tasks.data.real_files import FOLDER, Payload

_SHAPES = {
    "digits": (61, 1797),
    "olivetti": (4096, 400),
    "shakespeare": (1000, 301),
    "fashion_mnist": (781, 1000),
}
_FILES = {
    "olivetti": ("olivettifaces.mat", ("olivetti", "nmf", ".")),
    "shakespeare": ("input.txt", ("shakespeare", "text/tinyshakespeare", "tinyshakespeare")),
}
# its files are found and checked as those of the images
_FASHION = "FashionMNIST/raw/train-images-idx3-ubyte.gz"
_TEXT = "Ann:\nThe cat, the DOG.\n\nBob:\nthe end; don't\n\nAnn:\ncat\n"


@pytest.fixture(autouse=True)
def _empty_surroundings(no_files: None) -> Iterator[None]:
    """Nothing outside, and no matrix in memory."""
    load_matrix.cache_clear()
    yield
    load_matrix.cache_clear()


def _file(name: str) -> Path:
    """The file of a matrix in the data folder; without it the test is skipped."""
    if name == "fashion_mnist":
        if not (FOLDER / _FASHION).is_file():
            pytest.skip(f"needs {_FASHION}: set LRPILOT_DATA")
        return FOLDER / _FASHION
    file, subfolders = _FILES[name]
    for subfolder in subfolders:
        if (FOLDER / subfolder / file).is_file():
            return FOLDER / subfolder / file
    pytest.skip(f"needs {file}: set LRPILOT_DATA")


@functools.cache
def _load(name: str) -> torch.Tensor:
    if name == "digits":
        return load_matrix(name)
    _file(name)
    return load_matrix(name, str(FOLDER))


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_MATRICES)
def test_a_matrix_has_the_documented_shape(name: str) -> None:
    assert tuple(_load(name).shape) == _SHAPES[name]


@pytest.mark.parametrize("name", REAL_MATRICES)
def test_a_matrix_is_float32_of_mean_one(name: str) -> None:
    matrix = _load(name)

    assert matrix.dtype == torch.float32
    assert float(matrix.double().mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", REAL_MATRICES)
def test_a_matrix_is_finite_and_non_negative(name: str) -> None:
    matrix = _load(name)

    assert bool(matrix.isfinite().all())
    assert float(matrix.min()) >= 0.0


@pytest.mark.parametrize("name", REAL_MATRICES)
def test_a_matrix_has_no_zero_row_or_column(name: str) -> None:
    matrix = _load(name)

    assert bool(matrix.any(0).all())
    assert bool(matrix.any(1).all())


def test_a_second_call_returns_the_same_object() -> None:
    assert load_matrix("digits") is load_matrix("digits")


@pytest.mark.parametrize("name", REAL_MATRICES)
def test_the_documentation_states_the_shape(name: str) -> None:
    assert load_matrix.__doc__ is not None
    rows, columns = _SHAPES[name]

    assert f"{rows} x {columns}" in load_matrix.__doc__


def test_digits_has_the_images_as_its_columns() -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().data
    image = torch.from_numpy(pixels[5][pixels.any(0)]).float()

    torch.testing.assert_close(_load("digits")[:, 5], image / pixels[:, pixels.any(0)].mean())


def test_a_pickle_in_the_cache_is_not_opened(tmp_path: Path) -> None:
    # where scikit-learn stores what it downloaded
    cache = tmp_path / "cache"
    cache.mkdir()
    joblib.dump(Payload(tmp_path / "executed"), cache / "olivetti_py3.pkz", compress=6)
    with pytest.raises(DataError):
        load_matrix("olivetti")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "subfolder"),
    [(name, folder) for name, (_, folders) in _FILES.items() for folder in folders],
)
def test_a_file_is_found_in_each_layout_of_a_folder(
    name: str, subfolder: str, tmp_path: Path
) -> None:
    place = tmp_path / subfolder
    place.mkdir(parents=True, exist_ok=True)
    (place / _FILES[name][0]).symlink_to(_file(name))

    assert len(read_files(name, (tmp_path,))) == 1


def test_the_most_frequent_term_of_shakespeare_is_the_first_row() -> None:
    totals = _load("shakespeare").double().sum(1)

    assert int(totals.argmax()) == 0
    # in falling order, to rounding
    assert bool((totals.diff() <= 1e-6 * totals[0]).all())


# terms


def test_terms_are_counted_per_speaker_in_any_case_and_without_punctuation() -> None:
    # the, cat, dog, end, don't by Ann and by Bob
    assert count_terms(_TEXT).tolist() == [[2, 1], [2, 0], [1, 0], [0, 1], [0, 1]]


def test_a_speakers_name_is_not_a_term() -> None:
    assert count_terms("Ann:\nann ann bob\n").tolist() == [[2], [1]]


def test_counts_are_float32() -> None:
    assert count_terms(_TEXT).dtype == np.float32


def test_a_block_without_a_speaker_is_left_out() -> None:
    assert np.array_equal(count_terms(f"A preface.\n\n{_TEXT}"), count_terms(_TEXT))


def test_the_most_frequent_terms_are_kept() -> None:
    words = [f"{'abcdefghij'[i % 10]}{'k' * (i // 10)}" for i in range(NUM_TERMS + 5)]
    counts = count_terms("Ann:\n" + " ".join([*words, *words[-7:]]))

    assert counts.shape == (NUM_TERMS, 1)
    assert counts[:, 0].tolist() == [2.0] * 7 + [1.0] * (NUM_TERMS - 7)


# errors


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`matrix` must be one of .*, got 'faces'"):
        load_matrix("faces")


@pytest.mark.parametrize("name", _FILES)
def test_an_altered_file_is_refused(name: str, tmp_path: Path) -> None:
    file, (subfolder, *_) = _FILES[name]
    (tmp_path / subfolder).mkdir()
    (tmp_path / subfolder / file).write_bytes(b"Ann:\naltered\n")
    with pytest.raises(DataError, match=f"{file} is damaged: expected (MD5|SHA-256)"):
        load_matrix(name, str(tmp_path))


def test_an_input_file_altered_by_one_byte_is_refused(tmp_path: Path) -> None:
    content = bytearray(_file("shakespeare").read_bytes())
    content[1000] ^= 1
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"input\.txt is damaged: expected MD5"):
        load_matrix("shakespeare", str(tmp_path))


def test_a_missing_data_dir_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data_dir` must be an existing folder, got .*absent"):
        load_matrix("shakespeare", str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("olivetti", "https://ndownloader.figshare.com/files/5976027"),
        ("shakespeare", "tinyshakespeare/input.txt"),
    ],
)
def test_without_files_and_network_the_error_names_folders_and_cures(
    name: str, url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        load_matrix(name, str(folder))
    message = str(caught.value)

    assert f"no {name} files in {folder}, {tmp_path / 'cache'}" in message
    assert "- set `data_dir` or LRPILOT_DATA" in message
    assert url in message
