"""Reading one share of a growing directory."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.directory_files import (
    Kind,
    Lines,
    ends_line,
    head_of,
    is_complete,
    kind_of,
    lines_before,
    next_lines,
    offset_of_line,
    tail_of,
    whole_split,
)
from headrace.connectors.directory_options import DirectoryOptions
from headrace.connectors.directory_position import DirectoryPosition, Done, Open
from headrace.connectors.directory_tree import DirectoryTree
from headrace.connectors.directory_watch import (
    ChangedError,
    DirectoryWatch,
    WatchedFile,
    changed,
    lacking,
    removed,
    require_unchanged,
)
from headrace.connectors.formats import LINE_FORMATS
from headrace.connectors.raw_blocks import FAULT_BYTES, Block, BlockBuilder
from headrace.connectors.read_lines import READ_BYTES, read_lines
from headrace.connectors.read_split import read_split
from headrace.connectors.splits import Split
from headrace.connectors.stream_source import Poll, Read
from headrace.schemas.columns import RAW_SCHEMA
from headrace.schemas.errors import InputError, UntrustedRunError
from headrace.transforms.batches import concat

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOOK_SECONDS = 1.0
"""How often the directory is looked at while there is something to read."""
_LEAST_BLOCK = 1 << 16

NOTHING_WAITS = {"": 0}
"""Files are many and come and go, so those that are read are not named; but naming none would mean that nothing is known."""

Rows = Iterator[pa.RecordBatch]


class DirectoryReader:
    """Reads the files whose names fall to one reader, those that changed first before others. Used by one thread."""

    def __init__(
        self, options: DirectoryOptions, position: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._position = DirectoryPosition.unpack(position)
        self._clock = clock
        tree = DirectoryTree(options.path, options.pattern)
        self._watch = DirectoryWatch(tree, self._position, follow=options.follow)
        self._looked_at = float("-inf")
        self._queue: list[WatchedFile] = []
        self._file: WatchedFile | None = None
        self._rows: Rows = iter(())
        self._left: pa.RecordBatch | None = None

    def poll(self, max_rows: int, timeout_seconds: float) -> Poll:
        """Looks once, and returns what there is; it does not wait for more.

        Raises:
            InputError: the directory can't be read, or a file that was read has become shorter or was rewritten.
        """
        began = self._clock()
        if (not self._queue and self._file is None) or began - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = began
            self._queue = self._watch.look(began, self._file)
        batches: list[pa.RecordBatch] = []
        reads: dict[str, Read] = {}
        rows = 0
        while rows < max_rows and (next_batch := self._next_batch()) is not None:
            file, batch = next_batch
            if batch.num_rows > max_rows - rows:
                self._left = batch.slice(max_rows - rows)
                batch = batch.slice(0, max_rows - rows)
            batches.append(batch)
            rows += batch.num_rows
            self._delivered(file, batch, reads)
            if self._clock() - began >= timeout_seconds:
                break
        behind = dict.fromkeys(reads, 0)
        behind |= {f.origin: f.size - f.offset for f in self._watch.waiting()}
        if self._file is not None:
            behind[self._file.origin] = max(self._file.size - self._file.offset, 1)
        behind = behind or NOTHING_WAITS
        batch = concat(batches) if batches else pa.RecordBatch.from_pylist([], RAW_SCHEMA)
        return Poll(batch, self._position.pack(), tuple(reads.values()), behind)

    def close(self) -> None:
        """Closes the file that is being read."""
        self._file, self._rows, self._left = None, iter(()), None

    def _next_batch(self) -> tuple[WatchedFile, pa.RecordBatch] | None:
        """Returns the next rows of the file that is being read, or of the next one that can be; None if there is none."""
        while True:
            if self._file is None:
                if not self._queue:
                    return None
                file = self._queue.pop()
                rows = self._begin(file)
                if rows is None:
                    continue
                self._file, self._rows = file, rows
            file = self._file
            batch, self._left = self._left, None
            if batch is None:
                batch = next(self._rows, None)
            if batch is not None:
                return file, batch
            self._file = None
            if file.waits and file.kind is not None and file.kind.grows:
                self._queue.append(file)

    def _delivered(self, file: WatchedFile, batch: pa.RecordBatch, reads: dict[str, Read]) -> None:
        if file.quarantined:
            first, file_next = 0, 1
        else:
            numbers = batch.column("origin_position")
            first, file_next = numbers[0].as_py(), numbers[-1].as_py() + 1
            file.next, file.started = file_next, True
            state = Open(file.offset, file.line, file.next, file.whole, file.check)
            self._position.open[file.origin] = state
        before = reads.get(file.origin)
        records = batch.num_rows + (before.records if before else 0)
        reads[file.origin] = Read(file.origin, before.first if before else first, file_next, records)

    def _begin(self, file: WatchedFile) -> Rows | None:
        """Returns the rows that can be read of the file now; None if it has to wait."""
        age = self._clock() - file.since
        settled = not self._options.follow or age >= self._options.settle_seconds
        lost = settled and (not self._options.follow or age >= self._options.broken_seconds)
        tried = file.kind is None or file.broken is not None or not (settled or file.kind.grows)
        if file.looked and tried and not lost:
            return None
        file.looked = True
        try:
            if file.kind is None:
                file.kind = kind_of(file.path, file.size, self._options.format, final=lost)
            if file.kind is None:
                return None
            if (file.kind.format == "weblog") != (self._options.stream_format == "weblog"):
                return self._given_up(file, "foreign_format")
            if file.kind.grows and self._options.follow and not file.whole:
                return self._begin_lines(file, file.kind)
            return self._begin_whole(file, file.kind, settled, lost)
        except InputError as error:
            if not os.path.exists(file.path):
                if file.started:
                    raise removed(file.path) from error
                return None
            if isinstance(error, ChangedError) or file.started:
                raise
            file.broken = "unreadable_file"
            return self._given_up(file, file.broken) if lost else None

    def _begin_lines(self, file: WatchedFile, kind: Kind) -> Rows | None:
        if file.offset:
            require_unchanged(file)
            if not ends_line(file.path, file.offset):
                raise changed(file, "has become longer in the middle of its last line")
        if not file.line:
            if file.offset:
                file.line = lines_before(file.path, file.offset) + 1
                file.next = max(file.next, file.line)
            else:
                self._seek_record(file)
        lines = next_lines(file.path, file.offset, file.scanned, file.size)
        if lines.end == file.offset:
            file.scanned = lines.scanned
            return None
        file.scanned = 0
        return self._lines(file, kind, lines, tail_of(file.path, lines.end))

    def _seek_record(self, file: WatchedFile) -> None:
        """Finds the line at which another run left off."""
        file.offset, file.line = offset_of_line(file.path, file.next, file.size)
        if file.line < file.next:
            raise lacking(file, file.line - 1, file.next - 1)
        file.check = tail_of(file.path, file.offset)

    def _lines(self, file: WatchedFile, kind: Kind, lines: Lines, check: int) -> Rows:
        file.quarantined = False
        span = (file.offset, lines.end, file.line)
        # No size to compare: the file may grow while it is read.
        split = Split(0, file.path, file.origin, kind.format, kind.compression, *span, None)  # type: ignore[arg-type]
        yield from self._read(file, split)
        with contextlib.suppress(FileNotFoundError):
            if (size := os.stat(file.path).st_size) < lines.end:
                raise changed(file, f"has become shorter, {size} bytes")
        file.offset, file.line, file.check = lines.end, file.line + lines.ended, check
        file.next = max(file.next, file.line)
        file.started = True
        self._position.finish(file.key, Done(file.offset, file.check))
        self._position.grown(file.origin, Open(file.offset, file.line, file.next, 0, file.check))

    def _begin_whole(self, file: WatchedFile, kind: Kind, settled: bool, lost: bool) -> Rows | None:
        if file.whole:
            if file.size != file.whole:
                raise changed(file, f"has become longer, {file.size} bytes")
            require_unchanged(file)
        elif file.started:
            if not kind.grows:
                raise changed(file, f"has become longer, {file.size} bytes")
            require_unchanged(file)
            file.next = max(file.next, file.line or lines_before(file.path, file.offset) + 1)
        if not settled:
            return None
        if not lost and not is_complete(file.path, kind, file.size):
            file.broken = "unreadable_file"
            return None
        split = whole_split(file.path, file.origin, kind, file.size)
        file.whole, file.check = file.size, tail_of(file.path, file.size)
        return self._whole(file, kind, split, lost)

    def _whole(self, file: WatchedFile, kind: Kind, split: Split | None, lost: bool) -> Rows:
        try:
            if split is not None:
                file.quarantined = False
                yield from self._read(file, split)
        except ChangedError:
            raise
        except InputError as error:
            if file.started:
                raise changed(file, "has changed or vanished while it was read") from error
            file.whole, file.broken = 0, "unreadable_file"
            if lost:
                yield from self._given_up(file, file.broken) or ()
            return
        file.started = True
        self._finish(file, file.check)
        if kind.grows:
            file.whole = 0

    def _read(self, file: WatchedFile, split: Split) -> Rows:
        """Reads a split; records that were delivered before are left out."""
        begin, last = file.next, split.first_record - 1
        for block in self._blocks(split, self._ingest_time(file)):
            batch = _counted(file.origin, block)
            numbers = batch.column("origin_position")
            last = numbers[-1].as_py()
            if numbers[0].as_py() < begin:
                batch = batch.filter(pc.greater_equal(numbers, begin))
            if batch.num_rows:
                yield batch
        if last + 1 < begin and not file.line:
            raise lacking(file, last, begin - 1)

    def _blocks(self, split: Split, ingest_time: datetime) -> Iterator[Block]:
        options = self._options
        longest = options.max_record_bytes
        if split.format not in LINE_FORMATS:
            return read_split(
                split,
                ingest_time=ingest_time,
                mapping=options.mapping,
                schema=options.schema,
                max_record_bytes=longest,
            )
        size = (split.end - split.start) * (1 if split.compression == "plain" else 20)
        block_bytes = min(max(size + 1, _LEAST_BLOCK), READ_BYTES)  # many files are small
        blocks = read_lines(split, ingest_time=ingest_time, max_record_bytes=longest, block_bytes=block_bytes)
        return blocks if options.mapping is None else map(options.mapping.map_block, blocks)

    def _given_up(self, file: WatchedFile, fault: str) -> Rows | None:
        """Returns one row for a file that can't be read; nothing if it got one before."""
        if file.quarantined:
            self._finish(file, 0)
            return None
        return self._faulty(file, fault)

    def _faulty(self, file: WatchedFile, fault: str) -> Rows:
        """Its position is 0, so that the file's own records are not taken for read if it is mended."""
        file.quarantined = True
        raw = pa.array([head_of(file.path, FAULT_BYTES)], pa.binary())
        self._finish(file, 0)
        builder = BlockBuilder(file.origin, self._ingest_time(file))
        yield builder.build(raw, pa.array([0], pa.int64()), [fault])

    def _finish(self, file: WatchedFile, check: int) -> None:
        file.offset, file.check = file.size, check
        self._position.open.pop(file.origin, None)
        self._position.finish(file.key, Done(file.offset, check))

    def _ingest_time(self, file: WatchedFile) -> datetime:
        return self._options.ingest_time or _EPOCH + timedelta(microseconds=file.mtime_ns // 1000)


def _counted(origin: str, block: Block) -> pa.RecordBatch:
    if block.records != block.raw.num_rows:
        raise UntrustedRunError(
            f"{origin}: {block.records} records were counted, but {block.raw.num_rows} rows were made of them"
        )
    return block.raw
