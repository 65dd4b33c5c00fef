"""Image sets for the training tasks, as normalized tensors.

References:
    Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 (CIFAR-10).
    Han Xiao, Kashif Rasul, Roland Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms, 2017.
"""

import functools
import gzip
import pickle
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lrpilot.tasks.data.files import cache_folder, read_files, search_folders, source_of
from lrpilot.tasks.data.shared_tensors import share_tensors
from lrpilot.tasks.data.splits import Splits

_ImagesAndLabels = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

# Training, held-out and test images, in the order in which they lie in a set.
_NUM_IMAGES = {
    "cifar10": (45_000, 5_000, 10_000),
    "digits": (1_197, 300, 300),
    "fashion_mnist": (55_000, 5_000, 10_000),
}
# To be raised with every change of what is made from the files.
_RECIPE = 1


@dataclass(frozen=True, eq=False, repr=False)
class ImageData(Splits):
    """Images to classify, with a test split.

    Inputs are images (N, C, H, W), float32, each channel with the mean and the standard deviation
    that make those of the training images 0 and 1; targets are labels (N,), int64, from 0 to
    `num_classes` - 1.

    Attributes:
        num_classes: number of classes.
    """

    test_x: torch.Tensor
    test_y: torch.Tensor
    num_classes: int = field(kw_only=True)


def load_image_data(
    name: str, *, data_dir: str | None = None, num_train: int | None = None
) -> ImageData:
    """Loads an image set once per process, into memory that all processes share.

    | name          | image   | train        | held-out             | test   |
    |---------------|---------|--------------|----------------------|--------|
    | digits        | 1x8x8   | 1,197        | 300                  | 300    |
    | fashion_mnist | 1x28x28 | first 55,000 | last 5,000 of 60,000 | 10,000 |
    | cifar10       | 3x32x32 | first 45,000 | last 5,000 of 50,000 | 10,000 |

    "digits" comes with scikit-learn. The files of the others are taken from the local folder, else
    from the cache (environment variable `LRPILOT_CACHE`, else the user's cache folder), else they
    are downloaded into the cache. A local archive is unpacked into the cache and read again only
    when its path, size or modification time has changed. A folder that has neither an archive nor
    all of the files counts as empty. The tensors are kept in the cache, too, under the same rule
    (0.7 GB for the whole of CIFAR-10), and mapped into memory: see `share_tensors`.

    Args:
        name: "cifar10", "digits" or "fashion_mnist".
        data_dir: local folder; None takes the environment variable `LRPILOT_DATA`, if set.
        num_train: how many training images to keep, from the first; None keeps all.

    Raises:
        ValueError: unknown `name`, or `num_train` out of range.
        DataError: as `read_files` and `search_folders` do.

    >>> load_image_data("digits").train_x.shape
    torch.Size([1197, 1, 8, 8])
    """
    if name not in _NUM_IMAGES:
        raise ValueError(f"`name` must be one of {', '.join(_NUM_IMAGES)}, got {name!r}")
    available = _NUM_IMAGES[name][0]
    num_train = available if num_train is None else num_train
    if not 1 <= num_train <= available:
        raise ValueError(f"`num_train` must be between 1 and {available}, got {num_train}")
    folders = search_folders(data_dir)
    # "digits" reads no folder, so that a changed folder must not make a second copy of it.
    return _load(name, num_train, () if name == "digits" else folders)


@functools.cache
def _load(name: str, num_train: int, folders: tuple[Path, ...]) -> ImageData:
    if name == "digits":
        source: str | None = f"scikit-learn {version('scikit-learn')}"
    else:
        source = source_of(name, folders)
    tensors = share_tensors(
        cache_folder() / "tensors" / f"{name}-{num_train}.safetensors",
        partial(_make, name, num_train, folders),
        source=source and f"recipe {_RECIPE}, {source}",
    )
    return ImageData(**tensors, num_classes=10)


def _make(name: str, num_train: int, folders: tuple[Path, ...]) -> dict[str, torch.Tensor]:
    if name == "digits":
        images, labels = _parse_digits()
    else:
        parse = _parse_cifar10 if name == "cifar10" else _parse_fashion_mnist
        images, labels = parse(read_files(name, folders))
    all_train, num_held_out, _ = _NUM_IMAGES[name]
    parts = {
        "train": slice(num_train),
        "held_out": slice(all_train, all_train + num_held_out),
        "test": slice(all_train + num_held_out, None),
    }
    mean, std = _channel_moments(images[parts["train"]])
    tensors = {}
    for part, rows in parts.items():
        pixels = torch.from_numpy(images[rows].astype(np.float32))
        tensors[f"{part}_x"] = pixels.sub_(mean).div_(std)
        tensors[f"{part}_y"] = torch.from_numpy(labels[rows])
    return tensors


def _channel_moments(images: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (C, 1, 1) of images (N, C, H, W), in units of a grey level."""
    # Sums of integers are exact, so that the result depends on no thread count.
    count = images.size // images.shape[1]
    mean = np.einsum("nchw->c", images, dtype=np.int64) / count
    square = np.einsum("nchw,nchw->c", images, images, dtype=np.int64) / count
    std = np.sqrt(square - mean**2)
    return torch.tensor(mean).float()[:, None, None], torch.tensor(std).float()[:, None, None]


def _parse_digits() -> _ImagesAndLabels:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # RandomState, because its stream never changes between NumPy versions.
    order = np.random.RandomState(0).permutation(len(digits.target))
    return digits.images[order, None].astype(np.uint8), digits.target[order].astype(np.int64)


def _parse_fashion_mnist(files: dict[str, bytes]) -> _ImagesAndLabels:
    arrays = [parse_idx(gzip.decompress(content)) for content in files.values()]
    train_images, train_labels, test_images, test_labels = arrays
    images = np.concatenate([train_images, test_images])[:, None]
    return images, np.concatenate([train_labels, test_labels]).astype(np.int64)


def parse_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """The bytes of a file of MNIST's format, in the shape that its head states."""
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", num_dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def _parse_cifar10(files: dict[str, bytes]) -> _ImagesAndLabels:
    contents = [content for file, content in files.items() if file != "batches.meta"]
    batches = [pickle.loads(content, encoding="bytes") for content in contents]
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([batch[b"labels"] for batch in batches]).astype(np.int64)
