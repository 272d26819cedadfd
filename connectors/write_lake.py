"""The lake's Parquet files: rows split by a date column into hive-style folders."""

import datetime
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.atomic_file import AtomicFile, naming
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, plain

STATISTICS = ("event_time", "ingest_time", "origin_position")
"""The only columns with minimum and maximum in Parquet footers and table logs: no person's data outlives its erasure there."""
_BUFFER_BYTES = 64 << 20
_WORTHWHILE = 8
"""A partition with a smaller part of a full row group than 1/8 waits for more rows while memory allows."""


@dataclass(frozen=True)
class WrittenFile:
    """One Parquet file, complete under its name, not yet part of any table."""

    path: str
    """Relative to the table's root, with ``/``: ``event_date=2026-01-05/part-000017.parquet``."""
    rows: int
    size_bytes: int
    partition: dict[str, str | None]
    stats: dict[str, Any] = field(default_factory=dict)
    """Delta statistics: numRecords, and minValues, maxValues (cut to milliseconds, outwards), nullCount of ``STATISTICS``."""


class PartitionedWriter:
    """Writes batches into ``ROOT/PARTITION=DATE/part-NAME.parquet``, one file a date.

    Values, row count and the order of rows within a date are unchanged. The partition column is in the folder's name only.
    Dictionary columns become plain strings with Parquet dictionaries that hold no value but those of the file's rows; times
    are UTC microseconds, money is ``decimal(38, 9)``. The same batches give the same bytes under the same names.

    Memory is bounded by ``rows_per_group`` rows or 64 MB and the batch in hand, however many dates there are. A file
    closed because more than ``open_partitions`` are open is continued as ``part-NAME.1.parquet`` and so on.

    Input: batches of one set of columns (plain and dictionary strings may change places); ``partition`` is date32, never null.
    Delivery: files appear whole, some before :meth:`close`; only a table's commit makes their rows count.

    Args:
        root: the table's folder; missing folders are made.
        partition: the date column.
        name: stem that is unique to this writer and equal in a rerun; letters, digits, ``_`` and ``-``.
        compression: ``zstd``, ``snappy`` or ``none``.
        rows_per_group: rows of a full row group.
        open_partitions: most files open at once.

    Raises:
        ConfigError: an argument is out of range.
        OutputError: the disk refused; no half file has a final name.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        partition: str,
        name: str,
        compression: str = "zstd",
        rows_per_group: int = 65536,
        open_partitions: int = 64,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(
                f"name is {name!r}; use letters, digits, _ and - only, it becomes a file's name"
            )
        if compression not in ("zstd", "snappy", "none"):
            raise ConfigError(f"compression is {compression!r}; use zstd, snappy or none")
        if rows_per_group < 1 or open_partitions < 1:
            raise ConfigError(
                f"rows_per_group is {rows_per_group} and open_partitions {open_partitions}; both must be 1 or more"
            )
        self._root, self._partition, self._name = Path(root), partition, name
        self._compression, self._rows_per_group, self._most = compression, rows_per_group, open_partitions
        self._schema: pa.Schema | None = None
        self._buffer: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._files_of: dict[str, int] = {}
        self._done: list[WrittenFile] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes the rows in; an empty batch is nothing.

        Raises:
            ValueError: other columns than the first batch's, or a null or not-a-date partition.
            OutputError: as above; the writer is given up.
        """
        if not batch.num_rows:
            return
        batch = self._fit(batch)
        self._buffer.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= self._rows_per_group or self._bytes >= _BUFFER_BYTES:
            self._flush(everything=False)

    def close(self) -> list[WrittenFile]:
        """Completes all files and returns them by path; a repeated call returns the same.

        Raises:
            OutputError: as above.
        """
        if self._buffer:
            self._flush(everything=True)
        try:
            while self._open:
                self._finish_oldest()
        except BaseException:
            self.discard()
            raise
        return sorted(self._done, key=lambda file: file.path)

    def discard(self) -> None:
        """Gives up what is not yet under a final name."""
        for file in self._open.values():
            file.discard()
        self._open.clear()
        self._buffer, self._rows, self._bytes = [], 0, 0

    def _fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._schema is None:
            index = batch.schema.get_field_index(self._partition)
            if index < 0 or not pa.types.is_date32(batch.schema.field(index).type):
                raise ValueError(f"the batch has no column {self._partition} of type date32")
            self._schema = pa.schema([pa.field(f.name, _wide(f.type)) for f in batch.schema])
        if batch.column(self._partition).null_count:
            raise ValueError(
                f"{self._partition} is null in {batch.column(self._partition).null_count} rows; "
                "every row needs a date to be stored"
            )
        # Dictionaries that hold a null themselves can't be unified.
        odd = any(pa.types.is_dictionary(a.type) and a.dictionary.null_count for a in batch.columns)
        if batch.schema.equals(self._schema) and not odd:
            return batch
        if batch.schema.names != self._schema.names:
            differing = sorted(set(batch.schema.names) ^ set(self._schema.names))
            raise ValueError(f"the batch has other columns than the file, or another order: {differing}")
        arrays = [as_type(_sound(a), f.type) for a, f in zip(batch.columns, self._schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _flush(self, *, everything: bool) -> None:
        """Writes the buffered dates that have enough rows, or all; the others stay, at most half a buffer of them."""
        table = pa.Table.from_batches(self._buffer).unify_dictionaries().combine_chunks()
        self._buffer, self._rows, self._bytes = [], 0, 0
        kept = []
        try:
            parts = list(_by_date(table, self._partition))
            room = 0 if everything else self._rows_per_group // 2
            room_bytes = 0 if everything else _BUFFER_BYTES // 2
            for date, part in sorted(parts, key=lambda each: (each[1].num_rows, each[0])):
                size = part.nbytes
                if (
                    part.num_rows * _WORTHWHILE < self._rows_per_group
                    and part.num_rows <= room
                    and size <= room_bytes
                ):
                    kept.append(part)
                    room -= part.num_rows
                    room_bytes -= size
                else:
                    self._append(date, part)
        except BaseException:
            self.discard()
            raise
        if kept:
            # A copy: slices, and dictionaries with every value ever seen, would keep what was written in memory.
            rest = pa.concat_tables(kept)
            rest = rest.take(np.arange(rest.num_rows))
            rest = pa.table([_compact(c) for c in rest.columns], schema=self._schema)
            self._buffer = rest.to_batches()
            self._rows, self._bytes = rest.num_rows, rest.nbytes

    def _append(self, date: str, part: pa.Table) -> None:
        part = part.drop_columns([self._partition])
        part = pa.table([_compact(c) for c in part.columns], names=part.column_names)
        file = self._open.get(date)
        if file is None:
            while len(self._open) >= self._most:
                self._finish_oldest()
            turn = self._files_of.get(date, 0)
            self._files_of[date] = turn + 1
            suffix = f".{turn}" if turn else ""
            path = f"{self._partition}={date}/part-{self._name}{suffix}.parquet"
            file = self._open[date] = _OpenFile(self._root, path, part.schema, self._compression)
        self._open.move_to_end(date)
        file.write(part, self._rows_per_group)

    def _finish_oldest(self) -> None:
        date, file = next(iter(self._open.items()))
        self._done.append(file.finish({self._partition: date}))
        del self._open[date]


class _OpenFile:
    """One Parquet file in the making."""

    def __init__(self, root: Path, path: str, schema: pa.Schema, compression: str) -> None:
        self._path = path
        self._file = AtomicFile(root / path)
        self._footers: list[pq.FileMetaData] = []
        with naming(self._file.path):
            self._sink = pa.OSFile(str(self._file.temporary), "wb")
        try:
            with naming(self._file.path):
                self._writer = pq.ParquetWriter(
                    self._sink,
                    schema,
                    compression=compression,
                    compression_level=1 if compression == "zstd" else None,
                    use_dictionary=[f.name for f in schema if pa.types.is_dictionary(f.type)],
                    write_statistics=[name for name in STATISTICS if name in schema.names],
                    store_schema=False,
                    metadata_collector=self._footers,
                )
        except BaseException:
            self._sink.close()
            self._file.discard()
            raise

    def write(self, table: pa.Table, rows_per_group: int) -> None:
        with naming(self._file.path):
            self._writer.write_table(table, row_group_size=rows_per_group)

    def finish(self, partition: dict[str, str | None]) -> WrittenFile:
        with naming(self._file.path):
            self._writer.close()
            self._sink.close()
            size = os.stat(self._file.temporary).st_size
        self._file.commit()
        return WrittenFile(
            self._path, self._footers[0].num_rows, size, partition, delta_statistics(self._footers[0])
        )

    def discard(self) -> None:
        self._writer.is_open = False
        self._sink.close()
        self._file.discard()


def delta_statistics(footer: pq.FileMetaData) -> dict[str, Any]:
    """Returns the file's statistics as Delta's log holds them, for columns of ``STATISTICS`` only.

    Times are text cut to milliseconds, minimum down and maximum up, since readers keep no more. A column without values has
    a nullCount only. Source: Delta transaction log protocol, "Per-file Statistics".
    """
    stats: dict[str, Any] = {"numRecords": footer.num_rows, "minValues": {}, "maxValues": {}, "nullCount": {}}
    names = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
    for name in STATISTICS:
        if name not in names:
            continue
        chunks = [footer.row_group(g).column(names[name]).statistics for g in range(footer.num_row_groups)]
        ranges = [(c.min, c.max) for c in chunks if c is not None and c.has_min_max]
        stats["nullCount"][name] = sum(c.null_count for c in chunks if c is not None)
        if ranges:
            stats["minValues"][name] = _statistic(min(low for low, _ in ranges), up=False)
            stats["maxValues"][name] = _statistic(max(high for _, high in ranges), up=True)
    return stats


def _statistic(value: datetime.datetime | int, *, up: bool) -> str | int:
    if not isinstance(value, datetime.datetime):
        return value
    value = value.replace(tzinfo=None)
    spare = value.microsecond % 1000
    if spare:
        value += datetime.timedelta(microseconds=1000 - spare if up else -spare)
    return value.isoformat(timespec="milliseconds") + "Z"


def _by_date(table: pa.Table, partition: str) -> Iterator[tuple[str, pa.Table]]:
    """Yields (ISO date, its rows in their order) by ascending date."""
    days = table.column(partition).chunk(0).cast(pa.int32()).to_numpy()
    steps = np.diff(days)
    if (steps < 0).any():
        order = np.argsort(days, kind="stable")
        table, days = table.take(order), days[order]
        steps = np.diff(days)
    starts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(days)]
    for start, end in pairwise(starts):
        yield str(days[start].astype("datetime64[D]")), table.slice(start, end - start)


def _wide(type_: pa.DataType) -> pa.DataType:
    """Returns the type with int32 codes if it is a dictionary: codes of 8 bits overflow when batches are joined."""
    return pa.dictionary(pa.int32(), type_.value_type) if pa.types.is_dictionary(type_) else type_


def _sound(array: pa.Array) -> pa.Array:
    """Returns the array with nulls in its codes, not in its dictionary."""
    return plain(array) if pa.types.is_dictionary(array.type) and array.dictionary.null_count else array


def _compact(column: pa.ChunkedArray) -> pa.Array:
    """Returns the column in one chunk, its dictionary with the values that rows have, in the order of their first row.

    So equal rows give equal bytes, however their batches were put together.
    """
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        return array
    codes = array.indices.drop_null().to_numpy()
    first = np.full(len(array.dictionary), len(codes), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[
        ::-1
    ]  # Of several rows the last one written, the first, stays.
    order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(codes))]
    if len(order) == len(first) and (np.diff(order) == 1).all():
        return array
    place = np.zeros(len(first), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return pa.DictionaryArray.from_arrays(
        pa.array(place).take(array.indices), array.dictionary.take(pa.array(order))
    )
