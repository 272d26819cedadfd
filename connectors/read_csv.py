"""CSV (RFC 4180): each record becomes a JSON document."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from headrace.connectors.cast_cells import Cast, cast_for
from headrace.connectors.formats import delimiter_of
from headrace.connectors.json_rows import encode, paths_of
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.raw_blocks import FAULT_BYTES, Block, BlockBuilder, RowBuffer
from headrace.connectors.read_lines import BOM, Cut, LongLine, Text, text_of
from headrace.connectors.splits import Split
from headrace.schemas.errors import InputError
from headrace.schemas.registry import Registry

_READ_BYTES = 1 << 20


class _Record(NamedTuple):
    """One record as it stands in the file; ``cells`` is None where there is a fault."""

    line: int
    raw: bytes
    cells: list[str] | None
    fault: str | None
    position: int


def read_csv(
    split: Split,
    *,
    ingest_time: datetime,
    mapping: FieldMapping | None = None,
    schema: Mapping[str, Any] | None = None,
    max_record_bytes: int = 16 << 20,
) -> Iterator[Block]:
    """Reads a CSV file with a header; the delimiter is the one of ``, ; tab |`` that the header has most.

    ``raw`` is a JSON document: dotted column names make nested objects, an empty cell is an absent field, a cell has the type
    that ``schema`` gives it (see :func:`cast_for`). Without ``schema`` and ``mapping``, the family that the header belongs to gives
    the types. ``origin_position`` is the line on which the record begins, the header being line 1. Blank lines are not
    records. Quotes follow Python's ``csv``: doubled inside quotes, literal inside an unquoted cell.
    Rows with a fault hold the record's text: ``csv_ragged_row``, ``invalid_utf8``, ``csv_unclosed_quote`` (to the end of the file),
    ``line_too_long`` (the first 64 KiB of a record over the limit), ``truncated_input``.

    Raises:
        InputError: the file can't be read, or its header is unusable.
    """
    rows = RowBuffer(BlockBuilder(split.origin, ingest_time))
    records = _Records(split, max_record_bytes)
    make: _Documents | None = None
    counted = position = 0
    for record in records:
        position = record.position
        if make is None:
            names = _header(split.path, record)
            make = _Documents(paths_of(names, split.path), schema, mapping)
            continue
        counted += 1
        rows.add(*make(record))
        if rows.full:
            yield rows.take(counted, position)
            counted = 0
    if len(rows):
        yield rows.take(counted, position)


def check_csv(path: str, head: bytes) -> None:
    """Checks that a file's beginning holds a usable header.

    Raises:
        InputError: it does not, and why.
    """
    lines = head.removeprefix(BOM).splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.strip():
            try:
                cells = next(csv.reader(_texts(lines[i:]), delimiter=_delimiter(path, line)))
            except (csv.Error, UnicodeDecodeError) as error:
                raise _bad_header(path) from error
            paths_of([name.strip() for name in cells], path)
            return


def _delimiter(path: str, line: bytes) -> str:
    try:
        return delimiter_of(line.decode())
    except UnicodeDecodeError as error:
        raise _bad_header(path) from error


def _texts(lines: Sequence[bytes]) -> Iterator[str]:
    for line in lines:
        yield line.decode()


def _bad_header(path: str) -> InputError:
    return InputError(
        f"{path}: its first line is no CSV header in UTF-8; add one, or convert the file to UTF-8"
    )


def _header(path: str, record: _Record) -> list[str]:
    if record.cells is None:
        raise _bad_header(path)
    return [name.strip() for name in record.cells]


class _Documents:
    """Makes a row of each record."""

    def __init__(
        self,
        paths: Sequence[tuple[str, ...]],
        schema: Mapping[str, Any] | None,
        mapping: FieldMapping | None,
    ) -> None:
        if schema is None and mapping is None:
            registry = Registry.default()
            family = registry.detect(dict.fromkeys(path[0] for path in paths))
            schema = registry.get(family).document if family else None
        self._mapping = mapping
        self._columns: list[tuple[tuple[str, ...], str, Cast | None]] = [
            (path[:-1], path[-1], cast_for(schema, path)) for path in paths
        ]
        self._flat = (
            [column[1] for column in self._columns] if not any(c[0] or c[2] for c in self._columns) else None
        )

    def __call__(self, record: _Record) -> tuple[bytes, int, str | None]:
        cells = record.cells
        if cells is None:
            return record.raw, record.line, record.fault
        if len(cells) != len(self._columns):
            return record.raw, record.line, "csv_ragged_row"
        document = (
            self._nested(cells)
            if self._flat is None
            else {name: cell for name, cell in zip(self._flat, cells, strict=True) if cell}
        )
        if self._mapping is not None:
            document = self._mapping(document, record.raw)
        return encode(document), record.line, None

    def _nested(self, cells: Sequence[str]) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for (parents, name, cast), cell in zip(self._columns, cells, strict=True):
            if cell:
                place = document
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[name] = cast(cell) if cast is not None else cell
        return document


class _TooLongError(Exception):
    """A quoted cell runs on beyond the limit."""


class _Records:
    """Splits a file into records; a line without quotes takes the short way."""

    def __init__(self, split: Split, max_record_bytes: int) -> None:
        self._split = split
        self._limit = max_record_bytes
        self._delimiter = ""
        self._position = 0
        csv.field_size_limit(max(csv.field_size_limit(), max_record_bytes))

    def __iter__(self) -> Iterator[_Record]:
        lines = self._lines()
        for number, line in lines:
            if not isinstance(line, bytes):
                yield from self._broken(number, line, lines)
                continue
            if not line.strip():
                continue
            if not self._delimiter:
                self._delimiter = _delimiter(self._split.path, line)
            if b'"' in line:
                yield self._quoted(number, line, lines)
                continue
            try:
                cells = line.decode().rstrip("\r\n").split(self._delimiter)
            except UnicodeDecodeError:
                yield self._fault(number, line, "invalid_utf8")
            else:
                yield _Record(number, line.rstrip(b"\r\n"), cells, None, self._position)

    def _lines(self) -> Iterator[tuple[int, bytes | LongLine | Cut]]:
        """Yields (number, line with its newline)."""
        for item in text_of(self._split, max_record_bytes=self._limit, block_bytes=_READ_BYTES):
            if isinstance(item, Text):
                data = bytes(item.data)
                number = item.line
                start = 0
                while start < len(data):
                    end = data.find(b"\n", start) + 1 or len(data)
                    if end == len(data):
                        self._position = item.position
                    line = data[start:end]
                    if end - start > self._limit and len(line.rstrip(b"\r\n")) > self._limit:
                        yield number, LongLine(line[: self._limit], number, self._position, line.count(b'"'))
                    else:
                        yield number, line
                    start = end
                    number += 1
            else:
                self._position = item.position
                yield item.line, item

    def _fault(self, number: int, raw: bytes, fault: str) -> _Record:
        return _Record(number, raw.rstrip(b"\r\n"), None, fault, self._position)

    def _broken(
        self, number: int, item: LongLine | Cut, lines: Iterator[tuple[int, bytes | LongLine | Cut]]
    ) -> Iterator[_Record]:
        if isinstance(item, Cut):
            yield self._fault(number, item.data, "truncated_input")
        else:
            yield self._skipped(number, item.head, item.quotes, lines)

    def _skipped(
        self, number: int, head: bytes, quotes: int, lines: Iterator[tuple[int, bytes | LongLine | Cut]]
    ) -> _Record:
        """Goes on to the end of a record that is too long: where the number of quotes is even."""
        while quotes % 2:
            _, line = next(lines, (0, None))
            if line is None or isinstance(line, Cut):
                fault = "csv_unclosed_quote" if line is None else "truncated_input"
                return self._fault(number, head[:FAULT_BYTES], fault)
            quotes += line.quotes if isinstance(line, LongLine) else line.count(b'"')
        return self._fault(number, head[:FAULT_BYTES], "line_too_long")

    def _quoted(
        self, number: int, line: bytes, lines: Iterator[tuple[int, bytes | LongLine | Cut]]
    ) -> _Record:
        """A record with quotes, which may go on over further lines."""
        taken = [line]
        size = len(line)
        ending: LongLine | Cut | None = None
        ended = False

        def texts() -> Iterator[str]:
            nonlocal size, ending, ended
            yield line.decode("utf-8", "surrogateescape")
            for _, further in lines:
                if not isinstance(further, bytes):
                    ending = further
                    raise _TooLongError
                taken.append(further)
                size += len(further)
                if size > self._limit:
                    raise _TooLongError
                yield further.decode("utf-8", "surrogateescape")
            ended = True

        try:
            cells = next(csv.reader(texts(), delimiter=self._delimiter), [])
        except _TooLongError:
            raw = b"".join(taken)
            if isinstance(ending, Cut):
                return self._fault(number, raw + ending.data, "truncated_input")
            quotes = raw.count(b'"') + (ending.quotes if ending else 0)
            return self._skipped(number, raw, quotes, lines)
        except csv.Error:
            return self._fault(number, b"".join(taken), "csv_ragged_row")
        raw = b"".join(taken)
        if ended:
            return self._fault(number, raw, "csv_unclosed_quote")
        try:
            raw.decode()
        except UnicodeDecodeError:
            return self._fault(number, raw, "invalid_utf8")
        return _Record(number, raw.rstrip(b"\r\n"), cells, None, self._position)
