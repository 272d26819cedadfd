"""Selected rows of a quarantine as one file."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.atomic_file import AtomicFile, naming, sync
from headrace.connectors.read_quarantine import ROW_SCHEMA, all_of, open_quarantine, select_rows
from headrace.pipelines.quarantine.documents import Unsealer
from headrace.pipelines.quarantine.values import plain_value
from headrace.schemas.errors import ConfigError

TABLES = ("events", "quarantine", "metrics", "late", "ledger")
DOCUMENT = "document"


class _Writer(Protocol):
    def write(self, batch: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


def export_rows(
    out: Path,
    to: Path,
    *,
    where: str | None = None,
    since: str | None = None,
    until: str | None = None,
    unsealer: Unsealer | None = None,
    clear: bool = False,
) -> int:
    """Writes the selected rows with all columns of the quarantine; the file appears whole or not at all. Returns their number.

    Columns of persons' data hold what the quarantine holds: masked values. The document stays sealed: binary in Parquet, base64
    in JSON lines and CSV. Opened it is text, with PII masked; in clear it is the record's bytes in Parquet, and text in the others,
    where bytes that are not UTF-8 stand as ``\\xNN``. A file with opened documents can be read by its owner only.

    Args:
        to: ends in ``.parquet``, ``.jsonl`` or ``.csv``.
        unsealer: opens the documents.
        clear: as they are; else PII is masked as in the lake.

    Raises:
        ConfigError: the file exists, its ending is unknown, it lies in a table of the output; a wrong expression or key.
        OutputError: it can't be written.
        UntrustedRunError: a committed file is missing or damaged.
    """
    make = _FORMATS.get(to.suffix)
    if make is None:
        raise ConfigError(f"--to {to}: unknown ending {to.suffix!r}; use one of {', '.join(_FORMATS)}")
    if any(to.resolve().is_relative_to((out / table).resolve()) for table in TABLES):
        raise ConfigError(
            f"--to {to} lies in a table of the output, whose readers would take it for data; name another folder"
        )
    _refuse_existing(to)
    selection = all_of(where, since, until)
    batches = select_rows(open_quarantine(out), selection)
    raw = clear and make is _ParquetRows
    schema = ROW_SCHEMA
    if unsealer is not None and not raw:
        schema = schema.set(schema.get_field_index(DOCUMENT), pa.field(DOCUMENT, pa.string()))
    return _write(
        to, make, schema, _opened(batches, schema, unsealer, clear, raw), private=unsealer is not None
    )


def _opened(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, unsealer: Unsealer | None, clear: bool, raw: bool
) -> Iterator[pa.RecordBatch]:
    at = schema.get_field_index(DOCUMENT)
    for batch in batches:
        if unsealer is None:
            yield batch
            continue
        pairs = zip(batch.column(at).to_pylist(), batch.column("schema").to_pylist(), strict=True)
        opened: list[Any] = [
            None
            if sealed is None
            else unsealer.raw(sealed)
            if raw
            else unsealer.clear(sealed)
            if clear
            else unsealer.masked(sealed, of)
            for sealed, of in pairs
        ]
        columns = list(batch.columns)
        columns[at] = pa.array(opened, schema.field(at).type)
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _write(
    to: Path,
    make: Callable[[BinaryIO, pa.Schema], _Writer],
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    *,
    private: bool,
) -> int:
    file = AtomicFile(to)
    rows = 0
    try:
        with naming(to):
            mode = 0o600 if private else 0o666
            descriptor = os.open(file.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            writer = make(stream, schema)
            for batch in batches:
                with naming(to):
                    writer.write(batch)
                rows += batch.num_rows
            with naming(to):
                writer.close()
                stream.flush()
                os.fsync(stream.fileno())
        try:
            os.link(file.temporary, to)  # Unlike a rename it never replaces a file that came meanwhile.
        except FileExistsError:
            _refuse_existing(to)
        except OSError:  # A file system without links.
            _refuse_existing(to)
            file.commit()
        sync(to.absolute().parent)
    finally:
        file.discard()
    return rows


def _refuse_existing(to: Path) -> None:
    if to.exists() or to.is_symlink():
        raise ConfigError(f"--to {to} exists already and is not overwritten; name another file, or delete it")


class _ParquetRows:
    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(stream, schema, compression="zstd")

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _JsonLines:
    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream

    def write(self, batch: pa.RecordBatch) -> None:
        for row in batch.to_pylist():
            shown = {name: plain_value(value) for name, value in row.items() if value is not None}
            self._stream.write(orjson.dumps(shown) + b"\n")

    def close(self) -> None:
        """Nothing is left."""


class _Csv:
    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(schema.names)

    def write(self, batch: pa.RecordBatch) -> None:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            self._writer.writerow([plain_value(value) for value in row])

    def close(self) -> None:
        self._text.flush()
        self._text.detach()


_FORMATS: dict[str, Callable[[BinaryIO, pa.Schema], _Writer]] = {
    ".parquet": _ParquetRows,
    ".jsonl": _JsonLines,
    ".csv": _Csv,
}
