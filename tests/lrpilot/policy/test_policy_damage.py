"""A thousand damaged policy files: each is refused, or says what the whole one says."""

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lrpilot.policy.actor import SHIPPED, Policy
from lrpilot.policy.policy_file import PolicyFileError

NUM_FILES = 200  # of each kind
SOURCES = [path.read_bytes() for path in sorted(SHIPPED.glob("*.safetensors"))]


def header_of(content: bytes) -> tuple[dict[str, object], bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: object, arrays: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + arrays


def flip_a_bit(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content))]


def swap(content: bytes, rng: Random) -> bytes:
    """The header of one policy on the arrays of another, or one of their parts."""
    header, arrays = header_of(content)
    other, other_arrays = header_of(SOURCES[SOURCES.index(content) - 1])
    if rng.random() < 0.5:
        return with_header(other, arrays)
    cut = rng.randrange(len(arrays))
    return with_header(header, arrays[:cut] + other_arrays[cut:])


def declare_a_huge_size(content: bytes, rng: Random) -> bytes:
    huge = rng.choice([2**31, 2**40, 2**62, 2**63, 2**64 - 1])
    if rng.random() < 0.3:
        return struct.pack("<Q", huge) + content[8:]
    header, arrays = header_of(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = dict(header[name])  # type: ignore[call-overload]
    if rng.random() < 0.5:
        entry["shape"] = [huge, *entry["shape"][1:]]
    else:
        entry["data_offsets"] = [entry["data_offsets"][0], huge]
    return with_header({**header, name: entry}, arrays)


def overwrite_a_block(content: bytes, rng: Random) -> bytes:
    start, size = rng.randrange(len(content)), rng.randrange(1, 5000)
    block = rng.choice([bytes(size), rng.randbytes(size), content[:size]])
    return content[:start] + block + content[start + size :]


@pytest.mark.parametrize(
    "damage", [flip_a_bit, truncate, swap, declare_a_huge_size, overwrite_a_block]
)
def test_a_damaged_file_is_refused_or_says_what_the_whole_one_says(
    tmp_path: Path, damage: Callable[[bytes, Random], bytes]
) -> None:
    wholes = [Policy.load(path) for path in sorted(SHIPPED.glob("*.safetensors"))]
    known = [(whole.fingerprint, whole.card) for whole in wholes]
    path = tmp_path / "p"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages = []
    for seed in range(NUM_FILES):
        rng = Random(seed)
        path.write_bytes(damage(rng.choice(SOURCES), rng))
        try:
            loaded = Policy.load(path)
        except PolicyFileError as error:
            messages.append(str(error))
        else:
            assert (loaded.fingerprint, loaded.card) in known
    assert all(str(path) in message for message in messages)
    assert len(messages) > 0.9 * NUM_FILES
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB


def test_a_file_without_an_end_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with path.open("wb") as file:
        file.write(SOURCES[0])
        file.truncate(10**12)
    with pytest.raises(PolicyFileError, match="is no lrpilot policy: it has 1000000000000 bytes"):
        Policy.load(path)


def test_a_header_of_megabytes_is_refused_unparsed(tmp_path: Path) -> None:
    header, arrays = header_of(SOURCES[0])
    (tmp_path / "p").write_bytes(
        with_header({**header, "__metadata__": {"lrpilot": "[" * 2**21}}, arrays)
    )
    with pytest.raises(PolicyFileError, match="its header is too long"):
        Policy.load(tmp_path / "p")
