"""Looking one event up in an output: in the lake and in the quarantine."""

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.connectors.delta_commit import committed_files
from headrace.connectors.write_lake import STATISTICS
from headrace.schemas.errors import ConfigError, UntrustedRunError

TABLES = ("events", "quarantine")


@dataclass(frozen=True)
class Found:
    """One row of an output."""

    table: str
    """``events`` or ``quarantine``."""
    columns: dict[str, Any]
    """Its values that are not null, in the table's order: times as UTC datetime, money as Decimal, a sealed document as
    ``document_bytes``, its size."""


def find_event(out: str | os.PathLike[str], event_id: str) -> list[Found]:
    """Returns every row of an event: one of the lake, one a rejection; duplicates are rejections of the same id.

    Reads the committed files only, of each the id column, and the other columns of row groups that hold a match.

    Args:
        out: the output of a run.
        event_id: an event's id in any case, or ``ORIGIN:POSITION`` (``app.jsonl.gz:17``) of the record it was read from.

    Returns:
        Rows of the lake first; empty if there are none.

    Raises:
        ConfigError: ``event_id`` is empty, or ``out`` holds no committed run.
        UntrustedRunError: a committed file is missing or damaged.
    """
    wanted = event_id.strip()
    if not wanted:
        raise ConfigError("the event's id is empty; give an id, or ORIGIN:POSITION as in app.jsonl.gz:17")
    if not Path(out).is_dir():
        raise ConfigError(f"output {os.fspath(out)} does not exist; name the --output of a run")
    origin, _, position = wanted.rpartition(":")
    if origin and position.isascii() and position.isdigit() and int(position) < 2**63:
        terms: dict[str, Any] = {"origin_position": int(position), "origin": origin}
    else:
        terms = {"event_id": wanted.lower()}
    found: list[Found] = []
    for table in TABLES:
        root = Path(out) / table
        for path in committed_files(root):
            try:
                found += [Found(table, row) for row in _rows(root, path, terms)]
            except (OSError, pa.ArrowInvalid) as error:
                raise UntrustedRunError(
                    f"file {root / path} of the committed table can't be read: {error}. Run again with another --output"
                ) from error
    return found


def _rows(root: Path, path: str, terms: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of one file in which every term's column has its value."""
    partition = dict(part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
    with pq.ParquetFile(root / path, memory_map=True) as file:
        names = file.schema_arrow.names
        if not set(terms) <= set(names):
            return
        for group in range(file.num_row_groups):
            if not _may_hold(file.metadata.row_group(group), names, terms):
                continue
            keys = file.read_row_group(group, columns=list(terms), use_threads=False)
            match = None
            for name, value in terms.items():
                equal = pc.equal(keys.column(name), pa.scalar(value, keys.schema.field(name).type))
                match = equal if match is None else pc.and_(match, equal)
            rows = pc.indices_nonzero(match)
            if len(rows):
                for row in file.read_row_group(group, use_threads=False).take(rows).to_pylist():
                    yield _shown(row, partition)


def _may_hold(group: pq.RowGroupMetaData, names: list[str], terms: dict[str, Any]) -> bool:
    for name in terms.keys() & set(STATISTICS):
        range_ = group.column(names.index(name)).statistics
        if range_ is not None and range_.has_min_max and not range_.min <= terms[name] <= range_.max:
            return False
    return True


def _shown(row: dict[str, Any], partition: dict[str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            shown[f"{name}_bytes"] = len(value)
        elif value is not None:
            shown[name] = value
    return {**shown, **{name: datetime.date.fromisoformat(value) for name, value in partition.items()}}
