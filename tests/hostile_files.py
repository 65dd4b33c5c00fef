"""What happens to who reads a hostile file? `python tests/hostile_files.py`.

A thousand policies, two hundred checkpoints and two hundred data files are damaged or forged: bits
flipped, ends cut off, headers swapped, sizes made huge, names led out of their folder, contents
replaced by pickles that would make a folder. Each is read by a process of its own, which may take
so much memory and so many seconds. The bar: an error of ours that names the file, or what the whole
file says; no crash, no code run, nothing written. (Needs a system that can fork.)
"""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.side_by_side import print_origin, read_options
from lrpilot import Policy, PolicyFileError
from lrpilot.agents import train
from lrpilot.agents.checkpoint import CheckpointError, load_snapshot, read_snapshot
from lrpilot.envs import LRControlEnv
from lrpilot.evaluation.report import format_table
from lrpilot.policy.actor import SHIPPED
from lrpilot.tasks.quadratic import QuadraticTask
from tests import damaged_data
from tests.damaged_data import Payload, cut, flip

MEGABYTES = 1024
SECONDS = 20.0
GOOD = ("refused", "correct")
_HUGE = (2**31, 2**40, 2**62, 2**63, 2**64 - 1)
_CHECKPOINT_TITLE = b"lrpilot checkpoint 3 "

Damage = Callable[[bytes, random.Random], bytes]


class Kind(NamedTuple):
    """A kind of file."""

    number: int
    damages: Sequence[Damage]
    write: Callable[[int, Path], Path]
    """Writes the whole file of a case into a folder."""
    read: Callable[[Path], str]
    """What becomes of reading a file: "refused: ..." or "correct", else "silent"."""


def evil_pickle(content: bytes, rng: random.Random) -> bytes:
    """A pickle that makes the folder "executed", as it is, as torch has it, or in an archive."""
    payload = Payload("executed")
    file = io.BytesIO()
    which = rng.randrange(3)
    if which == 0:
        return pickle.dumps(payload, rng.randrange(6))
    if which == 1:
        torch.save({"agent": payload}, file)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(payload))
            archive.writestr("archive/version", "3")
    return file.getvalue()


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """A block of zeros, of noise, or of the file's own start."""
    start, size = rng.randrange(len(content)), rng.randrange(1, 5000)
    block = rng.choice([bytes(size), rng.randbytes(size), content[:size]])
    return content[:start] + block + content[start + size :]


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _joined(header: str, arrays: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + arrays


@cache
def _policies() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SHIPPED.glob("*.safetensors"))]


def swap_header(content: bytes, rng: random.Random) -> bytes:
    """The header of another policy, or another format's first bytes."""
    if rng.random() < 0.5:
        start = rng.choice([b"PK\x03\x04", b"\x80\x04", b"\x93NUMPY", b"\x1f\x8b\x08"])
        return start + content[rng.choice([0, len(start)]) :]
    header, _ = _parts(rng.choice(_policies()))
    return _joined(json.dumps(header), _parts(content)[1])


def huge_size(content: bytes, rng: random.Random) -> bytes:
    """A length, a shape or an offset that the file has not."""
    huge = rng.choice(_HUGE)
    if rng.random() < 0.3:
        return struct.pack("<Q", huge) + content[8:]
    header, arrays = _parts(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    if rng.random() < 0.5:
        entry["shape"] = [huge, *entry["shape"][1:]]
    else:
        entry["data_offsets"] = [entry["data_offsets"][0], huge]
    return _joined(json.dumps(header), arrays)


def lead_out(content: bytes, rng: random.Random) -> bytes:
    """Names of arrays and values that are paths out of the folder."""
    header, arrays = _parts(content)
    astray = rng.choice(["../../executed", "/tmp/executed", "..\\executed", "file:///etc/passwd"])
    name = rng.choice(list(header))
    if name == "__metadata__":
        key = rng.choice(list(header[name]))
        header[name] = {**header[name], key: astray}
    else:
        header[astray] = header.pop(name)
    return _joined(json.dumps(header), arrays)


def deep_header(content: bytes, rng: random.Random) -> bytes:
    """A header of brackets that are never, or late, closed, or with values of other kinds."""
    header, arrays = _parts(content)
    depth = rng.choice([10**3, 10**5])
    name = rng.choice([key for key in header if key != "__metadata__"])
    text = rng.choice(
        [
            "[" * depth + "]" * depth,
            '{"a":' * depth,
            json.dumps({**header, name: rng.choice([None, [], {}, "x", -1, float("nan")])}),
            json.dumps({**header, "__metadata__": rng.choice([None, [], {}, "x", {"a": 1}])}),
            json.dumps(header)[:-1] + "," + json.dumps(header)[1:],
        ]
    )
    return _joined(text, arrays)


def _write_policy(index: int, folder: Path) -> Path:
    path = folder / "policy.safetensors"
    path.write_bytes(_policies()[index % len(_policies())])
    return path


@cache
def _known_policies() -> list[tuple[str, Any]]:
    wholes = [Policy.load(path) for path in sorted(SHIPPED.glob("*.safetensors"))]
    return [(whole.fingerprint, whole.card) for whole in wholes]


def _read_policy(path: Path) -> str:
    try:
        found = Policy.load(path)
    except PolicyFileError as error:
        return f"refused: {error}" if str(path) in str(error) else f"unnamed: {error}"
    return "correct" if (found.fingerprint, found.card) in _known_policies() else "silent"


@cache
def _agent() -> tuple[PPO, bytes]:
    """An agent, and a checkpoint of it."""
    task = QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=20, dimension=10
    )
    env = DummyVecEnv([lambda: LRControlEnv(task, num_decisions=5)])

    def make(**arguments: Any) -> PPO:
        return PPO("MlpPolicy", n_steps=12, batch_size=12, n_epochs=1, **arguments)

    with tempfile.TemporaryDirectory(prefix="lrpilot-hostile-") as folder:
        train(
            task,
            LRControlEnv(task, num_decisions=5).settings,
            algorithm=make,
            total_steps=12,
            num_envs=1,
            run_dir=Path(folder),
            show_progress=False,
            make_env=lambda *_, **__: env,
        )
        content = (Path(folder) / "checkpoint.pt").read_bytes()
    return make(env=env, seed=0, device="cpu"), content


def _with_digest(payload: bytes) -> bytes:
    return _CHECKPOINT_TITLE + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def swap_title(content: bytes, rng: random.Random) -> bytes:
    """Another title, or another format's."""
    start = rng.choice([b"PK\x03\x04", b"\x80\x04", b"lrpilot checkpoint 9 ", b"\x00" * 21, b"\n"])
    return start + content[len(_CHECKPOINT_TITLE) * rng.randrange(2) :]


def forged_pickle(content: bytes, rng: random.Random) -> bytes:
    """A pickle with the digest that belongs to it."""
    return _with_digest(evil_pickle(content, rng))


def forged_sizes(content: bytes, rng: random.Random) -> bytes:
    """Members that unpack to gigabytes, or that lie outside, with the right digest."""
    payload = content[content.index(b"\n") + 1 :]
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(payload)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        victim = rng.choice(names)
        for name in names:
            data = old.read(name)
            if name == victim and rng.random() < 0.5:
                new.writestr(name, bytes(256 << 20), zipfile.ZIP_DEFLATED, compresslevel=1)
            elif name == victim:
                new.writestr(rng.choice([f"../../{name}", f"/tmp/{name}"]), data)
            else:
                new.writestr(name, data)
    return _with_digest(file.getvalue())


def forged_values(content: bytes, rng: random.Random) -> bytes:
    """A value of the snapshot that is missing, or of another kind or size, with its digest."""
    snapshot = torch.load(io.BytesIO(content[content.index(b"\n") + 1 :]), weights_only=True)
    node: Any = snapshot
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        is_deeper = isinstance(node[key], dict | list) and len(node[key])
        if not is_deeper or rng.random() < 0.3:
            break
        node = node[key]
    others: list[Any] = [
        None,
        "x",
        -(2**70),
        float("nan"),
        [],
        {},
        torch.zeros(3, 1),
        [[1]] * 3,
        (),
    ]
    node[key] = rng.choice(others)
    file = io.BytesIO()
    torch.save(snapshot, file)
    return _with_digest(file.getvalue())


def _write_checkpoint(index: int, folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    path.write_bytes(_agent()[1])
    return path


def _read_checkpoint(path: Path) -> str:
    """What becomes of a checkpoint that is resumed; one that was forged may be another agent's."""
    model, whole = _agent()
    try:
        load_snapshot(model, read_snapshot(path))
    except CheckpointError as error:
        return f"refused: {error}"
    content = path.read_bytes()
    is_whole_digest = content[: content.index(b"\n")] != whole[: whole.index(b"\n")]
    return "correct" if content == whole else "taken" if is_whole_digest else "silent"


def _write_data(index: int, folder: Path) -> Path:
    kind = damaged_data.KINDS[index % len(damaged_data.KINDS)]
    path = folder / f"data{damaged_data.SUFFIXES.get(kind, f'.{kind}')}"
    damaged_data.write(kind, path)
    (folder / "kind").write_text(kind)
    return path


def _read_data(path: Path) -> str:
    return damaged_data.read((path.parent / "kind").read_text(), path)


POLICY_DAMAGES = (flip, cut, swap_header, huge_size, overwrite, lead_out, deep_header, evil_pickle)
CHECKPOINT_DAMAGES = (
    flip,
    cut,
    swap_title,
    overwrite,
    evil_pickle,
    forged_pickle,
    forged_sizes,
    forged_values,
)
KINDS = {
    "policy": Kind(1000, POLICY_DAMAGES, _write_policy, _read_policy),
    "checkpoint": Kind(200, CHECKPOINT_DAMAGES, _write_checkpoint, _read_checkpoint),
    "data": Kind(200, damaged_data.DAMAGES, _write_data, _read_data),
}


def run_case(name: str, index: int) -> dict[str, Any]:
    """One hostile file, read by a process of its own in a folder of its own."""
    kind, rng = KINDS[name], random.Random(f"{name} {index}")
    damage = kind.damages[index % len(kind.damages)]
    with tempfile.TemporaryDirectory(prefix="lrpilot-hostile-") as parent:
        folder = Path(parent) / "in" / "here"
        folder.mkdir(parents=True)
        path = kind.write(index // len(kind.damages), folder)
        if path.suffix == ".npy" and damage is flip:
            damage = cut  # an array without a checksum holds what it holds
        whole = path.read_bytes()
        hostile = damage(whole, rng)
        path.write_bytes(hostile)
        known = _files(Path(parent))
        found = _read_apart(kind, path)
        written = _files(Path(parent)) - known
        if any(file.endswith("executed") for file in written):
            found["outcome"] = "executed"
        elif written and found["outcome"] not in GOOD:
            found["outcome"] += f"; wrote {sorted(written)}"
    if found["outcome"] == "taken" and damage in (forged_values, forged_sizes):
        # whoever writes the digest anew has written another checkpoint, of plain values
        found["outcome"] = "correct"
    return {"kind": name, "index": index, "damage": damage.__name__, **found}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _read_apart(kind: Kind, path: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_case, args=(kind, path, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            return {"outcome": "too slow", "seconds": SECONDS, "megabytes": 0.0}
        found: dict[str, Any] = receiver.recv()
        return found
    except EOFError:
        process.join()
        return {"outcome": f"crash {process.exitcode}", "seconds": 0.0, "megabytes": 0.0}
    finally:
        process.kill()
        process.join()
        receiver.close()


def _report_case(kind: Kind, path: Path, sender: Connection) -> None:
    """Reads one file; sends what became of it, the seconds, and the megabytes that it took."""
    os.chdir(path.parent)
    logging.disable(logging.WARNING)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        outcome = kind.read(path)
    except Exception as error:
        outcome = f"traceback: {error!r}"[:300]
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sender.send({"outcome": outcome, "seconds": seconds, "megabytes": max(0.0, grown)})


def main() -> None:
    """Prints a table of what became of each kind of damage; fails where the bar is not met."""
    options = read_options(__doc__, share=1.0)
    print_origin(f"at most {MEGABYTES} MB more and {SECONDS:g} s for a file")
    cases = []
    for name, kind in KINDS.items():
        cases += [run_case(name, i) for i in range(round(options.share * kind.number))]
    rows = []
    for name, damage in dict.fromkeys((case["kind"], case["damage"]) for case in cases):
        mine = [case for case in cases if (case["kind"], case["damage"]) == (name, damage)]
        counts = Counter(case["outcome"].split(":")[0] for case in mine)
        bad = sum(count for outcome, count in counts.items() if outcome not in GOOD)
        worst = (f"{max(case[key] for case in mine):.1f}" for key in ("seconds", "megabytes"))
        rows.append([f"{name}, {damage}", str(len(mine)), *(str(counts[o]) for o in GOOD)])
        rows[-1] += [str(bad), *worst]
    header = ["files", "number", "refused", "as the whole", "bad", "most seconds", "most MB"]
    print(format_table(header, rows))
    bad_cases = [case for case in cases if case["outcome"].split(":")[0] not in GOOD]
    for case in bad_cases:
        print(case)
    print(f"\n{len(cases)} files, {len(bad_cases)} bad")
    if bad_cases:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
