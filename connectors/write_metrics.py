"""Small result tables: window counts and other aggregates, one Parquet file each."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.atomic_file import AtomicFile, OutputError, naming
from headrace.connectors.write_lake import WrittenFile
from headrace.schemas.errors import ConfigError


def write_metrics(root: str | os.PathLike[str], name: str, table: pa.Table) -> WrittenFile:
    """Writes ``ROOT/NAME/part-0.parquet``, replacing the one of an earlier run in one step.

    Rows are sorted by all columns from left to right (nulls last), so the same rows in any order give the same bytes.
    Dictionary columns become plain strings; a table without rows gives a file with its columns. Idempotent.

    Args:
        root: the folder of all metrics, ``OUT/metrics``.
        name: the table's name; letters, digits, ``_`` and ``-``.
        table: columns of sortable types: numbers, decimals, text, binary, dates and times, booleans.

    Returns:
        The file, its path relative to ``root``.

    Raises:
        ConfigError: the name is no folder's name, or a column can't be sorted.
        OutputError: the disk refused; what was there is unchanged.
    """
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise ConfigError(f"metrics table is named {name!r}; use letters, digits, _ and - only")
    nested = [f.name for f in table.schema if pa.types.is_nested(f.type)]
    if nested:
        raise ConfigError(f"metrics table {name}: columns {nested} are nested; write one value a column")
    table = pa.table(
        [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns],
        names=table.column_names,
    )
    if table.num_rows > 1:
        table = table.sort_by([(column, "ascending") for column in table.column_names])
    path = f"{name}/part-0.parquet"
    file = AtomicFile(Path(root) / path)
    try:
        with naming(file.path), pa.OSFile(str(file.temporary), "wb") as sink:
            pq.write_table(table.combine_chunks(), sink, compression="zstd", store_schema=False)
    except OutputError:
        file.discard()
        raise
    size = os.stat(file.temporary).st_size
    file.commit()
    return WrittenFile(path, table.num_rows, size, {}, {"numRecords": table.num_rows})
