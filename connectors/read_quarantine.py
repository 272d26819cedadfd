"""Reading the quarantine of an output: the files of one version, and the rows that an expression selects."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.delta_commit import committed_files, plain_schema
from headrace.connectors.write_quarantine import PARTITION, QUARANTINE_TABLE_SCHEMA
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.batches import mask_of
from headrace.transforms.filter_rules import CompiledRule, compile_rules, connect

FOLDER = "quarantine"
ROW_SCHEMA = plain_schema(QUARANTINE_TABLE_SCHEMA)
"""Columns of selected rows, and what an expression may name: ``QUARANTINE_SCHEMA`` with plain strings, and ``ingest_date``."""
ROWS_AT_ONCE = 8192

_OUTPUT_FILES = ("manifest.json", "ledger.json", "stream.json")


@dataclass(frozen=True)
class Quarantine:
    """The quarantine of an output as it was when it was opened; what is committed later is not seen."""

    out: Path
    version: int | None
    """Of the Delta table; None for a plain folder, and for an output that has rejected nothing yet."""
    files: tuple[str, ...]
    """Relative to the table's folder, sorted."""

    @property
    def paths(self) -> list[str]:
        """Where the files are."""
        return [str(self.out / FOLDER / file) for file in self.files]


def open_quarantine(out: str | os.PathLike[str]) -> Quarantine:
    """Opens the quarantine of a batch, a stream or a backfill, Delta table or plain folder.

    Returns:
        Its newest version; without files if nothing was rejected.

    Raises:
        ConfigError: ``out`` is no output of a run, or its run has not committed.
    """
    where = Path(out)
    root = where / FOLDER
    if not where.is_dir():
        raise ConfigError(f"output {where} does not exist; name the --output of a run")
    if not root.is_dir():
        if any((where / name).is_file() for name in _OUTPUT_FILES):
            return Quarantine(where, None, ())
        hint = f"; name {where.parent}" if where.name == FOLDER else "; name the --output of a run"
        raise ConfigError(f"{where} is no output of a run (it has no folder {FOLDER}){hint}")
    if not DeltaTable.is_deltatable(os.fspath(root)):
        return Quarantine(where, None, tuple(committed_files(root)))
    while True:  # A stream may commit between the two looks.
        version = DeltaTable(os.fspath(root)).version()
        files = tuple(committed_files(root))
        if DeltaTable(os.fspath(root)).version() == version:
            return Quarantine(where, version, files)


def compile_where(where: str) -> CompiledRule:
    """Checks an expression over the rows of the quarantine.

    It is what would follow WHERE in DuckDB's SQL, as in ``filter`` of the configuration: over the row's own columns, without
    subqueries, files, clocks or random numbers. Times compare as UTC: ``ingest_time >= TIMESTAMPTZ '2026-01-05 10:00Z'``.

    Raises:
        ConfigError: it is none; names what is wrong, and the nearest column where one is unknown.

    Example:
        >>> [field.name for field in compile_where("reason = 'type' AND pointer LIKE '/payload/%'").columns]
        ['reason', 'pointer']
    """
    try:
        return compile_rules({"where": where}, ROW_SCHEMA)[0]
    except ConfigError as error:
        text = str(error).replace("rule 'where'", "--where")
        text = text.replace("which events don't have", "which the quarantine does not have")
        text = text.replace("a rule may only", "it may only").replace("a rule needs", "it needs")
        raise ConfigError(text.replace("such as price <= 0", "such as reason = 'type'")) from None


def all_of(where: str | None, since: str | None = None, until: str | None = None) -> str | None:
    """Returns one checked expression for rows that ``where`` selects and that reached us at ``since`` or later, before ``until``.

    Args:
        since: ISO 8601 time; without a zone UTC; a date is its midnight.
        until: likewise.

    Raises:
        ConfigError: as :func:`compile_where`, or a time that is none, or an empty span.
    """
    parts = []
    if where is not None:
        compile_where(where)
        parts.append(where.strip())
    bounds = [(name, _time(text, name)) for name, text in (("--since", since), ("--until", until)) if text]
    if len(bounds) == 2 and bounds[0][1] >= bounds[1][1]:
        raise ConfigError(f"--since {since} is not before --until {until}; nothing lies between them")
    for name, at in bounds:
        parts.append(f"ingest_time {'>=' if name == '--since' else '<'} {sql_time(at)}")
    if len(parts) < 2:
        return parts[0] if parts else None
    # The newline keeps a comment at the end of an expression from swallowing the parenthesis.
    return " AND ".join(f"({part}\n)" if "--" in part else f"({part})" for part in parts)


def sql_time(at: datetime) -> str:
    """Returns a time as an expression may name it."""
    text = at.astimezone(UTC).isoformat(sep=" ").replace("+00:00", "Z")
    return f"TIMESTAMPTZ '{text}'"


def sql_text(value: str) -> str:
    """Returns text as an expression may name it."""
    return "'" + value.replace("'", "''") + "'"


def select_rows(
    quarantine: Quarantine,
    where: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows for which ``where`` is true; false and NULL are left out.

    Reads only the columns that are asked for and those that ``where`` names, ``rows_at_once`` rows at a time. The same version
    gives the same rows in the same order: by file, then as they stand in it.

    Args:
        where: see :func:`compile_where`; None for all rows.
        columns: of ``ROW_SCHEMA``, in this order; None for all of them. A column that a file lacks is null.

    Raises:
        ConfigError: ``where`` is no such expression or fails on a value, or a column is unknown.
        UntrustedRunError: a committed file is missing or damaged.
    """
    names = list(ROW_SCHEMA.names if columns is None else columns)
    if unknown := [name for name in names if name not in ROW_SCHEMA.names]:
        raise ConfigError(
            f"columns {unknown} are not in the quarantine; it has {', '.join(ROW_SCHEMA.names)}"
        )
    rule = compile_where(where) if where is not None else None
    return _selected(quarantine, rule, names, rows_at_once)


def _selected(
    quarantine: Quarantine, rule: CompiledRule | None, names: list[str], rows_at_once: int
) -> Iterator[pa.RecordBatch]:
    connection = connect() if rule is not None else None
    wanted = dict.fromkeys([*names, *(field.name for field in rule.columns if rule)] if rule else names)
    schema = pa.schema([ROW_SCHEMA.field(name) for name in names])
    for path in quarantine.paths:
        for batch in _batches(path, list(wanted), rows_at_once):
            if rule is not None and connection is not None:
                batch = batch.filter(pa.array(matching(connection, rule, batch)))
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays([batch.column(n) for n in names], schema=schema)


def _batches(path: str, names: list[str], rows_at_once: int) -> Iterator[pa.RecordBatch]:
    """Yields a file's rows with these columns in the types of ``ROW_SCHEMA``."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            have = file.schema_arrow.names
            read = [name for name in (*names, "ingest_time") if name in have]
            for batch in file.iter_batches(
                rows_at_once, columns=list(dict.fromkeys(read)), use_threads=False
            ):
                columns = [_column(batch, name) for name in names]
                yield pa.RecordBatch.from_arrays(columns, names=names)
    except (OSError, pa.ArrowInvalid) as error:
        raise UntrustedRunError(
            f"file {path} of the committed quarantine can't be read: {error}. If `headrace lake compact` has deleted it "
            "meanwhile, run the same command again; else run the pipeline again with another --output"
        ) from error


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    type_ = ROW_SCHEMA.field(name).type
    if name == PARTITION:  # Its value is in the folder's name, and the date of this column by definition.
        return batch.column("ingest_time").cast(type_)
    at = batch.schema.get_field_index(name)
    return pa.nulls(batch.num_rows, type_) if at < 0 else batch.column(at).cast(type_)


def matching(
    connection: duckdb.DuckDBPyConnection, rule: CompiledRule, batch: pa.RecordBatch
) -> npt.NDArray[np.bool_]:
    columns = {field.name: batch.column(field.name) for field in rule.columns}
    if not columns:  # DuckDB needs one column to count rows by.
        columns["_row"] = pa.array(np.zeros(batch.num_rows, np.int8))
    connection.register("rows", pa.table(columns))
    try:
        found = connection.sql(f"SELECT (\n{rule.expression}\n) AS hit FROM rows").to_arrow_table()
    except duckdb.Error as error:
        raise failed_on_value(error) from None
    finally:
        connection.unregister("rows")
    return mask_of(pc.fill_null(found.column("hit").combine_chunks(), False))


def failed_on_value(error: duckdb.Error) -> ConfigError:
    """Returns what to raise where an expression fails on a row's value; the message holds no value."""
    return ConfigError(
        f"--where fails on a value of a row ({type(error).__name__}); guard it, for example TRY_CAST in place of CAST"
    )


def _time(text: str, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{name} {text!r} is no time; write ISO 8601, for example 2026-01-05T10:00:00Z or 2026-01-05"
        ) from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
