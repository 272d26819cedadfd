"""What of an archive a backfill reads: files, their row groups, and why some of them are left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from headrace.connectors.archive_files import ArchiveFile
from headrace.connectors.json_rows import paths_of
from headrace.connectors.splits import Split
from headrace.schemas.errors import InputError
from headrace.schemas.registry import Registry

ONE_DAY = timedelta(days=1)
_READ_BYTES = 4 << 20
Range = tuple[date, date]
"""First and last date, both included."""


@dataclass(frozen=True)
class RowGroup:
    """One row group, by its file's footer."""

    rows: int
    size_bytes: int
    first_row: int
    """Number of its first row in the file, from 1."""
    happened: Range | None
    """Dates between which every event time lies; None if the footer does not say."""
    arrived: Range | None
    """Dates between which every row arrived; None if neither folder nor footer says."""
    empty: tuple[str, ...]
    """Columns without any value in it."""

    def may_hold(self, first: date, last: date) -> bool:
        """Whether a row may count to one of the dates, by its event time or, where that can't be read, by its arrival."""
        return any(
            known is None or (known[0] <= last and known[1] >= first)
            for known in (self.happened, self.arrived)
        )


@dataclass(frozen=True)
class PlannedFile:
    """A file that was opened for planning."""

    file: ArchiveFile
    columns: tuple[str, ...]
    ingest_column: str | None
    """The column with each row's ingest time, if the file has it."""
    groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True)
class ArchiveSplit:
    """Row groups of one file that one worker reads."""

    split: Split
    groups: tuple[int, ...]
    """Those that are read, ascending."""
    ingest_time: datetime
    """Of rows that state none: the end of the folder's date, or the reference time."""
    ingest_column: str | None
    reach: Range | None
    """The dates that rows of this file may count to; None: any."""
    skip: dict[int, tuple[str, ...]]
    """Columns without any value, by row group."""
    rows: int
    size_bytes: int
    """Of the row groups that are read, by the footer, as ``rows``."""


def open_file(
    file: ArchiveFile, ingest_column: str | None, event_times: Sequence[str] | None = None
) -> PlannedFile:
    """Reads a file's footer.

    Args:
        event_times: columns that hold event times, by their paths; None: those of all families.

    Raises:
        InputError: it can't be read, its columns can't be made into a document, or its ingest times are no times.
    """
    try:
        with pq.ParquetFile(file.path) as parquet:
            meta, schema = parquet.metadata, parquet.schema_arrow
            paths_of(schema.names, file.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file.path} is no readable Parquet file: its footer is damaged, encrypted or cut off; fetch it again, or leave it "
            f"out with --exclude '{file.origin}'"
        ) from error
    if ingest_column is not None and ingest_column not in schema.names:
        ingest_column = None
    if ingest_column is not None and not pa.types.is_timestamp(schema.field(ingest_column).type):
        raise InputError(
            f"{file.path}: column {ingest_column} is {schema.field(ingest_column).type}, and ingest times are timestamps; name "
            "another column with --ingest-column, or none with --ingest-column ''"
        )
    times = _time_paths() if event_times is None else event_times
    groups, row = [], 1
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        groups.append(_group(group, row, file.date, ingest_column, schema, times))
        row += group.num_rows
    return PlannedFile(file, tuple(schema.names), ingest_column, tuple(groups))


def splits_of(
    planned: PlannedFile,
    index: int,
    dates: Range,
    reach: Range | None,
    now: datetime | None,
    split_bytes: int,
) -> Iterator[ArchiveSplit]:
    """Cuts a file at row groups into splits of about ``split_bytes``, and yields those that may hold rows of the dates.

    Where a file is cut does not depend on the dates.

    Args:
        index: number of the first split.
        dates: the job's.
        reach: the dates that rows of the file may count to; None: any.
        now: ingest time of rows that nothing else says it of.
    """
    start, size = 0, 0
    for number, group in enumerate(planned.groups):
        size += group.size_bytes
        if size < split_bytes and number < len(planned.groups) - 1:
            continue
        kept = tuple(
            n
            for n in range(start, number + 1)
            if planned.groups[n].rows and planned.groups[n].may_hold(*dates)
        )
        if kept:
            file = planned.file
            first = planned.groups[start].first_row
            split = Split(
                index, file.path, file.origin, "parquet", "plain", start, number + 1, first, file.size_bytes
            )
            read = [planned.groups[n] for n in kept]
            yield ArchiveSplit(
                split,
                kept,
                arrival_of(planned, now),
                planned.ingest_column,
                reach,
                {n: planned.groups[n].empty for n in kept if planned.groups[n].empty},
                sum(group.rows for group in read),
                sum(group.size_bytes for group in read),
            )
            index += 1
        start, size = number + 1, 0


def arrival_of(planned: PlannedFile, now: datetime | None) -> datetime:
    """Returns the ingest time of rows that state none.

    The last microsecond of the folder's date; without one the reference time; without that the end of the newest date that other
    rows state.
    """
    day = planned.file.date
    if day is None and now is not None:
        return now
    if day is None:
        day = max((group.arrived[1] for group in planned.groups if group.arrived), default=date(1970, 1, 1))
    return datetime.combine(day, datetime.max.time(), UTC)


def checksum_of(file: ArchiveFile) -> str:
    """Returns xxh3_128 of the file's bytes, in hex.

    Raises:
        InputError: it can't be read.
    """
    digest = xxhash.xxh3_128()
    try:
        with open(file.path, "rb", buffering=0) as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"{file.path} can't be read: {error.strerror}; check its permissions") from error
    return digest.hexdigest()


def _group(
    group: pq.RowGroupMetaData,
    first_row: int,
    folder: date | None,
    ingest_column: str | None,
    schema: pa.Schema,
    times: Sequence[str],
) -> RowGroup:
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    ranges: list[Range] = []
    certain = False
    for path in times:
        chunk = chunks.get(path)
        if (
            chunk is not None
            and chunk.statistics is not None
            and chunk.statistics.null_count == group.num_rows
        ):
            continue
        if chunk is None:
            continue
        found = _range(chunk)
        if found is None:
            ranges, certain = [], False
            break
        ranges.append(found)
        certain = True
    happened = (min(low for low, _ in ranges), max(high for _, high in ranges)) if certain else None
    arrived = None if folder is None else (folder, folder)
    if ingest_column is not None:
        chunk = chunks[ingest_column]
        stated = _range(chunk)
        nulls = chunk.statistics.null_count if chunk.statistics is not None else None
        if stated is None or nulls is None:
            arrived = None
        elif nulls and arrived is not None:
            arrived = (min(arrived[0], stated[0]), max(arrived[1], stated[1]))
        else:
            arrived = None if nulls else stated
    empty = tuple(
        name
        for name in schema.names
        if name in chunks
        and not pa.types.is_nested(schema.field(name).type)
        and chunks[name].statistics is not None
        and chunks[name].statistics.null_count == group.num_rows
    )
    size = sum(chunk.total_compressed_size for chunk in chunks.values())
    return RowGroup(group.num_rows, size, first_row, happened, arrived, empty)


def _time_paths() -> Sequence[str]:
    """Places of the event time in the documents of all families."""
    registry = Registry.default()
    names = (f"{name}:{version}" for name in registry.names() for version in registry.versions(name))
    fields = (registry.get(name).column("event_time") for name in names)
    return sorted({".".join(field.path) for field in fields if field is not None})


def _range(chunk: pq.ColumnChunkMetaData) -> Range | None:
    """Returns the UTC dates of a time column's minimum and maximum; None if the footer does not say."""
    found = chunk.statistics
    if (
        found is None
        or not found.has_min_max
        or not isinstance(found.min, datetime)
        or not isinstance(found.max, datetime)
    ):
        return None
    return _utc_date(found.min), _utc_date(found.max)


def _utc_date(time: datetime) -> date:
    return time.date() if time.tzinfo is None else time.astimezone(UTC).date()
