"""Lines of text: JSON lines and web access logs, by byte ranges of plain files or from a compressed stream."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.connectors.compression import ByteStream
from headrace.connectors.raw_blocks import FAULT_BYTES, MAX_ROWS, Block, BlockBuilder
from headrace.connectors.splits import Split

READ_BYTES = 8 << 20
BOM = b"\xef\xbb\xbf"
_NEWLINE = 10
_RETURN = 13
_SCAN = 1 << 16
_DENSE = 1 << 18
_SMALL = 1 << 20


class Text(NamedTuple):
    """Whole lines; only the last line of the input may lack its newline. Its arrays are valid until the next item."""

    data: memoryview
    newlines: np.ndarray
    """True for each byte of ``data`` that is a newline."""
    ended_lines: int
    """How many are."""
    line: int
    """Number of the first one."""
    position: int
    """Bytes of the file consumed up to the end of ``data`` (for a compressed file: at least)."""


class LongLine(NamedTuple):
    """A line that is longer than allowed, and was skipped."""

    head: bytes
    line: int
    position: int
    quotes: int
    """Double quotes in the line."""


class Cut(NamedTuple):
    """The end of a compressed stream that is cut or corrupt: what there is of its last line, perhaps nothing."""

    data: bytes
    line: int
    position: int


def read_lines(
    split: Split,
    *,
    ingest_time: datetime,
    max_record_bytes: int = 16 << 20,
    block_bytes: int = READ_BYTES,
) -> Iterator[Block]:
    """Reads the lines whose first byte lies in ``[split.start, split.end)``; of a compressed file, all lines.

    A line ends with LF, CRLF or the end of the file; a byte order mark at the start of the file is dropped. Blank lines
    (white space only) are not records. ``origin_position`` is the line number, blank lines included, from 1.
    Rows with a fault: ``line_too_long`` (``raw`` is its first 64 KiB) and ``truncated_input`` (``raw`` is what there is of
    the last line, perhaps nothing). The same split gives the same rows.

    Raises:
        InputError: the file is missing, unreadable or has changed since it was planned.
    """
    builder = BlockBuilder(split.origin, ingest_time)
    reported = -1 if split.start else 0
    for item in text_of(split, max_record_bytes=max_record_bytes, block_bytes=block_bytes):
        if isinstance(item, Text):
            if reported < 0:
                reported = item.position - len(item.data)
            for block in _blocks(builder, item, reported, max_record_bytes):
                reported += block.read_bytes
                yield block
        else:
            fault, raw = (
                ("line_too_long", item.head) if isinstance(item, LongLine) else ("truncated_input", item.data)
            )
            reported = max(reported, split.start)
            row = builder.build(pa.array([raw], pa.binary()), pa.array([item.line], pa.int64()), [fault])
            yield Block(row, item.position - reported, 1)
            reported = item.position


def text_of(
    split: Split, *, max_record_bytes: int, block_bytes: int = READ_BYTES
) -> Iterator[Text | LongLine | Cut]:
    """Yields the split's lines in pieces of about ``block_bytes``; memory is bounded by the larger of both limits."""
    if split.compression == "plain":
        with ByteStream(split.path, start=max(split.start - 1, 0), size_bytes=split.size_bytes) as stream:
            yield from _Lines(stream, split, max_record_bytes, block_bytes).items()
    else:
        with ByteStream(split.path, split.compression, size_bytes=split.size_bytes) as stream:
            yield from _Lines(stream, split, max_record_bytes, block_bytes).items()


class _Lines:
    """Walks over a stream with one buffer, whose first byte is always the first byte of a line."""

    def __init__(self, stream: ByteStream, split: Split, max_record_bytes: int, block_bytes: int) -> None:
        self._stream = stream
        self._plain = split.compression == "plain"
        self._end = split.end
        self._start = split.start
        self._longest = max_record_bytes + 2
        self._limit = max_record_bytes
        self._block = max(block_bytes, len(BOM))
        self._buffer = bytearray(self._block)
        self._newlines = np.empty(self._block, bool)
        self._have = 0
        self._line = split.first_record

    def items(self) -> Iterator[Text | LongLine | Cut]:
        if self._plain and self._start:
            if not self._skip_to_first():
                return
        else:
            self._skip_bom()
        while not (self._plain and self._base >= self._end):
            ended = not self._fill()
            last = self._buffer.rfind(b"\n", 0, self._have)
            if last < 0 and not ended:
                if self._have < len(self._buffer):
                    continue
                if self._have < self._longest:
                    self._grow()
                else:
                    yield self._skip_long()
                continue
            size = self._have if ended and not self._stream.truncated else last + 1
            if self._plain and self._base + size > self._end:
                at = self._buffer.find(b"\n", max(self._end - self._base - 1, 0), size)
                size = at + 1 if at >= 0 else size
            if size:
                data = memoryview(self._buffer)[:size]
                newlines = np.equal(np.frombuffer(data, np.uint8), _NEWLINE, out=self._newlines[:size])
                ended_lines = int(np.count_nonzero(newlines))
                if (
                    ended_lines > _DENSE and size > _SMALL
                ):  # very short lines: less at once, for their indices
                    size = self._buffer.rfind(b"\n", 0, _SMALL) + 1 or size
                    data, newlines, ended = data[:size], newlines[:size], False
                    ended_lines = int(np.count_nonzero(newlines))
                yield Text(data, newlines, ended_lines, self._line, self._consumed(size))
                self._line += ended_lines
                self._shift(size)
            if ended:
                if self._stream.truncated:
                    yield Cut(bytes(self._buffer[: self._have]), self._line, self._stream.position)
                return

    @property
    def _base(self) -> int:
        """Where in a plain file the buffer begins."""
        return self._stream.position - self._have

    def _consumed(self, size: int) -> int:
        """How much of the file is done once ``size`` bytes of the buffer are."""
        return self._base + size if self._plain else self._stream.position

    def _fill(self, limit: int | None = None) -> bool:
        """Reads until the buffer, or ``limit`` bytes of it, is full; false at the end of the stream.

        A range is not read far beyond its end.
        """
        with memoryview(self._buffer)[:limit] as view:
            while self._have < len(view):
                want = len(view)
                if self._plain:
                    want = min(want, self._have + max(self._end - self._stream.position, _SCAN))
                got = self._stream.readinto(view[self._have : want])
                if not got:
                    return False
                self._have += got
                if self._plain and self._stream.position >= self._end:
                    break
        return True

    def _shift(self, size: int) -> None:
        left = self._have - size
        self._buffer[:left] = self._buffer[size : self._have]
        self._have = left

    def _grow(self) -> None:
        size = min(max(2 * len(self._buffer), _SCAN), max(self._longest, self._block))
        self._buffer = self._buffer + bytes(size - len(self._buffer))
        self._newlines = np.empty(size, bool)

    def _skip_bom(self) -> None:
        self._fill()
        if self._buffer.startswith(BOM) and self._have >= len(BOM):
            self._shift(len(BOM))
            self._end = max(self._end, len(BOM) + 1)  # the first line begins before the mark

    def _skip_to_first(self) -> bool:
        """From the byte before the range to the first line that begins in it; false if there is none."""
        while True:
            ended = not self._fill(_SCAN)
            at = self._buffer.find(b"\n", 0, self._have)
            if at >= 0:
                self._shift(at + 1)
                return self._base < self._end
            if ended or self._stream.position >= self._end:
                return False
            self._have = 0

    def _skip_long(self) -> LongLine:
        """Drops the line at the front of the buffer, however long it is."""
        head = bytes(self._buffer[: min(FAULT_BYTES, self._limit)])
        quotes = 0
        while True:
            at = self._buffer.find(b"\n", 0, self._have)
            size = self._have if at < 0 else at + 1
            quotes += self._buffer.count(b'"', 0, size)
            self._shift(size)
            if at >= 0 or (not self._fill() and not self._have):
                break
        item = LongLine(head, self._line, self._consumed(0), quotes)
        self._line += 1
        return item


def _blocks(builder: BlockBuilder, text: Text, reported: int, longest: int) -> Iterator[Block]:
    """Cuts the text at its newlines into batches; the bytes of each line are copied once, by Arrow."""
    data = np.frombuffer(text.data, np.uint8)
    ends = np.flatnonzero(text.newlines)
    unended = not text.newlines[-1]
    if unended:
        ends = np.append(ends, len(data))
    after = ends + 1
    starts = np.concatenate(([0], after[:-1]))
    ends -= (ends > starts) & (data[ends - 1] == _RETURN)
    keep = _not_blank(data, starts, ends, longest)
    long = ends - starts > longest
    if long.any():
        ends = np.where(long, starts + min(FAULT_BYTES, longest), ends)
    # Every second element of this array is a line, those between are what separates them.
    offsets = np.empty(2 * len(ends), np.int32)
    offsets[::2], offsets[1::2] = starts, ends
    lines = pa.Array.from_buffers(
        pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(text.data)]
    )
    rows = np.flatnonzero(keep)
    if not len(rows):
        return
    first, begin, done, counted = reported, 0, 0, 0
    for chosen in np.array_split(rows, -(-len(rows) // MAX_ROWS)):
        final = chosen[-1] == rows[-1]
        stop = len(ends) if final else int(chosen[-1]) + 1
        till = len(data) if final else int(after[stop - 1])
        blank = stop - begin - int(np.count_nonzero(keep[begin:stop]))
        newlines = text.ended_lines - counted if final else int(np.count_nonzero(text.newlines[done:till]))
        records = newlines + int(final and unended) - blank
        faults = ["line_too_long" if x else None for x in long[chosen]] if long[chosen].any() else None
        batch = builder.build(
            lines.take(pa.array(2 * chosen)), pa.array(chosen + text.line, pa.int64()), faults
        )
        position = first + (text.position - first) * till // len(data)
        yield Block(batch, position - reported, records)
        reported, begin, done, counted = position, stop, till, counted + newlines


def _not_blank(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, longest: int) -> np.ndarray:
    """True for each line that holds more than white space; only lines that begin with white space are looked at twice."""
    keep = ends > starts
    doubtful = keep & (data[np.minimum(starts, len(data) - 1)] <= 32) & (ends - starts <= longest)
    for i in np.flatnonzero(doubtful):
        keep[i] = bool(data[starts[i] : ends[i]].tobytes().strip())
    return keep
