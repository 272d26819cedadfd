"""The quarantine and the lake of an output as views of a DuckDB that can read nothing else."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from headrace.connectors.delta_commit import committed_files
from headrace.connectors.read_quarantine import ROW_SCHEMA, Quarantine, failed_on_value, sql_text
from headrace.connectors.write_quarantine import PARTITION
from headrace.pipelines.quarantine.documents import FACTS, Unsealer
from headrace.schemas.errors import UntrustedRunError

DIMENSIONS = (*FACTS, "origin")
"""Columns that tell producers apart."""
MEMORY = "1GB"
"""DuckDB's own; what needs more goes to a temporary folder."""

_EVENT_COLUMNS = ("event_time", "ingest_time", "origin", "origin_position", "schema", *FACTS)
_DOCUMENTS_AT_ONCE = 2048
_TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.int32(): "INTEGER",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
}


@contextlib.contextmanager
def open_database(
    quarantine: Quarantine,
    where: str | None = None,
    *,
    span: str | None = None,
    unsealer: Unsealer | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens views over one version of the quarantine and the newest of the lake.

    - ``stored``: the rows that reached us in ``span``, with the columns of ``ROW_SCHEMA``, and ``file`` and ``row`` of each.
    - ``picked``: those of them that ``where`` selects; columns of :data:`FACTS` that are null come from the documents, if
      an unsealer is given.
    - ``events``: the lake's rows of ``span``, narrowed to what they are compared by.

    Memory is bounded by :data:`MEMORY` and one batch of documents.

    Args:
        where: checked by ``all_of``.
        span: an expression over ``ingest_time`` alone.

    Raises:
        ConfigError: ``where`` fails on a value, or the key is another one.
        UntrustedRunError: a committed file is missing or damaged.
    """
    events = _lake_files(quarantine.out)
    with tempfile.TemporaryDirectory(prefix="headrace-") as spill:
        db = _connect(quarantine.out, spill)
        try:
            during = f"WHERE ({span})" if span else ""
            wanted = f"WHERE (\n{where}\n)" if where else ""
            db.execute(f"CREATE VIEW stored AS SELECT * FROM ({_rows(db, quarantine.paths)}) {during}")
            db.execute(f"CREATE VIEW events AS SELECT * FROM ({_events(events)}) {during}")
            db.execute(f"CREATE VIEW chosen AS FROM stored {wanted}")
            db.execute(f"CREATE VIEW picked AS {_with_facts(db, unsealer)}")
            yield db
        except duckdb.IOException as error:
            raise UntrustedRunError(
                f"a committed file of {quarantine.out} can't be read: {_first_line(error)}. If `headrace lake compact` has "
                "deleted it meanwhile, run the same command again"
            ) from error
        except (
            duckdb.ConversionException,
            duckdb.OutOfRangeException,
            duckdb.InvalidInputException,
        ) as error:
            if where is None:
                raise
            raise failed_on_value(error) from None
        finally:
            db.close()


def fetch(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Returns all rows of a result that is small."""
    return db.execute(sql, list(values)).fetchall()


def one(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
    """Returns the one row of a result."""
    row = db.execute(sql, list(values)).fetchone()
    assert row is not None
    return row


def _connect(out: Path, spill: str) -> duckdb.DuckDBPyConnection:
    db = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        },
    )
    db.execute("SET TimeZone = 'UTC'")
    db.execute("SET disabled_optimizers = 'common_subexpressions'")
    folders = ", ".join(sql_text(str(folder)) for folder in dict.fromkeys([out, out.resolve()]))
    db.execute(f"SET allowed_directories = [{folders}]")
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")
    return db


def _lake_files(out: Path) -> list[str]:
    root = out / "events"
    return [str(root / path) for path in committed_files(root)] if root.is_dir() else []


def _parquet(paths: Sequence[str], more: str = "") -> str:
    names = ", ".join(map(sql_text, paths))
    return f"read_parquet([{names}], union_by_name = true, hive_partitioning = false{more})"


def _rows(db: duckdb.DuckDBPyConnection, paths: list[str]) -> str:
    have: set[str] = set()
    if paths:
        names = ", ".join(map(sql_text, paths))
        have = {name for (name,) in fetch(db, f"SELECT DISTINCT name FROM parquet_schema([{names}])")}
    columns = []
    for field in ROW_SCHEMA:
        if field.name == PARTITION and have:
            columns.append(f"CAST(ingest_time AS DATE) AS {PARTITION}")
        elif field.name in have:
            columns.append(f'"{field.name}"')
        else:
            columns.append(f'CAST(NULL AS {_type(field.type)}) AS "{field.name}"')
    place = "filename AS file, file_row_number AS row" if have else "'' AS file, 0 AS row"
    source = f"FROM {_parquet(paths, ', filename = true, file_row_number = true')}" if have else "WHERE false"
    return f"SELECT {', '.join(columns)}, {place} {source}"


def _events(paths: list[str]) -> str:
    if not paths:
        columns = [f'CAST(NULL AS {_type(ROW_SCHEMA.field(n).type)}) AS "{n}"' for n in _EVENT_COLUMNS]
        return f"SELECT {', '.join(columns)} WHERE false"
    return "SELECT " + ", ".join(f'"{n}"' for n in _EVENT_COLUMNS) + f" FROM {_parquet(paths)}"


def _type(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        return "TIMESTAMPTZ"
    return "DECIMAL(38, 9)" if pa.types.is_decimal(type_) else _TYPES[type_]


def _with_facts(db: duckdb.DuckDBPyConnection, unsealer: Unsealer | None) -> str:
    """Reads what documents tell into the table ``facts``; returns the query that puts it into the rows."""
    if unsealer is None:
        return "FROM chosen"
    db.execute(f"CREATE TABLE facts (file VARCHAR, row BIGINT, {', '.join(f'{n} VARCHAR' for n in FACTS)})")
    nothing = " AND ".join(f"{name} IS NULL" for name in FACTS)
    reader = db.cursor().execute(
        f"SELECT file, row, schema, document FROM chosen WHERE document IS NOT NULL AND {nothing}"
    )
    while batch := reader.fetchmany(_DOCUMENTS_AT_ONCE):
        told = [unsealer.facts(document, schema) for _, _, schema, document in batch]
        columns = {"file": [b[0] for b in batch], "row": [b[1] for b in batch]}
        columns |= {name: [facts.get(name) for facts in told] for name in FACTS}
        types = {"row": pa.int64()}
        table = pa.table({n: pa.array(v, types.get(n, pa.string())) for n, v in columns.items()})
        db.register("told", table)
        db.execute("INSERT INTO facts FROM told")
        db.unregister("told")
    filled = ", ".join(f"coalesce(chosen.{n}, facts.{n}) AS {n}" for n in FACTS)
    return f"SELECT chosen.* REPLACE ({filled}) FROM chosen LEFT JOIN facts USING (file, row)"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
