"""Runs in Parquet files: a row each, with the learning rate and loss of every optimizer step."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.provenance import describe_provenance
from lrpilot.files import write_whole

CURVES = ("lrs", "losses", "actions")
_OF_CURVES = {f"{name}.list.element": "zstd" for name in CURVES}
REQUIRED = ("task", "scheduler", "initial_lr_factor", "initial_lr", "seed", "held_out_loss")
VERSIONS = ("lrpilot", "torch", "commit")
"""What runs of one table have in common."""
ORIGIN = (*VERSIONS, "machine", "command")
"""Columns of every row that say where it comes from."""


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write runs as one Parquet file.

    Args:
        results: at least one; their rows may have different columns, which are then empty.
        path: the file; columns are those of the rows, `CURVES` (lists) and `ORIGIN`.
    """
    described = describe_provenance()
    here = {name: described[name] for name in ORIGIN}
    records = [
        {**(r.origin or here), **r.row, **{name: list(getattr(r, name)) for name in CURVES}}
        for r in results
    ]
    names = list(dict.fromkeys(name for record in records for name in record))
    table = pyarrow.table({name: [record.get(name) for record in records] for name in names})
    file = io.BytesIO()
    # of one run, nothing but the curves is worth it, and the rest takes half of the time of writing
    repeats = len(results) > 1
    with parquet.ParquetWriter(
        file,
        table.schema,
        compression="zstd" if repeats else _OF_CURVES,
        use_dictionary=repeats,
        write_statistics=repeats,
    ) as writer:
        writer.write_table(table)
    write_whole(path, file.getvalue())


def read_results(path: Path) -> list[Result]:
    """What `write_results` wrote.

    Raises:
        ValueError: if the file is no Parquet file, lacks columns, or has rows of two versions.
    """
    try:
        records = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} must be a Parquet file of runs, got: {error}") from error
    missing = [
        name for name in (*REQUIRED, *CURVES, *ORIGIN) if not records or name not in records[0]
    ]
    if missing:
        raise ValueError(f"{path} must have the columns of runs, got none for {missing}")
    require_one_version(records, path)
    others = (*CURVES, *ORIGIN)
    return [
        Result(
            {k: v for k, v in record.items() if k not in others and v is not None},
            lrs=record["lrs"],
            losses=record["losses"],
            actions=record["actions"],
            origin={name: record[name] for name in ORIGIN},
        )
        for record in records
    ]


def require_one_version(rows: Sequence[Mapping[str, Any]], where: object) -> None:
    """Raise a ValueError if rows come from different versions or commits."""
    versions = list(dict.fromkeys(tuple(row[name] for name in VERSIONS) for row in rows))
    if len(versions) > 1:
        shown = " and ".join(
            ", ".join(f"{name} {value}" for name, value in zip(VERSIONS, version, strict=True))
            for version in versions
        )
        raise ValueError(f"{where} must hold runs of one version, got those of {shown}")


@dataclass(frozen=True)
class Store:
    """A folder of finished runs, each in a file of its own that is written whole or not at all.

    Args:
        folder: the folder; it is made if need be.
        renews: whether a run of another version is trained again, where nobody else reads the
            folder; else it is refused.
    """

    folder: Path
    renews: bool = False

    def path(self, name: str) -> Path:
        """Where the run of this name is."""
        return self.folder / f"{name}.parquet"

    def read(self, name: str) -> Result | None:
        """The finished run of this name, or None if it is to be trained.

        Raises:
            ValueError: if the file is damaged, or comes from another version and is not renewed.
        """
        path = self.path(name)
        if not path.exists():
            return None
        (result,) = read_results(path)
        here = describe_provenance()
        try:
            require_one_version([here, result.origin], f"`store` {self.folder}")
        except ValueError as error:
            if self.renews:
                return None
            raise ValueError(f"{error}, which runs now; name another folder") from None
        return result

    def write(self, name: str, result: Result) -> None:
        """Keep a finished run."""
        write_results([result], self.path(name))
