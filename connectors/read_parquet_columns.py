"""Parquet as typed columns: rows become JSON documents only where the columns do not say enough."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.connectors.json_rows import NotJsonError, encode, jsonable, paths_of
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.raw_blocks import FAULT_BYTES, Block, BlockBuilder
from headrace.connectors.read_parquet import (
    Documents,
    offset_of,
    open_parquet,
    readable_values,
    rows_at_once,
    stored_bytes,
)
from headrace.connectors.splits import Split
from headrace.schemas.columns import RAW_SCHEMA, TIME
from headrace.schemas.json_text import MAX_DEPTH, canonical
from headrace.transforms.batches import replace
from headrace.transforms.column_texts import Texts
from headrace.transforms.decode_columns import ColumnBatch

_HUGE_EXPONENT = re.compile(rb"[0-9][eE][+-]?[0-9]{3}")
"""Numbers that only the row validator judges."""


class ColumnBlock(NamedTuple):
    """As :class:`headrace.connectors.raw_blocks.Block`, with the records as columns."""

    raw: ColumnBatch
    read_bytes: int
    records: int


def read_parquet_columns(
    split: Split,
    *,
    ingest_time: datetime,
    mapping: FieldMapping | None = None,
    ingest_column: str | None = None,
    groups: Sequence[int] | None = None,
    skip: Mapping[int, Collection[str]] = MappingProxyType({}),
) -> Iterator[ColumnBlock | Block]:
    """Reads the row groups ``[split.start, split.end)`` as columns, in batches.

    Positions, faults and broken row groups are those of :func:`headrace.connectors.read_parquet.read_parquet`; a broken group is
    a :class:`Block` of one row.

    Args:
        mapping: applied to the documents; with one, every row has to be written as a document.
        ingest_column: column with each row's ingest time, which is no part of the documents then; where it is null, and in a file
            without it, ``ingest_time`` counts.
        groups: the row groups to read, ascending; None: all of the split. The others' rows are not counted.
        skip: columns without any value, by row group: they are not read.

    Raises:
        InputError: the file is missing, unreadable or has changed.
    """
    builder = BlockBuilder(split.origin, ingest_time)
    with open_parquet(split.path, split.compression, split.size_bytes) as (file, source):
        names = file.schema_arrow.names
        paths = dict(zip(names, paths_of(names, split.path), strict=True))
        if ingest_column is not None:
            paths.pop(ingest_column, None)
        make = Documents(paths, mapping)
        position, done, reported = split.first_record, 0, 0
        for number in range(split.start, split.end):
            group = file.metadata.row_group(number)
            if groups is not None and number not in groups:
                position += group.num_rows
                continue
            left = group.num_rows
            waiting: ColumnBlock | None = None
            broken = False
            try:
                for batch in _batches(file, group, number, skip.get(number, ())):
                    if waiting is not None:
                        yield waiting
                    rows = ColumnBatch(
                        batch.select([n for n in batch.schema.names if n in paths]),
                        paths,
                        _source(builder, batch, position, ingest_column),
                        make,
                        cells,
                    )
                    waiting = ColumnBlock(rows, 0, batch.num_rows)
                    position += batch.num_rows
                    left -= batch.num_rows
            except (pa.ArrowException, OSError):
                broken = True
            broken = broken or left > 0
            done += stored_bytes(group)
            if waiting is not None:
                yield waiting._replace(read_bytes=done - reported)
                reported = done
            if broken:
                source.seek(offset_of(group))
                text = pa.array([source.read(FAULT_BYTES)], pa.binary())
                raw = builder.build(text, pa.array([position], pa.int64()), ["broken_block"])
                yield Block(raw, done - reported, 1)
                reported = done
                position += left


def cells(array: pa.Array, sort_keys: bool) -> Texts:
    """Returns the JSON text of each value, made one by one; what JSON can't hold is not known."""
    missing = array.is_null().to_numpy(zero_copy_only=False)
    try:
        values = readable_values(array).to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, pa.ArrowException):
        return Texts(pa.nulls(len(array), pa.string()), missing)
    texts: list[str | None] = []
    known = np.ones(len(array), bool)
    for row, value in enumerate(values):
        text = None if value is None else _cell(value, sort_keys)
        texts.append(text)
        known[row] = value is None or text is not None
    return Texts(pa.array(texts, pa.string()), known)


def _cell(value: object, sort_keys: bool) -> str | None:
    try:
        text = encode(jsonable(value))
    except NotJsonError:
        return None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH // 2 or _HUGE_EXPONENT.search(text):
        return None
    return canonical(text) if sort_keys else text.decode()


def _batches(
    file: pq.ParquetFile, group: pq.RowGroupMetaData, number: int, skip: Collection[str]
) -> Iterator[pa.RecordBatch]:
    names = [name for name in file.schema_arrow.names if name not in skip] or None
    return iter(file.iter_batches(rows_at_once(group), row_groups=[number], columns=names, use_threads=False))


def _source(
    builder: BlockBuilder, batch: pa.RecordBatch, position: int, ingest_column: str | None
) -> pa.RecordBatch:
    rows = batch.num_rows
    positions = pa.array(np.arange(position, position + rows, dtype=np.int64))
    source = builder.build(pa.nulls(rows, pa.binary()), positions)
    if ingest_column is None or batch.schema.get_field_index(ingest_column) < 0:
        return source
    stated = batch.column(batch.schema.get_field_index(ingest_column)).cast(TIME, safe=False)
    times = pc.coalesce(stated, source.column("ingest_time"))
    return replace(source, {"ingest_time": times}).cast(RAW_SCHEMA)
