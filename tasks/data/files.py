"""The files of the data sets: found locally, in the cache or downloaded, always verified.

Every file's digest is compared with the official one before a byte of it is parsed. A local file
that differs is an error and is never replaced by another source; a copy in the cache is made anew.
Nothing is written but in the cache.
"""

import json
import logging
import os
import stat
import tempfile
from pathlib import Path

from lrpilot.files import write_whole
from lrpilot.tasks.data.archives import DataError, Official, read_archive, read_file, unreadable

# The files of each set, in the order in which what they hold lies in it.
_FILES = {
    "cifar10": {
        "data_batch_1": Official(31_035_704, ("c99cafc152244af753f735de768cd75f",)),
        "data_batch_2": Official(31_035_320, ("d4bba439e000b95fd0a9bffe97cbabec",)),
        "data_batch_3": Official(31_035_999, ("54ebc095f3ab1f0389bbae665268c751",)),
        "data_batch_4": Official(31_035_696, ("634d18415352ddfa80567beed471001a",)),
        "data_batch_5": Official(31_035_623, ("482c414d41f54cd18b22e5b47cb7c3cb",)),
        "test_batch": Official(31_035_526, ("40351d587109b95175f43aff81a1287e",)),
        "batches.meta": Official(158, ("5ff9c542aee3614f3951f8cda6e48888",)),
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": Official(26_421_880, ("8d4fb7e6c68d591d4c3dfef9ec88bf0d",)),
        "train-labels-idx1-ubyte.gz": Official(29_515, ("25c81989df183df01b3e8a0aad5dffbe",)),
        "t10k-images-idx3-ubyte.gz": Official(4_422_102, ("bef4ecab320f06d8554ea6380940ec79",)),
        "t10k-labels-idx1-ubyte.gz": Official(5_148, ("bb300cfdad3c16e7a12a480ee83cd310",)),
    },
    "olivetti": {
        # scikit-learn's copy, and one whose faces are equal
        "olivettifaces.mat": Official(
            4_000_000,
            (
                "b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794",
                "b1988d02c72fe5b8ee82b5ef3bb7982eafc74f1e1ff0ae0ade35061ad0af534d",
            ),
        )
    },
    "shakespeare": {"input.txt": Official(1_115_394, ("6fb458f1232090904fb40fe944165e91",))},
    "sst2": {
        "train.tsv": Official(720_259, ("c6150a821d5effe356ec872c2b95855c",)),
        "dev.tsv": Official(92_057, ("3f2a9a844576f2b5a7aeeac2ccbab1c7",)),
        "test.tsv": Official(188_749, ("f8f49ee1b37ec68b0e8977fbe33761e2",)),
    },
}
# Where the files may lie inside a folder; the first entry is where they are put in the cache.
_SUBFOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
    "fashion_mnist": ("fashion_mnist", "FashionMNIST/raw", "."),
    "olivetti": ("olivetti", "nmf", "."),
    "shakespeare": ("shakespeare", "text/tinyshakespeare", "tinyshakespeare"),
    "sst2": ("sst2", "text/sst2-sentences", "sst2-sentences"),
}
_ARCHIVES = {"cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.xz")}
# In the cache, beside the files of an unpacked archive: which archive they are a copy of.
_SOURCE = "source.json"
_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_GITHUB_URL = "https://raw.githubusercontent.com"
# The file at each address.
_URLS = {
    "cifar10": {
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz": "cifar-10-python.tar.gz"
    },
    "fashion_mnist": {f"{_FASHION_MNIST_URL}/{file}": file for file in _FILES["fashion_mnist"]},
    "olivetti": {"https://ndownloader.figshare.com/files/5976027": "olivettifaces.mat"},
    "shakespeare": {
        f"{_GITHUB_URL}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt": "input.txt"
    },
    "sst2": {
        f"{_GITHUB_URL}/clairett/pytorch-sentiment-classification/master/data/SST2/{file}": file
        for file in _FILES["sst2"]
    },
}
_ARCHIVE_MD5 = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
_CONNECT_AND_READ_TIMEOUT_SECONDS = (3, 10)

logger = logging.getLogger(__name__)


def search_folders(data_dir: str | None) -> tuple[Path, ...]:
    """Where files are looked for, first to last.

    The folder `data_dir`, else that of the environment variable `LRPILOT_DATA`, if set; the cache.

    Raises:
        DataError: the folder does not exist.
    """
    source, folder = "`data_dir`", data_dir
    if folder is None:
        source, folder = "`LRPILOT_DATA`", os.environ.get("LRPILOT_DATA") or None
    if folder is None:
        return (cache_folder(),)
    if not os.path.isdir(os.path.expanduser(folder)):
        raise DataError(f"{source} must be an existing folder, got {folder!r}")
    return Path(folder).expanduser().absolute(), cache_folder()


def cache_folder() -> Path:
    """The folder of the environment variable `LRPILOT_CACHE`, else one in the user's cache."""
    if folder := os.environ.get("LRPILOT_CACHE"):
        return Path(folder).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("lrpilot"))


def read_files(name: str, folders: tuple[Path, ...]) -> dict[str, bytes]:
    """Verified content of each file of a set, in the order in which what they hold lies in it.

    Args:
        name: "cifar10", "fashion_mnist", "olivetti", "shakespeare" or "sst2".
        folders: where to look, first to last; the last is the cache.

    Raises:
        DataError: a file is damaged or unreadable, or there are no files and no network.
    """
    copy = folders[-1] / _SUBFOLDERS[name][0]
    found = _find(name, folders)
    if found is not None and found.is_file():
        return _unpack(found, _FILES[name], copy)
    if found is not None and found != copy:
        return _read_folder(found, _FILES[name])
    damage = ""
    if found is not None:
        try:
            return _read_folder(copy, _FILES[name])
        except DataError as error:
            damage = str(error)
            logger.warning("%s. It is downloaded anew", damage)
    return _store(_download(name, folders, damage), copy)


def source_of(name: str, folders: tuple[Path, ...]) -> str | None:
    """What `read_files` would read: digests, path, size and time of change.

    None if it would download.
    """
    found = _find(name, folders)
    if found is None:
        return None
    paths = [found] if found.is_file() else [found / file for file in _FILES[name]]
    digests = [official.digests for official in _FILES[name].values()]
    return json.dumps([digests, [_identity(path) for path in paths]])


def _find(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The first folder that holds a set's files, or the first archive of it."""
    for folder in folders:
        try:
            for place in (folder / subfolder for subfolder in _SUBFOLDERS[name]):
                if all(_is_file(place / file) for file in _FILES[name]):
                    return place
            archives = _ARCHIVES.get(name, ())
            for archive in (place / a for place in (folder, folder / name) for a in archives):
                if _is_file(archive):
                    return archive
        except DataError as error:
            if folder != folders[-1]:
                raise
            logger.warning("going on without the cache: %s", error)
    return None


def _is_file(path: Path) -> bool:
    """Whether there is such a file; what may not be looked at is not taken for absent.

    Raises:
        DataError: it cannot be told, or there is a folder instead.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} must be a file, got a folder")
    return stat.S_ISREG(mode)


def _identity(path: Path) -> dict[str, str | int]:
    status = path.stat()
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_folder(folder: Path, files: dict[str, Official]) -> dict[str, bytes]:
    return {file: read_file(folder / file, official) for file, official in files.items()}


def _unpack(archive: Path, files: dict[str, Official], copy: Path) -> dict[str, bytes]:
    """Verified content of an archive, decompressed only where `copy` is not a copy of it."""
    # Taken before the archive is read, so that a change during the reading is noticed next time.
    source = json.dumps(_identity(archive)).encode()
    try:
        if (copy / _SOURCE).read_bytes() == source:
            return _read_folder(copy, files)
    except DataError as error:
        logger.warning("%s. It is taken from %s anew", error, archive)
    except OSError:  # There is no copy yet.
        pass
    contents = read_archive(archive, files)
    _store({**contents, _SOURCE: source}, copy)  # `_SOURCE` comes last: it vouches for the others.
    return contents


def _store(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Puts files into the cache, each complete or not at all, and hands them on."""
    try:
        for file, content in files.items():
            write_whole(folder / file, content)
    except OSError as error:
        # A full or read-only cache costs the next process time but takes nothing from this one.
        logger.warning("going on without the cache folder %s: %s", folder, error)
    return files


def _download(name: str, folders: tuple[Path, ...], damage: str) -> dict[str, bytes]:
    import pooch

    try:
        with tempfile.TemporaryDirectory(prefix="lrpilot-") as folder:
            http = pooch.HTTPDownloader(timeout=_CONNECT_AND_READ_TIMEOUT_SECONDS)
            for url, file in _URLS[name].items():
                md5 = _ARCHIVE_MD5.get(file)
                pooch.retrieve(url, md5 and f"md5:{md5}", file, folder, downloader=http)
            if name in _ARCHIVES:
                return read_archive(Path(folder, _ARCHIVES[name][0]), _FILES[name])
            return _read_folder(Path(folder), _FILES[name])
    except (OSError, ValueError) as error:
        looked_in = ", ".join(str(folder) for folder in folders)
        wanted = " or ".join([*_ARCHIVES.get(name, ()), f"the files {', '.join(_FILES[name])}"])
        problem = damage or f"no {name} files in {looked_in}"
        raise DataError(
            f"{problem}, and the download failed ({error}). Either\n"
            f"- set `data_dir` or LRPILOT_DATA to a folder that has {wanted};\n"
            f"- put these into the cache folder {folders[-1]};\n"
            f"- connect to the network, for the download of {', '.join(_URLS[name])}."
        ) from error
