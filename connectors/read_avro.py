"""Avro: each record of an object container file becomes a JSON document."""

import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import fastavro

from headrace.connectors.avro_frames import DECODE_ERRORS, Frame, Header, Window, content, frames, read_header
from headrace.connectors.compression import ByteStream
from headrace.connectors.json_rows import NotJsonError, encode, jsonable, loose_text
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.raw_blocks import Block, BlockBuilder, RowBuffer
from headrace.connectors.splits import Split


def avro_ranges(path: str, compression: str, size: int, split_bytes: int) -> list[tuple[int, int, int]]:
    """Returns (start, end, number of the first record) of splits that begin at blocks, of about ``split_bytes``.

    Raises:
        InputError: the header can't be read, or its codec is not known.
    """
    with ByteStream(path, compression) as stream:
        window = Window(stream)
        header = read_header(window, path)
        if compression != "plain" or size <= split_bytes:
            return [(0, size, 1)]
        starts, record = [(0, 1)], 1
        for frame in frames(window, header.sync):
            if frame.start - starts[-1][0] >= split_bytes:
                starts.append((frame.start, record))
            record += frame.positions
    ends = [start for start, _ in starts[1:]] + [size]
    return [(start, end, first) for (start, first), end in zip(starts, ends, strict=True)]


def read_avro(split: Split, *, ingest_time: datetime, mapping: FieldMapping | None = None) -> Iterator[Block]:
    """Reads the blocks that begin in ``[split.start, split.end)``; codecs null, deflate, snappy, zstandard, bzip2, xz.

    ``raw`` is a JSON document; values, with their logical types, are as :func:`jsonable` says (decimals text, times RFC 3339
    in UTC); null members are absent. ``origin_position`` is the number of the record in the file.
    Rows with a fault: ``not_json`` (NaN, infinity, a time that the calendar lacks; ``raw`` is a readable text of the record),
    ``broken_block`` (``raw`` is the block's first 64 KiB; if its frame is intact, all its records count in the positions, else
    one, and the reading goes on after the next sync marker), ``truncated_input`` (``raw`` as before, perhaps empty).

    Raises:
        InputError: the file is missing, unreadable or has changed, its header is damaged, or its codec is not known.
    """
    with ByteStream(split.path, split.compression, size_bytes=split.size_bytes) as stream:
        window = Window(stream)
        header = read_header(window, split.path)
        if not split.start:
            yield from _blocks(split, window, header, ingest_time, mapping)
            return
    with ByteStream(split.path, start=split.start, size_bytes=split.size_bytes) as stream:
        yield from _blocks(split, Window(stream, split.start), header, ingest_time, mapping)


def _blocks(
    split: Split, window: Window, header: Header, ingest_time: datetime, mapping: FieldMapping | None
) -> Iterator[Block]:
    rows = RowBuffer(BlockBuilder(split.origin, ingest_time), split.start)
    plain = split.compression == "plain"
    position = split.first_record
    counted = 0
    for frame in frames(window, header.sync):
        if plain and frame.start >= split.end:
            break
        stands = window.start if plain else window.stream.position
        records = _decode(header, frame) if frame.sound else None
        counted += 1 if records is None else frame.records
        if records is None:
            rows.add(frame.payload, position, "broken_block")
        for i, record in enumerate(records or ()):
            raw, fault = _document(record, mapping)
            rows.add(raw, position + i, fault)
            if rows.full:
                taken = len(rows)
                yield rows.take(taken, stands)
                counted -= taken
        position += frame.positions
    if window.stream.truncated:
        rows.add(window.cut, position, "truncated_input")
        counted += 1
    if len(rows):
        yield rows.take(counted, min(window.start, split.end) if plain else window.stream.position)


class _UnreadableRecord:
    """A record with a value that Python lacks, such as a time beyond the year 9999; ``values`` are as stored."""

    def __init__(self, values: Any) -> None:
        self.values = values


def _decode(header: Header, frame: Frame) -> list[Any] | None:
    """Returns the block's records, or None if its content is corrupt."""
    try:
        records = list(fastavro.reader(io.BytesIO(content(header, frame))))
    except DECODE_ERRORS:
        return _decode_one_by_one(header, frame)
    return records if len(records) == frame.records else None


def _decode_one_by_one(header: Header, frame: Frame) -> list[Any] | None:
    """Tells records with an impossible value of a logical type from a corrupt block."""
    stored = fastavro.parse_schema(_without_logical_types(header.schema))
    full = fastavro.parse_schema(header.schema)
    try:
        values = list(fastavro.reader(io.BytesIO(content(header._replace(schema=stored), frame))))
    except DECODE_ERRORS:
        return None
    records: list[Any] = []
    for value in values:
        one = io.BytesIO()
        fastavro.schemaless_writer(one, stored, value)
        one.seek(0)
        try:
            records.append(fastavro.schemaless_reader(one, full, None))
        except DECODE_ERRORS:
            records.append(_UnreadableRecord(value))
    return records if len(records) == frame.records else None


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: _without_logical_types(v) for k, v in schema.items() if k != "logicalType"}
    return [_without_logical_types(s) for s in schema] if isinstance(schema, list) else schema


def _document(record: Any, mapping: FieldMapping | None) -> tuple[bytes, str | None]:
    if isinstance(record, _UnreadableRecord):
        return loose_text(record.values), "not_json"
    try:
        document = jsonable(record)
    except NotJsonError:
        return loose_text(record), "not_json"
    text = encode(document)
    return text if mapping is None or not isinstance(document, dict) else encode(
        mapping(document, text)
    ), None
