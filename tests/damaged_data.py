"""Two hundred damaged data files: is each refused in a sentence, or made anew?

Bits are flipped, ends cut off, headers swapped, sizes of members made huge, paths led astray and
contents replaced by pickles that would make a folder. Every case is read in a process of its own,
whose memory and time are measured (needs a system that can fork).

    python tests/damaged_data.py
"""

import gzip
import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy import sparse

from lrpilot.evaluation.report import format_table
from lrpilot.tasks.data.archives import DataError, Official, read_archive, read_file
from lrpilot.tasks.data.matrices import normalize_matrix, read_matrix, to_tensor
from lrpilot.tasks.data.shared_tensors import share_tensors

NUM_CASES = 200
CONTENT = random.Random(0).randbytes(200_000)
OFFICIAL = Official(len(CONTENT), (hashlib.md5(CONTENT).hexdigest(),))
VALUES = np.random.default_rng(0).random((60, 40)) + 0.1
KINDS = ("archive", "file", "tensors", "npz", "sparse npz", "npy")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


def make_tensors() -> dict[str, torch.Tensor]:
    """What is cached."""
    return {"x": torch.from_numpy(VALUES.copy()), "y": torch.arange(50)}


def write(kind: str, path: Path) -> None:
    """An intact file of this kind."""
    if kind == "archive":
        path.write_bytes(archive([("set/readme", b"hello"), ("set/images", CONTENT)]))
    elif kind == "file":
        path.write_bytes(CONTENT)
    elif kind == "tensors":
        share_tensors(path, make_tensors, source="one")
    elif kind == "npy":
        np.save(path, VALUES)
    elif kind == "sparse npz":
        sparse.save_npz(path, sparse.csr_matrix(VALUES))
    else:
        np.savez_compressed(path, VALUES)


def read(kind: str, path: Path) -> str:
    """What becomes of a file: "refused: ..." or "correct", else "silent"."""
    try:
        if kind == "archive":
            is_right = read_archive(path, {"images": OFFICIAL})["images"] == CONTENT
        elif kind == "file":
            is_right = read_file(path, OFFICIAL) == CONTENT
        elif kind == "tensors":
            found, expected = share_tensors(path, make_tensors, source="one"), make_tensors()
            is_right = all(torch.equal(found[key], value) for key, value in expected.items())
        else:
            found_matrix = normalize_matrix(to_tensor(read_matrix(path))).numpy()
            is_right = np.allclose(found_matrix, VALUES / VALUES.mean(), rtol=1e-5)
    except (DataError, ValueError) as error:
        is_named = str(path) in str(error) or "`matrix`" in str(error)
        return f"refused: {error}" if is_named else f"traceback: {error!r}"
    return "correct" if is_right else "silent"


def archive(members: list[tuple[str, bytes]], **attributes: object) -> bytes:
    """A compressed archive; the attributes are those of its last member's header."""
    content = b""
    for i, (name, data) in enumerate(members):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        if i == len(members) - 1:
            for key, value in attributes.items():
                setattr(info, key, value)
        content += info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    return gzip.compress(content + bytes(1024))


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit, or a run of bytes."""
    altered = bytearray(content)
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        altered[place] ^= 1 << rng.randrange(8)
    else:
        run = altered[place : place + rng.randrange(2, 40_000)]
        altered[place : place + len(run)] = rng.randbytes(len(run))
    return bytes(altered)


def cut(content: bytes, rng: random.Random) -> bytes:
    """A file whose end is missing."""
    return content[: rng.randrange(len(content))]


def swap(content: bytes, rng: random.Random) -> bytes:
    """The first bytes of another format."""
    start = rng.choice(
        [b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80"]
    )
    return start + content[rng.choice([0, len(start), 200]) :]


def enlarge(content: bytes, rng: random.Random) -> bytes:
    """Sizes that the file has not."""
    size = rng.choice([2**31, 2**40, 2**62])
    if content[:2] == b"\x1f\x8b":
        # the header says so, or half a gigabyte of zeros is really there
        if rng.random() < 0.5:
            return archive([("set/images", b"")], size=min(size, 8**11 - 1))
        return archive([("set/images", bytes(512 << 20))])
    if b"(60, 40)" in content:
        return content.replace(b"(60, 40), }        ", b"(%d, 40), }" % min(size, 10**9), 1)
    return size.to_bytes(8, "little") + content[8:]


def lead_astray(content: bytes, rng: random.Random) -> bytes:
    """Members that lie outside, or are links."""
    name = rng.choice(["../../images", "/tmp/images", "set/images"])
    kind = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
    return archive([(name, b"")], type=kind, linkname=rng.choice([name, "/etc/passwd"]))


def replace_by_pickle(content: bytes, rng: random.Random) -> bytes:
    """A pickle that makes the folder "executed", alone or inside the format."""
    payload = np.array([Payload("executed")], dtype=object)
    file = io.BytesIO()
    if rng.random() < 0.3:
        return pickle.dumps(payload)
    if content[:2] == b"\x1f\x8b":
        return archive([("set/images", pickle.dumps(payload))])
    if content[:2] == b"PK":
        np.savez(file, payload)
    else:
        np.save(file, payload)
    return file.getvalue()


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    cut,
    swap,
    enlarge,
    lead_astray,
    replace_by_pickle,
)
SUFFIXES = {"archive": ".tar.gz", "file": ".bin", "tensors": ".safetensors", "sparse npz": ".npz"}


def run_case(seed: int, folder: Path) -> dict[str, Any]:
    """One damaged file, read by a process of its own in an empty folder."""
    rng = random.Random(seed)
    kind, damage = KINDS[seed % len(KINDS)], DAMAGES[seed // len(KINDS) % len(DAMAGES)]
    if kind == "npy" and damage is flip:
        damage = cut  # an array without a checksum holds what it holds
    path = folder / f"data{SUFFIXES.get(kind, f'.{kind}')}"
    write(kind, path)
    path.write_bytes(damage(path.read_bytes(), rng))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=report_case, args=(kind, path, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = {"outcome": "traceback", "seconds": 0.0, "megabytes": 0.0}
    process.join()
    if (folder / "executed").exists():
        found["outcome"] = "executed"
    return {"seed": seed, "kind": kind, "damage": damage.__name__, **found}


def report_case(kind: str, path: Path, sender: Connection) -> None:
    """Reads one file; sends what became of it, the seconds, and the megabytes that it took."""
    os.chdir(path.parent)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    outcome = read(kind, path)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sender.send({"outcome": outcome, "seconds": seconds, "megabytes": grown})


def measure(num_cases: int) -> list[dict[str, Any]]:
    """What became of each damaged file."""
    cases = []
    for seed in range(num_cases):
        with tempfile.TemporaryDirectory(prefix="lrpilot-damaged-") as folder:
            cases.append(run_case(seed, Path(folder)))
    return cases


def main() -> None:
    """Prints a table of what became of each kind of damage."""
    logging.disable(logging.WARNING)  # what is made anew
    cases = measure(NUM_CASES)
    counts = Counter((case["damage"], case["outcome"].split(":")[0]) for case in cases)
    for case in cases:
        if case["outcome"].split(":")[0] not in ("refused", "correct"):
            print(case)
    outcomes = ("refused", "correct", "silent", "executed", "traceback")
    rows = [
        [damage.__name__, *(str(counts[damage.__name__, outcome]) for outcome in outcomes)]
        for damage in DAMAGES
    ]
    print(format_table(["damage", *outcomes], rows))
    seconds, megabytes = (max(case[key] for case in cases) for key in ("seconds", "megabytes"))
    print(f"at most {seconds:.2f} s and {megabytes:.0f} MB for a file")


if __name__ == "__main__":
    main()
