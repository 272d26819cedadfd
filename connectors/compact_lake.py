"""Keeping a stream's tables small in files: many small ones into few, and files that nothing needs away."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import ColumnProperties, DeltaTable, WriterProperties

from headrace.connectors.delta_commit import STATISTICS_PROPERTY
from headrace.connectors.stream_ledger import micros, read_stream_ledger
from headrace.schemas.errors import ConfigError

TARGET_BYTES = 128 << 20
MIN_FILES = 16
SAFE_AGE = timedelta(days=1)
LEAST_AGE = timedelta(hours=1)


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    removed: int = 0
    """Small files that the table does not need any more."""
    added: int = 0
    """Files that hold their rows now."""
    partitions: int = 0


def compact_lake(
    out: str | os.PathLike[str],
    table: str,
    *,
    target_bytes: int = TARGET_BYTES,
    min_files: int = MIN_FILES,
) -> Compacted:
    """Rewrites the small files of each partition into larger ones. Rows and their number are unchanged, and so is every job's mark.

    Runs beside a committer: rows appended meanwhile stay as they are. Readers see the table before or after. Idempotent; killed
    half-way it leaves files that no commit names. The replaced files stay on disk until :func:`remove_replaced`.

    The new files have statistics of the same columns as the old, in log and footers: no person's data is in them. Deltalake
    cuts their largest times down to milliseconds, so prune by them with a millisecond to spare.

    Args:
        out: the output.
        table: ``events``, ``quarantine``, ``ledger``, ``metrics/NAME`` or ``late/NAME``.
        target_bytes: about the size of the new files; a file of at least half of it is not small.
        min_files: partitions with fewer small files are left as they are.

    Raises:
        ConfigError: an argument is out of range, or there is no such Delta table.
        deltalake.exceptions.CommitFailedError: rows were deleted meanwhile; the table is as the other left it, run it again.
    """
    if target_bytes < 1 << 16 or min_files < 2:
        raise ConfigError(
            f"target_bytes is {target_bytes} and min_files {min_files}; they must be at least {1 << 16} and 2"
        )
    delta = _open(Path(out) / table)
    total = Compacted()
    columns = delta.metadata().partition_columns
    for partition in _crowded(delta, columns, target_bytes, min_files):
        filters = [(name, "=", value) for name, value in zip(columns, partition, strict=True)]
        done = delta.optimize.compact(
            partition_filters=filters or None,
            target_size=target_bytes,
            max_concurrent_tasks=1,
            writer_properties=writer_properties(delta),
        )
        total = Compacted(
            total.removed + done["numFilesRemoved"], total.added + done["numFilesAdded"], total.partitions + 1
        )
    return total


def remove_replaced(out: str | os.PathLike[str], table: str, *, older_than: timedelta = SAFE_AGE) -> int:
    """Deletes files whose rows the table has in other files, or no more, for longer than ``older_than``; returns their number.

    A reader that has opened the table before that loses its files; so does time travel.

    Raises:
        ConfigError: less than an hour, or there is no such Delta table.
    """
    hours = -(-_require_age(older_than) // timedelta(hours=1))
    return len(
        _open(Path(out) / table).vacuum(
            retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=False
        )
    )


def remove_orphans(
    out: str | os.PathLike[str],
    table: str,
    *,
    older_than: timedelta = SAFE_AGE,
    modified_at: Callable[[Path], float] = lambda path: os.stat(path).st_mtime,
) -> list[str]:
    """Deletes Parquet files that no commit names, left by bundles that failed; returns their paths, sorted.

    A file is pending from its writing to its commit, and commits go in the order of arrival. So the age is counted back from the
    last commit in the ledger, never from now: while a job stands still, its pending files don't grow older.

    Args:
        table: as for :func:`compact_lake`.
        older_than: longer than any file waits between being written and being committed, while commits succeed.
        modified_at: gives a file's time of writing in seconds since 1970.

    Raises:
        ConfigError: less than an hour, there is no such Delta table, or the output has no stream's ledger.
    """
    age = _require_age(older_than).total_seconds()
    root = Path(out) / table
    last = read_stream_ledger(out, positions=False).last_commit
    if last is None:
        raise ConfigError(
            f"output {os.fspath(out)} has no stream's ledger, so it can't be told which files are pending; leave them"
        )
    before = micros(last) / 1e6 - age
    # The listing comes first: a file committed while this runs is in the log that is read after it.
    found = [
        path for path in sorted(root.rglob("*.parquet")) if "_delta_log" not in path.relative_to(root).parts
    ]
    found = [path for path in found if not path.name.startswith(".") and modified_at(path) < before]
    delta = _open(root)
    named = set(pa.table(delta.get_add_actions()).column("path").to_pylist())
    named |= {
        _relative(path, root)
        for path in delta.vacuum(
            retention_hours=0, dry_run=True, enforce_retention_duration=False, full=False
        )
    }
    orphans = [path.relative_to(root).as_posix() for path in found]
    orphans = [path for path in orphans if path not in named]
    for path in orphans:
        os.unlink(root / path)
    return orphans


def writer_properties(table: DeltaTable) -> WriterProperties:
    """Returns how deltalake has to write files of this table: zstd, and statistics of the table's own columns only."""
    names = table.metadata().configuration.get(STATISTICS_PROPERTY, "")
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        default_column_properties=ColumnProperties(statistics_enabled="NONE"),
        column_properties={
            name: ColumnProperties(statistics_enabled="CHUNK") for name in names.split(",") if name
        },
    )


def _crowded(
    table: DeltaTable, columns: list[str], target_bytes: int, min_files: int
) -> list[tuple[str, ...]]:
    """Returns the partitions with many small files, as text."""
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    small = Counter(
        tuple(_text(action[f"partition.{name}"]) for name in columns)
        for action in actions
        if action["size_bytes"] * 2 < target_bytes
    )
    return sorted(partition for partition, files in small.items() if files >= min_files)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _open(root: Path) -> DeltaTable:
    if not DeltaTable.is_deltatable(os.fspath(root)):
        raise ConfigError(
            f"{root} is no Delta table; name events, quarantine, ledger, metrics/NAME or late/NAME"
        )
    return DeltaTable(os.fspath(root))


def _require_age(age: timedelta) -> timedelta:
    if age < LEAST_AGE:
        raise ConfigError(
            f"older_than is {age}; it must be at least {LEAST_AGE}, or files in use are deleted"
        )
    return age


def _relative(path: str, root: Path) -> str:
    text = path.removeprefix("file://")
    return Path(text).relative_to(root).as_posix() if os.path.isabs(text) else text
