import gzip
import hashlib
import io
import lzma
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lrpilot.tasks.data import images as data
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.data.files import read_files
from lrpilot.tasks.data.images import ImageData, load_image_data
from tests.tasks.data.real_files import FOLDER, Payload

pytestmark = pytest.mark.usefixtures("no_files")
_FASHION_FILES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
_CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


@pytest.fixture(scope="module")
def fashion_folder() -> Path:
    for folder in (FOLDER, FOLDER / "FashionMNIST" / "raw", FOLDER / "fashion_mnist"):
        if (folder / _FASHION_FILES[0]).is_file():
            return folder
    pytest.skip("needs the Fashion-MNIST files: set LRPILOT_DATA")


@pytest.fixture(scope="module")
def fashion_mnist(
    fashion_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImageData]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRPILOT_CACHE", str(tmp_path_factory.mktemp("fashion-mnist-cache")))
        yield load_image_data("fashion_mnist", data_dir=str(fashion_folder))
    data._load.cache_clear()


@pytest.fixture(scope="module")
def cifar10_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cifar10-cache")


@pytest.fixture(scope="module")
def cifar10(cifar10_cache: Path) -> Iterator[ImageData]:
    if not [*FOLDER.glob("cifar-10-*"), *FOLDER.glob("cifar10/cifar-10-*")]:
        pytest.skip("needs the CIFAR-10 files: set LRPILOT_DATA")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRPILOT_CACHE", str(cifar10_cache))
        yield load_image_data("cifar10", data_dir=str(FOLDER))
    data._load.cache_clear()  # 0.7 GB that no other test needs.


def _digests(images: torch.Tensor) -> set[bytes]:
    return {hashlib.sha256(image.numpy().tobytes()).digest() for image in images}


def _write_files(folder: Path, names: list[str], content: bytes = b"altered") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(content)
    return folder


def _shapes(images: ImageData) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in (images.train_x, images.held_out_x, images.test_x)]


# digits: there with nothing downloaded


def test_digits_has_the_documented_shapes() -> None:
    assert _shapes(load_image_data("digits")) == [(1197, 1, 8, 8), (300, 1, 8, 8), (300, 1, 8, 8)]


def test_digits_has_float32_images_and_int64_labels() -> None:
    digits = load_image_data("digits")
    assert (digits.test_x.dtype, digits.test_y.dtype) == (torch.float32, torch.int64)


def test_digits_labels_are_the_classes() -> None:
    digits = load_image_data("digits")
    assert set(digits.train_y.tolist()) == set(range(digits.num_classes))


def test_digits_parts_are_disjoint_and_complete() -> None:
    digits = load_image_data("digits")
    parts = (digits.train_x, digits.held_out_x, digits.test_x)
    assert len(set.union(*(_digests(part) for part in parts))) == 1797


def test_digits_train_part_is_normalized() -> None:
    std, mean = torch.std_mean(load_image_data("digits").train_x, correction=0)
    torch.testing.assert_close(torch.stack([mean, std]), torch.tensor([0.0, 1.0]))


def test_held_out_part_is_normalized_with_the_moments_of_the_kept_train_part() -> None:
    all_kept = load_image_data("digits")
    ten_kept = load_image_data("digits", num_train=10)
    std, mean = torch.std_mean(all_kept.train_x[:10], correction=0)
    torch.testing.assert_close(ten_kept.held_out_x, (all_kept.held_out_x - mean) / std)


def test_num_train_keeps_the_first_images() -> None:
    kept = load_image_data("digits", num_train=10).train_y
    assert torch.equal(kept, load_image_data("digits").train_y[:10])


def test_second_call_returns_the_same_object() -> None:
    assert load_image_data("digits") is load_image_data("digits")


def test_naming_the_whole_train_part_returns_the_same_object() -> None:
    assert load_image_data("digits", num_train=1197) is load_image_data("digits")


# arguments


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`name` must be one of .*, got 'imagenet'"):
        load_image_data("imagenet")


@pytest.mark.parametrize(
    ("name", "num_train", "available"),
    [("cifar10", 50001, 45000), ("cifar10", 0, 45000), ("fashion_mnist", 55001, 55000)],
)
def test_num_train_out_of_range_is_refused(name: str, num_train: int, available: int) -> None:
    message = f"`num_train` must be between 1 and {available}, got {num_train}"
    with pytest.raises(ValueError, match=message):
        load_image_data(name, num_train=num_train)


def test_missing_data_dir_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data_dir` must be an existing folder, got .*absent"):
        load_image_data("cifar10", data_dir=str(tmp_path / "absent"))


def test_changed_environment_variable_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    load_image_data("digits")
    monkeypatch.setenv("LRPILOT_DATA", "absent")
    with pytest.raises(DataError, match="`LRPILOT_DATA` must be an existing folder, got 'absent'"):
        load_image_data("digits")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        ("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images"),
    ],
)
def test_without_data_and_network_the_error_names_folders_and_cures(
    name: str, url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        load_image_data(name, data_dir=str(folder))
    message = str(caught.value)
    assert f"no {name} files in {folder}, {tmp_path / 'cache'}" in message
    assert "- set `data_dir` or LRPILOT_DATA" in message
    assert f"- put these into the cache folder {tmp_path / 'cache'}" in message
    assert "- connect to the network" in message
    assert url in message


# damaged files


def test_altered_file_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    content = pickle.dumps(Payload(marker))
    _write_files(tmp_path / "local" / "cifar-10-batches-py", _CIFAR10_FILES, content)
    with pytest.raises(DataError):
        load_image_data("cifar10", data_dir=str(tmp_path / "local"))
    assert not marker.exists()


def test_altered_file_is_named_with_both_checksums(tmp_path: Path) -> None:
    folder = _write_files(tmp_path / "cifar-10-batches-py", _CIFAR10_FILES)
    received = hashlib.md5(b"altered").hexdigest()
    with pytest.raises(DataError) as caught:
        load_image_data("cifar10", data_dir=str(tmp_path))
    assert str(caught.value).startswith(
        f"{folder / 'data_batch_1'} is damaged: "
        f"expected MD5 c99cafc152244af753f735de768cd75f, got {received}"
    )


def test_altered_copy_in_the_cache_is_named_where_it_cannot_be_downloaded_anew(
    tmp_path: Path,
) -> None:
    folder = _write_files(tmp_path / "cache" / "fashion_mnist", _FASHION_FILES)
    with pytest.raises(DataError) as caught:
        load_image_data("fashion_mnist")
    message = str(caught.value)
    assert message.startswith(f"{folder / _FASHION_FILES[0]} is damaged: expected MD5")
    assert "and the download failed" in message


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py.tar.xz"])
@pytest.mark.parametrize("subfolder", ["", "cifar10"])
def test_altered_archive_member_is_refused(name: str, subfolder: str, tmp_path: Path) -> None:
    folder = _write_files(tmp_path / "local" / subfolder, [])
    _write_archive(folder / name, b"altered")
    received = hashlib.md5(b"altered").hexdigest()
    with pytest.raises(DataError, match=f"{name} .its member data_batch_1.*got {received}"):
        load_image_data("cifar10", data_dir=str(tmp_path / "local"))


def test_the_tensors_are_not_written_where_the_files_lie(
    fashion_folder: Path, tmp_path: Path
) -> None:
    data._load.cache_clear()
    before = sorted(fashion_folder.rglob("*"))
    load_image_data("fashion_mnist", data_dir=str(fashion_folder), num_train=10)
    assert sorted(fashion_folder.rglob("*")) == before
    assert (tmp_path / "cache" / "tensors" / "fashion_mnist-10.safetensors").is_file()


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py.tar.xz"])
@pytest.mark.parametrize("num_bytes", [0, 100, 500_000])
def test_truncated_archive_is_refused(name: str, num_bytes: int, tmp_path: Path) -> None:
    archive = tmp_path / name
    _write_archive(archive, os.urandom(1_000_000))
    archive.write_bytes(archive.read_bytes()[:num_bytes])
    received = hashlib.md5(archive.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        load_image_data("cifar10", data_dir=str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{archive} is truncated or damaged")
    assert f"MD5 c99cafc152244af753f735de768cd75f, got an archive with MD5 {received}" in message


def _write_archive(path: Path, content: bytes) -> None:
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = len(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(member, io.BytesIO(content))
    compress = lzma.compress if path.suffix == ".xz" else gzip.compress
    path.write_bytes(compress(buffer.getvalue()))


def test_truncated_local_file_is_refused_though_the_cache_has_a_good_one(
    fashion_folder: Path, tmp_path: Path
) -> None:
    content = (fashion_folder / _FASHION_FILES[0]).read_bytes()[:1_000_000]
    _write_files(tmp_path / "fashion_mnist", _FASHION_FILES, content)
    cached = _write_files(tmp_path / "cache" / "fashion_mnist", [])
    for name in _FASHION_FILES:
        (cached / name).symlink_to(fashion_folder / name)
    with pytest.raises(DataError, match="expected MD5 8d4fb7e6c68d591d4c3dfef9ec88bf0d, got "):
        load_image_data("fashion_mnist", data_dir=str(tmp_path))


def test_altered_local_archive_is_refused_though_the_cache_has_all_files(tmp_path: Path) -> None:
    _write_files(tmp_path / "cache" / "cifar-10-batches-py", _CIFAR10_FILES)
    archive = tmp_path / "cifar-10-python.tar.gz"
    _write_archive(archive, b"altered")
    with pytest.raises(DataError, match=f"^{archive} .its member data_batch_1"):
        load_image_data("cifar10", data_dir=str(tmp_path))


# Fashion-MNIST and CIFAR-10


@pytest.mark.slow
def test_fashion_mnist_has_the_documented_shapes(fashion_mnist: ImageData) -> None:
    assert _shapes(fashion_mnist) == [(55000, 1, 28, 28), (5000, 1, 28, 28), (10000, 1, 28, 28)]


@pytest.mark.slow
def test_fashion_mnist_first_training_label_is_9(fashion_mnist: ImageData) -> None:
    assert fashion_mnist.train_y[0] == 9


def test_fashion_mnist_test_part_is_disjoint_from_the_training_set(
    fashion_mnist: ImageData,
) -> None:
    training_set = _digests(fashion_mnist.train_x) | _digests(fashion_mnist.held_out_x)
    assert training_set.isdisjoint(_digests(fashion_mnist.test_x))


@pytest.mark.parametrize("subfolder", [".", "FashionMNIST/raw", "fashion_mnist"])
def test_fashion_mnist_is_found_in_each_layout_of_the_cache(
    fashion_folder: Path, subfolder: str, tmp_path: Path
) -> None:
    place = _write_files(tmp_path / "cache" / subfolder, [])
    for name in _FASHION_FILES:
        (place / name).symlink_to(fashion_folder / name)
    found = read_files("fashion_mnist", (tmp_path / "cache",))
    assert list(found) == _FASHION_FILES


@pytest.mark.slow
def test_cifar10_has_the_documented_shapes(cifar10: ImageData) -> None:
    assert _shapes(cifar10) == [(45000, 3, 32, 32), (5000, 3, 32, 32), (10000, 3, 32, 32)]


@pytest.mark.slow
def test_cifar10_first_training_label_is_6(cifar10: ImageData) -> None:
    assert cifar10.train_y[0] == 6


@pytest.mark.slow
def test_cifar10_training_set_has_5000_images_of_each_class(cifar10: ImageData) -> None:
    assert torch.cat([cifar10.train_y, cifar10.held_out_y]).bincount().tolist() == [5000] * 10


@pytest.mark.slow
def test_cifar10_train_part_is_normalized_per_channel(cifar10: ImageData) -> None:
    std, mean = torch.std_mean(cifar10.train_x, dim=(0, 2, 3), correction=0)
    expected = torch.tensor([[0.0] * 3, [1.0] * 3])
    torch.testing.assert_close(torch.stack([mean, std]), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_cifar10_test_part_is_disjoint_from_the_training_set(cifar10: ImageData) -> None:
    training_set = _digests(cifar10.train_x) | _digests(cifar10.held_out_x)
    assert training_set.isdisjoint(_digests(cifar10.test_x))


@pytest.mark.slow
def test_cifar10_archive_leaves_only_its_files_and_their_source_in_the_cache(
    cifar10: ImageData, cifar10_cache: Path
) -> None:
    unpacked = cifar10_cache / "cifar-10-batches-py"
    if not unpacked.exists():
        pytest.skip("needs a CIFAR-10 archive in LRPILOT_DATA")
    expected = sorted([*_CIFAR10_FILES, "source.json"])
    assert sorted(path.name for path in unpacked.iterdir()) == expected


@pytest.mark.slow
def test_truncated_cifar10_archive_is_refused_though_the_cache_has_good_files(
    cifar10: ImageData, cifar10_cache: Path, tmp_path: Path
) -> None:
    if not (cifar10_cache / "cifar-10-batches-py").exists():
        pytest.skip("needs a CIFAR-10 archive in LRPILOT_DATA")
    archive = tmp_path / "cifar-10-python.tar.gz"
    _write_archive(archive, os.urandom(1_000_000))
    os.truncate(archive, 500_000)
    with pytest.raises(DataError, match=f"^{archive} is truncated or damaged"):
        read_files("cifar10", (tmp_path, cifar10_cache))


@pytest.mark.slow
def test_cifar10_is_equal_when_read_from_the_cache(
    cifar10: ImageData, cifar10_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (cifar10_cache / "cifar-10-batches-py").exists():
        pytest.skip("needs a CIFAR-10 archive in LRPILOT_DATA")
    monkeypatch.setenv("LRPILOT_CACHE", str(cifar10_cache))
    assert torch.equal(load_image_data("cifar10").test_x, cifar10.test_x)
