"""Tables on disk as DuckDB reads them: Delta tables, folders of Parquet files, single files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from headrace.connectors.delta_commit import MARKER, committed_files
from headrace.schemas.errors import ConfigError, InputError

MEMORY_LIMIT = "1GiB"
"""What DuckDB may take; beyond it writes to a temporary folder."""
_SUFFIXES = (".parquet", ".parq", ".pq")
_HIDING = (".", "_")
_GLOB = str.maketrans({c: f"[{c}]" for c in "*?["})


@dataclass(frozen=True)
class StoredTable:
    """One table."""

    name: str
    """Path relative to the folder in which it was looked for; the last part of the path of a table that was named itself."""
    root: Path
    files: tuple[str, ...]
    """Absolute paths of the data files that make it up now."""
    delta_schema: pa.Schema | None = field(default=None, compare=False)
    """Of a Delta table, which may have columns that no file has yet."""
    partitions: tuple[str, ...] = ()
    """Columns that stand in the files' paths."""


@contextmanager
def open_database(memory_limit: str = MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens a database in memory that spills to a temporary folder; both are gone when the block ends.

    No extension is loaded from anywhere, and times with a zone are UTC.
    """
    with TemporaryDirectory(prefix="headrace-verify-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory_limit,
            "temp_directory": folder,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        }
        with duckdb.connect(":memory:", config=config) as connection:
            yield connection


def quoted(name: str) -> str:
    """Returns a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def find_tables(root: str | os.PathLike[str]) -> dict[str, StoredTable]:
    """Finds the tables of an output, lake or warehouse, by name.

    A table is a Delta table, a Parquet folder that headrace committed, or a folder that has Parquet files in itself or in
    partitions (``date=2026-01-05``); nothing is looked for below one. Names that begin with ``.`` or ``_`` are passed over. If
    ``root`` is itself a table or a Parquet file, it is the only one.

    Raises:
        InputError: ``root`` does not exist or can't be read.
        ConfigError: a Delta table with features that its file list does not show.
    """
    place = Path(root)
    if place.is_file():
        if not place.name.endswith(_SUFFIXES):
            raise InputError(
                f"{root} is no Parquet file; name a Delta table, a folder, or a file that ends in .parquet"
            )
        return {place.name: StoredTable(place.name, place, (str(place.absolute()),))}
    if not place.is_dir():
        raise InputError(f"{root} does not exist; name an output, a lake, a table or a Parquet file")
    found = {}
    for table in _tables(place.absolute(), place.absolute()):
        found[table.name] = table
    return dict(sorted(found.items()))


def create_view(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    table: StoredTable,
    *,
    like: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Makes a table a view, and returns the DuckDB type of each of its columns.

    Columns that are in some files only are null in the others. A partition column of a Delta table has the type that the table
    says, one of a Parquet folder is a date or a number if all of its values are, else text.

    Args:
        like: columns and types for a table that has no file to tell its own.

    Raises:
        InputError: a file is missing or damaged.
    """
    told = _duckdb_types(connection, table.delta_schema)
    try:
        if table.files:
            listed = ", ".join("'" + p.translate(_GLOB).replace("'", "''") + "'" for p in table.files)
            hive = f"hive_partitioning = {bool(table.partitions)}, hive_types_autocast = {not told}"
            source = f"read_parquet([{listed}], {hive}, union_by_name = true)"
            have = [row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()]
            chosen = []
            for name in dict.fromkeys((*told, *have)):
                if name not in have:
                    chosen.append(f"CAST(NULL AS {told[name]}) AS {quoted(name)}")
                elif name in told and name in table.partitions:
                    chosen.append(f"CAST({quoted(name)} AS {told[name]}) AS {quoted(name)}")
                else:
                    chosen.append(quoted(name))
            connection.execute(f"CREATE VIEW {quoted(view)} AS SELECT {', '.join(chosen)} FROM {source}")
        else:
            empty = (
                f"CAST(NULL AS {type_}) AS {quoted(name)}"
                for name, type_ in (told or like or {"nothing": "INT"}).items()
            )
            connection.execute(f"CREATE VIEW {quoted(view)} AS SELECT {', '.join(empty)} WHERE false")
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise InputError(f"table {table.root} can't be read: {_first_line(error)}") from error
    return columns_of(connection, view)


def columns_of(connection: duckdb.DuckDBPyConnection, view: str) -> dict[str, str]:
    """Returns the columns of a view or table with their DuckDB types."""
    rows = connection.execute(f"DESCRIBE {quoted(view)}").fetchall()
    return {name: type_ for name, type_, *_ in rows}


def _tables(folder: Path, root: Path) -> Iterator[StoredTable]:
    name = folder.relative_to(root).as_posix() if folder != root else folder.name
    if (folder / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(folder)):
        yield _delta(name, folder)
        return
    if (folder / MARKER).is_file():
        yield _parquet(name, folder, sorted(committed_files(folder)))
        return
    entries = sorted(entry for entry in _listed(folder) if not entry.name.startswith(_HIDING))
    files = [e.name for e in entries if e.is_file() and e.name.endswith(_SUFFIXES)]
    partitions = [e for e in entries if e.is_dir() and "=" in e.name]
    for partition in partitions:
        files += [path.relative_to(folder).as_posix() for path in _below(partition)]
    if files:
        yield _parquet(name, folder, files)
        return
    for entry in entries:
        if entry.is_dir():
            yield from _tables(entry, root)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error.strerror}; check its permissions") from error


def _below(folder: Path) -> Iterator[Path]:
    for entry in sorted(_listed(folder)):
        if entry.name.startswith(_HIDING):
            continue
        if entry.is_dir():
            yield from _below(entry)
        elif entry.name.endswith(_SUFFIXES):
            yield entry


def _delta(name: str, folder: Path) -> StoredTable:
    table = DeltaTable(str(folder))
    mapping = table.metadata().configuration.get("delta.columnMapping.mode") or "none"
    if mapping != "none":
        raise ConfigError(
            f"table {folder} maps its columns to other names in its files (delta.columnMapping.mode = {mapping}), which can't be "
            "read here; write it anew without (INSERT INTO … SELECT)"
        )
    paths = [_existing(folder, path) for path in committed_files(folder)]
    partitions = table.metadata().partition_columns
    strays = [p for p in paths if any(f"/{column}=" not in p for column in partitions)]
    if strays:
        raise ConfigError(
            f"table {folder}: file {strays[0]} does not have the partition in its path (PARTITION=VALUE), so it can't be read here"
        )
    schema = pa.schema(table.schema().to_arrow())
    return StoredTable(name, folder, tuple(paths), schema, tuple(partitions))


def _existing(folder: Path, path: str) -> str:
    """The log percent-encodes what is special in a path."""
    for candidate in (path, unquote(path)):
        if (folder / candidate).is_file():
            return str(folder / candidate)
    raise InputError(f"table {folder} lacks its file {path}; restore it")


def _parquet(name: str, folder: Path, files: Sequence[str]) -> StoredTable:
    partitions = (
        tuple(part.partition("=")[0] for part in Path(files[0]).parts[:-1] if "=" in part) if files else ()
    )
    return StoredTable(name, folder, tuple(str(folder / path) for path in files), None, partitions)


def _duckdb_types(connection: duckdb.DuckDBPyConnection, schema: pa.Schema | None) -> dict[str, str]:
    """Returns what DuckDB calls the types of an Arrow schema."""
    if schema is None:
        return {}
    connection.register("_told", schema.empty_table())
    try:
        return columns_of(connection, "_told")
    finally:
        connection.unregister("_told")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
