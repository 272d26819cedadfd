"""How a file of a growing directory is read: line by line as it grows, or as a whole once it is complete."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from headrace.connectors.avro_frames import Window as AvroWindow
from headrace.connectors.avro_frames import frames, read_header
from headrace.connectors.compression import ByteStream, detect_compression, unreadable
from headrace.connectors.directory_position import tail_check
from headrace.connectors.formats import LINE_FORMATS, detect_format
from headrace.connectors.inputs import HEAD_BYTES
from headrace.connectors.read_avro import avro_ranges
from headrace.connectors.read_csv import check_csv
from headrace.connectors.read_parquet import parquet_ranges
from headrace.connectors.splits import Split
from headrace.schemas.errors import InputError

WINDOW_BYTES = 4 << 20
"""About how much of a growing file is read at once."""
TAIL_BYTES = 1 << 12
_PIECE = 1 << 20
_NEWLINE = 10
_MAGIC_BYTES = 16


class Kind(NamedTuple):
    """What a file is."""

    format: str
    compression: str

    @property
    def grows(self) -> bool:
        """True if its lines can be taken before it is complete."""
        return self.compression == "plain" and self.format in LINE_FORMATS


class Lines(NamedTuple):
    """Some complete lines at the front of what a growing file has more."""

    end: int
    """Byte after the last newline; the start, if there is none."""
    ended: int
    """How many lines they are."""
    scanned: int
    """How far was looked for a newline."""


def kind_of(path: str, size: int, forced: str | None, *, final: bool) -> Kind | None:
    """Returns what the file is, as the batch pipeline would tell; None if there is too little of it yet.

    Args:
        size: bytes that are there.
        forced: the format that the user stated.
        final: true if no more will come.

    Raises:
        InputError: it can't be told from what is there, or it can't be read.
    """
    with ByteStream(path) as stream:
        head = stream.read(min(HEAD_BYTES, size))
    compression = detect_compression(head[:_MAGIC_BYTES], path)
    if compression != "plain":
        with ByteStream(path, compression) as stream:
            return Kind(detect_format(path, stream.read(HEAD_BYTES), forced), compression)
    ended = head[: head.rfind(b"\n") + 1]
    known = head.startswith((b"PAR1", b"Obj\x01"))
    if not (known or final or ended.strip() or len(head) == HEAD_BYTES):
        return None
    return Kind(detect_format(path, ended if ended.strip() and not known else head, forced), compression)


def whole_split(path: str, origin: str, kind: Kind, size: int) -> Split | None:
    """Returns the file as one split; None if it has no records.

    Raises:
        InputError: nothing of it can be read: Parquet's footer, Avro's or CSV's header.
    """
    with ByteStream(path, kind.compression, size_bytes=size) as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        return None
    start, end, first = 0, size, 1
    if kind.format == "parquet":
        ranges = parquet_ranges(path, kind.compression, 1 << 62)
        if not ranges:
            return None
        start, end, first = ranges[0]
    elif kind.format == "avro":
        avro_ranges(path, kind.compression, size, size)
    elif kind.format == "csv":
        check_csv(path, head)
    return Split(0, path, origin, kind.format, kind.compression, start, end, first, size)


def is_complete(path: str, kind: Kind, size: int) -> bool:
    """Tells whether nothing seems to be missing at the file's end; reads it once if it is compressed or Avro.

    Of CSV and of lines it can't be told.

    Raises:
        InputError: the file is missing, unreadable or has changed.
    """
    if kind.compression != "plain":
        with ByteStream(path, kind.compression, size_bytes=size) as stream:
            buffer = bytearray(_PIECE)
            with memoryview(buffer) as view:
                while stream.readinto(view):
                    pass
            if stream.truncated:
                return False
    if kind.format == "avro":
        with ByteStream(path, kind.compression, size_bytes=size) as stream:
            window = AvroWindow(stream)
            return all(frame.sound for frame in frames(window, read_header(window, path).sync))
    return True


def next_lines(path: str, offset: int, scanned: int, size: int) -> Lines:
    """Finds the complete lines after ``offset``, about ``WINDOW_BYTES`` of them, at least one if there is one.

    Args:
        scanned: up to here no newline was found before.
        size: how much of the file counts.
    """
    end, count, at = offset, 0, max(offset, scanned)
    for piece in _pieces(path, at, size):
        at += len(piece)
        last = piece.rfind(b"\n")
        if last >= 0:
            end = at - len(piece) + last + 1
            count += _newlines(piece)
            if end - offset >= WINDOW_BYTES:
                break
    return Lines(end, count, at)


def lines_before(path: str, offset: int) -> int:
    """Counts the newlines before ``offset``."""
    return sum(map(_newlines, _pieces(path, 0, offset)))


def offset_of_line(path: str, line: int, size: int) -> tuple[int, int]:
    """Returns (offset, number) of the last line up to number ``line`` that begins within the file's complete lines."""
    number, end, at = 1, 0, 0
    for piece in _pieces(path, 0, size):
        ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == _NEWLINE)[: line - number]
        if len(ends):
            end = at + int(ends[-1]) + 1
            number += len(ends)
        if number == line:
            break
        at += len(piece)
    return end, number


def tail_of(path: str, offset: int) -> int:
    """Returns the check of the bytes before ``offset``."""
    return tail_check(b"".join(_pieces(path, max(offset - TAIL_BYTES, 0), offset)))


def ends_line(path: str, offset: int) -> bool:
    """Tells whether the byte before ``offset`` is a newline."""
    return b"".join(_pieces(path, offset - 1, offset)) == b"\n"


def head_of(path: str, limit: int) -> bytes:
    """Returns the file's first bytes as they are; none if it can't be read at all."""
    try:
        with ByteStream(path) as stream:
            return stream.read(limit)
    except InputError:
        return b""


def _newlines(piece: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(piece, np.uint8) == _NEWLINE))


def _pieces(path: str, start: int, end: int) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            os.lseek(file.fileno(), start, os.SEEK_SET)
            while start < end and (piece := file.read(min(_PIECE, end - start))):
                start += len(piece)
                yield piece
    except OSError as error:
        raise unreadable(path, error) from error
