"""Image sets for the training tasks: found locally, in the cache or downloaded, always verified.

Every file's MD5 is compared with the official one before a byte of it is parsed; a file that
differs is an error and is never replaced by another source.

References:
    Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 (CIFAR-10).
    Han Xiao, Kashif Rasul, Roland Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms, 2017.
"""

import functools
import gzip
import hashlib
import lzma
import os
import pickle
import secrets
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

_ImagesAndLabels = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

# Training, held-out and test images, in the order in which they lie in a set.
_NUM_IMAGES = {
    "cifar10": (45_000, 5_000, 10_000),
    "digits": (1_197, 300, 300),
    "fashion_mnist": (55_000, 5_000, 10_000),
}
# Official MD5 of each file, in the order in which the files' images lie in a set.
_MD5 = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
# Where the files may lie inside a folder; the first entry is where they are put in the cache.
_SUBFOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
    "fashion_mnist": ("fashion_mnist", "FashionMNIST/raw", "."),
}
_ARCHIVES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.xz"),
    "fashion_mnist": (),
}
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_URL_MD5 = {
    "cifar10": {_CIFAR10_URL: "c58f30108f718f92721af3b95e74349a"},
    "fashion_mnist": {f"{_FASHION_MNIST_URL}/{f}": md5 for f, md5 in _MD5["fashion_mnist"].items()},
}
_CONNECT_AND_READ_TIMEOUT_SECONDS = (3, 10)


class DataError(RuntimeError):
    """Files of an image set are missing, damaged or not the official ones."""


@dataclass(frozen=True)
class ImageData:
    """A classification set in three disjoint parts, shared by all callers: never write into it.

    Attributes:
        train_x: images (N, C, H, W), float32, each channel with mean 0 and standard deviation 1.
        train_y: labels (N,), int64, from 0 to `num_classes` - 1.
        held_out_x: images for rewards and tuning, with the mean and deviation of `train_x`.
        held_out_y: labels of `held_out_x`.
        test_x: images for the final measurement only, with the mean and deviation of `train_x`.
        test_y: labels of `test_x`.
        num_classes: number of classes.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    held_out_x: torch.Tensor
    held_out_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    num_classes: int


def load_image_data(
    name: str, *, data_dir: str | None = None, num_train: int | None = None
) -> ImageData:
    """Loads an image set once per process; later calls return the same object.

    | name          | image   | train        | held-out             | test   |
    |---------------|---------|--------------|----------------------|--------|
    | digits        | 1x8x8   | 1,197        | 300                  | 300    |
    | fashion_mnist | 1x28x28 | first 55,000 | last 5,000 of 60,000 | 10,000 |
    | cifar10       | 3x32x32 | first 45,000 | last 5,000 of 50,000 | 10,000 |

    "digits" comes with scikit-learn. The files of the others are taken from the local folder, else
    from the cache (environment variable `LRPILOT_CACHE`, else the user's cache folder), else they
    are downloaded into the cache. Archives are unpacked into the cache, and such an unpacked copy
    is preferred to the archive. A folder that lacks one of the files counts as empty.

    Args:
        name: "cifar10", "digits" or "fashion_mnist".
        data_dir: local folder; None takes the environment variable `LRPILOT_DATA`, if set.
        num_train: how many training images to keep, from the first; None keeps all.

    Raises:
        ValueError: unknown `name`, or `num_train` out of range.
        DataError: the local folder does not exist, a file is damaged, or there are no files and
            no network.

    >>> load_image_data("digits").train_x.shape
    torch.Size([1197, 1, 8, 8])
    """
    if name not in _NUM_IMAGES:
        raise ValueError(f"`name` must be one of {', '.join(_NUM_IMAGES)}, got {name!r}")
    available = _NUM_IMAGES[name][0]
    num_train = available if num_train is None else num_train
    if not 1 <= num_train <= available:
        raise ValueError(f"`num_train` must be between 1 and {available}, got {num_train}")
    local = _local_folders(data_dir)
    # "digits" reads no folder, so that a changed folder must not make a second copy of it.
    folders = () if name == "digits" else (*local, _cache_folder())
    return _load(name, num_train, folders)


def _local_folders(data_dir: str | None) -> tuple[Path, ...]:
    source, folder = "`data_dir`", data_dir
    if folder is None:
        source, folder = "`LRPILOT_DATA`", os.environ.get("LRPILOT_DATA") or None
    if folder is None:
        return ()
    if not os.path.isdir(os.path.expanduser(folder)):
        raise DataError(f"{source} must be an existing folder, got {folder!r}")
    return (Path(folder).expanduser().absolute(),)


def _cache_folder() -> Path:
    if folder := os.environ.get("LRPILOT_CACHE"):
        return Path(folder).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("lrpilot"))


@functools.cache
def _load(name: str, num_train: int, folders: tuple[Path, ...]) -> ImageData:
    if name == "digits":
        images, labels = _parse_digits()
    else:
        parse = _parse_cifar10 if name == "cifar10" else _parse_fashion_mnist
        images, labels = parse(_read_files(name, folders))
    all_train, num_held_out, _ = _NUM_IMAGES[name]
    train = slice(num_train)
    held_out = slice(all_train, all_train + num_held_out)
    test = slice(all_train + num_held_out, None)
    mean, std = _channel_moments(images[train])

    def normalized(part: slice) -> torch.Tensor:
        return torch.from_numpy(images[part].astype(np.float32)).sub_(mean).div_(std)

    return ImageData(
        train_x=normalized(train),
        train_y=torch.from_numpy(labels[train]),
        held_out_x=normalized(held_out),
        held_out_y=torch.from_numpy(labels[held_out]),
        test_x=normalized(test),
        test_y=torch.from_numpy(labels[test]),
        num_classes=10,
    )


def _channel_moments(images: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (C, 1, 1) of images (N, C, H, W), in units of a grey level."""
    # Sums of integers are exact, so that the result depends on no thread count.
    count = images.size // images.shape[1]
    mean = np.einsum("nchw->c", images, dtype=np.int64) / count
    square = np.einsum("nchw,nchw->c", images, images, dtype=np.int64) / count
    std = np.sqrt(square - mean**2)
    return torch.tensor(mean).float()[:, None, None], torch.tensor(std).float()[:, None, None]


def _read_files(name: str, folders: tuple[Path, ...]) -> dict[str, bytes]:
    """Verified content of each file of a set; the last of `folders` is the cache."""
    unpacked = folders[-1] / _SUBFOLDERS[name][0]
    for folder in folders:
        for place in (folder / subfolder for subfolder in _SUBFOLDERS[name]):
            if all(os.path.isfile(place / file) for file in _MD5[name]):
                return {
                    file: _verified((place / file).read_bytes(), md5, place / file)
                    for file, md5 in _MD5[name].items()
                }
    for folder in folders:
        for archive in (f / a for f in (folder, folder / name) for a in _ARCHIVES[name]):
            if os.path.isfile(archive):
                return _store(_read_archive(archive, _MD5[name]), unpacked)
    return _store(_download(name, folders), unpacked)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _verified(content: bytes, md5: str, source: str | Path) -> bytes:
    if (received := _md5(content)) != md5:
        raise DataError(
            f"{source} is damaged: expected MD5 {md5}, got {received}; "
            "delete the file or replace it by the official one"
        )
    return content


def _read_archive(archive: Path, md5s: dict[str, str]) -> dict[str, bytes]:
    """Verified content of each member named in `md5s`, wherever in the archive it lies."""
    files: dict[str, bytes] = {}
    reason = "the archive ends early"
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = Path(member.name).name
                stream = tar.extractfile(member) if file in md5s else None
                if stream is not None:
                    source = f"{archive} (its member {file})"
                    files[file] = _verified(stream.read(), md5s[file], source)
    except (EOFError, OSError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        reason = f"{type(error).__name__}: {error}"
    if missing := [file for file in md5s if file not in files]:
        raise DataError(
            f"{archive} is truncated or damaged ({reason}): expected {missing[0]} with MD5 "
            f"{md5s[missing[0]]}, got an archive with MD5 {_md5(archive.read_bytes())} without it; "
            "delete the file or replace it by the official one"
        )
    return files


def _store(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Puts files into the cache, each complete or not at all, and hands them on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            # A name of its own for each process; the last rename wins, with the same content.
            temporary = folder / f".{file}.{secrets.token_hex(8)}"
            try:
                temporary.write_bytes(content)
                temporary.replace(folder / file)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError:
        # A full or read-only cache costs the next process time but takes nothing from this one.
        pass
    return files


def _download(name: str, folders: tuple[Path, ...]) -> dict[str, bytes]:
    import pooch

    try:
        with tempfile.TemporaryDirectory(prefix="lrpilot-") as folder:
            http = pooch.HTTPDownloader(timeout=_CONNECT_AND_READ_TIMEOUT_SECONDS)
            paths = [
                Path(pooch.retrieve(url, f"md5:{md5}", Path(url).name, folder, downloader=http))
                for url, md5 in _URL_MD5[name].items()
            ]
            if _ARCHIVES[name]:
                return _read_archive(paths[0], _MD5[name])
            return {path.name: path.read_bytes() for path in paths}
    except (OSError, ValueError) as error:
        looked_in = ", ".join(str(folder) for folder in folders)
        wanted = " or ".join([*_ARCHIVES[name], f"the files {', '.join(_MD5[name])}"])
        raise DataError(
            f"no {name} files in {looked_in}, and the download failed ({error}). Either\n"
            f"- set `data_dir` or LRPILOT_DATA to a folder that has {wanted};\n"
            f"- put these into the cache folder {folders[-1]};\n"
            f"- connect to the network, for the download of {', '.join(_URL_MD5[name])}."
        ) from error


def _parse_digits() -> _ImagesAndLabels:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # RandomState, because its stream never changes between NumPy versions.
    order = np.random.RandomState(0).permutation(len(digits.target))
    return digits.images[order, None].astype(np.uint8), digits.target[order].astype(np.int64)


def _parse_fashion_mnist(files: dict[str, bytes]) -> _ImagesAndLabels:
    arrays = [_parse_idx(gzip.decompress(files[file])) for file in _MD5["fashion_mnist"]]
    train_images, train_labels, test_images, test_labels = arrays
    images = np.concatenate([train_images, test_images])[:, None]
    return images, np.concatenate([train_labels, test_labels]).astype(np.int64)


def _parse_idx(content: bytes) -> npt.NDArray[np.uint8]:
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", num_dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def _parse_cifar10(files: dict[str, bytes]) -> _ImagesAndLabels:
    names = [file for file in _MD5["cifar10"] if file != "batches.meta"]
    batches = [pickle.loads(files[file], encoding="bytes") for file in names]
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([batch[b"labels"] for batch in batches]).astype(np.int64)
