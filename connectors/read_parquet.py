"""Parquet: each row becomes a JSON document."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.connectors.compression import ByteStream, decompress_small
from headrace.connectors.json_rows import NotJsonError, encode, loose_text, nest, paths_of
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.raw_blocks import BATCH_ROWS, FAULT_BYTES, Block, BlockBuilder, RowBuffer
from headrace.connectors.splits import Split
from headrace.schemas.errors import InputError

DECOMPRESSED_LIMIT = 256 << 20
"""Most bytes of Parquet inside gzip or zstd: it needs random access, so it is held in memory."""


def parquet_ranges(path: str, compression: str, split_bytes: int) -> list[tuple[int, int, int]]:
    """Returns (first row group, end, number of the first row) of splits of about ``split_bytes``.

    Raises:
        InputError: the footer can't be read, or the columns can't be made into a document.
    """
    with open_parquet(path, compression, None) as (file, _):
        paths_of(file.schema_arrow.names, path)
        meta = file.metadata
        ranges = []
        start, size, first, row = 0, 0, 1, 1
        for group in range(meta.num_row_groups):
            size += stored_bytes(meta.row_group(group))
            row += meta.row_group(group).num_rows
            if (size >= split_bytes and compression == "plain") or group == meta.num_row_groups - 1:
                ranges.append((start, group + 1, first))
                start, size, first = group + 1, 0, row
        return ranges


def read_parquet(
    split: Split, *, ingest_time: datetime, mapping: FieldMapping | None = None
) -> Iterator[Block]:
    """Reads the row groups ``[split.start, split.end)``, one after the other in batches.

    ``raw`` is a JSON document: nulls are absent, dotted column names make nested objects, maps become objects, values are as
    :func:`jsonable` says (decimals text, times RFC 3339 in UTC, naive ones taken as UTC). Times below a microsecond are cut.
    ``origin_position`` is the row number in the file. Columns that no schema knows are kept like any other field.
    Rows with a fault: ``not_json`` (NaN, infinity, a time that the calendar lacks; ``raw`` is a readable text of the row) and
    ``broken_block`` (a row group that can't be decoded from this row on; ``raw`` is its first 64 KiB).

    Raises:
        InputError: the file is missing, unreadable or has changed; for one inside gzip or zstd, more than 256 MiB.
    """
    rows = RowBuffer(BlockBuilder(split.origin, ingest_time))
    with open_parquet(split.path, split.compression, split.size_bytes) as (file, source):
        names = file.schema_arrow.names
        make = Documents(dict(zip(names, paths_of(names, split.path), strict=True)), mapping)
        position, done = split.first_record, 0
        for number in range(split.start, split.end):
            group = file.metadata.row_group(number)
            left = group.num_rows
            try:
                for batch in file.iter_batches(rows_at_once(group), row_groups=[number], use_threads=False):
                    if len(rows):
                        yield rows.take(len(rows), done)
                    for i, (document, fault) in enumerate(make(batch)):
                        rows.add(document, position + i, fault)
                    position += batch.num_rows
                    left -= batch.num_rows
            except (pa.ArrowException, OSError):
                broken = True
            else:
                broken = left > 0
            done += stored_bytes(group)
            if broken:
                source.seek(offset_of(group))
                rows.add(source.read(FAULT_BYTES), position, "broken_block")
                position += left
            if len(rows):
                # The footer says how many rows there are; only a row for a broken group stands for several.
                yield rows.take(len(rows) + (0 if broken else left), done)


@contextlib.contextmanager
def open_parquet(
    path: str, compression: str, size_bytes: int | None
) -> Iterator[tuple[pq.ParquetFile, pa.NativeFile]]:
    with ByteStream(path, size_bytes=size_bytes):
        pass
    if compression == "plain":
        source = pa.OSFile(path)
    else:
        source = pa.BufferReader(decompress_small(path, compression, DECOMPRESSED_LIMIT))
    with source:
        try:
            file = pq.ParquetFile(source)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is no readable Parquet file: its footer is damaged, encrypted or cut off; fetch it again"
            ) from error
        with file:
            yield file, source


def _columns(group: pq.RowGroupMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    return (group.column(i) for i in range(group.num_columns))


def stored_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(column.total_compressed_size for column in _columns(group))


def offset_of(group: pq.RowGroupMetaData) -> int:
    """Where the row group's bytes begin."""
    return min(
        (column.dictionary_page_offset or column.data_page_offset for column in _columns(group)), default=0
    )


def rows_at_once(group: pq.RowGroupMetaData) -> int:
    """How many rows make about 32 MiB, at most ``BATCH_ROWS``."""
    size = max(group.total_byte_size, 1)
    return max(min(BATCH_ROWS, (32 << 20) * group.num_rows // size), 1)


class Documents:
    """Makes (JSON document, fault) of each row of a batch."""

    def __init__(self, paths: dict[str, tuple[str, ...]], mapping: FieldMapping | None) -> None:
        self._paths = paths
        self._mapping = mapping

    def __call__(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes, str | None]]:
        plain = pa.RecordBatch.from_arrays(
            [readable_values(c) for c in batch.columns], names=batch.schema.names
        )
        try:
            rows: list[dict[str, Any] | None] = plain.to_pylist(maps_as_pydicts="strict")
        except (ValueError, OverflowError, KeyError):
            rows = [_row(plain.slice(i, 1)) for i in range(batch.num_rows)]
        for i, row in enumerate(rows):
            if row is None:
                columns = zip(plain.schema.names, plain.columns, strict=True)
                yield (
                    loose_text({name: column.slice(i, 1).to_string() for name, column in columns}),
                    "not_json",
                )
                continue
            try:
                document = nest(row, self._paths)
            except NotJsonError:
                yield loose_text(row), "not_json"
                continue
            text = encode(document)
            yield text if self._mapping is None else encode(self._mapping(document, text)), None


def _row(row: pa.RecordBatch) -> dict[str, Any] | None:
    """Returns one row as Python values; None if it holds a time that Python lacks, or a map with a key twice."""
    try:
        return row.to_pylist(maps_as_pydicts="strict")[0]
    except (ValueError, OverflowError, KeyError):
        return None


def readable_values(column: pa.Array) -> pa.Array:
    """Converts what Python reads badly: nanoseconds are cut to microseconds, zones become UTC, float32 keeps its digits."""
    steps = [_retyped(column.type, _through_text), _retyped(column.type, _readable)]
    if steps[1].equals(column.type):
        return column
    for type_ in steps:
        if not column.type.equals(type_):
            column = pc.cast(column, type_, safe=False)
    return column


def _through_text(type_: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_float32(type_) or pa.types.is_float16(type_) else _readable(type_)


def _readable(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        unit = "us" if type_.unit == "ns" else type_.unit
        return pa.timestamp(unit, "UTC" if type_.tz else None)
    if pa.types.is_float32(type_) or pa.types.is_float16(type_):
        return pa.float64()
    if pa.types.is_duration(type_) and type_.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if type_.equals(pa.time64("ns")) else type_


def _retyped(type_: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Returns the type with every leaf replaced."""

    def field(inner: pa.Field) -> pa.Field:
        return inner.with_type(_retyped(inner.type, leaf))

    if pa.types.is_struct(type_):
        return pa.struct([field(type_.field(i)) for i in range(type_.num_fields)])
    if pa.types.is_large_list(type_):
        return pa.large_list(field(type_.value_field))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(field(type_.value_field), type_.list_size)
    if pa.types.is_list(type_):
        return pa.list_(field(type_.value_field))
    if pa.types.is_map(type_):
        return pa.map_(field(type_.key_field), field(type_.item_field), type_.keys_sorted)
    return leaf(type_)
