"""The second half of a nightly run: a shard's users to the files of their tables, and cells to the files of the summed-up ones."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.write_lake import PartitionedWriter, WrittenFile
from headrace.pipelines.nightly.cells import cohorts, cube_geo, product_daily
from headrace.pipelines.nightly.read_day_fn import DayTask, Part, one_batch, receipt_path
from headrace.pipelines.nightly.shard_files import Reference, read_pieces
from headrace.pipelines.nightly.user_day import as_table, user_day
from headrace.schemas.columns import TIME
from headrace.schemas.errors import InputError
from headrace.transforms.batches import concat
from headrace.transforms.funnel import funnel_summary
from headrace.transforms.funnel_definitions import FunnelSteps
from headrace.transforms.group_by_user import joined

EPOCH = date(1970, 1, 1)
FUNNEL = "funnel_daily:"
"""Before a funnel's number in the key of its outcomes."""
SHARD_FILE = "-s{:04d}"
"""End of the stem of a file that holds the users of one shard only."""
_OF_A_SHARD = re.compile(r"-s\d{4}\.parquet$")


class FinishUsersFn(beam.DoFn):
    """(shard, references to its pieces) → (table, cells) and (:data:`FUNNEL` and number, outcomes).

    Writes the shard's files of ``user_sessions``, ``user_daily_metrics`` and ``user_first_seen``, then its receipt. All events of a
    shard on the day are in memory at once. A retried bundle writes the same files again.
    """

    def __init__(self, task: DayTask) -> None:
        self._task = task

    def process(self, element: tuple[int, Iterable[tuple[str, int, int]]]) -> Iterator[Part]:
        shard, task = element[0], self._task
        pieces = [Reference(*reference) for reference in element[1]]
        rows = concat(list(read_pieces(pieces)))
        found = user_day(rows, task.day, task.gap, task.funnels, _known(task, shard))
        del rows
        files = {
            name: write_table(task, name, batch, SHARD_FILE.format(shard))
            for name, batch in found.rows.items()
        }
        write_receipt(task.work, "shard", shard, files, events=found.events)
        for name, table in found.cells.items():
            if table.num_rows:
                yield name, one_batch(table)
        for number, outcomes in enumerate(found.outcomes.values()):
            if outcomes.num_rows:
                yield f"{FUNNEL}{number}", outcomes


class WriteSummaryFn(beam.DoFn):
    """(table, or :data:`FUNNEL` and number; what splits and shards add to it) → the key, once its file is written."""

    def __init__(self, task: DayTask) -> None:
        self._task = task

    def process(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        key, parts = element
        write_summary(self._task, key, list(parts))
        yield key


def summary_keys(task: DayTask) -> list[str]:
    """Returns all keys of :class:`WriteSummaryFn`; its receipts are numbered in this order."""
    return ["cube_geo", "product_daily", "cohorts", *(f"{FUNNEL}{i}" for i in range(len(task.funnels)))]


def write_summary(task: DayTask, key: str, parts: Sequence[pa.RecordBatch]) -> None:
    """Writes one of the files that are summed up over all shards, and its receipt. Without parts only funnels have rows."""
    table, _, number = key.partition(":")
    days = (task.day.date - EPOCH).days
    columns: dict[str, object] = {}
    rows = 0
    if number:
        name, funnel = list(task.funnels.items())[int(number)]
        summary = funnel_summary(joined(parts) if parts else _nobody(funnel), funnel)
        rows = summary.num_rows
        columns = {"funnel": [name] * rows, **dict(zip(summary.column_names, summary.columns, strict=True))}
    elif parts:
        cells = [pa.Table.from_batches([part]) for part in parts]
        summed = (
            cube_geo(cells)
            if key == "cube_geo"
            else product_daily(cells)
            if key == "product_daily"
            else cohorts(cells, days)
        )
        rows = summed.num_rows
        columns = dict(zip(summed.column_names, summed.columns, strict=True))
    suffix = f"-f{int(number):02d}" if number else ""
    files = write_table(task, table, as_table(table, columns, days, rows), suffix) if rows else []
    write_receipt(task.work, "summary", summary_keys(task).index(key), {table: files})


def write_table(task: DayTask, table: str, rows: pa.RecordBatch, suffix: str) -> list[WrittenFile]:
    """Writes rows of a table below the run's work folder; no file if there are none."""
    root = Path(task.work) / "tables" / table
    writer = PartitionedWriter(
        root, partition="date", name=f"{task.name}{suffix}", compression=task.compression
    )
    writer.write(rows)
    return writer.close()


def write_receipt(
    work: str, kind: str, number: int, files: dict[str, list[WrittenFile]], **counts: int
) -> None:
    """Says which files a task has written: all of them are complete."""
    receipt = {"files": {name: [asdict(f) for f in each] for name, each in files.items()}, **counts}
    replace_file(receipt_path(work, kind, number), json.dumps(receipt).encode())


def _known(task: DayTask, shard: int) -> Iterator[tuple[int, pa.Array]]:
    """Reads the users first seen on earlier dates, of this shard as far as the files' names tell."""
    mine = SHARD_FILE.format(shard) + ".parquet"
    for day, path in task.known:
        if _OF_A_SHARD.search(path) and not path.endswith(mine):
            continue
        try:
            table = pq.read_table(
                os.path.join(task.warehouse, path), columns=["user_id"], partitioning=None, use_threads=False
            )
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"warehouse {task.warehouse}: file {path} can't be read: {error}; restore it, or run its date again"
            ) from error
        for ids in table.column("user_id").chunks:
            yield day, ids


def _nobody(funnel: FunnelSteps) -> pa.RecordBatch:
    times = pa.struct([pa.field(name, TIME) for name in funnel.names])
    return pa.RecordBatch.from_arrays(
        [pa.array([], pa.int32()), pa.array([], times)], names=["level", "times"]
    )
