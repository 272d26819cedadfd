"""Reading a split, whatever its format."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from headrace.connectors.map_fields import FieldMapping, compile_mapping
from headrace.connectors.raw_blocks import Block
from headrace.connectors.read_avro import read_avro
from headrace.connectors.read_csv import read_csv
from headrace.connectors.read_lines import read_lines
from headrace.connectors.read_parquet import read_parquet
from headrace.connectors.splits import Split
from headrace.schemas.errors import ConfigError

__all__ = ["Block", "read_split"]


def read_split(
    split: Split,
    *,
    ingest_time: datetime,
    mapping: Mapping[str, Any] | FieldMapping | None = None,
    schema: Mapping[str, Any] | None = None,
    max_record_bytes: int = 16 << 20,
) -> Iterator[Block]:
    """Yields the split's records in order, in blocks of ``RAW_SCHEMA`` with up to 16k rows.

    ``raw`` holds a line (JSON lines, web log) or a JSON document made from the record (CSV, Parquet, Avro, and anything
    with a ``mapping``). A record that can't be read is a row with a ``fault`` and what there is of its bytes; the reading
    goes on after it. The same split gives the same rows.

    Args:
        ingest_time: for the column of that name.
        mapping: the configuration's ``mapping`` section, or the result of :func:`compile_mapping`.
        schema: JSON Schema by which CSV cells are cast; None: the family that the header belongs to.
        max_record_bytes: longest record; a longer one is cut and gets the fault ``line_too_long``.

    Raises:
        ConfigError: a mapping for a web log, a mapping that can't be compiled, ``max_record_bytes`` out of bounds.
        InputError: the file is missing, unreadable, or has changed since it was planned.
    """
    if not 1 <= max_record_bytes <= 1 << 30:
        raise ConfigError(f"max_record_bytes is {max_record_bytes}; it must lie between 1 and {1 << 30}")
    fields = mapping if isinstance(mapping, FieldMapping) or mapping is None else compile_mapping(mapping)
    if split.format == "weblog" and fields is not None:
        raise ConfigError(
            f"{split.path} is a web log, and 'mapping' applies to jsonl, csv, parquet and avro; leave it out"
        )
    if split.format in ("jsonl", "weblog"):
        blocks = read_lines(split, ingest_time=ingest_time, max_record_bytes=max_record_bytes)
        return blocks if fields is None else map(fields.map_block, blocks)
    if split.format == "csv":
        return read_csv(
            split, ingest_time=ingest_time, mapping=fields, schema=schema, max_record_bytes=max_record_bytes
        )
    if split.format == "parquet":
        return read_parquet(split, ingest_time=ingest_time, mapping=fields)
    if split.format == "avro":
        return read_avro(split, ingest_time=ingest_time, mapping=fields)
    raise ConfigError(f"{split.path} has the unknown format {split.format!r}")
