"""The first half of a nightly run: the lake's events of a day, cut by shard of users, and what needs no user."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import TaggedOutput

from headrace.connectors.atomic_file import replace_file
from headrace.pipelines.nightly.cells import (
    GEO_COUNTS,
    GEO_KEYS,
    PRODUCT_COUNTS,
    PRODUCT_KEYS,
    geo_cells,
    product_cells,
    sum_cells,
)
from headrace.pipelines.nightly.local_days import LocalDay
from headrace.pipelines.nightly.nightly_config import USER
from headrace.pipelines.nightly.plan_day import Split
from headrace.pipelines.nightly.shard_files import ShardWriter
from headrace.runners.suggest import suggest
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError, InputError
from headrace.transforms.batches import as_type
from headrace.transforms.funnel_definitions import FunnelSteps
from headrace.transforms.hashing import int64_values, present
from headrace.transforms.session_definitions import READ

Message = tuple[int, tuple[str, int, int]]
Part = tuple[str, pa.RecordBatch]

COLUMNS = tuple(dict.fromkeys(["user_id", *READ, *GEO_KEYS, "product_id", "category", "quantity"]))
"""Columns of the lake that every run reads; those that funnels name come on top."""
FEW = ("event_type", "device_type", "country", "region", "currency", "category")
"""Columns of few distinct values, which stay dictionary-encoded in the stage."""
_READ_ROWS = 1 << 16


@dataclass(frozen=True)
class DayTask:
    """What every worker needs to know about a run of one date."""

    lake: str
    """Folder of the lake's table."""
    work: str
    """Folder for the stage, receipts and tables that are not committed yet."""
    warehouse: str
    name: str
    """Stem of the files' names."""
    day: LocalDay
    gap: timedelta
    shards: int
    funnels: dict[str, FunnelSteps]
    columns: pa.Schema
    """What is read of the lake, see :func:`stage_schema`."""
    known: tuple[tuple[int, str], ...]
    """Files of ``user_first_seen`` of earlier dates: days since 1970, path relative to the warehouse."""
    compression: str


def receipt_path(work: str, kind: str, number: int) -> Path:
    """Returns where a task says what it did."""
    return Path(work) / "receipts" / f"{kind}-{number:06d}.json"


class ReadDayFn(beam.DoFn):
    """(split) → main: (shard, reference to a piece of the stage); ``parts``: (table, cells).

    The stage file of a split holds the day's rows that have a user, and those of the gap before. A retried bundle writes the same
    files again. The split's receipt says how many of the day's rows it read, and how many of them have no user.
    """

    def __init__(self, task: DayTask) -> None:
        self._task = task

    def process(self, split: Split) -> Iterator[Message | TaggedOutput[Literal["parts"], Part]]:
        task = self._task
        day = task.day
        low = day.start_us - task.gap // timedelta(microseconds=1)
        stage = ShardWriter(Path(task.work) / "stage" / f"{split.index:06d}.arrow", task.shards)
        geo: list[pa.Table] = []
        products: list[pa.Table] = []
        rows = keyless = 0
        try:
            for batch in read_rows(task.lake, split, task.columns, low, day.end_us):
                of_day = int64_values(batch.column("event_time")) >= day.start_us
                with_user = present(batch.column("user_id"))
                rows += int(of_day.sum())
                keyless += int((of_day & ~with_user).sum())
                mine = batch if of_day.all() else batch.filter(pa.array(of_day))
                geo.append(geo_cells(mine))
                products.append(product_cells(mine))
                stage.write(batch if with_user.all() else batch.filter(pa.array(with_user)))
        except BaseException:
            stage.discard()
            raise
        for shard, reference in stage.close():
            yield shard, tuple(reference)
        if rows:
            for name, tables, keys, counts in (
                ("cube_geo", geo, GEO_KEYS, GEO_COUNTS),
                ("product_daily", products, PRODUCT_KEYS, PRODUCT_COUNTS),
            ):
                yield TaggedOutput(
                    "parts", (name, one_batch(sum_cells(pa.concat_tables(tables), keys, counts)))
                )
        receipt = {"rows": rows, "without_user": keyless}
        replace_file(receipt_path(task.work, "split", split.index), json.dumps(receipt).encode())


def read_rows(
    root: str, split: Split, columns: pa.Schema, low_us: int, high_us: int
) -> Iterator[pa.RecordBatch]:
    """Yields the rows with ``low_us`` <= ``event_time`` < ``high_us``; row groups that can have none are not read.

    Columns that a file lacks are null, as in the table.

    Args:
        root: the table's folder.
        columns: names and types of what is read.

    Raises:
        InputError: a file is missing or damaged.
    """
    for piece in split.pieces:
        path = os.path.join(root, piece.path)
        try:
            with pq.ParquetFile(path, read_dictionary=list(FEW)) as file:
                have = [n for n in columns.names if n in file.schema_arrow.names]
                stop = file.num_row_groups if piece.stop is None else piece.stop
                groups = [g for g in range(piece.first, stop) if _overlaps(file, g, low_us, high_us)]
                for batch in file.iter_batches(
                    _READ_ROWS, row_groups=groups, columns=have, use_threads=False
                ):
                    batch = _declared(batch, columns)
                    times = int64_values(batch.column("event_time"))
                    chosen = (times >= low_us) & (times < high_us) & present(batch.column("event_time"))
                    batch = batch if chosen.all() else batch.filter(pa.array(chosen))
                    if batch.num_rows:
                        yield batch
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"lake {root}: file {piece.path} can't be read: {error}; restore it, then run the same command again"
            ) from error


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Returns a table as one batch."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _overlaps(file: pq.ParquetFile, group: int, low_us: int, high_us: int) -> bool:
    footer = file.metadata.row_group(group)
    for index in range(footer.num_columns):
        column = footer.column(index)
        if column.path_in_schema == "event_time":
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max:
                return True
            low, high = (
                pa.scalar(t).cast(pa.timestamp("us", "UTC")).value for t in (statistics.min, statistics.max)
            )
            return bool(low < high_us and high >= low_us)
    return True


def _declared(batch: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in columns:
        at = batch.schema.get_field_index(field.name)
        found = pa.nulls(batch.num_rows, field.type) if at < 0 else as_type(batch.column(at), field.type)
        arrays.append(found)
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def stage_schema(lake: pa.Schema, funnels: Iterable[FunnelSteps]) -> pa.Schema:
    """Returns the columns that a run reads: those of few values dictionary-encoded, all others plain.

    Raises:
        ConfigError: a funnel names a column that the lake lacks.
    """
    wanted = [name for funnel in funnels for name in funnel.columns() if name != USER]
    fields = []
    for name in dict.fromkeys([*COLUMNS, *wanted]):
        if name in ENRICHED_SCHEMA.names:
            type_ = ENRICHED_SCHEMA.field(name).type
        elif name in lake.names:
            type_ = lake.field(name).type
        else:
            raise ConfigError(f"funnels: the lake has no column {name!r}; {suggest(name, lake.names)}")
        if pa.types.is_dictionary(type_) and name not in FEW:
            type_ = type_.value_type
        fields.append(pa.field(name, type_))
    return pa.schema(fields)
