"""Reading documents to be judged: JSON lines, or one JSON document of any layout; plain, gzip or Zstandard.

Parsed as strictly as RFC 8259 and as exactly as Python can: whole numbers of any size, no NaN or Infinity, the last of
repeated keys. What can't be parsed becomes a failure in its place, so the reader never stops before the end of the input.
"""

import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from headrace.schemas.errors import InputError
from headrace.schemas.failures import Failure

CHUNK_BYTES = 1 << 18
"""Read at once from the file; what it unpacks to is handed on piece by piece."""
_PIECE_BYTES = 1 << 10
_BOM = b"\xef\xbb\xbf"
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')


@dataclass(frozen=True)
class Document:
    """One document of the input.

    ``number`` counts documents from 1, ``line`` is the line on which it starts. ``failure`` is None, or says why there is no
    value: code ``malformed`` (not JSON) or ``truncated`` (the compressed input ends early or is damaged).
    """

    number: int
    line: int
    value: Any
    failure: Failure | None = None


def read_documents(path: Path | str) -> Iterator[Document]:
    """Yields the documents of a file, or of standard input if the path is ``-``.

    If the whole input is one JSON document it is one; else each line that is not blank is one. Memory is bounded by the longest
    line, or by the one document.

    Raises:
        InputError: the input is missing, a directory, or can't be read.
    """
    with _opened(path) as (source, name):
        lines = _Lines(source, name)
        yield from _documents(lines)


class _Unparsable(Exception):
    def __init__(self, message: str, line: int, column: int | None, at_end: bool = False) -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.at_end = at_end

    def failure(self, first_line: int) -> Failure:
        column = f", column {self.column}" if self.column else ""
        return Failure("malformed", "", f"line {first_line + self.line - 1}{column}: {self}")


def parse(text: bytes) -> Any:
    """Parses one JSON document; raises ``_Unparsable`` without any value in its message."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[: error.start]
        start = before.rfind(b"\n") + 1
        column = len(before[start:].decode("utf-8")) + 1
        raise _Unparsable("not UTF-8", before.count(b"\n") + 1, column) from None
    try:
        return json.loads(decoded, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        reason = error.msg.split(":")[0]
        at_end = error.pos >= len(decoded.rstrip(" \t\r\n"))
        raise _Unparsable(f"not JSON ({reason})", error.lineno, error.colno, at_end) from None
    except RecursionError:
        raise _Unparsable("nested too deeply", 1, None) from None
    except _Constant:
        found = next(match for match in _CONSTANT.finditer(decoded) if match[1])
        before_text = decoded[: found.start()]
        column = found.start() - before_text.rfind("\n")
        raise _Unparsable(f"not JSON ({found[1]})", before_text.count("\n") + 1, column) from None
    except ValueError:  # Python refuses to convert thousands of digits
        raise _Unparsable("a number has too many digits", 1, None) from None


class _Constant(Exception):
    """NaN or Infinity, which Python's parser would take."""


def _refuse(name: str) -> Any:
    raise _Constant(name)


# ---------------------------------------------------------------------- layout
def _documents(lines: "_Lines") -> Iterator[Document]:
    pending: list[tuple[int, bytes]] = []
    for first, text in lines:
        pending.append((first, text))
        break
    if not pending:
        if lines.damage:
            yield Document(1, 1, None, lines.damage)
        return
    number = 0
    try:
        parse(pending[0][1])
    except _Unparsable as error:
        if error.at_end:
            whole = _one_document(pending, lines)
            if whole is not None:
                yield whole
                if whole.failure:
                    return
                number = 1
    for line, text in _chain(pending, lines):
        number += 1
        try:
            yield Document(number, line, parse(text))
        except _Unparsable as error:
            yield Document(number, line, None, error.failure(line))
    if lines.damage:
        yield Document(number + 1, lines.number + 1, None, lines.damage)


def _chain(pending: list[tuple[int, bytes]], lines: "_Lines") -> Iterator[tuple[int, bytes]]:
    while pending:
        yield pending.pop(0)
    yield from lines


def _one_document(pending: list[tuple[int, bytes]], lines: "_Lines") -> Document | None:
    """Reads on while the input may still be one document over several lines; keeps in ``pending`` what it is not.

    Tokens can't span lines, so an input that is cut after a line is the beginning of one document if and only if the parser's
    complaint is that it ends. It is asked after 2, 4, 8, … lines.
    """
    start = pending[0][0]
    check_at = 2
    for line, text in lines:
        pending.append((line, text))
        if len(pending) < check_at:
            continue
        check_at *= 2
        found = _parse_together(pending)
        if isinstance(found, _Unparsable) and not found.at_end:
            return _broken(pending, found, start)
    found = _parse_together(pending)
    if isinstance(found, _Unparsable):
        return _broken(pending, found, start)
    pending.clear()
    return Document(1, start, found)


def _parse_together(pending: list[tuple[int, bytes]]) -> Any:
    try:
        return parse(_joined(pending))
    except _Unparsable as error:
        return error


def _joined(pending: list[tuple[int, bytes]]) -> bytes:
    """Joins lines with as many line feeds as they are apart, so that positions are those of the input."""
    parts = [pending[0][1]]
    for (before, _), (line, text) in itertools.pairwise(pending):
        parts.append(b"\n" * (line - before))
        parts.append(text)
    return b"".join(parts)


def _broken(pending: list[tuple[int, bytes]], error: _Unparsable, start: int) -> Document | None:
    """Tells one broken document over many lines from JSON lines whose first is broken.

    It is the former if the first line is a lone bracket and no later line, up to the fault, is an object or array by itself.
    """
    if pending[0][1].strip() not in (b"{", b"["):
        return None
    for line, text in pending[1:]:
        if line > start + error.line - 1:
            break
        try:
            if isinstance(parse(text), dict | list):
                return None
        except _Unparsable:
            continue
    return None if error.column is None else Document(1, start, None, error.failure(start))


# ---------------------------------------------------------------------- bytes
class _Lines:
    """The lines that are not blank, with their numbers; an iterator that can be left and taken up again."""

    def __init__(self, source: BinaryIO, name: str) -> None:
        self.number = 0
        self.damage: Failure | None = None
        self._pieces = self._unpacked(source, name)
        self._made = self._lines()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self._made

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        parts: list[bytes] = []
        for piece in self._pieces:
            *whole, rest = piece.split(b"\n")
            for part in whole:
                parts.append(part)
                yield from self._line(parts)
                parts.clear()
            if rest:
                parts.append(rest)
        if parts and not self.damage:
            yield from self._line(parts)

    def _line(self, parts: list[bytes]) -> Iterator[tuple[int, bytes]]:
        self.number += 1
        text = b"".join(parts)
        if self.number == 1:
            text = text.removeprefix(_BOM)
        if text.strip(b" \t\r"):
            yield self.number, text

    def _unpacked(self, source: BinaryIO, name: str) -> Iterator[bytes]:
        try:
            head = source.read(CHUNK_BYTES)
            if head.startswith(b"\x1f\x8b"):
                yield from self._members(head, source, lambda: zlib.decompressobj(wbits=31), "gzip")
            elif head.startswith(b"\x28\xb5\x2f\xfd"):
                yield from self._members(head, source, _zstd, "zstd")
            else:
                while head:
                    yield head
                    head = source.read(CHUNK_BYTES)
        except OSError as error:
            raise InputError(f"input {name} can't be read: {error.strerror}") from error

    def _members(self, data: bytes, source: BinaryIO, opener: Any, name: str) -> Iterator[bytes]:
        """Unpacks members (gzip) or frames (zstd) that follow each other."""
        unpacker, inside = opener(), False
        while data:
            pieces = memoryview(data)
            while len(pieces):
                if unpacker.eof:
                    if not bytes(pieces).strip(b"\0"):
                        break
                    unpacker, inside = opener(), False
                step = min(len(pieces), _PIECE_BYTES)
                inside = True
                try:
                    yield unpacker.decompress(pieces[:step])
                except (zlib.error, zstandard.ZstdError):
                    self._damaged(f"the {name} data is damaged")
                    return
                pieces = pieces[step - len(unpacker.unused_data) :]
            data = source.read(CHUNK_BYTES)
        if inside and not unpacker.eof:
            self._damaged(f"the {name} data ends before its end marker; the file is cut short")

    def _damaged(self, reason: str) -> None:
        self.damage = Failure("truncated", "", f"{reason}; nothing after line {self.number} can be judged")


def _zstd() -> Any:
    return zstandard.ZstdDecompressor().decompressobj()


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[BinaryIO, str]]:
    if str(path) == "-":
        yield sys.stdin.buffer, "-"
        return
    try:
        source = Path(path).open("rb")  # noqa: SIM115 - closed below; opened apart to tell its errors from later ones
    except FileNotFoundError as error:
        raise InputError(
            f"input {path} does not exist; check the path, or use - for standard input"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"input {path} is a directory; name a file in it") from error
    except OSError as error:
        raise InputError(f"input {path} can't be read: {error.strerror}") from error
    with source:
        yield source, str(path)
