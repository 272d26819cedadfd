"""Which files of the lake hold a day's events, and how they are cut into tasks."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.delta_commit import committed_files
from headrace.pipelines.nightly.local_days import LocalDay
from headrace.schemas.columns import TIME
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import as_type
from headrace.transforms.hashing import int64_values

EVENTS = "events"
PARTITION = "event_date"


@dataclass(frozen=True)
class LakeFile:
    """One file of the lake's table, with what its log says about event times: microseconds, both bounds included."""

    path: str
    """Relative to the table's folder."""
    size_bytes: int
    low_us: int
    high_us: int


@dataclass(frozen=True)
class Snapshot:
    """The lake's files at one version of its table."""

    root: str
    table_id: str
    version: int
    files: tuple[LakeFile, ...]
    """Sorted by path."""
    schema: pa.Schema
    """Columns of the table."""

    def overlapping(self, low_us: int, high_us: int) -> list[LakeFile]:
        """Returns the files that may hold events with ``low_us`` <= time < ``high_us``."""
        return [file for file in self.files if file.low_us < high_us and file.high_us >= low_us]


@dataclass(frozen=True)
class Piece:
    """Row groups ``first`` up to, not including, ``stop`` of a file; ``stop`` None: to its end."""

    path: str
    first: int
    stop: int | None


@dataclass(frozen=True)
class Split:
    """What one task reads."""

    index: int
    pieces: tuple[Piece, ...]


def read_snapshot(lake: str | os.PathLike[str]) -> Snapshot:
    """Reads the newest version of the lake's table of events.

    Raises:
        ConfigError: there is no Delta table, it has other partitions, or rows that are deleted without being rewritten.
    """
    root = Path(lake).absolute() / EVENTS
    if not DeltaTable.is_deltatable(os.fspath(root)):
        plain = root.is_dir() and any(root.rglob("*.parquet"))
        raise ConfigError(
            f"lake {lake}: {root} is "
            + (
                "a plain folder of Parquet files, which has no versions to tell late data by; write the lake with "
                "--lake-format delta"
                if plain
                else "no Delta table; name the --output of a finished `headrace run batch` or `run stream`"
            )
        )
    table = DeltaTable(os.fspath(root))
    partitions = table.metadata().partition_columns
    if partitions != [PARTITION]:
        raise ConfigError(
            f"lake {lake}: table {root} is partitioned by {partitions}, not by {PARTITION}; name a lake of headrace"
        )
    sizes = committed_files(root)
    actions = pa.table(table.get_add_actions(flatten=True))
    low, high = (_bounds(actions, name) for name in ("min", "max"))
    files = (
        LakeFile(path, sizes[path], *bounds)
        for path, *bounds in zip(actions.column("path").to_pylist(), low, high, strict=True)
    )
    ordered = tuple(sorted(files, key=lambda file: file.path))
    schema = pa.schema(table.schema().to_arrow())
    return Snapshot(os.fspath(root), str(table.metadata().id), table.version(), ordered, schema)


def digest_of(files: Sequence[LakeFile]) -> str:
    """Returns 32 hex characters of paths and sizes."""
    text = json.dumps([(file.path, file.size_bytes) for file in files])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def plan_splits(snapshot: Snapshot, files: Sequence[LakeFile], split_bytes: int) -> list[Split]:
    """Cuts files into tasks of about ``split_bytes``: small files together, large ones by row groups.

    Raises:
        InputError: a file is missing or no Parquet.
    """
    splits: list[Split] = []
    held: list[Piece] = []
    size = 0
    for piece, piece_bytes in _pieces(snapshot.root, files, split_bytes):
        if held and size + piece_bytes > split_bytes:
            splits.append(Split(len(splits), tuple(held)))
            held, size = [], 0
        held.append(piece)
        size += piece_bytes
    return [*splits, Split(len(splits), tuple(held))] if held else splits


def count_events(snapshot: Snapshot, files: Sequence[LakeFile], day: LocalDay) -> int:
    """Counts the day's rows of the lake, from its files and apart from the pipeline.

    Raises:
        InputError: a file is missing or no Parquet.
    """
    if not files:
        return 0
    time = ds.field("event_time")
    low, high = (pa.scalar(us, pa.int64()).cast(TIME) for us in (day.start_us, day.end_us))
    try:
        dataset = ds.dataset([os.path.join(snapshot.root, f.path) for f in files], format="parquet")
        return int(dataset.count_rows(filter=(time >= low) & (time < high)))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"lake {snapshot.root}: {error}; run `headrace doctor`, or restore the file"
        ) from error


def _pieces(root: str, files: Sequence[LakeFile], split_bytes: int) -> Iterator[tuple[Piece, int]]:
    for file in files:
        if file.size_bytes <= split_bytes:
            yield Piece(file.path, 0, None), file.size_bytes
            continue
        try:
            footer = pq.read_metadata(os.path.join(root, file.path))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"lake {root}: file {file.path} can't be read: {error}; restore it") from error
        first = size = 0
        for group in range(footer.num_row_groups):
            columns = footer.row_group(group)
            size += sum(columns.column(i).total_compressed_size for i in range(columns.num_columns))
            if size >= split_bytes or group == footer.num_row_groups - 1:
                yield Piece(file.path, first, group + 1), size
                first, size = group + 1, 0


def _bounds(actions: pa.Table, end: str) -> list[int]:
    """Returns the statistics of event_time; where a file has none, those of its partition."""
    dates = actions.column(f"partition.{PARTITION}").cast(pa.date32())
    days = int64_values(pc.fill_null(dates.combine_chunks(), date(1970, 1, 1)))
    whole = [int(d) * 86_400_000_000 + (86_400_000_000 - 1 if end == "max" else 0) for d in days]
    name = f"{end}.event_time"
    if name not in actions.column_names:
        return whole
    found = as_type(actions.column(name).combine_chunks(), TIME).cast(pa.int64()).to_pylist()
    return [whole[i] if us is None else us for i, us in enumerate(found)]
