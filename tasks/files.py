"""The files of the image sets: found locally, in the cache or downloaded, always verified.

Every file's MD5 is compared with the official one before a byte of it is parsed; a file that
differs is an error and is never replaced by another source.
"""

import hashlib
import json
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from lrpilot.files import write_whole

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
    "olivetti": {"olivettifaces.mat": "7be4afc20ba95152afb4c6b4b5d45c5b"},
    "shakespeare": {"input.txt": "6fb458f1232090904fb40fe944165e91"},
    "sst2": {
        "train.tsv": "c6150a821d5effe356ec872c2b95855c",
        "dev.tsv": "3f2a9a844576f2b5a7aeeac2ccbab1c7",
        "test.tsv": "f8f49ee1b37ec68b0e8977fbe33761e2",
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
_ARCHIVES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.xz"),
    "fashion_mnist": (),
    "olivetti": (),
    "shakespeare": (),
    "sst2": (),
}
# In the cache, beside the files of an unpacked archive: which archive they are a copy of.
_SOURCE = "source.json"
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_SST2_URL = (
    "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2"
)
_URL_MD5 = {
    "cifar10": {_CIFAR10_URL: "c58f30108f718f92721af3b95e74349a"},
    "fashion_mnist": {f"{_FASHION_MNIST_URL}/{f}": md5 for f, md5 in _MD5["fashion_mnist"].items()},
    "shakespeare": {_SHAKESPEARE_URL: _MD5["shakespeare"]["input.txt"]},
    "sst2": {f"{_SST2_URL}/{file}": md5 for file, md5 in _MD5["sst2"].items()},
}
_CONNECT_AND_READ_TIMEOUT_SECONDS = (3, 10)


class DataError(RuntimeError):
    """Files of an image set are missing, damaged or not the official ones."""


def local_folders(data_dir: str | None) -> tuple[Path, ...]:
    """The folder `data_dir`, else that of the environment variable `LRPILOT_DATA`, else none.

    Raises:
        DataError: the folder does not exist.
    """
    source, folder = "`data_dir`", data_dir
    if folder is None:
        source, folder = "`LRPILOT_DATA`", os.environ.get("LRPILOT_DATA") or None
    if folder is None:
        return ()
    if not os.path.isdir(os.path.expanduser(folder)):
        raise DataError(f"{source} must be an existing folder, got {folder!r}")
    return (Path(folder).expanduser().absolute(),)


def cache_folder() -> Path:
    """The folder of the environment variable `LRPILOT_CACHE`, else one in the user's cache."""
    if folder := os.environ.get("LRPILOT_CACHE"):
        return Path(folder).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("lrpilot"))


def has_files(name: str, folders: tuple[Path, ...]) -> bool:
    """Whether one of the folders holds all (unpacked) files of a set."""
    places = (folder / subfolder for folder in folders for subfolder in _SUBFOLDERS[name])
    return any(_has_all(place, _MD5[name]) for place in places)


def read_files(name: str, folders: tuple[Path, ...]) -> dict[str, bytes]:
    """Verified content of each file of a set, in the order in which its images lie in the set.

    Args:
        name: "cifar10", "fashion_mnist", "olivetti", "shakespeare" or "sst2".
        folders: where to look, first to last; the last is the cache.

    Raises:
        DataError: a file is damaged, or there are no files and no network.
    """
    unpacked = folders[-1] / _SUBFOLDERS[name][0]
    found = _find(name, folders)
    if found is None:
        return _store(_download(name, folders), unpacked)
    if found.is_file():
        return _unpack(found, _MD5[name], unpacked)
    return _read_folder(found, _MD5[name])


def source_of(name: str, folders: tuple[Path, ...]) -> str | None:
    """Path, size and time of change of what `read_files` would read; None if it would download."""
    found = _find(name, folders)
    if found is None:
        return None
    paths = [found] if found.is_file() else [found / file for file in _MD5[name]]
    return json.dumps([_identity(path) for path in paths])


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is making this file, which then may be there.

    In a folder that cannot be written there is no file to wait for.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _find(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The first folder that holds a set's files, or the first archive of it."""
    for folder in folders:
        for place in (folder / subfolder for subfolder in _SUBFOLDERS[name]):
            if _has_all(place, _MD5[name]):
                return place
        for archive in (f / a for f in (folder, folder / name) for a in _ARCHIVES[name]):
            if os.path.isfile(archive):
                return archive
    return None


def _identity(path: Path) -> dict[str, str | int]:
    stat = path.stat()
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _has_all(folder: Path, files: Iterable[str]) -> bool:
    return all(os.path.isfile(folder / file) for file in files)


def _read_folder(folder: Path, md5s: dict[str, str]) -> dict[str, bytes]:
    return {
        file: _verified((folder / file).read_bytes(), md5, folder / file)
        for file, md5 in md5s.items()
    }


def _unpack(archive: Path, md5s: dict[str, str], unpacked: Path) -> dict[str, bytes]:
    """Verified content of an archive, decompressed only where `unpacked` is not its copy."""
    # Taken before the archive is read, so that a change during the reading is noticed next time.
    source = json.dumps(_identity(archive)).encode()
    if _has_all(unpacked, [*md5s, _SOURCE]) and (unpacked / _SOURCE).read_bytes() == source:
        return _read_folder(unpacked, md5s)
    files = _read_archive(archive, md5s)
    _store({**files, _SOURCE: source}, unpacked)  # `_SOURCE` comes last, after all it vouches for.
    return files


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
    error_message = ""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = Path(member.name).name
                stream = tar.extractfile(member) if file in md5s else None
                if stream is not None:
                    source = f"{archive} (its member {file})"
                    files[file] = _verified(stream.read(), md5s[file], source)
            # The loop stops before the end of the compressed stream and so before its checksum.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass
    except (EOFError, OSError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        error_message = f"{type(error).__name__}: {error}"
    missing = [f"{file} with MD5 {md5}" for file, md5 in md5s.items() if file not in files]
    if error_message:
        missing.append("a readable end")
    if missing:
        raise DataError(
            f"{archive} is truncated or damaged ({error_message or 'it ends early'}): expected "
            f"{missing[0]}, got an archive with MD5 {_md5(archive.read_bytes())} without it; "
            "delete the file or replace it by the official one"
        )
    return {file: files[file] for file in md5s}


def _store(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Puts files into the cache, each complete or not at all, and hands them on."""
    try:
        for file, content in files.items():
            write_whole(folder / file, content)
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
